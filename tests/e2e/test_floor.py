"""The disk floor: a disk that is nearly full lets nobody begin, and everything else goes on."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.audit.log import Line, read_log
from sshrec.gateway.floor import percent_free
from tests.e2e.recorded import last, packed
from tests.e2e.test_audit import log, writer
from tests.lab import PROMPT, Lab

SIZE = 8 * 1024 * 1024


@pytest.mark.parametrize(
    ("blocks", "free", "available", "percent"),
    [(100, 100, 100, 100), (100, 0, 0, 0), (100, 10, 5, 100 * 5 / 95), (200, 10, 10, 5), (0, 0, 0, 100)],
)
def test_percent_free(blocks: int, free: int, available: int, percent: float) -> None:
    assert percent_free(blocks, free, available) == percent


@pytest.fixture
def disk(lab: Lab) -> Iterator[Path]:
    """The recordings on a small file system of their own."""
    writer(lab)
    lab.stop_sshrecd()
    directory = lab.data_dir / "recordings"
    directory.mkdir(exist_ok=True)
    account = lab.account("sshrec")
    options = f"size={SIZE},mode=750,uid={account.uid},gid={account.gid}"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "sshrec-test", directory], capture_output=True)
    if done.returncode:
        lab.start_sshrecd()
        pytest.skip(f"cannot mount: {done.stderr.decode(errors='replace').strip()}")
    try:
        lab.start_sshrecd()
        writer(lab)
        yield directory
        lab.stop_sshrecd()
    finally:
        (lab.run_dir / "disk.problem").unlink(missing_ok=True)
        subprocess.run(["umount", "-l", directory], check=True)
        lab.stop_sshrecd()
        lab.start_sshrecd()


def fill(disk: Path, percent: int) -> Path:
    """Leave so much of it free."""
    filler = disk / "filler"
    room = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - SIZE * percent // 100)
    return filler


def problems(lab: Lab) -> list[dict[str, Any]]:
    return [event for event in log(lab) if event["event"] == "disk.problem"]


@pytest.mark.root
def test_a_disk_that_is_nearly_full(lab: Lab, disk: Path) -> None:
    assert lab.ssh("-A", "bastion", "root@web1", "echo before").stdout == b"before\n"
    packed(lab, 1)
    live = lab.spawn("-tA", "bastion", "root@web1")
    live.expect(PROMPT)
    told, marker = len(problems(lab)), lab.directory / "ran"
    filler = fill(disk, 3)

    for _ in range(2):
        done = lab.ssh("-A", "bastion", "root@web1", f"touch {marker}")
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"sshrec: error: the disk of the recordings is nearly full: " in done.stderr
        assert b" % are free, and below 5 % no session begins" in done.stderr
        assert b"hint: an administrator may have the break-glass way in" in done.stderr
    assert not marker.exists()

    # Once, however often; each refusal is there by itself.
    lab.wait(lambda: log(lab)[-1]["event"] == "session.rejected", "the refusal in the log")
    (problem,) = problems(lab)[told:]
    assert (problem["code"], problem["floor_percent"], problem["path"]) == ("SR302E", 5, str(disk))
    assert problem["free_percent"] < 5
    assert 0 < problem["free_bytes"] < SIZE * 5 // 100
    assert "nearly full" in log(lab)[-1]["reason"]
    assert log(lab)[-1]["user"] == "joe"

    # What there is stays in reach, and a session that lives goes on.
    assert b"root@web1" in lab.sshrec("ls").stdout
    assert lab.sshrec("verify", "--all", check=False).stdout.count(b"COMPLETE") == 2
    live.sendline("echo go''es on")
    live.expect("goes on")
    live.sendline("exit")
    live.expect(pexpect.EOF)
    live.close()

    filler.unlink()
    assert lab.ssh("-A", "bastion", "root@web1", "echo after").stdout == b"after\n"
    last(lab)


@pytest.mark.root
@pytest.mark.parametrize(("floor", "status"), [(0, 0), (2, 0), (50, 255)])
def test_the_floor_is_a_setting(lab: Lab, disk: Path, floor: int, status: int) -> None:
    fill(disk, 4)
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"disk_floor": floor}})
    writer(lab)
    assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == status
    if not status:
        packed(lab, 1)


@pytest.mark.root
@pytest.mark.parametrize("percent", [0, 2])
def test_pruning_makes_room(lab: Lab, disk: Path, percent: int) -> None:
    """Even where there is none at all."""
    lab.ssh("-A", "bastion", "root@web1", "head -c 600000 /dev/urandom | base64")
    packed(lab, 1)
    lab.expect_nothing_left()  # its worker still has the plain one open
    filler = fill(disk, percent)
    assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == 255
    lab.sshrec("prune", "--max-size", "1B")
    assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == 0
    packed(lab, 1)
    filler.unlink()


@pytest.mark.root
def test_embedded() -> None:
    with Lab(several_uids=False, sshrecd=False) as lab:
        directory = lab.directory / "own"
        disk = directory / "recordings"
        disk.mkdir(parents=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "sshrec-test", disk]).returncode:
            pytest.skip("cannot mount")
        try:
            config = directory / "sshrec.yaml"
            config.write_text(
                f"data_dir: {directory}/data\nrun_dir: {directory}/run\nrecordings: {disk}\nknown_hosts: []\n"
            )
            # The accounts of the lab are in nobody's passwd: this interpreter is told of them.
            python = directory / "python"
            accounts = " ".join(f"{name}={value}" for name, value in lab.sshrec_env().items())
            python.write_text(f'#!/bin/sh\nexec env {accounts} {lab.installation.programs}/python "$@"\n')
            python.chmod(0o755)
            program = lab.gateway.split()[0]
            lab.start_bastion(
                "embedded", force_command=f"{program} --embedded --config {config} --python {python}"
            )
            fill(disk, 3)
            for _ in range(2):
                done = lab.ssh("-A", "embedded", "root@web1", "true")
                assert (done.returncode, done.stdout) == (255, b"")
                assert b"the disk of the recordings is nearly full" in done.stderr

            def logged() -> list[str]:
                found = [line for line in read_log(directory / "data/audit") if isinstance(line, Line)]
                return [line.event for line in found]

            lab.wait(lambda: len(logged()) >= 3, "the second refusal in the log")
            assert logged() == ["disk.problem", "session.rejected", "session.rejected"]
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
