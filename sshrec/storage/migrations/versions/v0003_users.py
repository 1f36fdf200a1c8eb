"""People: accounts, second factors, invitations; who fails too often, and what is locked."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("logins", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("password", sa.Text),
        sa.Column("password_ms", sa.BigInteger),
        sa.Column("login_ms", sa.BigInteger),
        sa.CheckConstraint("status IN ('invited', 'active')", name="ck_users_status"),
    )

    op.create_table(
        "factors",
        sa.Column("id", _number(), primary_key=True),
        _owner(),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("seed", sa.Text),
        sa.Column("last_step", sa.BigInteger),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("added_ms", sa.BigInteger, nullable=False),
        sa.Column("used_ms", sa.BigInteger),
        sa.CheckConstraint("kind IN ('totp', 'webauthn')", name="ck_factors_kind"),
        sa.CheckConstraint(
            "kind != 'totp' OR (seed IS NOT NULL AND last_step IS NOT NULL)", name="ck_factors_totp"
        ),
    )
    op.create_index("ix_factors_user_name", "factors", ["user_name"])

    op.create_table(
        "invitations",
        sa.Column("hash", sa.Text, primary_key=True),
        _owner(),
        sa.Column("purpose", sa.Text, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("used_ms", sa.BigInteger),
        sa.CheckConstraint("purpose IN ('registration', 'reset')", name="ck_invitations_purpose"),
    )
    op.create_index("ix_invitations_user_name", "invitations", ["user_name"])

    op.create_table(
        "recovery_codes",
        _owner(primary_key=True),
        sa.Column("hash", sa.Text, primary_key=True),
        sa.Column("used_ms", sa.BigInteger),
    )

    op.create_table(
        "factor_checks",
        _owner(primary_key=True),
        sa.Column("source", sa.Text, primary_key=True),
        sa.Column("session", sa.Text),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )

    op.create_table(
        "attempts",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("failures", sa.Text, nullable=False),
        sa.Column("until_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
        sa.CheckConstraint("kind IN ('account', 'source')", name="ck_attempts_kind"),
    )
    op.create_index("ix_attempts_seen_ms", "attempts", ["seen_ms"])

    op.create_table(
        "locks",
        sa.Column("id", _number(), primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("made_by", sa.Text, nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("lifted_ms", sa.BigInteger),
        sa.Column("lifted_by", sa.Text),
        sa.CheckConstraint("kind IN ('user', 'login', 'node', 'session')", name="ck_locks_kind"),
    )
    where = sa.text("lifted_ms IS NULL")
    op.create_index(
        "uq_locks_unlifted", "locks", ["kind", "name"], unique=True, sqlite_where=where, postgresql_where=where
    )


def _number() -> sa.types.TypeEngine[int]:
    """SQLite counts by itself only what is declared INTEGER."""
    return sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _owner(*, primary_key: bool = False) -> sa.Column[str]:
    owner = sa.ForeignKey("users.name", ondelete="CASCADE")
    return sa.Column("user_name", sa.Text, owner, primary_key=primary_key, nullable=False)
