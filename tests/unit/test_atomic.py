"""Files that are replaced whole, and where they land."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sshrec.atomic import replace_file

OTHER = 64999


def test_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old", 0o600)
    replace_file(path, b"new", 0o644)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("do not touch")
    (tmp_path / "link").symlink_to("precious")
    replace_file(tmp_path / "link", b"new", 0o644)
    assert (tmp_path / "precious").read_text() == "do not touch"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("target", ["deep/real", "./deep/../deep/real", "{}/deep/real", "deep/other"])
def test_our_own_links_lead_there(tmp_path: Path, target: str) -> None:
    (tmp_path / "deep" / "real").mkdir(parents=True)
    (tmp_path / "deep" / "other").symlink_to("real")
    (tmp_path / "link").symlink_to(target.format(tmp_path))
    replace_file(tmp_path / "link" / "file", b"new", 0o644)
    assert (tmp_path / "deep" / "real" / "file").read_bytes() == b"new"


def test_relative_to_where_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    replace_file(Path("file"), b"new", 0o644)
    replace_file(Path("..", tmp_path.name, "other"), b"new", 0o644)
    assert sorted(os.listdir()) == ["file", "other"]


@pytest.mark.root
def test_somebody_else_s_link_leads_nowhere(tmp_path: Path) -> None:
    """Root writes beside a person's key, in a directory that the person made a link to one of root's."""
    (tmp_path / "root").mkdir()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".ssh").symlink_to(tmp_path / "root")
    for path in (home, home / ".ssh"):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(OSError, match="a link on the way there is somebody else's"):
        replace_file(home / ".ssh" / "id-cert.pub", b"new", 0o644)
    assert list((tmp_path / "root").iterdir()) == []


def test_a_circle_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        replace_file(tmp_path / "a" / "file", b"new", 0o644)


@pytest.mark.parametrize("missing", ["nowhere/file", "file/below"])
def test_where_there_is_no_directory(tmp_path: Path, missing: str) -> None:
    (tmp_path / "file").write_text("one")
    with pytest.raises(OSError, match=r"No such file or directory|Not a directory") as raised:
        replace_file(tmp_path / missing, b"new", 0o644)
    assert raised.value.filename == str(tmp_path / missing)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        replace_file(tmp_path / missing, b"new", 0o644)
    assert len(os.listdir("/proc/self/fd")) == before
