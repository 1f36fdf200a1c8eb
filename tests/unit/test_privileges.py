"""Whose rights a command works with, in processes of their own: what is given up cannot be had back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sshrec import privileges
from sshrec.errors import ConfigError
from sshrec.privileges import Privileges, become_owner

OTHER = 64999

_SCRIPT = """
import json, os, subprocess, sys
from pathlib import Path
from sshrec.privileges import become_owner
def ids():
    return [*os.getresuid(), *os.getresgid(), *os.getgroups()]
def child():
    code = "import os; print([*os.getresuid(), *os.getresgid(), *os.getgroups()])"
    return json.loads(subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True).stdout)
os.setgroups([0, 4])
rights = become_owner(Path(sys.argv[1]), sys.argv[2], make=sys.argv[3] == "make")
said = {"owner": ids(), "owner's child": child()}
with rights.as_caller():
    said["caller"] = ids()
    said["caller's child"] = child()
    Path(sys.argv[1], "..", "made-by-caller").touch()
said["after"] = ids()
print(json.dumps(said))
"""


def becoming(directory: Path, account: str = "nobody-at-all", make: bool = False) -> dict[str, list[int]]:
    words = [str(directory), account, "make" if make else ""]
    done = subprocess.run([sys.executable, "-c", _SCRIPT, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: dict[str, list[int]] = json.loads(done.stdout)
    return said


@pytest.mark.root
def test_root_becomes_the_owner_and_root_for_moments(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", OTHER, OTHER)
    said = becoming(tmp_path / "home")
    owner = [OTHER, OTHER, 0, OTHER, OTHER, 0, OTHER]  # the saved ids are the way back
    assert said["owner"] == said["after"] == owner
    assert said["owner's child"] == [OTHER] * 7
    assert said["caller"] == said["caller's child"] == [0] * 6 + [0, 4]
    assert (tmp_path / "made-by-caller").stat().st_uid == 0


_TEMPORARY = """
import sys, tempfile
from pathlib import Path
from sshrec.privileges import become_owner
rights = become_owner(Path(sys.argv[1]), "")
for _ in range(2):
    with rights.as_caller(), tempfile.TemporaryDirectory() as name:
        print(Path(name).parent)
    with tempfile.TemporaryDirectory() as name:
        print(Path(name).parent)
"""


@pytest.mark.root
def test_temporary_files_go_where_whoever_makes_them_may(tmp_path: Path) -> None:
    """pam_tmpdir has root's in a directory of its own."""
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", OTHER, OTHER)
    (tmp_path / "private").mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", _TEMPORARY, str(tmp_path / "home")],
        env={**os.environ, "TMPDIR": str(tmp_path / "private")},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(tmp_path / "private"), "/tmp"] * 2, done.stderr


@pytest.mark.root
def test_a_directory_that_is_root_s_stays_root_s(tmp_path: Path) -> None:
    said = becoming(tmp_path)
    assert {tuple(ids) for ids in said.values()} == {(0,) * 6 + (0, 4)}


@pytest.mark.root
def test_a_new_home_is_for_the_account(tmp_path: Path) -> None:
    said = becoming(tmp_path / "deep" / "home", "nobody", make=True)
    assert said["owner"][:2] == [65534, 65534]
    status = (tmp_path / "deep" / "home").stat()
    assert (status.st_uid, status.st_mode & 0o777) == (65534, 0o755)
    assert (tmp_path / "deep").stat().st_uid == 0
    assert becoming(tmp_path / "other", make=True)["owner"][:2] == [0, 0]
    assert (tmp_path / "other").stat().st_uid == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root becomes somebody else")
@pytest.mark.root
def test_no_home_where_somebody_else_could_turn_it_into_another(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    with pytest.raises(ConfigError, match="theirs can be changed by others than root and the caller"):
        become_owner(tmp_path / "theirs" / "deep" / "home", "nobody", make=True)
    assert list((tmp_path / "theirs").iterdir()) == []
    assert os.geteuid() == 0


def test_everybody_else_stays(tmp_path: Path) -> None:
    me = (os.geteuid(), os.getegid())
    assert become_owner(tmp_path / "home", "root", make=True) == Privileges(me, me, ())
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o755


def test_a_home_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    before = os.getresuid()
    with pytest.raises(ConfigError, match=r"^cannot make .*/file/home: not a directory$"):
        become_owner(tmp_path / "file" / "home", "nobody-at-all", make=True)
    assert os.getresuid() == before


@pytest.mark.parametrize(
    ("environment", "whence"),
    [
        ({"SSH_CONNECTION": "192.0.2.1 1234 192.0.2.2 22"}, "192.0.2.1"),
        ({"SSH_CONNECTION": "2001:db8::1 1234 2001:db8::2 22"}, "2001:db8::1"),
        ({"SSH_CONNECTION": ""}, "local"),
        ({}, "local"),
    ],
)
def test_from_where(environment: dict[str, str], whence: str) -> None:
    """Of a process whose standard input is no terminal."""
    code = "from sshrec.privileges import whence; print(whence())"
    how: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "env": environment}
    assert subprocess.run([sys.executable, "-c", code], **how).stdout == f"{whence}\n"


def test_who(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_USER", raising=False)
    alone = privileges.caller()
    assert alone
    monkeypatch.setenv("SUDO_USER", "carol")
    assert privileges.caller() == (f"{alone} (carol)" if os.getuid() == 0 else alone)
