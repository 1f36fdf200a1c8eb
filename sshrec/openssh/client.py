"""The hop's ssh: its configuration, command line and environment, and what its log says.

Nothing a person wrote reaches these unchecked: login and host come through the request grammar, paths are
ours, and the command stands alone behind `--`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sshrec.config import Config
from sshrec.errors import Denied, SshrecError, Unreachable
from sshrec.openssh.public_key import fingerprint
from sshrec.session import printable

SSH = "/usr/bin/ssh"
LIBEXEC = Path(__file__).parent.parent / "libexec"

_TERM = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")
_LANG = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
_LOG_LINES = 20
_MASTERED = re.compile(r"mux_client_request_session: master session id: ([0-9]{1,4})")
_BEGUN = re.compile(r"channel ([0-9]{1,4}): new (?:session )?\[client-session\]")
_ENDED = re.compile(r"client_input_channel_req: channel ([0-9]{1,4}) rtype (exit-s[a-z]+) reply [01]")
_CHATTER = (
    "Authenticated to ",
    "Transferred: ",
    "Bytes per second: ",
)  # what ssh tells at this level that is no complaint


@dataclass(frozen=True, slots=True)
class Run:
    """The files of one session that ssh is pointed at, in the session's private run directory."""

    directory: Path
    outer_agent: Path | None = None  # instead of one of its own

    @property
    def config(self) -> Path:
        return self.directory / "ssh_config"

    @property
    def identity(self) -> Path:
        return self.directory / "id.pub"

    @property
    def agent(self) -> Path:
        return self.outer_agent or self.directory / "agent"

    @property
    def dial(self) -> Path:
        return self.directory / "dial"

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def seen_hosts(self) -> Path:
        return self.directory / "seen_hosts"


def checked_term(term: bytes) -> str:
    """A TERM that is safe to pass on; `dumb` where the person's is not a terminal's name."""
    text = term.decode("ascii", "replace")
    return text if _TERM.fullmatch(text) else "dumb"


# One hop's ssh_config; with it, ssh reads no other. See ssh_config(5) for each keyword.
_CONFIGURATION = """\
Host *
User {login}
Port {port}
HostKeyAlias {name}
CheckHostIP no
# The worker has dialled the address that was authorised; ssh only speaks.
ProxyCommand {dial}
ProxyUseFdpass yes
ProxyJump none
# The very key or certificate that opened the first hop, and no other.
IdentityFile {identity}
IdentitiesOnly yes
IdentityAgent {agent}
PreferredAuthentications publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
GSSAPIAuthentication no
HostbasedAuthentication no
NumberOfPasswordPrompts 0
BatchMode yes
PKCS11Provider none
AddKeysToAgent no
EnableSSHKeysign no
ForwardAgent no
# One session and nothing beside it.
RequestTTY {request_tty}
SessionType {session_type}
StdinNull no
ForkAfterAuthentication no
EscapeChar none
EnableEscapeCommandline no
PermitLocalCommand no
ClearAllForwardings yes
ForwardX11 no
Tunnel no
GatewayPorts no
ControlMaster {control_master}
ControlPath {control_path}
CanonicalizeHostname no
KnownHostsCommand none
UpdateHostKeys no
HashKnownHosts no
VerifyHostKeyDNS no
NoHostAuthenticationForLocalhost no
RequiredRSASize 2048
StrictHostKeyChecking {strict}
UserKnownHostsFile {user_known_hosts}
RevokedHostKeys {revoked}
GlobalKnownHostsFile {known_hosts}
ConnectTimeout {connect_timeout}
ServerAliveInterval {alive_interval}
ServerAliveCountMax 3
TCPKeepAlive yes
# Goes to -E, never to the person: the worker reads it.
LogLevel DEBUG1
IgnoreUnknown ObscureKeystrokeTiming,WarnWeakCrypto
ObscureKeystrokeTiming {obscure}
WarnWeakCrypto no
"""
_DIAL = shlex.quote(str(LIBEXEC / "sshrec-dial")).replace("%", "%%")


def configuration(
    config: Config,
    run: Run,
    *,
    login: str,
    name: str,
    port: int,
    terminal: bool,
    lang: bytes,
    control: Path | None = None,
    master: bool = False,
) -> str:
    """The ssh_config of one hop. `name` is the node's: what its certificate or known_hosts line says.

    `control`: the socket of a master; `master`: this is that one, which has no session of its own.
    """
    hop, checks = config.hop, config.proxy_checks_host_keys
    text = _CONFIGURATION.format(
        login=login,
        port=port,
        name=name,
        dial=f"{_DIAL} {run.dial}",
        identity=run.identity,
        agent=run.agent,
        request_tty="force" if terminal else "no",
        session_type="none" if master else "default",
        control_master="yes" if master else "no",
        control_path=control or "none",
        strict="yes" if checks else "no",
        user_known_hosts="none" if checks else run.seen_hosts,  # there ssh notes what it accepted unseen
        known_hosts=" ".join(map(str, config.known_hosts_files)) if checks else "/dev/null",
        # Without the file ssh would believe no host at all; without an authority, nobody revokes any.
        revoked=config.krl if checks and config.krl.exists() else "none",
        connect_timeout=hop.connect_timeout,
        alive_interval=hop.alive_interval,
        obscure="yes" if hop.obscure_keystroke_timing else "no",
    )
    if hop.kex_algorithms:
        text += f"KexAlgorithms {hop.kex_algorithms}\n"
    if hop.ciphers:
        text += f"Ciphers {hop.ciphers}\n"
    if control is not None:
        text += "SendEnv LANG\n"  # of each session's own ssh: SetEnv would be the master's for all of them
    elif _LANG.fullmatch(value := lang.decode("ascii", "replace")):
        text += f"SetEnv LANG={value}\n"
    return text


def arguments(run: Run, host: str, command: bytes | None, subsystem: str | None = None) -> list[bytes]:
    """The hop's argv. All options stand before `--`, the command is one argument behind the host."""
    words = [SSH, "-F", str(run.config), "-E", str(run.log), *(["-s"] if subsystem else []), "--", host]
    last = subsystem.encode() if subsystem is not None else command
    return [word.encode() for word in words] + ([last] if last is not None else [])


def environment(term: str, lang: bytes | None = None) -> dict[str, str]:
    """The hop's environment, made from nothing. `lang`: what it is to send, where it goes by a master."""
    found = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "SHELL": "/bin/sh", "LANG": "C.UTF-8", "TERM": term}
    if lang is not None:
        del found["LANG"]
        if _LANG.fullmatch(value := lang.decode("ascii", "replace")):
            found["LANG"] = value
    return found


@dataclass(slots=True)
class Log:
    """What ssh wrote to -E at level DEBUG1, line by line.

    `messages`: what ssh would have told the person, since the session was established where it was;
    `agent_has_key`: the person's agent holds the credential; `established`: the session on the target was
    asked for; `signalled`: the target said that the command died by a signal (its name ssh does not tell).
    `number`: of the session among those of the master that it goes by; `ends`: of a master, by that number,
    what the target said last of how a session ended.

    A target can have ssh 9.2 write lines of its making (a line feed in SSH_MSG_DEBUG gets through), so what
    is here words messages and nothing else, but for `host_key`.
    """

    messages: list[str] = field(default_factory=list)
    established: bool = False
    signalled: bool = False
    agent_has_key: bool = False
    number: int | None = None
    ends: dict[int, str] = field(default_factory=dict)
    _host_keys: set[str] = field(default_factory=set)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take what was read; a line may come in pieces."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-4096:]
        for line in lines:
            self._line(line.rstrip(b"\r").decode("utf-8", "backslashreplace"))

    def _line(self, line: str) -> None:
        level, colon, text = line.partition(": ")
        words = text.split()
        if not (colon and level.startswith("debug")):
            if line and not line.startswith(_CHATTER) and len(self.messages) < _LOG_LINES:
                self.messages.append(printable(line))
        elif words[:2] == ["Server", "host"] and words[2:3] in (["key:"], ["certificate:"]):
            self._host_keys.add(printable(" ".join(words[3:5]).rstrip(",")))
        elif text.startswith("Will attempt key: ") and words[-1] == "agent":
            self.agent_has_key = True
        elif text == "Entering interactive session.":
            self.established = True
            self.messages.clear()
        elif found := _MASTERED.fullmatch(text):
            self.established, self.number = True, int(found[1])
            self.messages.clear()
        elif found := _BEGUN.match(text):
            self.ends.pop(int(found[1]), None)  # it is another's number now
        elif found := _ENDED.fullmatch(text):
            self.ends[int(found[1])] = found[2]
            self.signalled |= found[2] == "exit-signal"

    @property
    def host_key(self) -> str | None:
        """Type and fingerprint that ssh verified; None unless the log is of one mind: then a target lied."""
        return next(iter(self._host_keys)) if len(self._host_keys) == 1 else None

    def failure(self, name: str, login: str, known_hosts: Sequence[Path]) -> SshrecError | None:
        """Why ssh ended with 255, in words for the person; None where the target's command just did."""
        said = " ".join(self.messages)
        if self.signalled:
            return SshrecError(f"the command on {name} was ended by a signal")
        if "Host key verification failed" in said:
            pinned = known_hosts[0] if known_hosts else "known_hosts"
            enrol = f"sshrec-ca enroll-node root@{name}"
            if "IDENTIFICATION HAS CHANGED" in said:
                hint = f"find out why; only then have {pinned} set right"
                return Denied(f"the host key of {name} has changed: {self.host_key}", hint=hint)
            if "revoked by file" in said or "is marked as revoked" in said:
                hint = f"its key was stolen, or its CA retired; an administrator knows, and may enrol it: {enrol}"
                return Denied(f"the host key of {name} is revoked: {self.host_key}", hint=hint)
            if "not a listed principal" in said or "ertificate invalid" in said:
                hint = f"{self.messages[0]}; an administrator gives it a new one: {enrol}"
                return Denied(f"the host certificate of {name} is not valid for it", hint=hint)
            hint = f"an administrator enrols the host ({enrol}), or checks its key and adds it to {pinned}"
            return Denied(f"the host key of {name} is not known: {self.host_key}", hint=hint)
        if "Permission denied" in said:
            hint = f"{name} must accept your key or certificate for the account {login}"
            if not self.agent_has_key:
                hint = "your agent does not hold the key that opened this login; ssh-add -L lists what it holds"
            elif "agent refused" in said or "signing failed" in said:
                hint = "your agent holds the key and refused to sign with it for this host"
            return Denied(f"{name} does not let you in as {login}", hint=hint)
        if self.messages:
            words = self.messages[-1].replace("UNKNOWN port 65535", name)
            what = "the connection to" if self.established else "no session on"
            return Unreachable(f"{what} {name}{' was lost' if self.established else ''}: {words}")
        return None if self.established else Unreachable(f"no session on {name}: ssh gave up without a word")


def seen_host_key(run: Run) -> str | None:
    """Type and fingerprint of the host key that ssh accepted unchecked: from the file that it noted it in."""
    try:
        _, algorithm, blob = run.seen_hosts.read_text().split(maxsplit=2)
    except (OSError, ValueError):
        return None
    return f"{algorithm} {fingerprint(blob)}"
