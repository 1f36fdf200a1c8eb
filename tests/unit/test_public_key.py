"""Public key files: those that people have, and those that they give by mistake or in malice."""

from __future__ import annotations

import contextlib
import os
import subprocess
from base64 import b64decode, b64encode
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from sshrec.errors import DataError, NotFound
from sshrec.openssh.public_key import PublicKey, fingerprint, from_wire, parse, read, wire_string

ED25519 = b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/AP8A/wD/ joe@laptop\n"


def fido_key(algorithm: str) -> PublicKey:
    """A public key such as a token makes."""
    if "ecdsa" in algorithm:
        numbers = ec.generate_private_key(ec.SECP256R1()).public_key()
        fields = [b"nistp256", numbers.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)]
    else:
        fields = [os.urandom(32)]
    return from_wire(b"".join(map(wire_string, [algorithm.encode(), *fields, b"ssh:"])), "token")


def rsa_line(bits: int) -> bytes:
    key = rsa.generate_private_key(65537, bits)
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def with_blob(change: bytes, algorithm: str = "ssh-ed25519") -> bytes:
    return f"{algorithm} {b64encode(change).decode()}".encode()


WIRE = b64decode(ED25519.split()[1])


@pytest.mark.parametrize(
    ("kind", "bits"), [("ed25519", 256), ("rsa", 3072), ("ecdsa", 256), ("ecdsa", 384), ("ecdsa", 521)]
)
def test_is_what_ssh_keygen_says(kind: str, bits: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    make: list[str | Path] = [
        "ssh-keygen",
        "-q",
        "-t",
        kind,
        "-b",
        str(bits),
        "-N",
        "",
        "-C",
        "joe at home",
        "-f",
        path,
    ]
    subprocess.run(make, check=True)
    key = read(f"{path}.pub")
    said = subprocess.run(["ssh-keygen", "-lf", path], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"{key.bits} {key.fingerprint} {key.comment} (")
    assert f"{key.line}\n" == Path(f"{path}.pub").read_text()


@pytest.mark.parametrize("algorithm", ["sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com"])
def test_keys_of_fido_tokens(algorithm: str, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(fido_key(algorithm).line)
    key = read(tmp_path / "key.pub")
    said = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True).stdout
    assert said.startswith(f"{key.bits} {key.fingerprint} token (")


def test_around_the_key_may_be_comments_and_blank_lines() -> None:
    key = parse(b"# mine\r\n\r\n  \t" + ED25519.replace(b" ", b"\t") + b"\r\n\n", "key.pub")
    assert (key.algorithm, key.comment) == ("ssh-ed25519", "joe@laptop")
    assert parse(ED25519.rsplit(maxsplit=1)[0], "key.pub") == key, "a comment makes no other key"
    assert fingerprint(key.blob) == key.fingerprint


def test_a_comment_is_kept_without_what_is_no_text() -> None:
    assert parse(ED25519.replace(b"joe@", b"j\xff \xc3\xb6 @"), "key.pub").comment == "j\\xff ö @laptop"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "key.pub holds no public key"),
        (b"\n# nothing\n\n", "key.pub holds no public key"),
        (b"ssh-ed25519\n", "key.pub holds no public key"),
        (ED25519 + b" " * 16384, "key.pub has more than 16 KiB"),
        (ED25519 * 2, "key.pub has 2 lines"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n", "key.pub is a private key"),
        (b"PuTTY-User-Key-File-3: ssh-ed25519\n", "key.pub is a private key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n", "key.pub is not in OpenSSH's format"),
        (b"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n", "key.pub is not in OpenSSH's format"),
        (b"ssh-ed25519-cert-v01@openssh.com AAAA\n", "key.pub is a certificate, already signed"),
        (b'command="id" ' + ED25519, "key.pub has options before the key"),
        (b'no-pty,environment="X=ssh-rsa AAAA" ' + ED25519, "key.pub has options before the key"),
        (b"cert-authority " + ED25519, "key.pub has options before the key"),
        (b"1024 65537 1234567 joe\n", "key.pub is no public key: what follows 1024 is not base64"),
        (b"ssh-ed448 AAAA\n", "key.pub: unknown type of key ssh-ed448"),
        (b"\x1b[31m AAAA\n", "key.pub holds control bytes"),
        (ED25519.replace(b"joe", b"j\0e"), "key.pub holds control bytes"),
        (ED25519.replace(b"joe", b"j\re"), "key.pub holds control bytes"),
        (b"ssh-ed25519 AA-A\n", "key.pub is no public key: what follows ssh-ed25519 is not base64"),
        (b"ssh-ed25519 AAB=\n", "key.pub is no public key: what follows ssh-ed25519 is not base64"),
        (ED25519.replace(b"ssh-ed25519", b"ssh-rsa", 1), "key.pub says ssh-rsa and holds a key of ssh-ed25519"),
        (with_blob(WIRE[:-1]), "key.pub is no valid public key: truncated"),
        (with_blob(WIRE + b"\0"), "key.pub is no valid public key: trailing bytes"),
        (with_blob(b"\xff" * 40), "key.pub is no valid public key: truncated"),
        (with_blob(wire_string(b"\xff" * 40)), "key.pub is no valid public key: a type that is not ASCII"),
        (with_blob(wire_string(b"ssh-ed25519") + wire_string(b"short")), "a point of the wrong size"),
        (
            with_blob(
                b"".join(map(wire_string, [b"ecdsa-sha2-nistp256", b"nistp384", b"\4" * 97])),
                "ecdsa-sha2-nistp256",
            ),
            "a curve that is not its type's",
        ),
        (
            with_blob(b"".join(map(wire_string, [b"ssh-rsa", b"\1\0\1", b"\xff" * 384])), "ssh-rsa"),
            "a number that is not positive",
        ),
        (
            with_blob(b"".join(map(wire_string, [b"ssh-rsa", b"\1\0\1", b"\1" * 2049])), "ssh-rsa"),
            "a number that is too large",
        ),
        (with_blob(b"".join(map(wire_string, [b"ssh-rsa", b"\2", b"\1" * 512])), "ssh-rsa"), "a useless exponent"),
    ],
)
def test_what_is_no_public_key(data: bytes, words: str) -> None:
    with pytest.raises(DataError) as caught:
        parse(data, "key.pub")
    assert words in str(caught.value)
    assert caught.value.hint
    assert "\n" not in str(caught.value) + caught.value.hint


def test_weak_keys() -> None:
    with pytest.raises(DataError, match="is an RSA key of 2048 bits; 3072 are the least"):
        parse(rsa_line(2048), "key.pub")
    with pytest.raises(DataError, match="is a DSA key"):
        parse(with_blob(wire_string(b"ssh-dss"), "ssh-dss"), "key.pub")


def test_the_name_in_an_error_is_printable() -> None:
    with pytest.raises(DataError, match=r"^\\x1b\[31m holds no public key$"):
        parse(b"", "\x1b[31m")


@given(st.binary(max_size=200) | st.binary(max_size=100).map(lambda more: ED25519[:40] + more))
def test_bytes_are_a_key_or_a_data_error(data: bytes) -> None:
    with contextlib.suppress(DataError):
        assert parse(data, "key.pub").algorithm == "ssh-ed25519"


@given(st.integers(0, len(WIRE) - 1), st.integers(0, 255))
def test_a_changed_blob_is_a_key_or_a_data_error(at: int, byte: int) -> None:
    changed = bytearray(WIRE)
    changed[at] = byte
    try:
        key = parse(with_blob(bytes(changed)), "key.pub")
    except DataError:
        assert at < 19, "only what is before the point is checked"
    else:
        assert b64decode(key.blob) == changed


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(DataError, match="is not a regular file"):
            read(path)
    with pytest.raises(NotFound, match="no such file"):
        read(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a file's name"):
        read("a\0b")


def test_of_a_huge_file_little_is_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(1 << 40)
    with pytest.raises(DataError, match="has more than 16 KiB"):
        read(tmp_path / "huge")


def test_a_key_from_standard_input() -> None:
    saved = os.dup(0)
    read_end, write_end = os.pipe()
    try:
        os.dup2(read_end, 0)
        for piece in (ED25519[:30], ED25519[30:]):
            os.write(write_end, piece)
        os.close(write_end)
        assert read("-").comment == "joe@laptop"
        with pytest.raises(DataError, match=r"^standard input holds no public key"):
            read("-")
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(read_end)
