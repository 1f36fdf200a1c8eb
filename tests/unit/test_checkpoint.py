"""What the auth service signs of the audit log, and what it does not: lines in, signatures or refusals out."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshrec.access.client import AuthService
from sshrec.audit.event import canonical, new_uid
from sshrec.audit.log import Head
from sshrec.authority.checkpoint import Checkpoints, advance
from sshrec.authority.log_key import NAMESPACE, LogKey
from sshrec.authority.sealing import Sealing
from sshrec.config import Config
from sshrec.errors import DataError, Denied, Unreachable
from sshrec.openssh import keygen
from sshrec.openssh.certificate import read_certificate
from sshrec.openssh.sshsig import sign_data, verify_data
from tests.lab.parts import wait


def line(head: Head, event: str = "session.start", **fields: object) -> bytes:
    """The next line of a log."""
    said = {"n": head.n, "prev": head.prev, "event": event, "code": "X", "time": "now", "uid": new_uid(), **fields}
    return canonical(said) + b"\n"


class Log:
    """Lines, as a writer has them."""

    def __init__(self) -> None:
        self.head = Head()
        self.lines: list[bytes] = []

    def append(self, event: str = "session.start") -> bytes:
        self.lines.append(line(self.head, event))
        self.head = self.head.after(self.lines[-1])
        return self.lines[-1]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "state", lambda data: f"signed {data.decode()}")


def test_what_continues_is_signed_once_and_for_all(log: Log, checkpoints: Checkpoints) -> None:
    first = [log.append(), log.append()]
    shown = advance(Head(), b"".join(first))
    checkpoint = log.append("checkpoint").decode().rstrip()
    assert checkpoints.sign(shown, checkpoint) == f"signed {checkpoint}"
    assert checkpoints.last().head == log.head
    # Asked again, as after an answer that was lost: the same, not another.
    checkpoints.make = lambda _: "another"
    assert checkpoints.sign(shown, checkpoint) == f"signed {checkpoint}"


def test_a_past_that_was_signed_is_not_signed_anew(log: Log, checkpoints: Checkpoints) -> None:
    log.append()
    before = log.head
    checkpoints.sign(before, log.append("checkpoint").decode().rstrip())
    other = line(before, "checkpoint", heads={}).decode().rstrip()
    with pytest.raises(Denied, match="line 1 does not continue what was signed"):
        checkpoints.sign(before, other)
    with pytest.raises(Denied, match="line 0 does not continue what was signed"):
        checkpoints.sign(Head(), line(Head(), "checkpoint").decode().rstrip())


def test_nothing_but_checkpoints_is_signed(log: Log, checkpoints: Checkpoints) -> None:
    with pytest.raises(Denied, match="only checkpoints are signed"):
        checkpoints.sign(Head(), line(Head(), "session.start").decode().rstrip())
    with pytest.raises(DataError):
        checkpoints.sign(Head(), "anything")
    assert checkpoints.last().line == ""


def test_a_damaged_memory_signs_nothing(log: Log, checkpoints: Checkpoints) -> None:
    checkpoints.path.write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        checkpoints.sign(Head(), line(Head(), "checkpoint").decode().rstrip())


def test_lines_that_do_not_follow(log: Log) -> None:
    lines = [log.append() for _ in range(4)]
    assert advance(Head(), b"".join(lines)) == log.head
    for wrong in (
        [lines[0], lines[2], lines[3]],
        [lines[0], lines[0]],
        [lines[1], lines[0]],
        [lines[0], lines[1].replace(b'"now"', b'"later"'), lines[2]],
        [lines[0].replace(b'"code":', b'"code": ')],
    ):
        with pytest.raises(Denied, match="is not the one that follows"):
            advance(Head(), b"".join(wrong))
    with pytest.raises(DataError):
        advance(Head(), lines[0][:-1])


# ---- over the socket --------------------------------------------------------------------------------------


@pytest.fixture
def config() -> Iterator[Config]:
    # A short name: sockets must fit into the 108 bytes of unix(7).
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as name:
        made = Config(data_dir=Path(name, "data"), run_dir=Path(name, "run"))
        for path in (made.authority_dir, made.run_dir, made.authority_dir / "keys"):
            path.mkdir(mode=0o700)
        LogKey(made).make(1_700_000_000)
        yield made


@pytest.fixture
def service(config: Config, tmp_path: Path) -> Iterator[AuthService]:
    """The real program, asked as the audit log's writer asks."""
    file = tmp_path / "sshrec.yaml"
    file.write_text(f"data_dir: {config.data_dir}\nrun_dir: {config.run_dir}\n")
    argv = [str(Path(sys.prefix) / "bin" / "sshrec-authd"), "--config", str(file)]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as process:
        asked = AuthService(config.auth_socket)
        try:
            wait(lambda: process.poll() is not None or config.auth_socket.exists(), "sshrec-authd")
            yield asked
        finally:
            asked.close()
            process.terminate()
    assert process.returncode == 0
    assert not config.auth_socket.exists()


def test_an_auditor_finds_the_signature_good(log: Log, service: AuthService, config: Config) -> None:
    where = service.position()
    assert (where.n, where.prev, where.line) == (0, Head().prev, "")
    shown = service.advance(b"".join(log.append() for _ in range(1000)))
    assert (shown.n, shown.prev) == (1000, log.head.prev)
    checkpoint = log.append("checkpoint").rstrip()
    signed = service.sign(checkpoint)
    allowed = config.public_dir / "allowed_signers"
    verify_data(allowed, signed.identity, NAMESPACE, checkpoint, signed.signature)
    # And on the same connection, and on another one.
    service.advance(log.append())
    second = service.sign(log.append("checkpoint").rstrip())
    service.close()
    where = service.position()
    assert (where.n, where.line, where.signature) == (
        log.head.n,
        log.lines[-1].decode().rstrip(),
        second.signature,
    )


def test_a_rewritten_past_gets_no_signature(log: Log, service: AuthService) -> None:
    service.advance(log.append())
    service.sign(log.append("checkpoint").rstrip())
    service.close()
    rewritten = Log()
    with pytest.raises(Denied, match="refuses: line 0 of the audit log is not the one that follows"):
        service.advance(rewritten.append())


def test_rubbish_ends_the_connection_and_nothing_else(service: AuthService, config: Config) -> None:
    for rubbish in (b"", b"\0\0\0\2{}", b"\xff\xff\xff\xff", b"\0\0\0\x20{", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(10)
            peer.connect(str(config.auth_socket))
            peer.sendall(rubbish)
            peer.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):  # it did not read on
                assert peer.recv(100) == b""
    assert service.position().n == 0


@pytest.mark.root
def test_strangers_may_not_ask(service: AuthService, config: Config) -> None:
    for path in (config.auth_socket.parent, config.auth_socket.parent.parent):
        path.chmod(0o755)
    script = f"""
import os
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
from pathlib import Path
from sshrec.access.client import AuthService
print(AuthService(Path({str(config.auth_socket)!r})).position())
"""
    for path in config.auth_socket.parents:
        if path.stat().st_uid == os.geteuid() and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "you are not one of those who may ask" in done.stderr


def test_without_a_service(config: Config) -> None:
    with pytest.raises(Unreachable, match="does not answer: no such file"):
        AuthService(config.auth_socket).position()


def test_two_ask_at_once(log: Log, service: AuthService, config: Config) -> None:
    """Of two writers that continue the same line in two ways, one gets a signature."""
    outcomes: list[str] = []

    def ask(n: int) -> None:
        asked = AuthService(config.auth_socket)
        try:
            asked.position()
            asked.sign(line(Head(), "checkpoint", number=n).rstrip())
            outcomes.append("signed")
        except Denied:
            outcomes.append("refused")
        finally:
            asked.close()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == ["refused"] * 7 + ["signed"]


def test_the_service_uses_what_the_auditor_has(config: Config) -> None:
    """A key that allowed_signers does not name signs nothing that leaves."""
    for directory in (config.public_dir, config.authority_dir / "keys"):
        (directory / "allowed_signers").write_text("")
    with pytest.raises(DataError, match="is not audit@"):
        Sealing(config)._sign(b"line")


@pytest.mark.parametrize("harm", ["deleted", "emptied", "changed", "of before"])
def test_the_public_copy_is_restored(config: Config, harm: str) -> None:
    """Whoever signs next puts it right: of the keys that are gone nothing else has a record."""
    key = LogKey(config)
    allowed, of_before = config.public_dir / "allowed_signers", key.allowed_signers
    key.make(time.time() + 5)
    good = key.allowed_signers
    assert good.count("\n") == 2
    harmed = {"emptied": "", "changed": good.replace("audit@", "other@"), "of before": of_before}
    if harm == "deleted":
        allowed.unlink()
    else:
        allowed.write_text(harmed[harm])
    assert key.allowed_signers == good
    with LogKey(config).expected() as used:
        assert used.read_text() == good
    assert allowed.read_text() == good
    assert not key.restore()


def test_an_authority_that_had_one_copy_has_two(config: Config) -> None:
    key, kept = LogKey(config), config.authority_dir / "keys" / "allowed_signers"
    kept.unlink()
    assert not key.restore()
    assert kept.read_text() == (config.public_dir / "allowed_signers").read_text() == key.allowed_signers
    assert kept.parent.stat().st_mode & 0o077 == 0


def test_a_renewal_that_was_killed_between_the_copies(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    key = LogKey(config)
    before = (config.public_dir / "allowed_signers").read_text()
    monkeypatch.setattr(LogKey, "_write", _only_once(LogKey._write))
    with pytest.raises(KeyboardInterrupt):
        key.make(time.time() + 5)
    monkeypatch.undo()
    assert (config.public_dir / "allowed_signers").read_text() == before
    key.settle()
    assert key.restore()
    with key.expected() as allowed:
        signer, _ = key.signer()
        signature = sign_data(signer, b"line", NAMESPACE, None)
        verify_data(allowed, key.identity, NAMESPACE, b"line", signature, int(time.time()) + 10)


def _only_once(write: Callable[[LogKey, Path, str], None]) -> Callable[[LogKey, Path, str], None]:
    written: list[Path] = []

    def once(key: LogKey, path: Path, text: str) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        write(key, path, text)

    return once


def test_a_certified_key_signs_while_its_certificate_is_valid(config: Config, tmp_path: Path) -> None:
    """What an auditor trusts then is the CA, which is kept elsewhere."""
    key = LogKey(config)
    ca = keygen.make_key(tmp_path / "audit_ca", "audit CA")
    own = config.authority_dir / "keys" / "audit.pub"
    (tmp_path / "copy.pub").write_bytes(own.read_bytes())

    def certify(validity: str) -> None:
        argv = [
            "ssh-keygen",
            "-q",
            "-s",
            str(tmp_path / "audit_ca"),
            "-I",
            "epoch",
            "-n",
            key.identity,
            "-V",
            validity,
        ]
        subprocess.run([*argv, str(tmp_path / "copy.pub")], check=True)

    certify("-5m:+1d")
    line = tmp_path / "copy-cert.pub"
    assert key.certify(read_certificate(line.read_bytes(), "it"), time.time()) == ca.fingerprint
    allowed = tmp_path / "allowed"
    allowed.write_text(f'{key.identity} cert-authority,namespaces="{NAMESPACE}" {ca.line}\n')
    verify_data(allowed, key.identity, NAMESPACE, b"line", Sealing(config)._sign(b"line"))
    certify("-2h:-1h")
    with pytest.raises(DataError, match="is not valid now"):
        key.certify(read_certificate(line.read_bytes(), "it"), time.time())
    (config.authority_dir / "keys" / "audit-cert.pub").write_bytes(line.read_bytes())
    with pytest.raises(DataError, match="is not audit@"):
        Sealing(config)._sign(b"line")
