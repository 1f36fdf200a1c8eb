"""The tables of the database, one definition for SQLite and PostgreSQL. Knows no engine and no rows.

A change here is a new file in migrations/versions and a new HEAD in database.py; tests compare the three.
Times end in `_ms` (Unix milliseconds) or are Unix seconds, as certificates have them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

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

# Audit events that the audit log does not have yet, in the order in which they are to get there.
outbox = Table(
    "outbox",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("uid", Text, nullable=False),  # the event's: who gets it twice knows it by that
    Column("said", Text, nullable=False),  # JSON: what the log's writer is sent
    UniqueConstraint("uid", name="uq_outbox_uid"),
)


def _owner() -> Column[str]:
    """Whose row it is: what a user has goes with the user."""
    return Column("user_name", Text, ForeignKey("users.name", ondelete="CASCADE"), nullable=False)


# People's accounts.
users = Table(
    "users",
    metadata,
    Column("name", Text, primary_key=True),
    Column("logins", Text, nullable=False),  # JSON: a list of strings
    Column("status", Text, nullable=False),  # invited: nobody has finished the registration (again)
    Column("made_ms", BigInteger, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("password", Text),  # argon2id, as a PHC string
    Column("password_ms", BigInteger),
    Column("login_ms", BigInteger),
    CheckConstraint("status IN ('invited', 'active')", name="ck_users_status"),
)

# Second factors.
factors = Table(
    "factors",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    _owner(),
    Column("kind", Text, nullable=False),
    Column("label", Text, nullable=False),  # what its owner calls it
    Column("seed", Text),  # of totp, sealed
    Column("last_step", BigInteger),  # of totp: what was used, and all before it, counts no more
    Column("data", Text, nullable=False),  # JSON: an object; of webauthn credential id, public key, sign count
    Column("added_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
    CheckConstraint("kind IN ('totp', 'webauthn')", name="ck_factors_kind"),
    CheckConstraint("kind != 'totp' OR (seed IS NOT NULL AND last_step IS NOT NULL)", name="ck_factors_totp"),
    Index("ix_factors_user_name", "user_name"),
)

# Invitations: one that was used stays, to tell it from one that never was.
invitations = Table(
    "invitations",
    metadata,
    Column("hash", Text, primary_key=True),
    _owner(),
    Column("purpose", Text, nullable=False),
    Column("made_ms", BigInteger, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("used_ms", BigInteger),
    CheckConstraint("purpose IN ('registration', 'reset')", name="ck_invitations_purpose"),
    Index("ix_invitations_user_name", "user_name"),
)

# What opens an account once each when the second factor is lost.
recovery_codes = Table(
    "recovery_codes",
    metadata,
    Column("user_name", Text, ForeignKey("users.name", ondelete="CASCADE"), primary_key=True),
    Column("hash", Text, primary_key=True),
    Column("used_ms", BigInteger),
)

# When a user's second factor was shown last, from where.
factor_checks = Table(
    "factor_checks",
    metadata,
    Column("user_name", Text, ForeignKey("users.name", ondelete="CASCADE"), primary_key=True),
    Column("source", Text, primary_key=True),
    Column("session", Text),
    Column("at_ms", BigInteger, nullable=False),
)

# Who failed how often: of names that are no user's, too.
attempts = Table(
    "attempts",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("failures", Text, nullable=False),  # JSON: a list of Unix milliseconds
    Column("until_ms", BigInteger, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
    CheckConstraint("kind IN ('account', 'source')", name="ck_attempts_kind"),
    Index("ix_attempts_seen_ms", "seen_ms"),
)

# What is locked, with the locks that were lifted.
locks = Table(
    "locks",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("made_ms", BigInteger, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("until_ms", BigInteger),  # null: until it is lifted
    Column("lifted_ms", BigInteger),
    Column("lifted_by", Text),
    CheckConstraint("kind IN ('user', 'login', 'node', 'session')", name="ck_locks_kind"),
    Index(
        "uq_locks_unlifted",
        "kind",
        "name",
        unique=True,
        sqlite_where=text("lifted_ms IS NULL"),
        postgresql_where=text("lifted_ms IS NULL"),
    ),
)
