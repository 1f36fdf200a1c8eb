"""`sshrec play`: a recording, by path, from a pipe or from the store, on the terminal or into a pipe."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import click

from sshrec.audit.client import Sender, tell
from sshrec.cli.identity import identity_option
from sshrec.cli.main import Settings, colour
from sshrec.errors import SshrecError, UsageError
from sshrec.playback import player
from sshrec.playback.filter import Filter
from sshrec.playback.timeline import limit_idle
from sshrec.privileges import caller
from sshrec.recording import reader
from sshrec.recording.identity import Identities
from sshrec.recording.reader import Recording
from sshrec.recording.verification import Problem, verify_path
from sshrec.session import SESSION_ID
from sshrec.storage.local import Store

IDLE = 2.0  # seconds; what nobody wants to sit through
TOLD = 0.5  # seconds that the audit log may take to have it
PROOF = 0.3  # seconds that the start waits for verification: enough for 100 MB of text


@click.command("play")
@click.argument("recording")
@click.option(
    "-s",
    "--speed",
    type=click.FloatRange(player.SPEED_MIN, player.SPEED_MAX),
    metavar="N",
    help="Play N times as fast.  [default: 1]",
)
@click.option(
    "-i",
    "--idle-time-limit",
    type=click.FloatRange(0),
    default=IDLE,
    show_default=True,
    metavar="SECS",
    help="Cut pauses to this long; 0 keeps them.",
)
@click.option("-r", "--resize", is_flag=True, help="Ask the terminal to take the recording's size.")
@identity_option
@click.pass_obj
def command(
    settings: Settings,
    recording: str,
    speed: float | None,
    idle_time_limit: float,
    resize: bool,
    identities: Identities,
) -> None:
    """Play a recording in the terminal.

    RECORDING is a file (asciicast v1, v2 or v3, plain, zstd or age), - for standard input, or the id of a session
    or its beginning. What a terminal would obey beyond showing text is left out. Into a pipe or file,
    everything is written at once; with --speed, in its time.

    \b
    space, p       pause and go on         +  }  >         twice as fast
    .              next output, paused     -  {  <         half as fast
    Enter          skip the wait           =  Backspace    as it was
    q, Ctrl-C      quit
    """
    path = find(settings, recording)
    with (
        _opened(path, identities) as source,
        Proof(path if path and ours(path, source) else None, identities) as proof,
    ):
        tell_access(settings, source)
        if sys.stdout.isatty():
            whole = _watch(source, speed or 1.0, idle_time_limit, resize=resize)
        else:
            shown = player.texts(limit_idle(source, idle_time_limit), Filter(), dim=False, resize=False)
            whole = player.copy(shown, sys.stdout.fileno(), speed=speed)
        if whole:
            proof.wait()
    if whole and not source.complete:
        click.echo("sshrec: the recording ends here, and is not finished: it is live, or was cut off", err=True)


def find(settings: Settings, name: str) -> Path | None:
    """The file that was meant; None for standard input."""
    if name == "-":
        return None
    path = Path(name)
    if not path.exists() and "/" not in name:
        return Store(settings.config.recordings_dir).find(name)
    return path


def _opened(path: Path | None, identities: Identities) -> Recording:
    if path is not None:
        return reader.open_path(path, identities)
    if sys.stdin.isatty():
        raise UsageError("standard input is this terminal, not a recording")
    return reader.open_stream(open(0, "rb", buffering=0, closefd=False), "standard input", identities)


def ours(path: Path, source: Recording) -> bool:
    """Whether it should have a chain of seals: it says so, or its name does."""
    return bool(source.header.facts) or SESSION_ID.fullmatch(path.name.partition(".")[0]) is not None


def tell_access(settings: Settings, source: Recording, **how: str) -> None:
    """Have the bastion's audit log say who looks at this, where we are on it and may write to that."""
    session = source.header.facts.get("session")
    if not isinstance(session, str) or not SESSION_ID.fullmatch(session):
        return
    fields = {"sid": session, "user": caller(), "account_uid": os.getuid(), "session_type": "ssh", **how}
    with contextlib.suppress(SshrecError):
        path = settings.config.audit_socket
        if path.exists():
            tell(Sender(path), "session.recording.access", fields, seconds=TOLD)


class Proof:
    """Verifies a recording while it plays, and says where it is not what was sealed: before, if that is known
    within PROOF seconds, and in the end."""

    def __init__(self, path: Path | None, identities: Identities) -> None:
        self._path = path
        self._identities = identities
        self._problem: Problem | None = None
        self._thread = threading.Thread(target=self._verify, daemon=True)

    def __enter__(self) -> Self:
        if self._path is not None:
            self._thread.start()
            self._thread.join(PROOF)
            self._say()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._say()

    @property
    def failed(self) -> bool:
        """Whether it is known not to be what was sealed."""
        return self._problem is not None

    def wait(self) -> None:
        """Until it is known."""
        if self._path is not None:
            self._thread.join()

    def _verify(self) -> None:
        assert self._path is not None
        with contextlib.suppress(SshrecError):  # gone meanwhile; what plays is open
            self._problem = verify_path(self._path, identities=self._identities).problem

    def _say(self) -> None:
        if self._problem is not None:
            word = "\x1b[31mUNVERIFIED\x1b[0m" if colour(sys.stderr) else "UNVERIFIED"
            click.echo(f"sshrec: {word}: {self._problem}", err=True)


def _watch(source: Recording, speed: float, idle: float, *, resize: bool) -> bool:
    out = sys.stdout.fileno()
    size = source.header.size
    terminal_size = os.get_terminal_size(out)
    if resize:
        os.write(out, b"\x1b[8;%d;%dt" % (size.rows, size.columns))
    elif 0 < terminal_size.columns < size.columns or 0 < terminal_size.lines < size.rows:
        click.echo(
            f"sshrec: recorded on {size.columns}x{size.rows}, which this terminal of {terminal_size.columns}x"
            f"{terminal_size.lines} is too small to show as it was",
            err=True,
        )
    filtered = Filter()
    keys, opened = _keys()
    try:
        with player.Terminal(out, keys, filtered, cooked=source.header.facts.get("terminal") is False) as terminal:
            shown = player.texts(limit_idle(source, idle), filtered, dim=True, resize=resize)
            return player.play(shown, terminal, speed=speed)
    finally:
        if opened and keys is not None:
            os.close(keys)


def _keys() -> tuple[int | None, bool]:
    """Where the person's keys come from, and whether we opened that: standard input may be the recording."""
    if sys.stdin.isatty():
        return sys.stdin.fileno(), False
    try:
        return os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC), True
    except OSError:
        return None, False
