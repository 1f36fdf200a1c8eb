"""`sshrec who` and `sshrec kill`: the sessions that live, as their workers tell."""

from __future__ import annotations

import json
import shutil
import sys
import time
from typing import Any

import click

from sshrec.cli import table
from sshrec.cli.ls import GREEN, RED, SCHEMA, duration, size, unrecorded
from sshrec.cli.main import Settings, colour
from sshrec.errors import Denied, SshrecError, Unreachable
from sshrec.gateway import control
from sshrec.privileges import caller
from sshrec.session import printable, started

_HEADINGS = ("ID", "SINCE", "USER", "FROM", "TARGET", "KIND", "STATE", "SIZE", "PID")
_PIPE_WIDTH = 200


@click.command("who")
@click.option("--all", "each", is_flag=True, help="Transparent connections, too, besides their sessions.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.pass_obj
def who(settings: Settings, each: bool, as_json: bool) -> None:
    """List the sessions that live, oldest first.

    Root and sshrec's own user may ask. A session whose worker does not answer is listed as such.
    """
    run_dir = settings.config.run_dir
    sessions = [_status(settings, session) for session in control.live(run_dir)]
    sessions = [one for one in sessions if each or one.get("state") != "connection"]
    if as_json:
        click.echo(json.dumps({"schema": SCHEMA, "sessions": sessions}, indent=2, ensure_ascii=True))
    elif sessions:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _PIPE_WIDTH
        rows = [_cells(session) for session in sessions]
        for line in table.lines(_HEADINGS, rows, width, right=("SINCE", "SIZE"), coloured=colour(sys.stdout)):
            click.echo(line)
    else:
        click.echo("nobody is here", err=True)


@click.command("kill")
@click.argument("session", metavar="ID")
@click.pass_obj
def kill(settings: Settings, session: str) -> None:
    """End a live session, by its id or an unambiguous beginning of it.

    The person is told that an administrator ended it; the recording says who. With a transparent connection
    all its sessions end.
    """
    run_dir = settings.config.run_dir
    found = control.find(run_dir, session)
    control.ask(run_dir, found, f"kill {caller()}".encode())
    click.echo(f"ended {found}")


def _status(settings: Settings, session: str) -> dict[str, Any]:
    try:
        return control.status(settings.config.run_dir, session)
    except Denied:
        raise
    except (Unreachable, SshrecError) as error:
        return {"session": session, "state": "not answering", "error": str(error)}


def _cells(status: dict[str, Any]) -> list[str | table.Cell]:
    def fact(name: str, limit: int) -> str:
        return printable(str(status.get(name, "-")), limit)

    session = status["session"]
    state = fact("state", 16)
    if state == "live" and "unrecorded" in status:
        state = unrecorded(status["unrecorded"])
    return [
        printable(session),
        duration(time.time() - started(session) / 1000),
        fact("user", 32),
        fact("client", 48).partition(" ")[0],
        fact("target", 48),
        fact("kind", 8),
        table.Cell(state, GREEN if state == "live" else RED),
        size(status.get("bytes", 0)),
        fact("pid", 10),
    ]
