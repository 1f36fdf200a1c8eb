"""The audit log's writer and its senders, each a process of its own, over a real socket."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.client import Sender, tell
from sshrec.audit.direct import Direct
from sshrec.audit.event import AuditError, packet, uid_of
from tests.auditing import IDENTITY, NAMESPACE, running, start, whole

SESSION = "01KARVVVZ0B9GPPM3T5V7PZW0Q"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short name: sockets must fit below it."""
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def log(place: Path) -> Path:
    return place / "audit"


@pytest.fixture
def path(place: Path) -> Path:
    return place / "audit.sock"


def dial(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    sock.connect(str(path))
    return sock


def ask(sock: socket.socket, message: bytes) -> dict[str, Any]:
    sock.send(message)
    answer: dict[str, Any] = json.loads(sock.recv(65536))
    return answer


def test_an_event_is_stamped_and_durable(log: Path, path: Path) -> None:
    with running(log, path), contextlib.closing(Sender(path)) as sender:
        tell(sender, "user.create", {"name": "joe"})
        (line,) = whole(log)
    assert line.fields["sender_uid"] == os.geteuid()
    assert (line.event, line.fields["code"], line.fields["name"]) == ("user.create", "T1002I", "joe")


def test_many_at_once(log: Path, path: Path) -> None:
    """Each sender's own events stay in order, and no number is given twice."""

    def send(name: str) -> None:
        with contextlib.closing(Sender(path)) as sender:
            for n in range(50):
                sender.send("user.update", {"name": name, "roles": [str(n)]})
            assert sender.wait(30)

    with running(log, path):
        threads = [threading.Thread(target=send, args=(f"user{number}",)) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = whole(log)
    for number in range(20):
        own = [line.fields["roles"] for line in lines if line.fields["name"] == f"user{number}"]
        assert own == [[str(n)] for n in range(50)]


def test_what_is_sent_again_is_logged_once(log: Path, path: Path) -> None:
    event = json.dumps(packet("session.end", {"sid": SESSION}, uid=uid_of(SESSION, "session.end"))).encode()
    with running(log, path), dial(path) as sock:
        first = ask(sock, event)
        assert ask(sock, event) == first
    with running(log, path), dial(path) as sock:
        assert ask(sock, event) == first
    assert len(whole(log)) == 1


HOSTILE = [
    (b"", None),
    (b"\xff", "no JSON object"),
    (b"[]", "no JSON object"),
    (b"[" * 50_000, "no JSON object"),
    (b"{}", "no event of that name"),
    (b'{"event":"session.start"}', "no such code"),
    (b'{"event":"checkpoint","code":"SR002I","uid":"0123456789abcdef","heads":{}}', "the log's own"),
    (b'{"event":"session.start","code":"T2000I","uid":"short"}', "the uid is none"),
    (b'{"event":"session.start","code":"T2000I","uid":7}', "the uid is none"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","n":7}', "may not have a field of that name"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","sender_uid":0}', "may not have a field"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","a b":0}', "may not have a field"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","size":1.5}', "size is not text"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","size":{"a":1}}', "size is not text"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","size":[[1]]}', "size is not text"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","size":1e999}', "no JSON object"),
    (b'{"event":"resize","code":"T2002I","uid":"0123456789abcdef","size":99999999999999999999}', "size is not"),
    (b'{"head":["x",1,"y"]}', "a head is not one"),
    (b'{"head":7}', "a head is not one"),
]


@pytest.mark.parametrize(("message", "answer"), HOSTILE)
def test_hostile_messages(log: Path, path: Path, message: bytes, answer: str | None) -> None:
    with running(log, path), dial(path) as sock, contextlib.closing(Sender(path)) as other:
        sock.send(message)
        said = sock.recv(65536)
        if answer is None:
            assert said == b""  # an empty packet is the end
        else:
            assert answer in json.loads(said)["error"]
            assert json.loads(said)["final"]
        tell(other, "user.delete", {"name": "joe"})
    assert [line.event for line in whole(log)] == ["user.delete"]


@pytest.mark.parametrize(
    "text", ["\n{}", "\x1b]0;owned\x07", "\u202e\u2028", "\0", "\x7f\x9b", "é😀", '"\\', "x" * 90_000]
)
def test_hostile_text(log: Path, path: Path, text: str) -> None:
    """What a person types can neither end a line nor reach a terminal as it is."""
    with running(log, path), contextlib.closing(Sender(path)) as sender:
        tell(sender, "exec", {"command": text})
    (line,) = whole(log)
    assert all(0x20 <= byte < 0x7F for byte in line.raw[:-1])
    assert text.startswith(line.fields["command"])
    assert len(text) - len(line.fields["command"]) == line.fields.get("cut", {}).get("command", 0)


def test_an_overlong_packet(log: Path, path: Path) -> None:
    with running(log, path), dial(path) as sock:
        assert "more than" in ask(sock, b"{" + b" " * 150_000)["error"]


@pytest.mark.root
def test_only_those_who_may(log: Path, path: Path, place: Path) -> None:
    place.chmod(0o755)
    tries = "import socket,sys; s=socket.socket(1,5); s.connect(sys.argv[1]); print(s.recv(999).decode())"
    with running(log, path):
        done = subprocess.run(
            ["/usr/bin/python3", "-c", tries, path], user=12345, group=12345, capture_output=True, timeout=20
        )
    assert b"uid 12345 may not write the audit log" in done.stdout
    assert not any(log.iterdir())


def test_a_reader_of_no_answers_keeps_nobody_waiting(log: Path, path: Path) -> None:
    with running(log, path), dial(path) as deaf:
        deaf.setblocking(False)
        with contextlib.suppress(OSError):
            for _ in range(5000):
                deaf.send(b"{}")
        with contextlib.closing(Sender(path)) as sender:
            tell(sender, "user.delete", {"name": "joe"})


# ---- one after the other ----------------------------------------------------------------------------------


def test_a_writer_that_is_killed(log: Path, path: Path) -> None:
    """Whoever waits for an acknowledgement sends again, and learns of it from the next one."""
    writer = start(log, path)
    with contextlib.closing(Sender(path)) as sender:
        tell(sender, "user.create", {"name": "joe"}, seconds=20)
        writer.send_signal(signal.SIGSTOP)
        uid = sender.send("user.delete", {"name": "joe"})
        writer.kill()
        writer.wait()
        assert uid in sender.pending
        with running(log, path):
            assert sender.wait(20)
    assert [line.event for line in whole(log)] == ["user.create", "user.delete"]


def test_a_successor_takes_over(log: Path, path: Path) -> None:
    first = start(log, path)
    with contextlib.closing(Sender(path)) as sender:
        tell(sender, "user.create", {"name": "joe"}, seconds=20)
        second = start(log, path)
        assert first.wait(20) == 0
        tell(sender, "user.delete", {"name": "joe"}, seconds=20)
        second.terminate()
        assert second.wait(20) == 0
        with pytest.raises(AuditError, match="its writer does not answer"):
            tell(sender, "user.delete", {"name": "joe"}, seconds=0.3)
    assert [line.fields["n"] for line in whole(log)] == [0, 1]


def test_without_a_writer(log: Path, place: Path) -> None:
    """Whoever has none appends by the same lock; while a writer has it, that is said."""
    direct = Direct(log)
    tell(direct, "user.create", {"name": "joe"})
    with running(log, place / "audit.sock"):
        tell(Sender(place / "audit.sock"), "user.delete", {"name": "joe"})
        direct.send("user.update", {"name": "joe"})
        assert "another process writes the audit log" in next(iter(direct.errors.values()))
    assert direct.wait(1)
    direct.close()
    assert [line.event for line in whole(log)] == ["user.create", "user.delete", "user.update"]


def test_a_disk_that_is_full(log: Path, path: Path) -> None:
    """Senders are told; with room again, what waited is logged."""
    with running(log, path) as writer, contextlib.closing(Sender(path)) as sender:
        tell(sender, "user.create", {"name": "joe"})
        subprocess.run(["prlimit", f"--pid={writer.pid}", "--fsize=100:"], check=True)
        with pytest.raises(AuditError, match=r"cannot write the audit log .*: file too large"):
            tell(sender, "user.delete", {"name": "joe"}, seconds=0.5)
        subprocess.run(["prlimit", f"--pid={writer.pid}", "--fsize=unlimited:"], check=True)
        assert sender.wait(20)
    assert [line.event for line in whole(log)] == ["user.create", "user.delete"]


# ---- checkpoints ------------------------------------------------------------------------------------------


@pytest.fixture
def key(place: Path) -> Path:
    subprocess.run(["ssh-keygen", "-qt", "ed25519", "-N", "", "-f", place / "key"], check=True)
    return place / "key"


def lines_with(log: Path, event: str, count: int) -> list[Any]:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = [line for line in whole(log) if line.event == event]
        if len(found) >= count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no {count} lines of {event}")


def verify(place: Path, key: Path, line: bytes, signature: dict[str, Any]) -> bool:
    """As an auditor does: with ssh-keygen."""
    (place / "allowed").write_text(f"{IDENTITY} {key.with_suffix('.pub').read_text()}")
    armour = "-----BEGIN SSH SIGNATURE-----\n" + signature["signature"] + "\n-----END SSH SIGNATURE-----\n"
    (place / "sig").write_text(armour)
    argv = [
        "ssh-keygen",
        "-Y",
        "verify",
        "-f",
        "allowed",
        "-I",
        signature["identity"],
        "-n",
        NAMESPACE,
        "-s",
        "sig",
    ]
    return subprocess.run(argv, cwd=place, input=line, capture_output=True).returncode == 0


def test_checkpoints(log: Path, path: Path, place: Path, key: Path) -> None:
    """Soon after a session's start and end, right before their signatures, with the heads of the recordings."""
    with running(log, path, key), contextlib.closing(Sender(path)) as sender:
        sender.head(SESSION, 3, "a" * 64)
        tell(sender, "session.start", {"sid": SESSION})
        lines_with(log, "checkpoint.signature", 1)
        tell(sender, "session.end", {"sid": SESSION, "seal": 4, "seal_sha256": "b" * 64})
        lines_with(log, "checkpoint.signature", 2)
        tell(sender, "session.start", {"sid": "another"})
        lines_with(log, "checkpoint.signature", 3)
    lines = whole(log)
    points = [(line, lines[line.n + 1]) for line in lines if line.event == "checkpoint"]
    assert [line.fields["heads"] for line, _ in points] == [
        {SESSION: [3, "a" * 64]},
        {SESSION: [4, "b" * 64]},
        {},
    ]
    for line, signature in points:
        assert signature.event == "checkpoint.signature"
        assert verify(place, key, line.raw[:-1], signature.fields)
        assert not verify(place, key, line.raw, signature.fields)
        assert line.fields["boot_id"]
        assert line.fields["host"] == os.uname().nodename


def test_a_signer_that_does_not_answer(log: Path, path: Path, place: Path, key: Path) -> None:
    """The checkpoint stays unsigned, and nobody waits for it for long."""
    (place / "hang").touch()
    with running(log, path, key), contextlib.closing(Sender(path)) as sender:
        tell(sender, "session.start", {"sid": SESSION})
        lines_with(log, "checkpoint", 1)
        tell(sender, "session.end", {"sid": SESSION})
    names = [line.event for line in whole(log)]
    assert names == ["session.start", "checkpoint", "session.end"]
