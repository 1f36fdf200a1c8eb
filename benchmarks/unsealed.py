"""python unsealed.py SSHRECD ARGUMENT…: sshrecd with a recorder that keeps no chain, to measure what it costs."""

from __future__ import annotations

import sys

import sshrec.cli.daemon
import sshrec.recording.recorder
from sshrec.recording.seal import Chain


class Unsealed(Chain):
    """Takes lines for nothing, so no chunk is ever full."""

    def add(self, lines: bytes, count: int = 1) -> None:
        pass


if __name__ == "__main__":
    vars(sshrec.recording.recorder)["Chain"] = Unsealed
    sys.argv = sys.argv[1:]
    sshrec.cli.daemon.main()
