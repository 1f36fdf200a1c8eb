"""What ssh's log says, and what a target can make it say."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from sshrec.config import Config
from sshrec.openssh.client import Log, Run, checked_term, configuration, environment, seen_host_key
from sshrec.openssh.public_key import fingerprint

KEY = "debug1: Server host key: ssh-ed25519 SHA256:true\r\n"
SESSION = 'Authenticated to web1 ([192.0.2.1]:22) using "publickey".\r\ndebug1: Entering interactive session.\r\n'


def read(*lines: str) -> Log:
    log = Log()
    for line in lines:
        log.feed(line.encode())
    return log


def told(log: Log) -> tuple[str, str | None] | None:
    error = log.failure("web1", "root", [Path("/etc/sshrec/known_hosts")])
    return (str(error), error.hint) if error else None


def test_a_session_that_ended() -> None:
    log = read(KEY, SESSION, "Transferred: sent 4520, received 3936 bytes, in 0.1 seconds\r\n")
    assert log.established
    assert log.host_key == "ssh-ed25519 SHA256:true"
    assert told(log) is None  # so 255 is the command's own


def test_a_line_in_pieces() -> None:
    log = Log()
    for byte in (KEY + SESSION).encode():
        log.feed(bytes([byte]))
    assert log.established
    assert log.host_key == "ssh-ed25519 SHA256:true"


def test_a_host_certificate() -> None:
    log = read('debug1: Server host certificate: ssh-ed25519-cert-v01@openssh.com SHA256:x, serial 0 ID "w"\r\n')
    assert log.host_key == "ssh-ed25519-cert-v01@openssh.com SHA256:x"


def test_a_forged_host_key_is_no_host_key() -> None:
    """ssh 9.2 lets a line feed in SSH_MSG_DEBUG through to its log."""
    log = read("debug1: Remote: hello\ndebug1: Server host key: ssh-ed25519 SHA256:forged\r\n", KEY, SESSION)
    assert log.host_key is None


def test_a_key_that_is_shown_again_is_the_same() -> None:
    assert read(KEY, SESSION, KEY).host_key == "ssh-ed25519 SHA256:true"


@pytest.mark.parametrize(
    ("said", "message", "hint"),
    [
        (
            "No ED25519 host key is known for web1 and you have requested strict checking.\r\n"
            "Host key verification failed.\r\n",
            "the host key of web1 is not known: ssh-ed25519 SHA256:true",
            "an administrator enrols the host (sshrec-ca enroll-node root@web1), "
            "or checks its key and adds it to /etc/sshrec/known_hosts",
        ),
        (
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\r\nHost key verification failed.\r\n",
            "the host key of web1 has changed: ssh-ed25519 SHA256:true",
            "find out why; only then have /etc/sshrec/known_hosts set right",
        ),
        (
            "root@web1: Permission denied (publickey).\r\n",
            "web1 does not let you in as root",
            "your agent does not hold the key that opened this login; ssh-add -L lists what it holds",
        ),
        (
            "debug1: Will attempt key: /run/id.pub ED25519-CERT SHA256:x explicit agent\r\n"
            'sign_and_send_pubkey: signing failed for ED25519 "x" from agent: agent refused operation\r\n'
            "root@web1: Permission denied (publickey).\r\n",
            "web1 does not let you in as root",
            "your agent holds the key and refused to sign with it for this host",
        ),
        (
            "kex_exchange_identification: Connection closed by remote host\r\n",
            "no session on web1: kex_exchange_identification: Connection closed by remote host",
            None,
        ),
        ("", "no session on web1: ssh gave up without a word", None),
    ],
)
def test_why_there_was_no_session(said: str, message: str, hint: str | None) -> None:
    assert told(read(KEY, said)) == (message, hint)


def test_why_a_session_was_lost() -> None:
    log = read(KEY, "Warning: Permanently added 'web1' to the list of known hosts.\r\n", SESSION)
    assert told(log) is None
    log.feed(b"Connection to UNKNOWN port 65535 closed by remote host.\r\n")
    assert told(log) == ("the connection to web1 was lost: Connection to web1 closed by remote host.", None)


def test_what_it_says_is_safe_to_print() -> None:
    log = read("\x1b]0;pwn\x07\x9b31m evil\r\n")
    assert told(log) is not None
    assert "".join(filter(None, told(log) or ())).isprintable()
    assert len(read(*(f"line {n}\r\n" for n in range(1000))).messages) <= 20


def test_the_host_key_that_was_accepted_unseen(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert seen_host_key(run) is None
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    algorithm, blob, _ = (tmp_path / "key.pub").read_text().split(maxsplit=2)
    shown = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key"], capture_output=True, check=True
    ).stdout.split()[1]
    assert fingerprint(blob) == shown.decode()
    run.seen_hosts.write_text(f"web1 {algorithm} {blob}\n")
    assert seen_host_key(run) == f"ssh-ed25519 {shown.decode()}"


@pytest.mark.parametrize("term", ["xterm-256color", "screen.xterm-256color", "vt100", "rxvt-unicode+x"])
def test_a_term_that_passes(term: str) -> None:
    assert checked_term(term.encode()) == term


@pytest.mark.parametrize("term", [b"", b"\x1b]0;x", b"../../x", b"a b", b"x" * 65, b"-x", b"\xc3\xa9", b"a\n"])
def test_a_term_that_does_not(term: bytes) -> None:
    assert checked_term(term) == "dumb"


# ---- by a master --------------------------------------------------------------------------------------------


def test_a_master_and_its_sessions() -> None:
    run = Run(Path("/run/one"))
    common: dict[str, Any] = {"login": "root", "name": "web1", "port": 22, "terminal": False, "lang": b"C.UTF-8"}
    control = Path("/run/two/hop/mux")
    own, session, master = (
        configuration(Config(), run, **common, **more).splitlines()
        for more in ({}, {"control": control}, {"control": control, "master": True})
    )
    assert {"ControlMaster no", "ControlPath none", "SessionType default", "SetEnv LANG=C.UTF-8"} <= {*own}
    assert {"ControlMaster no", f"ControlPath {control}", "SessionType default", "SendEnv LANG"} <= {*session}
    assert {"ControlMaster yes", f"ControlPath {control}", "SessionType none", "SendEnv LANG"} <= {*master}
    assert environment("xterm")["LANG"] == "C.UTF-8"
    assert environment("xterm", b"de_DE.UTF-8")["LANG"] == "de_DE.UTF-8"
    assert "LANG" not in environment("xterm", b"$(id)")


def test_what_a_session_says_that_goes_by_a_master() -> None:
    log = Log()
    log.feed(
        b"debug1: Reading configuration data /x\r\ndebug1: mux_client_request_session: master session id: 7\r\n"
    )
    assert (log.established, log.number, log.messages) == (True, 7, [])
    refused = Log()
    refused.feed(b"mux_client_request_session: session request failed: Session open refused by peer\r\n")
    assert (refused.established, refused.number) == (False, None)
    refused.feed(b"debug1: Entering interactive session.\r\n")
    assert (refused.established, refused.number, refused.messages) == (True, None, [])


def test_how_the_sessions_of_a_master_end() -> None:
    log = Log()
    log.feed(b"debug1: Entering interactive session.\r\n")
    log.feed(b"debug1: channel 2: new session [client-session] (inactive timeout: 0)\r\n")
    log.feed(b"debug1: client_input_channel_req: channel 2 rtype exit-signal reply 0\r\n")
    log.feed(b"debug1: client_input_channel_req: channel 4 rtype exit-status reply 0\r\n")
    log.feed(b"debug1: client_input_channel_req: channel 4 rtype eow@openssh.com reply 0\r\n")
    assert log.ends == {2: "exit-signal", 4: "exit-status"}
    log.feed(b"debug1: channel 2: new [client-session]\r\n")  # as it was before OpenSSH 9.2
    assert log.ends == {4: "exit-status"}
