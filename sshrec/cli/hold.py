"""`sshrec hold`: which recordings nothing may remove, by session or by user; who placed that, and why."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click

from sshrec.cli import table
from sshrec.cli.keeping import telling
from sshrec.cli.main import Settings, colour
from sshrec.config import Config
from sshrec.errors import NotFound, UsageError
from sshrec.recording.asciicast import rfc3339
from sshrec.session import printable
from sshrec.storage.holds import Hold, Holds, Kind
from sshrec.storage.local import Store

SCHEMA = 1
NAME_MAX, REASON_MAX = 64, 500

_HEADINGS = ("KIND", "HELD", "SINCE", "BY", "REASON")
_PIPE_WIDTH = 200


@click.command("hold")
@click.argument("session", required=False)
@click.option("--user", metavar="NAME", help="Instead of one session: all of this user's, those to come too.")
@click.option("--reason", metavar="TEXT", help="Why; shown wherever the hold is.")
@click.option("--release", is_flag=True, help="End the hold.")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON.")
@click.pass_obj
def command(
    settings: Settings, session: str | None, user: str | None, reason: str | None, release: bool, as_json: bool
) -> None:
    """Keep recordings from being removed.

    SESSION is the id of a session or its beginning. Neither a session nor a user: list the holds. Placing one
    and ending it is in the audit log.
    """
    config = settings.config
    if session is None and user is None:
        if reason is not None or release:
            raise UsageError("name a session, or a user with --user", hint="see: sshrec hold --help")
        _list(Holds(config.data_dir).read(), as_json=as_json)
        return
    if session is not None and user is not None:
        raise UsageError("a session or a user, not both")
    if as_json:
        raise UsageError("--json is for the list of holds")
    for text, limit in ((user, NAME_MAX), (reason, REASON_MAX)):
        if text is not None and (not text.strip() or len(text) > limit or not text.isprintable()):
            raise UsageError(f"{printable(text, 40)!r} is not one line of 1 to {limit} characters")
    with telling(config) as teller:
        kept = Holds(config.data_dir)
        with kept.locked():
            holds = kept.read()
            kind: Kind = "session" if session is not None else "user"
            name = user if session is None else _session(config, holds, session, release=release)
            assert name is not None
            others = tuple(hold for hold in holds if (hold.kind, hold.name) != (kind, name))
            said = {"sid": name} if kind == "session" else {"held_user": name}
            if reason is not None:
                said["reason"] = reason
            # Whatever fails on the way, the recordings stay.
            if release:
                if others == holds:
                    raise NotFound(f"{printable(name)} is not on hold", hint="see: sshrec hold")
                teller.tell("recording.hold", {**said, "action": "release"})
                kept.write(others)
            else:
                hold = Hold(kind=kind, name=name, by=teller.user, since=int(time.time()), reason=reason)
                kept.write((*others, hold))
                teller.tell("recording.hold", {**said, "action": "place"})


def _session(config: Config, holds: tuple[Hold, ...], beginning: str, *, release: bool) -> str:
    """The session that was meant: of those on hold, where one is released, for its recording may be gone."""
    if release:
        found = [h.name for h in holds if h.kind == "session" and h.name.startswith(beginning.upper())]
        if len(found) == 1:
            return found[0]
    return Store(config.recordings_dir).find(beginning).name.partition(".")[0]


def _list(holds: tuple[Hold, ...], *, as_json: bool) -> None:
    if as_json:
        shown = [{**asdict(hold), "since": rfc3339(hold.since * 1000)} for hold in holds]
        click.echo(json.dumps({"schema": SCHEMA, "holds": shown}, indent=2, ensure_ascii=True))
    elif holds:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        rows: list[tuple[Any, ...]] = [
            (
                hold.kind,
                printable(hold.name),
                datetime.fromtimestamp(hold.since, UTC).astimezone().strftime("%Y-%m-%d %H:%M"),
                printable(hold.by, 40),
                printable(hold.reason or ""),
            )
            for hold in holds
        ]
        for line in table.lines(_HEADINGS, rows, width, right=frozenset(), coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo("no recording is on hold", err=True)
