"""The sessions whose recordings are kept here, byte for byte, as the format's proof.

`python -m tests.golden.sessions` writes them anew, after a change of the format that is meant.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from sshrec.recording.recovery import recover
from sshrec.recording.seal import Outcome
from tests.recordings import SESSION, WALL_MS, Step, record

HERE = Path(__file__).parent

TERMINAL: list[Step] = [
    (0.1, b"root@web1:~# "),
    (0.8, b"l"),
    (0.1, b"s\r\n"),
    (0.02, "Grüße  \x1b[01;34mverzeichnis\x1b[0m  日本語  😀\r\n".encode()),
    (0.01, b"\x1b]0;root@web1: ~\x07root@web1:~# "),
    (2.5, (120, 40)),
    (0.01, b"\r\x1b[Kroot@web1:~# "),
    (1.0, b"\xe2\x94"),  # a character in two reads
    (0.02, b"\x80\xe2\x94\x80\r\n"),
    (4.0, b"caf\xe9 \xff\r\n"),  # no UTF-8
    (0.5, b"\xf0\x9f\x98"),  # a character that stays half
    (7.0, b"\x1b[?1049h\x1b[2J\x1b[H\x1b[38;5;208m\x1b[48;2;1;2;3mfull\x1b[0m\x1b[?1049l"),
    (65.0, 'quotes " \\ / \x00\x7f\u2028 end\r\nlogout\r\n'.encode()),
]
EXEC: list[Step] = [
    (0.1, b"one line\n"),
    (0.001, (b"a warning\n", "stderr")),
    (0.002, b"\x7fELF\x02\x01\x01\0\0\0\0\0"),  # binary
    (0.003, b"\0\xff\0\xff"),
    (0.004, (b"caf\xe9\n", "stderr")),
    (0.005, b"half \xc3"),
    (0.2, b"\xa9 too late\n"),
]

OUTCOME = Outcome("exit", status=0, address="192.0.2.10:22", host_key="ssh-ed25519 SHA256:bm90IGEga2V5")


def aborted() -> bytes:
    """The same as `terminal`, whose worker was killed in the middle of a line; recovered."""
    text = record(TERMINAL, outcome=None).text[:-20]
    with tempfile.TemporaryDirectory() as place, (Path(place) / "a.cast").open("w+b") as file:
        file.write(text)
        recover(file, SESSION, Path(place) / "a.torn", WALL_MS + 90_000, "its worker died")
        file.seek(0)
        return file.read()


def sessions() -> dict[str, bytes]:
    """Each recording, by the name of its file."""
    execution = record(EXEC, terminal=False, command="./report 'a b'", outcome=Outcome("exit", status=3))
    return {
        "terminal.cast": record(TERMINAL, outcome=OUTCOME).text,
        "exec.cast": execution.text,
        "aborted.cast": aborted(),
    }


if __name__ == "__main__":
    for name, recording in sessions().items():
        (HERE / name).write_bytes(recording)
