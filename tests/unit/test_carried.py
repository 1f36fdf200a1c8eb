"""What the audit log is told of rsync's and git's command lines, as these programs write them."""

from __future__ import annotations

from typing import Any

import pytest

from sshrec.gateway.transfer.carried import PATHS, carried


@pytest.mark.parametrize(
    ("command", "direction", "paths"),
    [
        ("rsync --server -logDtpre.iLsfxCIvu --delete . /srv/www/", "upload", ["/srv/www/"]),
        (r"rsync --server --sender -logDtpre.iLsfxCIvu . a\ b /etc/c*", "download", ["a b", "/etc/c*"]),
        ("/usr/bin/rsync --server -re.iLsf --partial-dir=. . .", "upload", ["."]),
        ("rsync --server -slogDtpre.iLsfxCIvu", "upload", []),  # --secluded-args
        ("rsync --server --sender -slogDtpre.iLsfxCIvu", "download", []),
        ("git-upload-pack '/srv/it'\\''s.git'", "download", ["/srv/it's.git"]),
        ("git upload-pack --strict /srv/one.git", "download", ["/srv/one.git"]),
        ("git-receive-pack 'one.git'", "upload", ["one.git"]),
        ("git-upload-archive 'one.git'", "download", ["one.git"]),
    ],
)
def test_which_way_and_what(command: str, direction: str, paths: list[str]) -> None:
    assert carried(command) == {"direction": direction, "paths": paths}


@pytest.mark.parametrize(
    "command",
    [
        "",
        "'",
        "rsync -a one two",
        "rsync",
        "git",
        "git status",
        "git-shell",
        "upload-pack x",
        "echo --server",
        "rsync --server --daemon .",
        "id",
    ],
)
def test_what_is_neither(command: str) -> None:
    assert carried(command) == {}


def test_it_stays_small() -> None:
    said: dict[str, Any] = carried("rsync --server -a . " + " ".join([*["x"] * PATHS, "y" * 9000, "z"]))
    assert (len(said["paths"]), said["paths_cut"]) == (PATHS, 2)
    assert [len(path) for path in carried(f"git-receive-pack {'y' * 9000}")["paths"]] == [4096]
