"""`sshrec ls`: the recordings of the store, newest first, as a table or as JSON."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sshrec.cli import table
from sshrec.cli.bursts import Burst, Span, grouped
from sshrec.cli.main import Settings, colour
from sshrec.cli.table import Cell
from sshrec.errors import SshrecError
from sshrec.gateway import control
from sshrec.recording.asciicast import rfc3339
from sshrec.recording.reader import Summary
from sshrec.session import printable, started
from sshrec.storage.facts import ENCRYPTED, summary
from sshrec.storage.local import Store

SCHEMA = 1

_HEADINGS = ("ID", "START", "DURATION", "USER", "TARGET", "KIND", "STATUS", "SIZE", "COMMAND")
_RIGHT = frozenset({"DURATION", "SIZE"})
_FACTS = (
    *("user", "login", "host", "port", "target", "kind", "terminal", "client", "connection"),
    *("rule", "key_id", "serial"),
)
_PIPE_WIDTH = 200
GREEN, RED = "32", "31"


@dataclass(frozen=True, slots=True)
class Row:
    """One recording of the list.

    `state`: `finished`, `live`, `unfinished` (its worker is gone) or `unreadable`, and then `error` says why.
    `unrecorded`: since when the session goes on, or went on, without being recorded.
    """

    session: str
    path: Path
    state: str
    summary: Summary | None
    error: str | None = None
    unrecorded: object = None


@click.command("ls")
@click.option("--user", metavar="NAME", help="Only the recordings of this user.")
@click.option("--all", "each", is_flag=True, help="Each session of a robot's, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def command(settings: Settings, user: str | None, each: bool, as_json: bool) -> None:
    """List recordings, newest first.

    What somebody does without a terminal in one go, three sessions or more with hardly a minute between them
    (ansible, a script), is one line with their number.

    STATUS is the exit status of the session, or why it ended, or that it is live, unfinished (its worker
    died, and recovery has not closed it yet), unreadable, or not recorded to its end.
    """
    store = Store(settings.config.recordings_dir)
    rows = [row(store, session, path) for session, path in reversed(list(store))]
    rows = [_asked(settings, one) if one.state == "live" else one for one in rows]
    if user is not None:
        rows = [one for one in rows if one.summary is not None and one.summary.header.facts.get("user") == user]
    if as_json:
        document = {"schema": SCHEMA, "recordings": [as_object(row) for row in rows]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
    elif rows:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        shown: list[Row | Burst[Row]] = [*rows] if each else grouped(rows, _span)
        cells = [_burst_cells(one.items) if isinstance(one, Burst) else _cells(one) for one in shown]
        for line in table.lines(_HEADINGS, cells, width, right=_RIGHT, coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo(
            f"no recordings {f'in {store.root}' if user is None else f'of {printable(user)}'} yet", err=True
        )


def row(store: Store, session: str, path: Path) -> Row:
    """What the list says of one recording; one that cannot be read is a row that says so."""
    try:
        try:
            found = summary(path)
        except SshrecError:
            # It may have been packed or encrypted since its name was read; where not, this fails the same way.
            path = store.current(session)
            found = summary(path)
    except SshrecError as error:
        return Row(session, path, "unreadable", None, str(error))
    if found.end is not None:
        return Row(session, path, "finished", found, unrecorded=found.end.get("unrecorded"))
    return Row(session, path, "live" if store.alive(session) else "unfinished", found)


def as_object(row: Row) -> dict[str, Any]:
    """A row as JSON has it: names as in the recording's header, times in UTC, durations in seconds."""
    shown: dict[str, Any] = {"id": row.session, "start": rfc3339(started(row.session))}
    shown |= {"state": row.state, "encrypted": row.path.suffix == ENCRYPTED, "path": str(row.path)}
    if row.summary is None:
        return {**shown, "error": row.error}
    facts, end = row.summary.header.facts, row.summary.end or {}
    shown |= {"duration": round(row.summary.duration, 6), "bytes": row.summary.bytes}
    shown |= {name: facts[name] for name in _FACTS if name in facts}
    shown |= {"command": row.summary.header.command}
    shown |= {name: end[name] for name in ("status", "signal", "reason", "detail") if name in end}
    return shown | ({"unrecorded": row.unrecorded} if row.unrecorded is not None else {})


def _asked(settings: Settings, row: Row) -> Row:
    """A live session, as its worker tells of it to whoever may ask."""
    with contextlib.suppress(SshrecError):
        return replace(row, unrecorded=control.status(settings.config.run_dir, row.session).get("unrecorded"))
    return row


def _span(row: Row) -> Span | None:
    """Of a session without a terminal that is over, as it should be."""
    if row.state != "finished" or row.summary is None or row.unrecorded is not None:
        return None
    facts = row.summary.header.facts
    if facts.get("terminal") is not False:
        return None
    start = started(row.session) / 1000
    source = str(facts.get("client")).partition(" ")[0]
    return Span((facts.get("user"), source), start, start + row.summary.duration)


def _burst_cells(rows: Sequence[Row]) -> tuple[str | Cell, ...]:
    spans = [span for span in map(_span, rows) if span is not None]
    targets = sorted({_fact(row.summary.header.facts, "target", 48) for row in rows if row.summary})
    kinds = sorted({_fact(row.summary.header.facts, "kind", 8) for row in rows if row.summary})
    failed = sum(_status(row).text != "0" for row in rows)
    first = rows[-1].summary
    return (
        rows[0].session,
        _start(rows[-1]),
        duration(max(span.end for span in spans) - spans[-1].start),
        _fact(first.header.facts, "user", 32) if first else "-",
        targets[0] if len(targets) == 1 else f"{len(targets)} targets",
        kinds[0] if len(kinds) == 1 else "-",
        Cell(f"{failed} failed", RED) if failed else Cell("0"),
        size(sum(row.summary.bytes for row in rows if row.summary)),
        f"{len(rows)} sessions without a terminal",
    )


def _start(row: Row) -> str:
    return datetime.fromtimestamp(started(row.session) / 1000, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _cells(row: Row) -> tuple[str | Cell, ...]:
    start = _start(row)
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
    if row.unrecorded is not None:
        return Cell(unrecorded(row.unrecorded), RED)
    if end is None:
        return Cell(row.state, GREEN if row.state == "live" else RED)
    reason, status, signal = end.get("reason"), end.get("status"), end.get("signal")
    if reason == "exit" and isinstance(status, int):
        return Cell(printable(str(signal), 16) if signal else str(status))
    return Cell(printable(str(reason), 24), RED)


def unrecorded(since: object) -> str:
    """What a list says of a session that is not recorded to its end; `since`: RFC 3339, or whatever was found."""
    try:
        moment = datetime.fromisoformat(str(since)).astimezone().strftime("%H:%M:%S")
    except (ValueError, OverflowError):
        moment = printable(str(since), 16)
    return f"unrecorded since {moment}"


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
