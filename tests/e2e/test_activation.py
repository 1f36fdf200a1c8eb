"""sshrecd as systemd starts it: on a socket that is there already, telling when it is ready."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from sshrec.audit.log import Line, files, read_log
from tests.e2e.recorded import last
from tests.e2e.test_audit import told
from tests.lab import Lab

# What systemd does for a socket unit: listens, hands the socket over as descriptor 3 (sd_listen_fds(3)).
ACTIVATE = """
import os, socket, sys
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if os.path.exists(sys.argv[1]):
    os.unlink(sys.argv[1])
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o666)
listener.listen(64)
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
environ = {**os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", "NOTIFY_SOCKET": sys.argv[2]}
os.execve(sys.argv[3], sys.argv[3:], environ)
"""


def test_socket_activation(lab: Lab) -> None:
    notified = lab.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(notified))
        notified.chmod(0o666)
        notify.settimeout(20)
        lab.stop_sshrecd()
        try:
            lab.start_sshrecd(prefix=[sys.executable, "-c", ACTIVATE, str(lab.socket), str(notified)])
            assert notify.recv(100) == b"READY=1"
            assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
            last(lab)
            assert lab.stop_sshrecd(signal.SIGTERM) == 0
            assert notify.recv(100) == b"STOPPING=1"
            assert lab.socket.exists()  # systemd's to remove, and to listen on meanwhile
        finally:
            lab.stop_sshrecd()
            lab.socket.unlink(missing_ok=True)
            notified.unlink()


def test_two_of_them_do_not_share_a_socket(lab: Lab) -> None:
    argv = [str(lab.installation.programs / "sshrecd"), "--config", str(lab.config)]
    second = subprocess.run(argv, env=lab.sshrec_env(), capture_output=True, timeout=30)
    assert second.returncode == os.EX_CONFIG
    assert second.stderr.decode().endswith(f"sshrecd: error: another sshrecd serves {lab.socket}\n")
    event = told(lab, "config.problem", code="SR301E")
    assert (event["problem"], event["refused"]) == (f"another sshrecd serves {lab.socket}", True)
    assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
    last(lab)


def test_what_will_keep_people_out_is_in_the_log(lab: Lab) -> None:
    """Of a bastion whose targets nobody can vouch for: it starts, and says so."""
    account = lab.account("sshrec")
    own: dict[str, Any] = {"user": account.uid, "group": account.gid} if lab.several_uids else {}
    place = lab.directory / "lonely"
    place.mkdir()
    if own:
        os.chown(place, account.uid, account.gid)
    config = lab.directory / "lonely.yaml"
    config.write_text(f"data_dir: {place}/data\nrun_dir: {place}/run\nknown_hosts: []\n")
    argv = [str(lab.installation.programs / "sshrecd"), "--config", str(config)]
    with (lab.directory / "lonely.log").open("wb") as output:
        sshrecd = subprocess.Popen(argv, env=lab.sshrec_env(), stdout=output, stderr=output, **own)
        try:
            log = place / "data" / "audit"
            (line,) = lab.wait(
                lambda: [one for one in _lines(log) if one.event == "config.problem"], "the problem in the log"
            )
            lab.wait((place / "run" / "sshrecd.sock").exists, "sshrecd to listen")
        finally:
            sshrecd.terminate()
            assert sshrecd.wait(20) == 0
    lab.wait(lambda: not (place / "run" / "audit.sock").exists() or _deaf(place), "its writer to end")
    shutil.rmtree(place)
    config.unlink()
    assert line.fields["code"] == "SR301W"
    assert line.fields["problem"].startswith(f"none of {place}/data-auth/public/known_hosts can be read")
    assert (line.fields["refused"], line.fields["sender_uid"]) == (False, account.uid)


def _lines(log: Path) -> list[Line]:
    return [item for item in read_log(log) if isinstance(item, Line)] if files(log) else []


def _deaf(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        return probe.connect_ex(str(place / "run" / "audit.sock")) != 0


def test_an_inventory_that_cannot_be_read_is_in_the_log(lab: Lab) -> None:
    inventory = lab.directory / "nodes.yaml"
    inventory.write_text("nodes: 7\n")
    try:
        assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
        event = told(lab, "config.problem", refused=True, code="SR301W")
        assert str(inventory) in event["problem"]
    finally:
        inventory.unlink()
    last(lab)
