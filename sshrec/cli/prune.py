"""`sshrec prune`: removes the recordings that were kept for long enough, and says in the audit log which."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click

from sshrec.audit.event import new_uid
from sshrec.cli.keeping import Teller, telling, told
from sshrec.cli.ls import size
from sshrec.cli.main import Settings
from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.errors import DataError
from sshrec.session import printable
from sshrec.size import Size
from sshrec.storage import holds, removal
from sshrec.storage.holds import Hold, Holds, exclusive
from sshrec.storage.local import Store
from sshrec.storage.retention import Keep, Policy, due

SCHEMA = 1
FINISHED = "told before, and not done"


def _parsed(kind: type[Duration] | type[Size]) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """For an option: its value as the configuration would take it."""

    def convert(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else kind.parse(value)
        except ValueError as error:
            raise click.BadParameter(printable(str(error))) from error

    return convert


@dataclass(slots=True)
class Pruned:
    """What was done, or would be."""

    removed: list[dict[str, Any]] = field(default_factory=list)
    kept: list[dict[str, Any]] = field(default_factory=list)


@click.command("prune")
@click.option(
    "--older-than", callback=_parsed(Duration), metavar="TIME", help="Remove those begun longer ago: 90d, 1y."
)
@click.option(
    "--max-size", callback=_parsed(Size), metavar="SIZE", help="Remove the oldest until all take no more."
)
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_obj
def command(
    settings: Settings, older_than: Duration | None, max_size: Size | None, dry_run: bool, as_json: bool
) -> None:
    """Remove old recordings.

    What is removed, retention in sshrec.yaml says, or the options do. Never one that is live, unfinished or on
    hold (see: sshrec hold); the oldest goes first. Each is in the audit log before it is gone: where that
    cannot be written, nothing is removed.
    """
    config = settings.config
    policy = Policy(older_than or config.retention.age, max_size or config.retention.size)
    if policy == Policy() and not as_json:
        click.echo("sshrec: neither retention in sshrec.yaml nor an option limits what is kept", err=True)
    pruned = Pruned()
    try:
        if dry_run:
            _rehearse(config, policy, pruned)
        elif config.recordings_dir.exists():
            # Another one at the same time would count what this one removes.
            with telling(config) as teller, exclusive(config.data_dir / "prune.lock", 0):
                _finish(config, pruned)
                _prune(config, policy, teller, pruned)
    finally:
        _say(pruned, dry_run=dry_run, as_json=as_json)


def _why_kept(store: Store, held: tuple[Hold, ...], session: str) -> str | None:
    """Why the policy may not have a finished recording, or what is left of one that never was."""
    if store.remnant(session):
        users = [hold for hold in held if hold.kind == "user"]  # whose it was to be, nothing tells
        hold = holds.over(held, session, None) or next(iter(users), None)
        return str(hold) if hold else None
    path = store.finished(session) or store.packed(session)
    try:
        user = removal.facts(path).user
    except DataError as error:
        hold = holds.over(held, session, None)
        return str(hold or f"damaged: {str(error).removeprefix(f'{path}: ')}")
    hold = holds.over(held, session, user)
    return str(hold) if hold else None


def _rehearse(config: Config, policy: Policy, pruned: Pruned) -> None:
    store, held = Store(config.recordings_dir), Holds(config.data_dir).read()
    for found in due(removal.stored(store), policy, _now(), lambda session: _why_kept(store, held, session)):
        told_of = {"id": found.stored.session, "bytes": found.stored.bytes, "reason": found.reason}
        (pruned.kept if isinstance(found, Keep) else pruned.removed).append(told_of)


def _prune(config: Config, policy: Policy, teller: Teller, pruned: Pruned) -> None:
    store, kept = Store(config.recordings_dir), Holds(config.data_dir)
    remover = _remover(config)

    def remove(session: str, reason: str) -> None:
        uid = new_uid()
        remover.remove(session, uid, lambda said: teller.tell("recording.delete", {**said, "reason": reason}, uid))

    # The lock is had for each recording anew: who places a hold is not kept waiting by a thousand removals.
    decisions = due(removal.stored(store), policy, _now(), lambda session: _why_kept(store, kept.read(), session))
    while True:
        with kept.locked():
            found = next(decisions, None)
            if found is None:
                return
            told_of = {"id": found.stored.session, "bytes": found.stored.bytes, "reason": found.reason}
            if isinstance(found, Keep):
                pruned.kept.append(told_of)
            else:
                remove(found.stored.session, found.reason)
                pruned.removed.append(told_of)


def _finish(config: Config, pruned: Pruned) -> None:
    """Remove what the log says was removed, where whoever did it died before it was."""
    store, kept, remover = Store(config.recordings_dir), Holds(config.data_dir), _remover(config)
    with kept.locked():
        session = remover.interrupted(lambda uid: told(config.audit_dir, uid))
        if session is None:
            return
        # Where the recording itself is gone, and what lay beside it not, it is too late to hold anything.
        gone = not (store.finished(session) or store.remnant(session))
        hold = None if gone else _why_kept(store, kept.read(), session)
        told_of = {"id": session, "bytes": sum(path.stat().st_blocks * 512 for path in remover.files(session))}
        if hold is not None:
            pruned.kept.append({**told_of, "reason": hold})
        else:
            remover.finish(session)
            pruned.removed.append({**told_of, "reason": FINISHED})


def _remover(config: Config) -> removal.Removal:
    return removal.Removal(Store(config.recordings_dir), config.data_dir / "removal.json")


def _now() -> int:
    return time.time_ns() // 1_000_000


def _say(pruned: Pruned, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        document = {"schema": SCHEMA, "dry_run": dry_run, "removed": pruned.removed, "kept": pruned.kept}
        click.echo(json.dumps(document, indent=2, ensure_ascii=True))
        return
    word = "would remove" if dry_run else "removed"
    for gone in pruned.removed:
        click.echo(f"{word}  {gone['id']}  {size(gone['bytes'])}  {gone['reason']}")
    for stays in pruned.kept:
        click.echo(f"{'kept':<{len(word)}}  {stays['id']}  {size(stays['bytes'])}  {printable(stays['reason'])}")
