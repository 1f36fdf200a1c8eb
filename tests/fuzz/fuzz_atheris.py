"""The same under atheris, which follows the coverage: python -m tests.fuzz.fuzz_atheris TARGET [OPTIONS].

TARGET is recordings or transfers; the options are libFuzzer's. Needs `pip install atheris`, which is no dependency
of ours: it has wheels for few Pythons.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Turn = tuple[bool, bytes]
Target = tuple[Callable[[bytes], None], list[bytes]]  # what is tried with some bytes, and bytes to begin with

_TARGETS = {"recordings": "sshrec.recording", "transfers": "sshrec.gateway.transfer"}


def main() -> int:
    """Fuzz until something fails, or as long as libFuzzer's options say (-max_total_time=60)."""
    if sys.argv[1:2] not in ([name] for name in _TARGETS):
        print(f"usage: python -m tests.fuzz.fuzz_atheris {'|'.join(_TARGETS)} [OPTIONS]", file=sys.stderr)
        return 2
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("fuzz: no atheris here: pip install atheris", file=sys.stderr)
        return 0
    target = sys.argv[1]
    with atheris.instrument_imports(include=[_TARGETS[target]]):
        once, seeds = _recordings() if target == "recordings" else _transfers()
    corpus = Path(tempfile.mkdtemp(prefix="sshrec-fuzz-"))
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    options = sys.argv[2:] or ["-max_total_time=60"]
    atheris.Setup([sys.argv[0], f"-artifact_prefix={corpus}/", *options, str(corpus)], once)
    atheris.Fuzz()
    return 0


def _recordings() -> Target:
    attempts: Any = importlib.import_module("tests.fuzz.attempts")

    def once(content: bytes) -> None:
        attempts.read(content)
        attempts.judge(content)
        attempts.tampered(content)

    return once, list(attempts.seeds())


def _transfers() -> Target:
    transfers: Any = importlib.import_module("tests.fuzz.transfers")

    def once(content: bytes) -> None:
        if len(content) < 2:
            return
        turns, cut = list(_turns(content[2:])), 1 + content[1]
        match content[0] % 5:
            case 3:
                transfers.scp(b"scp -r -t x", turns, cut)
            case 4:
                transfers.scp(b"scp -r -f x", turns, cut)
            case forbid:
                transfers.sftp(turns, cut, transfers.FORBIDDEN[forbid])

    hello = [(True, b"\0\0\0\5\1\0\0\0\3"), (False, b"\0\0\0\5\2\0\0\0\3")]
    opened = b"\0\0\0\x12\3\0\0\0\0\0\0\0\1x\0\0\0\x1a\0\0\0\0"
    asked = [(True, opened), (False, b"\0\0\0\x0a\x66\0\0\0\0\0\0\0\1h")]
    file = [(False, b"\0"), (True, b"C0644 5 x\n"), (False, b"\0"), (True, b"12345\0"), (False, b"\0")]
    back = [(not client, data) for client, data in file]
    talks = [(0, [*hello, *asked]), (1, [*hello, *asked]), (2, hello), (3, file), (4, back)]
    return once, [bytes([kind, 255]) + b"".join(map(_turn, talk)) for kind, talk in talks]


def _turns(content: bytes) -> Iterator[Turn]:
    """Who speaks and how long is in a byte before what is said."""
    while content:
        size = content[0] >> 1
        yield bool(content[0] & 1), content[1 : 1 + size]
        content = content[1 + size :]


def _turn(turn: Turn) -> bytes:
    client, data = turn
    return bytes([len(data) << 1 | client]) + data


if __name__ == "__main__":
    sys.exit(main())
