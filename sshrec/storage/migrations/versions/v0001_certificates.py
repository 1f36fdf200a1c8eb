"""The ledger of certificates, and the authorities that sign them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_KIND = "kind IN ('user', 'host', 'gateway')"


def upgrade() -> None:
    op.create_table(
        "certificates",
        sa.Column("serial", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("principals", sa.Text, nullable=False),
        sa.Column("valid_after", sa.BigInteger, nullable=False),
        sa.Column("valid_before", sa.BigInteger, nullable=False),
        sa.Column("key_fingerprint", sa.Text, nullable=False),
        sa.Column("ca_fingerprint", sa.Text, nullable=False),
        sa.Column("critical_options", sa.Text, nullable=False),
        sa.Column("extensions", sa.Text, nullable=False),
        sa.Column("asked_by", sa.Text, nullable=False),
        sa.Column("asked_from", sa.Text, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("withdrawn", sa.Text),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("revoked_by", sa.Text),
        sa.Column("revoke_reason", sa.Text),
        sa.CheckConstraint("serial > 0", name="ck_certificates_serial"),
        sa.CheckConstraint(_KIND, name="ck_certificates_kind"),
        sa.CheckConstraint("valid_after < valid_before", name="ck_certificates_validity"),
    )
    for column in ("key_id", "ca_fingerprint", "valid_before", "made_ms"):
        op.create_index(f"ix_certificates_{column}", "certificates", [column])

    op.create_table(
        "revoked_key_ids",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("revoked_ms", sa.BigInteger, nullable=False),
        sa.Column("revoked_by", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("lifted_ms", sa.BigInteger),
        sa.Column("lifted_by", sa.Text),
        sa.CheckConstraint(_KIND, name="ck_revoked_key_ids_kind"),
    )
    _unique_where("uq_revoked_key_ids_unlifted", "revoked_key_ids", ["kind", "key_id"], "lifted_ms IS NULL")

    op.create_table(
        "authorities",
        sa.Column("fingerprint", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("public_key", sa.Text, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("current_ms", sa.BigInteger),
        sa.Column("old_ms", sa.BigInteger),
        sa.Column("retires_at", sa.BigInteger),
        sa.Column("retired_ms", sa.BigInteger),
        sa.Column("file", sa.Text),
        sa.CheckConstraint(_KIND, name="ck_authorities_kind"),
        sa.CheckConstraint("phase IN ('next', 'current', 'old', 'retired')", name="ck_authorities_phase"),
    )
    _unique_where("uq_authorities_next", "authorities", ["kind"], "phase = 'next'")
    _unique_where("uq_authorities_current", "authorities", ["kind"], "phase = 'current'")

    op.create_table(
        "counters",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
    )


def _unique_where(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(
        name, table, columns, unique=True, sqlite_where=sa.text(where), postgresql_where=sa.text(where)
    )
