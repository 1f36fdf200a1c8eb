"""Audit events that wait for the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("said", sa.Text, nullable=False),
        sa.UniqueConstraint("uid", name="uq_outbox_uid"),
    )
