"""Encryption: what we make age opens, what age makes we open, and damage anywhere is found."""

from __future__ import annotations

import hashlib
import io
import os
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sshrec.errors import ConfigError, DataError, Denied, NotFound
from sshrec.recipients import RECIPIENTS_MAX, lines, recipient, recipients, too_few
from sshrec.recording import encryption, packing, reader
from sshrec.recording.encryption import NoIdentity, encrypt, header_bytes, payload_bytes
from sshrec.recording.identity import Identities, read
from tests.recordings import Step, noise, record

AGE = shutil.which("age")
STEPS: list[Step] = [(0.5, b"hello\r\n"), (6.0, noise(300_000, 7).hex().encode())]

needs_age = pytest.mark.skipif(AGE is None, reason="age is not installed: apt-get install age")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of keys: age, ssh, protected (its passphrase: secret), rsa; .pub has what to encrypt to."""
    import pyrage

    directory = tmp_path_factory.mktemp("keys")
    for name, kind, passphrase in (("ssh", "ed25519", ""), ("protected", "ed25519", "secret"), ("rsa", "rsa", "")):
        path = directory / name
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", path], check=True)
    for name in ("age", "other"):
        key = pyrage.x25519.Identity.generate()
        (directory / name).write_text(f"# made for a test\n\n{key}\n")
        (directory / f"{name}.pub").write_text(f"{key.to_public()}\n")
    return directory


def to(keys: Path, *names: str, text: bytes = b"secret text") -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(text), target, recipients((keys / f"{name}.pub").read_text() for name in names))
    return target.getvalue()


def opened(path: Path, *identities: Path) -> bytes:
    with reader.open_recording(path, Identities(identities)) as file:
        return file.read()


# Recipients


def test_the_two_kinds_of_recipients(keys: Path) -> None:
    age, ssh = (recipient((keys / name).read_text()) for name in ("age.pub", "ssh.pub"))
    assert age.key.startswith("age1")
    assert age.comment == ""
    assert ssh.key.startswith("ssh-ed25519 AAAA")
    assert ssh.comment == "ssh"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t", "is no recipient"),
        ("age1" + "q" * 58, "is damaged"),
        ("ssh-ed25519 " + "A" * 68, "is damaged"),
        ("ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQ", "is no recipient"),
        ("AGE-SECRET-KEY-1JQ04Q96G7V7EXPNTCUVL2Q2FDHUW5XZSGSMJ5C6NMUN3JGM0RXGQP6MY8Q", "is no recipient"),
        ("github:joe", "is no recipient"),
        ("", "is no recipient"),
    ],
)
def test_what_is_no_recipient(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        recipient(text)
    assert len(str(caught.value)) < 120, "and a secret key is not shown whole"


def test_each_recipient_once_and_not_too_many(keys: Path) -> None:
    text = (keys / "ssh.pub").read_text()
    once = recipients(lines(f"# them\n\n{text}\n  {text}"))
    assert len(once) == 1
    assert "one recipient only" in str(too_few(once))
    assert too_few(()) is None
    assert too_few((*once, recipient((keys / "age.pub").read_text()))) is None
    import pyrage

    many = [str(pyrage.x25519.Identity.generate().to_public()) for _ in range(RECIPIENTS_MAX + 1)]
    with pytest.raises(ConfigError, match="21 recipients, and 20 is the most"):
        recipients(many)
    assert header_bytes(_sealed(many[:RECIPIENTS_MAX])) is not None


def _sealed(texts: list[str]) -> bytes:
    target = io.BytesIO()
    encrypt(io.BytesIO(b"x"), target, recipients(texts))
    return target.getvalue()


# There and back


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 300_000])
def test_count_and_hash_are_those_of_the_streams(keys: Path, size: int) -> None:
    text, target = noise(size, 1), io.BytesIO()
    made = encrypt(io.BytesIO(text), target, recipients([(keys / "age.pub").read_text()]))
    sealed = target.getvalue()
    assert (made.plain_bytes, made.plain_sha256) == (size, hashlib.sha256(text).hexdigest())
    assert (made.bytes, made.sha256) == (len(sealed), hashlib.sha256(sealed).hexdigest())
    assert len(sealed) == (header_bytes(sealed) or 0) + payload_bytes(size)


@needs_age
@pytest.mark.parametrize("name", ["age", "ssh"])
def test_age_opens_what_we_make(keys: Path, tmp_path: Path, name: str) -> None:
    text = noise(200_000, 2)
    (tmp_path / "a.age").write_bytes(to(keys, "other", "age", "ssh", text=text))
    said = subprocess.run(["age", "-d", "-i", keys / name, tmp_path / "a.age"], capture_output=True, timeout=30)
    assert (said.stdout, said.stderr) == (text, b"")


@needs_age
def test_we_open_what_age_makes(keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.age"
    command: list[str | Path] = ["age", "-R", keys / "age.pub", "-R", keys / "ssh.pub", "-o", path]
    subprocess.run(command, input=b"from age", check=True, timeout=30)
    assert opened(path, keys / "age") == opened(path, keys / "ssh") == b"from age"


def test_age_zstd_and_a_player_in_a_row(keys: Path, tmp_path: Path) -> None:
    packed, text = io.BytesIO(), record(STEPS).text
    packing.pack(io.BytesIO(text), packed)
    path = tmp_path / "a.cast.zst.age"
    path.write_bytes(to(keys, "age", text=packed.getvalue()))
    identities = Identities([keys / "age"])
    assert list(reader.open_path(path, identities)) == list(reader.open_stream(io.BytesIO(text), "test"))
    with path.open("rb", buffering=0) as file:
        assert list(reader.open_stream(file, "test", identities)), "from a stream, too"


def test_what_is_not_encrypted_is_read_as_it_is(keys: Path, tmp_path: Path) -> None:
    (tmp_path / "a.cast").write_bytes(record(STEPS).text)
    assert opened(tmp_path / "a.cast") == opened(tmp_path / "a.cast", keys / "age") == record(STEPS).text


# Identities


def test_without_an_identity_it_says_what_is_needed(keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.age"
    path.write_bytes(to(keys, "age"))
    with pytest.raises(NoIdentity, match="it is encrypted") as caught:
        reader.open_path(path)
    assert "--identity FILE" in str(caught.value.hint)
    with pytest.raises(NoIdentity, match=r"a\.age: no identity that was given opens it"):
        reader.open_path(path, Identities([keys / "other", keys / "ssh"]))
    assert opened(path, keys / "other", keys / "age") == b"secret text"


def test_a_protected_key_asks_once_and_only_when_it_is_needed(keys: Path, tmp_path: Path) -> None:
    asked = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "secret"

    path = tmp_path / "a.age"
    path.write_bytes(to(keys, "protected"))
    identities = Identities([keys / "protected"], ask)
    assert asked == []
    for _ in range(2):
        with reader.open_recording(path, identities) as file:
            assert file.read() == b"secret text"
    assert asked == [f"Passphrase of {keys / 'protected'}: "]
    with pytest.raises(DataError, match="damaged, or not its passphrase"):
        read(keys / "protected", lambda _prompt: "wrong")
    with pytest.raises(Denied, match="there is nobody to ask"):
        read(keys / "protected")


def test_an_age_file_may_be_protected_too(keys: Path, tmp_path: Path) -> None:
    import pyrage

    protected = tmp_path / "key"
    protected.write_bytes(pyrage.passphrase.encrypt((keys / "age").read_bytes(), "secret"))
    (tmp_path / "a.age").write_bytes(to(keys, "age"))
    identities = Identities([protected], lambda _prompt: "secret")
    with reader.open_recording(tmp_path / "a.age", identities) as file:
        assert file.read() == b"secret text"
    with pytest.raises(DataError, match="damaged, or not its passphrase"):
        read(protected, lambda _prompt: "wrong")


def test_what_is_no_identity(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only ed25519"):
        read(keys / "rsa")
    with pytest.raises(NotFound):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="a directory"):
        read(tmp_path)
    path = tmp_path / "key"
    for content, said in (
        ("", "no identity in it"),
        ("# only a comment\n", "no identity in it"),
        ("hello\n", "line 1: no identity of age's"),
        ("\nAGE-PLUGIN-YUBIKEY-1QQPQQQQQQ\n", "line 2: a plugin's identity"),
        ((keys / "ssh.pub").read_text(), "line 1: no identity of age's"),
        ((keys / "ssh").read_text()[:200], "damaged"),
        ("x" * (1 << 20) + "x", "too long"),
    ):
        path.write_text(content)
        with pytest.raises(DataError, match=said):
            read(path)


# Damage


def test_a_flipped_bit_a_cut_and_more_at_the_end(keys: Path, tmp_path: Path) -> None:
    whole = to(keys, "age", "ssh", text=noise(200_000, 3))
    path = tmp_path / "a.age"
    head = header_bytes(whole) or 0
    cuts = [whole[:size] for size in (22, 100, head - 1, head, head + 16, head + 16 + 65552, len(whole) - 1)]
    flips = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in (30, head - 5, head + 3, 70_000, -2)]
    for n, damaged in enumerate((*cuts, *flips, whole + b"x", whole + whole)):
        path.write_bytes(damaged)
        with pytest.raises(DataError):
            opened(path, keys / "age")
            raise AssertionError(n)


def test_a_header_without_end_costs_nothing(keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.age"
    path.write_bytes(encryption.MAGIC + b"-> X25519 abc\nAAAA\n" * 1_000_000)
    with pytest.raises(DataError, match="it has no header"):
        opened(path, keys / "age")


def test_who_stops_reading_leaves_no_thread(keys: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.age"
    path.write_bytes(to(keys, "age", text=noise(5_000_000, 4)))
    before = threading.active_count()
    with reader.open_recording(path, Identities([keys / "age"])) as file:
        assert len(file.read(10)) == 10
    assert threading.active_count() == before


def test_what_the_disk_refuses_keeps_its_name(keys: Path) -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        encrypt(io.BytesIO(noise(200_000, 5)), full, recipients([(keys / "age.pub").read_text()]))


def test_memory_does_not_grow_with_the_recording(keys: Path, tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from sshrec.recipients import recipients
from sshrec.recording.encryption import encrypt
from sshrec.recording.identity import Identities
from sshrec.recording.reader import open_recording
big, sealed, key = map(Path, sys.argv[1:])
with big.open("rb") as source, sealed.open("wb") as target:
    encrypt(source, target, recipients([key.with_suffix(".pub").read_text()]))
with open_recording(sealed, Identities([key])) as file:
    while file.read(1 << 20):
        pass
"""
    big = tmp_path / "big"
    with big.open("wb") as file:
        os.truncate(file.fileno(), 300 << 20)
    command: list[str | Path] = [sys.executable, "-c", program, big, tmp_path / "big.age", keys / "age"]
    subprocess.run(
        command,
        check=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (100 << 20,) * 2),
    )
