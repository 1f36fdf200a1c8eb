"""Why a session ends, by when it must have, and what the person is told. Knows neither recording nor loop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from sshrec.errors import SshrecError
from sshrec.gateway.hop import Hop
from sshrec.gateway.relay import Pump
from sshrec.gateway.surroundings import Surroundings

KILL_SECONDS = 1.0  # from asking the hop to end until it is killed
DRAIN_SECONDS = 1.0  # for a person who is gone, or was made to go, to take the rest

FOREVER = math.inf


class Ending:
    """The end of one session, while it comes.

    `reason`: why the session must end, None while its hop just runs; `detail`: a line for people; `at_once`:
    without waiting for anything; `kill_at`, `give_up_at`: when the hop is killed, and nobody is waited for any
    more, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.detail: str | None = None
        self.hint: str | None = None
        self.at_once = False
        self.kill_at = self.give_up_at = FOREVER

    def ask(self, reason: str, detail: str | None) -> bool:
        """Have it end for that reason, unless there was one before."""
        if self.reason is not None:
            return False
        self.reason, self.detail = reason, detail
        self.kill_at = time.monotonic() + KILL_SECONDS
        self.give_up_at = self.kill_at + DRAIN_SECONDS
        return True

    def fail(self, error: SshrecError, reason: str) -> None:
        """Nothing may go on: that is the reason, whatever there was before."""
        self.reason, self.detail, self.hint = reason, str(error), error.hint
        self.at_once = True

    def hurry(self) -> None:
        """From now on, a person who is gone is not waited for any longer than they would be then."""
        if self.reason is not None:
            self.give_up_at = min(self.give_up_at, time.monotonic() + DRAIN_SECONDS)

    def outcome(
        self, hop: Hop | None, around: Surroundings | None, name: str, login: str, known_hosts: Sequence[Path]
    ) -> tuple[int, str]:
        """The exit status, and what to tell the person: as ssh does, 255 where the hop has none of its own."""
        if self.reason == "client-disconnect":
            return 255, ""
        if self.reason == "killed":
            return 255, complaint(SshrecError(f"this session was {self.detail}"))
        if self.reason == "limit":
            return 255, complaint(SshrecError(f"this session was ended: {self.detail}"))
        if self.reason is not None:
            return 255, complaint(SshrecError(self.detail or self.reason, hint=self.hint))
        assert hop is not None and hop.status is not None
        status = hop.status
        if status < 0:
            return 255, complaint(SshrecError(f"ssh to {name} was killed by signal {-status}"))
        if status != 255:
            return status, ""
        assert around is not None
        error = around.log.failure(name, login, known_hosts)
        if error is not None:
            self.detail = str(error)
        return 255, complaint(error) if error is not None else ""


def stop_hop(hop: Hop, pumps: Mapping[str, Pump]) -> None:
    """End a hop that still runs, and what moves its bytes."""
    if hop.status is None:
        hop.send_signal(signal.SIGKILL)
        hop.reap()
    for name, pump in pumps.items():
        pump.stop() if name == "stdin" else pump.cut()
    hop.close()


def complaint(error: SshrecError) -> str:
    """An error as a person reads it, on their standard error."""
    return f"sshrec: error: {error}\n" + (f"hint: {error.hint}\n" if error.hint else "")
