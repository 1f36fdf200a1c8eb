"""A CA's line in a person's known_hosts; and the block for ssh_config."""

from __future__ import annotations

import subprocess
from base64 import b64encode
from pathlib import Path

import pytest

from sshrec.errors import DataError
from sshrec.openssh.known_hosts import merge, merged, vouching
from sshrec.openssh.public_key import PublicKey, wire_string
from sshrec.openssh.ssh_config import block


def key(number: int) -> PublicKey:
    blob = wire_string(b"ssh-ed25519") + wire_string(number.to_bytes(32))
    return PublicKey("ssh-ed25519", b64encode(blob).decode())


def line(number: int, comment: str = "sshrec:b", hosts: str = "bastion") -> bytes:
    return f"@cert-authority {hosts} {key(number).line} {comment}\n".encode()


OTHERS = b"# mine\n\n|1|abc= ssh-ed25519 AAAA\n\xff\xfe odd\n" + line(9, "somebody") + line(8, hosts="x")


def test_a_line_is_added_once() -> None:
    once = merged(OTHERS, "bastion", [key(1), key(2)], "sshrec:b")
    assert once == OTHERS + line(1) + line(2)
    assert merged(once, "bastion", [key(1), key(2)], "sshrec:b") == once
    assert merged(b"", "bastion", [key(1)], "sshrec:b") == line(1)
    assert merged(b"last", "bastion", [key(1)], "sshrec:b") == b"last\n" + line(1)


def test_a_rotated_ca_is_replaced() -> None:
    before = line(1) + OTHERS + line(1) + line(2)
    assert merged(before, "bastion", [key(2), key(3)], "sshrec:b") == OTHERS + line(2) + line(3)


def test_a_line_that_somebody_else_wrote_will_do() -> None:
    theirs = line(1, "from the wiki")
    assert merged(theirs, "bastion", [key(1)], "sshrec:b") == theirs
    assert merged(theirs + line(1), "bastion", [key(1)], "sshrec:b") == theirs
    assert merged(theirs, "bastion", [key(2)], "sshrec:b") == theirs + line(2)


def test_the_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    path, link = tmp_path / "dotfiles" / "known_hosts", tmp_path / ".ssh" / "known_hosts"
    assert merge(path, "bastion", [key(1)], "sshrec:b")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    link.parent.mkdir()
    link.symlink_to(path)
    assert merge(link, "bastion", [key(2)], "sshrec:b")
    assert not merge(link, "bastion", [key(2)], "sshrec:b")
    assert link.is_symlink()
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (line(2), 0o644)
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(DataError, match="is not a regular file"):
        merge(tmp_path, "bastion", [key(1)], "sshrec:b")


def test_ssh_finds_the_key(tmp_path: Path) -> None:
    merge(tmp_path / "k", "bastion", [key(1)], "sshrec:b")
    argv = ["ssh-keygen", "-F", "bastion", "-f", str(tmp_path / "k")]
    assert key(1).blob in subprocess.run(argv, capture_output=True, text=True, timeout=20).stdout


def test_lines_that_vouch() -> None:
    assert vouching("@cert-authority * ssh-ed25519 AAAA host CA") == ("*", b"ssh-ed25519 AAAA host CA")
    assert vouching("bastion ssh-ed25519 AAAA") is None
    assert vouching("@revoked * ssh-ed25519 AAAA") is None
    assert vouching("@cert-authority *") is None


def settings(text: str, host: str, tmp_path: Path) -> dict[str, str]:
    """What ssh makes of it."""
    (tmp_path / "config").write_text(text)
    argv = ["ssh", "-F", str(tmp_path / "config"), "-G", host]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=True)
    return dict(one.split(" ", 1) for one in done.stdout.splitlines() if " " in one)


def test_what_ssh_makes_of_the_block(tmp_path: Path) -> None:
    certificate = Path("/home/joe doe/50%/cert.pub")
    found = settings(block("bastion", "joe", certificate, None), "bastion", tmp_path)
    assert (found["user"], found["forwardagent"], found["identitiesonly"]) == ("joe", "yes", "yes")
    assert found["identityfile"] == "/home/joe doe/50%%/cert.pub"
    assert "certificatefile" not in found
    found = settings(block("bastion", "joe", certificate, Path("/k")), "bastion", tmp_path)
    assert (found["identityfile"], found["certificatefile"]) == ("/k", "/home/joe doe/50%%/cert.pub")
    assert settings(block("bastion", "joe", certificate, None), "web1", tmp_path)["forwardagent"] == "no"


def test_a_block_for_nodes(tmp_path: Path) -> None:
    text = block("bastion", "joe", Path("/c"), None, known_hosts=Path("/kh"), nodes="web* db*")
    found = settings(text, "web1", tmp_path)
    assert found["hostname"] == "web1.sshrec"
    assert found["proxycommand"] == "ssh -A bastion sshrec-proxy %r %n %p"
    assert found["userknownhostsfile"] == "/kh"
    assert found["forwardagent"] == "no"
