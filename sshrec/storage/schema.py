"""The tables of the database, one definition for SQLite and PostgreSQL. Knows no engine and no rows.

A change here is a new file in migrations/versions and a new HEAD in database.py; tests compare the three.
Times end in `_ms` (Unix milliseconds) or are Unix seconds, as certificates have them.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, MetaData, Table, Text, text

metadata = MetaData()

KINDS = ("user", "host", "gateway")
PHASES = ("next", "current", "old", "retired")

_KIND = "kind IN ('user', 'host', 'gateway')"

# One row for each certificate, from before it is signed.
certificates = Table(
    "certificates",
    metadata,
    Column("serial", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("principals", Text, nullable=False),  # JSON: a list of strings
    Column("valid_after", BigInteger, nullable=False),
    Column("valid_before", BigInteger, nullable=False),
    Column("key_fingerprint", Text, nullable=False),
    Column("ca_fingerprint", Text, nullable=False),
    Column("critical_options", Text, nullable=False),  # JSON: an object of strings
    Column("extensions", Text, nullable=False),  # JSON: a list of strings
    Column("asked_by", Text, nullable=False),
    Column("asked_from", Text, nullable=False),
    Column("made_ms", BigInteger, nullable=False),
    Column("withdrawn", Text),  # why it was never handed out
    Column("revoked_ms", BigInteger),
    Column("revoked_by", Text),
    Column("revoke_reason", Text),
    CheckConstraint("serial > 0", name="ck_certificates_serial"),
    CheckConstraint(_KIND, name="ck_certificates_kind"),
    CheckConstraint("valid_after < valid_before", name="ck_certificates_validity"),
    Index("ix_certificates_key_id", "key_id"),
    Index("ix_certificates_ca_fingerprint", "ca_fingerprint"),
    Index("ix_certificates_valid_before", "valid_before"),
    Index("ix_certificates_made_ms", "made_ms"),
)

# Key ids that get no certificate, with those that were lifted again.
revoked_key_ids = Table(
    "revoked_key_ids",
    metadata,
    # SQLite counts by itself only what is declared INTEGER.
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("revoked_ms", BigInteger, nullable=False),
    Column("revoked_by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("lifted_ms", BigInteger),
    Column("lifted_by", Text),
    CheckConstraint(_KIND, name="ck_revoked_key_ids_kind"),
    Index(
        "uq_revoked_key_ids_unlifted",
        "kind",
        "key_id",
        unique=True,
        sqlite_where=text("lifted_ms IS NULL"),
        postgresql_where=text("lifted_ms IS NULL"),
    ),
)

# The CAs' public keys.
authorities = Table(
    "authorities",
    metadata,
    Column("fingerprint", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("public_key", Text, nullable=False),
    Column("phase", Text, nullable=False),
    Column("made_ms", BigInteger, nullable=False),
    Column("current_ms", BigInteger),
    Column("old_ms", BigInteger),
    Column("retires_at", BigInteger),  # seconds: when an old one stops being exported
    Column("retired_ms", BigInteger),
    Column("file", Text),  # the private key's name; null: in an agent or a token
    CheckConstraint(_KIND, name="ck_authorities_kind"),
    CheckConstraint("phase IN ('next', 'current', 'old', 'retired')", name="ck_authorities_phase"),
    Index(
        "uq_authorities_next",
        "kind",
        unique=True,
        sqlite_where=text("phase = 'next'"),
        postgresql_where=text("phase = 'next'"),
    ),
    Index(
        "uq_authorities_current",
        "kind",
        unique=True,
        sqlite_where=text("phase = 'current'"),
        postgresql_where=text("phase = 'current'"),
    ),
)

# Numbers that only grow.
counters = Table(
    "counters",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
