"""A laptop's login: a key is made here, the bastion certifies it, and the agent or a file holds both.

Asks nobody anything: what is typed is told, what went otherwise than it should is handed back as warnings.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from sshrec.access.wire import ANSWER_MAX, LoginAnswer, LoginRequest
from sshrec.cli import profile
from sshrec.cli.profile import Profile
from sshrec.errors import DataError, Denied, SshrecError, Unreachable, describe
from sshrec.openssh import agent, destinations, known_hosts, public_key, signer
from sshrec.openssh.agent import OTHER_AGENT, Agent, ConstraintsRefused, NoAgent, fresh_key
from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.destinations import Constrained, Host, Unconstrained
from sshrec.openssh.public_key import PublicKey
from sshrec.session import printable

SSH = "ssh"  # the person's own, by PATH
ACCOUNT = "login"
PREFIX = "sshrec:"  # of the comment in the agent, and of the principal that opens the bastion
_SECONDS = 300  # the person may have to say yes to a host key

UseAgent = Literal["only", "yes", "no"]

# Whatever the person's ssh_config says of the bastion: one command, and nothing forwarded.
_PLAIN = (
    ("RemoteCommand", "none"),
    ("RequestTTY", "no"),
    ("ForwardAgent", "no"),
    ("ForwardX11", "no"),
    ("ClearAllForwardings", "yes"),
    ("ControlMaster", "no"),
    ("ControlPath", "none"),
    ("PubkeyAuthentication", "no"),
)


@dataclass(frozen=True, slots=True)
class Door:
    """How to come to the dialogue: `options` are ssh's, such as -F FILE."""

    bastion: str
    account: str = ACCOUNT
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A login, and what went otherwise than it should."""

    profile: Profile
    warnings: tuple[str, ...]


def agent_socket() -> Path | None:
    """The person's agent, as the environment has it."""
    path = os.environ.get("SSH_AUTH_SOCK", "")
    return Path(path) if path else None


def suited(use: UseAgent) -> Agent | None:
    """The agent to put a certificate in; None where files are to do. Denied or NoAgent where none does."""
    if use == "no":
        return None
    socket = agent_socket()
    if socket is None:
        if use == "only":
            raise NoAgent("no ssh-agent runs: SSH_AUTH_SOCK is not set", hint=OTHER_AGENT)
        return None
    if use == "only" and (name := agent.without_certificates(socket)):
        raise Denied(f"{name} holds no certificates", hint=OTHER_AGENT)
    return Agent(socket)


def log_in(door: Door, user: str, password: str, code: str, ttl: int | None, use: UseAgent) -> LoggedIn:
    """Log in. Denied where the bastion says no, in its words; else the SshrecError of what failed."""
    wanted = suited(use)
    with fresh_key(PREFIX + user) as (key, public):
        request = LoginRequest(user=user, password=password, code=code, public_key=public.line, ttl=ttl)
        answer = ask(door, request)
        certificate = _certificate(answer, public, door.bastion)
        authorities = _authorities(answer)
        found = _constraints(answer, user, door.bastion, authorities)
        placed, where, warnings = _place(wanted, use, key, certificate, user, found)
        secret = key.read_bytes() if where == "files" else None
    warnings += _vouch(door, answer, authorities)
    logged_in = Profile(
        bastion=door.bastion,
        user=user,
        certificate=certificate.line,
        where=where,
        constraints=list(placed.constraints) if isinstance(placed, Constrained) else [],
        known_hosts=placed.known_hosts if isinstance(placed, Constrained) else "",
        bound=_bound(placed) if isinstance(placed, Constrained) else None,
        unbound=placed.reason if isinstance(placed, Unconstrained) else "",
    )
    profile.save(logged_in, _gateway_hosts(answer), secret)
    return LoggedIn(logged_in, tuple(warnings))


def ask(door: Door, request: LoginRequest) -> LoginAnswer:
    """Say it through ssh, and have the answer. Unreachable, DataError, or Denied in the bastion's words."""
    options = [word for name, value in _PLAIN for word in ("-o", f"{name}={value}")]
    argv = [SSH, *door.options, "-T", *options, "-l", door.account, "--", door.bastion, "sshrec-login"]
    shown = printable(door.bastion)
    try:
        # The person's own ssh: with the person's environment, and errors that go to the person.
        result = subprocess.run(
            argv, input=msgspec.json.encode(request) + b"\n", stdout=subprocess.PIPE, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"{shown} did not answer within {_SECONDS} seconds") from error
    except OSError as error:
        raise SshrecError(f"cannot run {SSH}: {describe(error)}") from error
    said = result.stdout.strip()
    if not said:
        raise Unreachable(f"no answer from {shown}", hint=f"does ssh {door.account}@{shown} come to its login?")
    try:
        answer = msgspec.json.decode(said[:ANSWER_MAX], type=LoginAnswer)
    except msgspec.MsgspecError as error:
        hint = f"is {door.account} the account of its login dialogue?"
        raise DataError(f"{shown} does not answer as sshrec does: {printable(said, 60)}", hint=hint) from error
    if answer.error is not None:
        raise Denied(printable(answer.error), hint=printable(answer.hint) if answer.hint else None)
    return answer


def _certificate(answer: LoginAnswer, public: PublicKey, bastion: str) -> Certificate:
    certificate = read_certificate(answer.certificate.encode(), f"the certificate from {bastion}")
    if certificate.key != public or certificate.kind != "user":
        raise DataError(f"the certificate from {printable(bastion)} is not for the key that was sent")
    if not certificate.valid_after <= time.time() < certificate.valid_before:
        hint = "is this clock right, and the bastion's?"
        raise DataError(f"the certificate from {printable(bastion)} is not valid now", hint=hint)
    return dataclasses.replace(certificate, comment=public.comment)


def _authorities(answer: LoginAnswer) -> list[PublicKey]:
    """The CAs that certify hosts."""
    found = [known_hosts.vouching(line) for line in answer.known_hosts]
    return list(dict.fromkeys(_key(words[1].decode()) for words in found if words))


def _key(line: str) -> PublicKey:
    return public_key.parse(line.encode(), "a key from the bastion")


def _constraints(
    answer: LoginAnswer, user: str, bastion: str, authorities: Sequence[PublicKey]
) -> Constrained | Unconstrained:
    if answer.destinations is None:
        return Unconstrained("the bastion cannot list the nodes that you may use")

    def host(name: str, keys: Sequence[str]) -> Host:
        return Host(name, tuple(map(_key, keys)), tuple(authorities))

    door = host((answer.bastion.names or [bastion.lower()])[0], answer.bastion.keys)
    gateway = [_key(answer.gateway_ca)] if answer.gateway_ca else []
    nodes = {name: host(name, answer.node_keys.get(name, ())) for _, name in answer.destinations}
    return destinations.constraints(
        user, door, gateway, [(login, nodes[name]) for login, name in answer.destinations]
    )


def _place(
    wanted: Agent | None,
    use: UseAgent,
    key: Path,
    certificate: Certificate,
    user: str,
    found: Constrained | Unconstrained,
) -> tuple[Constrained | Unconstrained, profile.Where, list[str]]:
    """Into the agent, bound to its destinations if that can be; how it went, where to, and what was not to be."""
    if wanted is None:
        return found, "files", []
    try:
        if isinstance(found, Constrained):
            try:
                load(wanted, key, certificate, user, found)
            except ConstraintsRefused as error:
                found = Unconstrained(str(error))
        if isinstance(found, Unconstrained):
            load(wanted, key, certificate, user, found)
    except SshrecError as error:
        if use == "only":
            raise
        return found, "files", [f"{error}; the key is kept in a file instead"]
    return found, "agent", []


def load(into: Agent, key: Path, certificate: Certificate, user: str, found: Constrained | Unconstrained) -> None:
    """Put a key with its certificate into an agent, until it expires. As `Agent.load`."""
    bound = found if isinstance(found, Constrained) else Constrained((), "", False)
    into.load(
        key,
        certificate,
        lifetime=max(1, int(certificate.valid_before - time.time())),
        comment=PREFIX + user,
        constraints=bound.constraints,
        known_hosts=bound.known_hosts,
    )


def _bound(found: Constrained) -> str:
    onward = sum(">" in one for one in found.constraints)
    one, many = ("login on a node", "logins on nodes") if found.logins else ("node", "nodes")
    return f"to the bastion, and from there to {onward} {one if onward == 1 else many}"


def _vouch(door: Door, answer: LoginAnswer, authorities: Sequence[PublicKey]) -> list[str]:
    """Have ssh believe the bastion's certificate: for the name that it was reached by, whatever else it claims."""
    result = signer.run([SSH, *door.options, "-G", "--", door.bastion], os.environ)
    facts = dict(
        line.split(" ", 1) for line in result.stdout.decode("utf-8", "replace").splitlines() if " " in line
    )
    name, port, file = (facts.get(word, "") for word in ("hostname", "port", "userknownhostsfile"))
    hosts = name if port == "22" else f"[{name}]:{port}"
    if alias := facts.get("hostkeyalias"):
        name = hosts = alias
    if name not in answer.bastion.names or not authorities or file.split()[:1] in ([], ["none"]):
        return []
    try:
        known_hosts.merge(Path(file.split()[0]), hosts, authorities, f"{PREFIX}{door.bastion}")
    except SshrecError as error:
        return [f"{error}; ssh will ask you for the bastion's host key"]
    return []


def _gateway_hosts(answer: LoginAnswer) -> str:
    """A known_hosts file for the names that the gateway itself gives nodes."""
    names = f"*.{destinations.GATEWAY},{destinations.GATEWAY}"
    return known_hosts.authorities([_key(answer.gateway_ca)], names) if answer.gateway_ca else ""
