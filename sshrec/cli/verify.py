"""`sshrec verify`: which recordings are what was sealed, as lines for people or as JSON, and as an exit status."""

from __future__ import annotations

import ctypes
import fcntl
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from itertools import chain
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import click

from sshrec.audit.verify import Report
from sshrec.audit.weigh import absent, gone, heads_wanted, weigh
from sshrec.cli.identity import identity_option
from sshrec.cli.ls import GREEN, RED, size
from sshrec.cli.main import Settings, colour
from sshrec.cli.verify_log import evidence
from sshrec.duration import Duration
from sshrec.errors import NotFound, SshrecError, UsageError
from sshrec.recording.identity import Identities
from sshrec.recording.verification import NO_IDENTITIES, Gap, Problem, State, Verdict, verify_path
from sshrec.session import SESSION_ID, printable, started
from sshrec.storage import facts
from sshrec.storage.local import Store

SCHEMA = 1
EXIT_BAD, EXIT_INCOMPLETE = 1, 3

_YELLOW = "33"
_PAINT = {State.COMPLETE: GREEN, State.INCOMPLETE: _YELLOW, State.BAD: RED, State.DELETED: _YELLOW}
_OPEN = frozenset({"empty", "torn", "unfinished"})  # what a live recording looks like, too
_PATIENCE = 1.0  # seconds, before there is a progress bar
_REFRESH = 0.1
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True, slots=True)
class Task:
    """One recording to verify. `root`: of the store where it was found by its id, None for a file.

    `heads`: at which numbers of seals the audit log knows the chain.
    """

    name: str
    path: Path
    root: Path | None = None
    heads: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it. `torn`: a line that was cut off is kept beside it."""

    name: str
    path: Path
    verdict: Verdict
    torn: bool


_PATH = click.Path(path_type=Path)


@click.command("verify")
@click.argument("recordings", nargs=-1, metavar="[FILE|ID]...")
@click.option("-a", "--all", "everything", is_flag=True, help="Verify every recording of the store.")
@click.option("--since", metavar="TIME", help="Verify those begun since then: 7d, 2026-11-23, or RFC 3339.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1, 1024), metavar="N", help="Use N processes.  [default: all CPUs]"
)
@click.option("--log", metavar="DIR", type=_PATH, help="Hold them against this audit log, not this host's.")
@click.option("--no-log", is_flag=True, help="Hold them against no audit log.")
@click.option("--allowed-signers", "signers", metavar="FILE", type=_PATH, help="Who may have signed the log.")
@click.option(
    "--anchor", "anchors", metavar="FILE", type=_PATH, multiple=True, help="Lines of it, kept elsewhere."
)
@identity_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of lines.")
@click.pass_obj
def command(
    settings: Settings,
    recordings: tuple[str, ...],
    everything: bool,
    since: str | None,
    jobs: int | None,
    log: Path | None,
    no_log: bool,
    signers: Path | None,
    anchors: tuple[Path, ...],
    identities: Identities,
    as_json: bool,
) -> int:
    """Prove that recordings are what was sealed, and what the audit log has of them.

    \b
    COMPLETE    from its header to its end it is what was sealed
    INCOMPLETE  so is what is there, but it is live, or has no proper end
    BAD         it was changed, or is none of ours, or is missing; with the place
    DELETED     it is not there, and the audit log has its removal

    The log is INCOMPLETE where it was not signed for a minute, or the clock was set back.

    The status is 0 where all are COMPLETE, 1 where any is BAD, else 3; 66 where there is no such recording.
    """
    if bool(recordings) == (everything or since is not None):
        raise UsageError("name recordings, or say --all or --since", hint="see: sshrec verify --help")
    store = Store(settings.config.recordings_dir) if everything or since else None
    since_ms = _since(since) if since else 0
    lost: dict[str, NotFound] = {}
    if store is not None:
        tasks = _stored(store, since_ms)
        if not tasks:
            click.echo(
                f"no recordings in {store.root}" + (f" since {printable(since)}" if since else " yet"), err=True
            )
    else:
        tasks, lost = _all_named(settings, recordings)
    asked = bool(log or signers or anchors)
    # A file from anywhere is held against a log only where one is named.
    found, since_s = None, 0.0
    if not no_log and (asked or all(task.root for task in tasks)):
        found = evidence(settings, log, signers, anchors, needed=asked)
    if found is not None:
        known = found.report.sessions
        tasks = [replace(task, heads=heads_wanted(known.get(_session(task)))) for task in tasks]
        since_s = (since_ms if store is not None else _first(tasks)) / 1000
        if not as_json:
            for line in found.lines(since_s):
                click.echo(line, err=not line.startswith(("BAD", "INCOMPLETE")))
    for session, error in lost.items():
        if found is None or session not in found.report.sessions:
            raise error
    if any(task.path.suffix == facts.ENCRYPTED for task in tasks):
        _ = identities.keys  # so that a passphrase is asked for once, and not by each process
    progress = Progress(tasks)
    states: Counter[State] = Counter()
    document = []
    results = _verified(tasks, jobs or len(os.sched_getaffinity(0)), progress, identities)
    if found is not None:
        results = _weighed(results, found.report, since_ms if store is not None else None)
        results = chain(results, (_not_there(gone(session, known[session])) for session in lost))
    for result in results:
        states[result.verdict.state] += 1
        progress.clear()
        if as_json:
            document.append(as_object(result))
        else:
            click.echo(_line(result))
    progress.clear()
    if as_json:
        shown = {"schema": SCHEMA, "recordings": document} | ({"log": found.as_object(since_s)} if found else {})
        click.echo(json.dumps(shown, indent=2, ensure_ascii=True))
    if len(tasks) > 1:
        told = [state for state in State if state is not State.DELETED or states[state]]
        counts = ", ".join(f"{states[state]} {state.value.lower()}" for state in told)
        click.echo(f"{states.total()} recordings: {counts}", err=True)
    bad = states[State.BAD] or (found is not None and not found.report.good)
    incomplete = states[State.INCOMPLETE] or (found is not None and found.lapses(since_s))
    return EXIT_BAD if bad else EXIT_INCOMPLETE if incomplete else 0


def _first(tasks: Sequence[Task]) -> float:
    """When the first of these sessions began, Unix milliseconds; 0 where a name does not tell."""
    names = [_session(task) for task in tasks]
    known = all(SESSION_ID.fullmatch(name) for name in names)
    return min(map(started, names), default=0) if known else 0


def _session(task: Task) -> str:
    """The session that a task's name says it is."""
    return task.path.name.partition(".")[0]


def _weighed(results: Iterator[Result], report: Report, since_ms: float | None) -> Iterator[Result]:
    """The results with the log's word on them; behind them, of a whole store, those that are missing."""
    there = set()
    for result in results:
        session = result.verdict.session or result.name
        there.add(session)
        yield replace(result, verdict=weigh(result.verdict, report))
    if since_ms is not None:
        for verdict in absent(report, frozenset(there), since_ms):
            yield _not_there(verdict)


def _not_there(verdict: Verdict) -> Result:
    """The result on a recording that only the log knows."""
    session = str(verdict.session)
    return Result(session, Path(session), verdict, False)


def _all_named(settings: Settings, names: Sequence[str]) -> tuple[list[Task], dict[str, NotFound]]:
    """The recordings of these names; and of sessions that have none here, why not: the log may know more."""
    tasks, lost = [], {}
    for name in names:
        try:
            tasks.append(_named(settings, name))
        except NotFound as error:
            if not SESSION_ID.fullmatch(name):
                raise
            lost[name] = error
    return tasks, lost


def _named(settings: Settings, name: str) -> Task:
    path = Path(name)
    if path.exists():
        return Task(name, path)
    if "/" in name:
        raise NotFound(f"{name}: no such file")
    store = Store(settings.config.recordings_dir)
    path = store.find(name)
    return Task(path.name.partition(".")[0], path, store.root)


def _stored(store: Store, since_ms: float) -> list[Task]:
    found = dict(store)
    if store.root.is_dir():
        # Of a session whose worker died before its header was written, this is all there is.
        for path in store.root.glob("*/*.torn"):
            if SESSION_ID.fullmatch(path.stem):
                found.setdefault(path.stem, path)
    return [Task(session, found[session], store.root) for session in sorted(found) if started(session) >= since_ms]


def _since(text: str) -> float:
    """Unix milliseconds of a time that a person wrote, or of so long ago; UsageError where it is neither."""
    try:
        return (time.time() - Duration.parse(text)) * 1000
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text).timestamp() * 1000
    except (ValueError, OverflowError, OSError) as error:
        hint = "such as 7d, 12h, 2026-11-23, or 2026-11-23T09:20:00Z"
        raise UsageError(f"--since {printable(text)!r} is no time", hint=hint) from error


def _verified(tasks: Sequence[Task], jobs: int, progress: Progress, identities: Identities) -> Iterator[Result]:
    """The results in the order of the tasks, by so many processes at once."""
    jobs = min(jobs, len(tasks))
    if jobs < 2:
        for task in tasks:
            yield check(task, progress.add, identities)
        return
    context = multiprocessing.get_context(
        "fork"
    )  # while there are no threads; it is quick, and shares what is imported
    counter = context.Value("Q", 0)
    finished = False
    pool = ProcessPoolExecutor(jobs, context, _begin, (counter, os.getpid(), identities))
    try:
        futures = [pool.submit(_work, task) for task in tasks]
        for future in futures:
            while True:
                try:
                    result = future.result(_REFRESH)
                    break
                except NotYet:
                    progress.show(counter.value)
            yield result
        finished = True
    except BrokenProcessPool as error:
        raise SshrecError("a process that verified was killed", hint="for want of memory? see: dmesg") from error
    finally:
        # A pool that nobody waits for races with the interpreter's end, which then complains of a closed pipe.
        pool.shutdown(wait=finished, cancel_futures=True)


_read: Synchronized[int]  # bytes, by all processes; set in each of them
_identities: Identities


def _begin(counter: Synchronized[int], parent: int, identities: Identities) -> None:
    global _read, _identities  # a process's initializer has no other way to hand something to its work
    _read, _identities = counter, identities
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # else it waits for work for ever
    if os.getppid() != parent:
        os._exit(1)


def _count(number: int) -> None:
    with _read.get_lock():
        _read.value += number


def _work(task: Task) -> Result:
    return check(task, _count, _identities)


def check(
    task: Task, progress: Callable[[int], object] | None = None, identities: Identities = NO_IDENTITIES
) -> Result:
    """Verify one recording, which may live, end, be packed or be encrypted meanwhile."""
    path = task.path
    session = task.name if task.root else None
    try:
        verdict = _verify(task, path, session, progress, identities)
        if verdict.gap and verdict.gap.why in _OPEN:
            # Where nobody writes to it now, it may just have ended.
            live = _locked(path)
            verdict = replace(verdict, gap=Gap("live")) if live else _verify(task, path, session, None, identities)
    except NotFound as error:
        if task.root is None:
            raise
        try:
            path = Store(task.root).current(task.name)  # packed or encrypted, since its name was read
            verdict = _verify(task, path, session, progress, identities)
        except NotFound:
            verdict = Verdict(State.BAD, session, problem=Problem(f"it is gone: {error}", 0, 0, 0.0))
    stem = path.name.partition(".")[0]
    torn = [path.with_name(stem + suffix) for suffix in (".torn", ".torn.age")]
    return Result(task.name, path, verdict, path not in torn and any(beside.exists() for beside in torn))


def _verify(
    task: Task,
    path: Path,
    session: str | None,
    progress: Callable[[int], object] | None,
    identities: Identities,
) -> Verdict:
    verdict = verify_path(path, session, heads=task.heads, progress=progress, identities=identities)
    if verdict.file is None:
        return verdict
    digest = facts.digest(facts.path_of(path))
    if not digest and task.root is None:
        return verdict  # whoever has a file by itself need not have that
    return replace(verdict, file=replace(verdict.file, facts=digest))


def _locked(path: Path) -> bool:
    """Whether somebody writes to a recording: its worker holds the lock."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def as_object(result: Result) -> dict[str, Any]:
    """A result as JSON has it; offsets and sizes in bytes of text, times in seconds."""
    verdict = result.verdict
    shown: dict[str, Any] = {"id": verdict.session, "path": str(result.path), "state": verdict.state.value}
    if verdict.problem is not None:
        shown["problem"] = asdict(verdict.problem)
    if verdict.gap is not None:
        shown["incomplete"] = asdict(verdict.gap)
    if verdict.file is not None:
        file = verdict.file
        shown["encrypted"] = {name: getattr(file, name) for name in ("bytes", "sha256", "sealed", "opened")}
    shown |= {"seals": verdict.seals, "head": verdict.head, "sealed": verdict.sealed, "unsealed": verdict.unsealed}
    if verdict.outcome is not None:
        shown["end"] = {name: value for name, value in asdict(verdict.outcome).items() if value is not None}
    return {**shown, "torn": result.torn}


def _line(result: Result) -> str:
    verdict = result.verdict
    state = f"{verdict.state.value:<10}"
    if colour(sys.stdout):
        state = f"\x1b[{_PAINT[verdict.state]}m{state}\x1b[0m"
    said = str(verdict.problem or verdict.gap or "")
    if verdict.file is not None and verdict.file.sealed and not verdict.file.opened:
        said += ("; " if said else "") + "encrypted: the file is the one that was sealed, and was not opened"
    if result.torn:
        said += ("; " if said else "") + "a torn line is kept beside it"
    return f"{state}  {printable(result.name)}  {said}".rstrip()


class Progress:
    """How far it is, on standard error, if that is a terminal and it takes long."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._shown = sys.stderr.isatty()
        self._total = sum(_size(task.path) for task in tasks) if self._shown else 0
        self._began = self._last = time.monotonic()
        self._done = 0
        self._there = False

    def add(self, number: int) -> None:
        """So many bytes more were read."""
        self._done += number
        self.show(self._done)

    def show(self, done: int) -> None:
        """So many bytes were read."""
        now = time.monotonic()
        if not self._shown or now - self._began < _PATIENCE or now - self._last < _REFRESH:
            return
        self._last, self._there = now, True
        share = min(100, 100 * done // max(1, self._total))
        bar = "#" * (share // 4)
        rate = size(done / (now - self._began))
        sys.stderr.write(f"\r[{bar:<25}] {share:3} %  {size(done)} of {size(self._total)}, {rate}/s\x1b[K")
        sys.stderr.flush()

    def clear(self) -> None:
        """Make room for a line."""
        if self._there:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._there = False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
