"""sshrecd as systemd starts it: on a socket that is there already, telling when it is ready."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

from tests.e2e.recorded import last
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
    assert lab.ssh("-A", "bastion", "root@web1", "echo there").stdout == b"there\n"
    last(lab)
