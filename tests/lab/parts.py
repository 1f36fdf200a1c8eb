"""What every part of the lab needs: its error, its way to wait, its way to start a program."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_WITH_OPENSSH = Path(__file__).parents[2] / "bin" / "with-openssh"

T = TypeVar("T")


class LabError(Exception):
    """The lab cannot do what it was asked for; the message has what the programs said."""


def wait(condition: Callable[[], T], what: str, timeout: float = 20) -> T:
    """Ask until the answer is true, and return it; LabError names `what` when `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"waited {timeout:g} s for {what}")
        time.sleep(0.01)
    return answer


def program(name: str) -> str:
    """Where a program is; sshd wants its own absolute path."""
    found = shutil.which(name, path=PATH)
    if found is None:
        raise LabError(f"{name} is not installed")
    return found


def sshd_version(prefix: Sequence[str] = ()) -> tuple[int, int]:
    """(9, 2) of `OpenSSH_9.2 …`; sshd before 9.3 prints it among its complaints about -V. `prefix`: runs it."""
    said = subprocess.run([*prefix, program("sshd"), "-V"], capture_output=True, timeout=90).stderr.decode()
    found = re.search(r"OpenSSH_(\d+)\.(\d+)", said)
    if found is None:
        raise LabError(f"cannot tell the version of {said.strip()!r}")
    return int(found[1]), int(found[2])


def targets_openssh() -> list[str]:
    """A prefix for the targets' sshds: SSHREC_LAB_TARGETS is a SUITE of bin/with-openssh, for theirs alone."""
    suite = os.environ.get("SSHREC_LAB_TARGETS")
    return [str(_WITH_OPENSSH), suite] if suite else []


def run(argv: Sequence[str | Path], env: Mapping[str, str]) -> str:
    """Run a program that is quick and must succeed; what it printed."""
    done = subprocess.run(
        [str(part) for part in argv], env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise LabError(f"{' '.join(map(str, argv))}: exit code {done.returncode}: {said}")
    return done.stdout.decode()


def start(
    argv: Sequence[str | Path],
    env: Mapping[str, str],
    log: Path,
    *,
    uid: int | None = None,
    gid: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that stays, away from our terminal's Ctrl-C; it ends when we are killed."""
    with log.open("ab") as output:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *map(str, argv)],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            user=uid,
            group=gid,
            extra_groups=None if uid is None else [],
        )


def stop(process: subprocess.Popen[bytes], signal_number: int = signal.SIGTERM, timeout: float = 10) -> int:
    """End a program that `start` started, by force if it does not hear; its return code."""
    if process.poll() is None:
        process.send_signal(signal_number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, under its name."""
    try:
        text = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([f"--- {path}", *text[-lines:]]) if text else ""


def caller_has_an_account() -> bool:
    """Whether programs that we start with an environment of our own find the caller in passwd."""
    if "LD_PRELOAD" in os.environ:
        return False
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return True
