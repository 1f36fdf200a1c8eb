"""How alembic runs a migration: on the connection, and in the transaction, that database.py holds already.

A new version is written by hand, after the newest file in versions/: its revision is the next number, in four
digits, for database.py compares them as text.
"""

from __future__ import annotations

from alembic import context

from sshrec.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite alters a table by copying it
)
context.run_migrations()
