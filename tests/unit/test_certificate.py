"""Key id and serial of every kind of certificate, as ssh-keygen makes them."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
from pathlib import Path

import pytest

from sshrec.errors import Denied
from sshrec.openssh.certificate import accepted


def _string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def _fido_key(kind: str) -> str:
    """A public key such as a token makes; signing it needs no token."""
    point = b"\4" + os.urandom(64)
    fields = [kind.encode()] + ([b"nistp256", point] if "ecdsa" in kind else [os.urandom(32)]) + [b"ssh:"]
    return f"{kind} {base64.b64encode(b''.join(map(_string, fields))).decode()} token\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa", "sk-ssh-ed25519@openssh.com"])
def test_key_id_and_serial(kind: str, ca: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    if kind.startswith("sk-"):
        key.with_suffix(".pub").write_text(_fido_key(kind))
    else:
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", key], check=True)
    subprocess.run(
        [
            "ssh-keygen",
            "-q",
            "-s",
            ca,
            "-I",
            "joe@laptop",
            "-n",
            "joe",
            "-z",
            "18446744073709551615",
            f"{key}.pub",
        ],
        check=True,
    )
    algorithm, blob, _ = Path(f"{key}-cert.pub").read_text().split(maxsplit=2)
    found = accepted(f"publickey {algorithm} {blob}\n".encode())
    assert found is not None
    assert (found.key_id, found.serial) == ("joe@laptop", 2**64 - 1)
    assert found.line == f"{algorithm} {blob}\n"


def test_a_plain_key_has_no_key_id() -> None:
    found = accepted(b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGo=\n")
    assert found is not None
    assert found.key_id is None


def test_the_last_key_counts() -> None:
    found = accepted(
        b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA\n"
        b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBB\n"
        b"keyboard-interactive/pam\n"
    )
    assert found is not None
    assert found.blob.endswith("BBB")


@pytest.mark.parametrize("info", [b"", b"password\n", b"publickey \x1b[31m AAAA\n", b"publickey ssh-rsa ../..\n"])
def test_a_login_without_a_key(info: bytes) -> None:
    assert accepted(info) is None


@pytest.mark.parametrize(
    "wire", [b"", b"\0\0\0\x20ssh-ed25519", b"\xff" * 40, _string(b"ssh-unknown-cert-v01@openssh.com")]
)
def test_a_broken_certificate_is_refused(wire: bytes) -> None:
    blob = base64.b64encode(wire.ljust(16, b"\0"))
    with pytest.raises(Denied):
        accepted(b"publickey ssh-ed25519-cert-v01@openssh.com " + blob)
