"""What the inner sshd logs, as sshd 9.2 words it; tests/e2e/test_transparent_faults.py has a real one."""

from __future__ import annotations

import pytest

from sshrec.openssh.server import Log

LINES = (
    b"Connection from UNKNOWN port 65535 on UNKNOWN port 65535\r\n",
    b'Accepted publickey for root from UNKNOWN port 65535 ssh2: ED25519-CERT SHA256:abc ID "joe" (serial 7)\r\n',
    b"Starting session: forced-command (config) 'exec gateway' on pts/3 for root from UNKNOWN port 65535 id 0\r\n",
    b"Starting session: forced-command (config) 'exec gateway' for root from UNKNOWN port 65535 id 11\r\n",
    b"Close session: user root from UNKNOWN port 65535 id 0\r\n",
)


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
def test_in_pieces(size: int) -> None:
    log, text = Log(), b"".join(LINES)
    assert (log.begun, log.accepted, log.sessions, log.last) == (False, False, set(), "")
    for start in range(0, len(text), size):
        log.feed(text[start : start + size])
    assert (log.begun, log.accepted, log.unwrapped, log.sessions) == (True, True, False, {11})
    assert log.last == "Close session: user root from UNKNOWN port 65535 id 0"


def test_line_by_line() -> None:
    log, seen = Log(), []
    for line in LINES:
        log.feed(line)
        seen.append((log.begun, log.accepted, sorted(log.sessions)))
    assert seen == [
        (True, False, []),
        (True, True, []),
        (True, True, [0]),
        (True, True, [0, 11]),
        (True, True, [11]),
    ]
    log.feed(LINES[4])  # nobody's
    assert log.sessions == {11}


def test_without_the_wrapper() -> None:
    log = Log()
    log.feed(b"ERROR: ld.so: object 'libnss_wrapper.so' from LD_PRELOAD cannot be preloaded (...): ignored.\n")
    assert log.unwrapped


def test_a_line_without_end_is_bounded() -> None:
    log = Log()
    for _ in range(100):
        log.feed(b"x" * 65536)
    log.feed(b"\r\n\r\nfatal: bad\r\n \r\n")
    assert log.last == "fatal: bad"
