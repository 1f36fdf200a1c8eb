"""A decoder as the man in the middle: python -m tests.transfers DIRECTORY CHUNK FORBID PROGRAM [ARGUMENT…].

Between its own stdin and stdout and those of the program. What passed goes into DIRECTORY: from-client, to-server,
from-server, to-client and kept-in, kept-out, byte for byte, and facts, a JSON line each, the last of them the end.
"""

from __future__ import annotations

import json
import os
import random
import select
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from sshrec.gateway.transfer.fact import Direction
from sshrec.gateway.transfer.scp import Scp, which
from sshrec.gateway.transfer.sftp import Sftp

SFTP_SERVER = "/usr/lib/openssh/sftp-server"


def main() -> int:
    """Stand between until one side ends."""
    directory, chunk, forbid, *program = sys.argv[1:]
    command = which(os.fsencode(program[-1]))
    forbidden = cast("frozenset[Direction]", frozenset(forbid.split(",")) - {""})
    decoder = Scp(command) if command is not None else Sftp(forbidden)
    files = {
        name: Path(directory, name).open("ab")
        for name in ("from-client", "to-server", "from-server", "to-client", "kept-in", "kept-out", "facts")
    }
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout
        into, out = server.stdin.fileno(), server.stdout.fileno()
        poll = select.poll()
        poll.register(0, select.POLLIN)
        poll.register(out, select.POLLIN)
        chance = random.Random(int(chunk))  # noqa: S311
        while True:
            for fd, _ in poll.poll():
                data = os.read(fd, chance.randint(1, int(chunk)))
                if fd == 0 and not data:
                    poll.unregister(0)
                    server.stdin.close()
                elif fd == 0:
                    passed = decoder.client(memoryview(data))
                    files["from-client"].write(data)
                    files["kept-in"].write(passed.kept)
                    _write(into, files["to-server"], passed.forward)
                    _write(1, files["to-client"], passed.reply)
                elif data:
                    passed = decoder.server(memoryview(data))
                    files["from-server"].write(data)
                    files["kept-out"].write(passed.kept)
                    _write(1, files["to-client"], passed.forward)
                else:
                    decoder.end()
                    said = [fact.said() for fact in decoder.facts]
                    for line in [*said, {"broken": decoder.broken}]:
                        files["facts"].write(json.dumps(line).encode() + b"\n")
                    for file in files.values():
                        file.close()
                    os.close(1)
                    return server.wait()


def _write(fd: int, copy: Any, data: bytes | memoryview) -> None:
    copy.write(data)
    while data:
        data = data[os.write(fd, data) :]


class Middle:
    """What stands between a client and a program, once it has run.

    `program`: what to start in its place; called as scp calls ssh, it runs that command.
    """

    def __init__(self, directory: Path, program: str = "", chunk: int = 262144, forbid: str = "") -> None:
        self.directory = directory
        directory.mkdir()
        self.program = directory / "program"
        root = Path(__file__).parent.parent
        start = f"exec {sys.executable} -m tests.transfers {directory} {chunk} '{forbid}'"
        if program:
            script = f"{start} {program}"
        else:  # past what ssh is told before the host
            script = f'while [ "$1" != -- ]; do shift; done; shift 2\n{start} sh -c "$*"'
        self.program.write_text(f"#!/bin/sh\nexport PYTHONPATH={root}\n{script}\n")
        self.program.chmod(0o755)

    def facts(self) -> list[dict[str, Any]]:
        """What it decoded; the protocol was never broken, and nothing was changed."""
        *facts, end = map(json.loads, self.read("facts").splitlines())
        assert end == {"broken": None}
        return cast("list[dict[str, Any]]", facts)

    def read(self, name: str) -> bytes:
        """What passed."""
        return (self.directory / name).read_bytes()


if __name__ == "__main__":
    sys.exit(main())
