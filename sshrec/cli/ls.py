"""`sshrec ls`: the recordings of the store, newest first, as a table or as JSON."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sshrec.cli import table
from sshrec.cli.main import Settings, colour
from sshrec.cli.table import Cell
from sshrec.errors import SshrecError
from sshrec.recording import reader
from sshrec.recording.asciicast import rfc3339
from sshrec.recording.reader import Summary
from sshrec.session import printable, started
from sshrec.storage.local import Store

SCHEMA = 1

_HEADINGS = ("ID", "START", "DURATION", "USER", "TARGET", "KIND", "STATUS", "SIZE", "COMMAND")
_RIGHT = frozenset({"DURATION", "SIZE"})
_FACTS = ("user", "login", "host", "port", "target", "kind", "terminal", "client", "rule", "key_id", "serial")
_PIPE_WIDTH = 200
GREEN, RED = "32", "31"


@dataclass(frozen=True, slots=True)
class Row:
    """One recording of the list.

    `state`: `finished`, `live`, `unfinished` (its worker is gone) or `unreadable`, and then `error` says why.
    """

    session: str
    path: Path
    state: str
    summary: Summary | None
    error: str | None = None


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def command(settings: Settings, as_json: bool) -> None:
    """List recordings, newest first.

    STATUS is the exit status of the session, or why it ended, or that it is live, unfinished (its worker
    died, and recovery has not closed it yet) or unreadable.
    """
    store = Store(settings.config.recordings_dir)
    rows = [row(store, session, path) for session, path in reversed(list(store))]
    if as_json:
        document = {"schema": SCHEMA, "recordings": [as_object(row) for row in rows]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        cells = [_cells(row) for row in rows]
        for line in table.lines(_HEADINGS, cells, width, right=_RIGHT, coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo(f"no recordings in {store.root} yet", err=True)


def row(store: Store, session: str, path: Path) -> Row:
    """What the list says of one recording; one that cannot be read is a row that says so."""
    try:
        try:
            summary = reader.summary(path)
        except SshrecError:
            # It may have been packed since its name was read; where it was not, this fails the same way.
            path = store.current(session)
            summary = reader.summary(path)
    except SshrecError as error:
        return Row(session, path, "unreadable", None, str(error))
    if summary.end is not None:
        return Row(session, path, "finished", summary)
    return Row(session, path, "live" if store.alive(session) else "unfinished", summary)


def as_object(row: Row) -> dict[str, Any]:
    """A row as JSON has it: names as in the recording's header, times in UTC, durations in seconds."""
    shown: dict[str, Any] = {"id": row.session, "start": rfc3339(started(row.session))}
    shown |= {"state": row.state, "path": str(row.path)}
    if row.summary is None:
        return {**shown, "error": row.error}
    facts, end = row.summary.header.facts, row.summary.end or {}
    shown |= {"duration": round(row.summary.duration, 6), "bytes": row.summary.bytes}
    shown |= {name: facts[name] for name in _FACTS if name in facts}
    shown |= {"command": row.summary.header.command}
    shown |= {name: end[name] for name in ("status", "signal", "reason", "detail") if name in end}
    return shown


def _cells(row: Row) -> tuple[str | Cell, ...]:
    start = datetime.fromtimestamp(started(row.session) / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if row.summary is None:
        error = (row.error or "").removeprefix(f"{row.path}: ")
        return (row.session, start, "", "", "", "", Cell(row.state, RED), "", f"({printable(error)})")
    facts = row.summary.header.facts
    return (
        row.session,
        start,
        duration(row.summary.duration),
        _fact(facts, "user", 32),
        _fact(facts, "target", 48),
        _fact(facts, "kind", 8),
        _status(row),
        size(row.summary.bytes),
        printable(row.summary.header.command or ""),
    )


def _fact(facts: Mapping[str, Any], name: str, limit: int) -> str:
    value = facts.get(name)
    return printable(str(value), limit) if value is not None else "-"


def _status(row: Row) -> Cell:
    end = row.summary.end if row.summary else None
    if end is None:
        return Cell(row.state, GREEN if row.state == "live" else RED)
    reason, status, signal = end.get("reason"), end.get("status"), end.get("signal")
    if reason == "exit" and isinstance(status, int):
        return Cell(printable(str(signal), 16) if signal else str(status))
    return Cell(printable(str(reason), 24), RED)


def duration(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def size(number: float) -> str:
    """Bytes in the unit that leaves three figures or four."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" or number >= 9.95 else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"
