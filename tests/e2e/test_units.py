"""contrib/systemd, sysusers.d and tmpfiles.d, judged by systemd's own tools; nothing on this machine changes."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from sshrec.config import Config, Limits

CONTRIB = Path(__file__).parents[2] / "contrib"
UNITS = (
    *("sshrecd.socket", "sshrecd.service", "sshrec-auth.service", "sshrec-ca.service", "sshrec-ca.timer"),
    *("sshrec-prune.service", "sshrec-prune.timer"),
)


def tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"no {name}: apt-get install systemd")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """Copies of the units whose program exists here."""
    copies = []
    for name in UNITS:
        text = (CONTRIB / "systemd" / name).read_text()
        copy = tmp_path / name
        copy.write_text(re.sub(r"/opt/sshrec/bin/[a-z-]+", "/bin/true", text))
        copies.append(copy)
    return copies


def settings(name: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (CONTRIB / "systemd" / name).read_text().splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


@tool("systemd-analyze")
def test_systemd_understands_every_line(units: list[Path]) -> None:
    result = run("systemd-analyze", "verify", "--man=no", *units)
    ours = [line for line in result.stderr.splitlines() if "sshrec" in line]  # not what else is wrong here
    assert (result.returncode, ours) == (0, [])


@tool("systemd-analyze")
def test_verify_would_notice_a_misspelt_setting(units: list[Path]) -> None:
    units[1].write_text(units[1].read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in run("systemd-analyze", "verify", "--man=no", *units).stderr


@tool("systemd-analyze")
def test_exposure_stays_low(units: list[Path]) -> None:
    for unit in units:
        if unit.name not in ("sshrecd.service", "sshrec-auth.service", "sshrec-prune.service"):
            continue
        result = run("systemd-analyze", "security", "--offline=yes", "--threshold=17", unit)
        assert result.returncode == 0, result.stdout


def test_the_socket_is_where_the_configuration_says_and_survives_the_service() -> None:
    socket, service, auth = (settings(name) for name in UNITS[:3])
    config = Config()
    assert socket["ListenSequentialPacket"] == [str(config.socket)]
    assert socket["SocketMode"] == ["0666"]
    assert [f"/run/{name}" for name in service["RuntimeDirectory"]] == [str(config.run_dir)]
    assert [f"/var/lib/{name}" for name in service["StateDirectory"]] == [str(config.data_dir)]
    assert [f"/run/{name}" for name in auth["RuntimeDirectory"]] == [str(config.auth_socket.parent)]
    assert [f"/var/lib/{name}" for name in auth["StateDirectory"]] == [str(config.authority_dir)]
    assert service["RuntimeDirectoryPreserve"] == ["yes"]
    assert service["KillMode"] == ["process"]


def test_there_are_tasks_for_every_session() -> None:
    service = settings("sshrecd.service")
    assert int(service["TasksMax"][0]) >= 4 * Limits().sessions
    assert int(service["LimitNOFILE"][0]) >= 16 * Limits().sessions


@pytest.mark.root
@tool("systemd-sysusers")
@tool("systemd-tmpfiles")
@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-tmpfiles gives directories away: needs root")
def test_accounts_and_directories(tmp_path: Path) -> None:
    for kind in ("sysusers.d", "tmpfiles.d"):
        directory = tmp_path / "usr/lib" / kind
        directory.mkdir(parents=True)
        shutil.copy(CONTRIB / kind / "sshrec.conf", directory)
    (tmp_path / "etc").mkdir()

    result = run("systemd-sysusers", f"--root={tmp_path}", "sshrec.conf")
    assert result.returncode == 0, result.stderr
    passwd = dict(line.split(":", 1) for line in (tmp_path / "etc/passwd").read_text().splitlines())
    group = dict(line.split(":", 1) for line in (tmp_path / "etc/group").read_text().splitlines())
    assert passwd["sshrec"].endswith(":/var/lib/sshrec:/usr/sbin/nologin")
    assert passwd["sshrec-auth"].endswith(":/var/lib/sshrec-auth:/usr/sbin/nologin")
    assert {"sshrec", "sshrec-auth", "sshrec-users"} <= set(group)

    result = run("systemd-tmpfiles", f"--root={tmp_path}", "--create", "sshrec.conf")
    assert result.returncode == 0, result.stderr
    run_dir = (tmp_path / "run/sshrec").stat()
    assert (stat.S_IMODE(run_dir.st_mode), run_dir.st_uid) == (0o755, int(passwd["sshrec"].split(":")[1]))
    etc = (tmp_path / "etc/sshrec").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_uid) == (0o755, 0)
    config = Config()
    authority = (tmp_path / config.authority_dir.relative_to("/")).stat()
    owner = int(passwd[config.authority.account].split(":")[1])
    assert (stat.S_IMODE(authority.st_mode), authority.st_uid) == (0o755, owner)
    assert owner != run_dir.st_uid
