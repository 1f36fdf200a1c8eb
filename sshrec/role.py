"""The settings of a role, and what is wrong with them. What a role then allows is decided in access/."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec

from sshrec.duration import Duration
from sshrec.errors import ConfigError
from sshrec.hours import Hours
from sshrec.patterns import Hosts, Names, network
from sshrec.session import Kind
from sshrec.size import Size

ALLOWED, USER = "{allowed}", "{user}"

EXAMPLE = """\
roles:
  # A code for each session, unless one was given in the last quarter of an hour.
  - name: dba
    users: [alice, "dba-*"]
    logins: [postgres]
    nodes: ["db*", 10.2.0.0/16]
    mfa: session
    mfa_grace: 15m
    record_input: yes
  # As the logins they were given, in working hours, from the office.
  - name: contractors
    users: ["ext-*"]
    nodes: [env=staging]
    kinds: [shell]
    hours: [mon-fri 08:00-18:00]
    sources: [192.0.2.0/24]
    sessions: 2
    idle: 10m
  # Everybody, by their own name only, on the web servers.
  - name: staff
    logins: ["{user}"]
    nodes: ["web*"]
"""


def _doc(text: str, **constraints: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """Who may have which sessions, and how these are conducted."""

    name: Annotated[str, _doc("What it is called in decisions, recordings and the audit log.")]
    users: Annotated[
        tuple[str, ...],
        _doc("The names of the users who have it. * stands for any characters, ? for one.", min_length=1),
    ] = ("*",)
    logins: Annotated[
        tuple[str, ...],
        _doc(
            "As whom they may log in: patterns of names. {allowed} stands for the logins that a user was given "
            "(sshrec users), {user}, alone or within a name, for the user's own name.",
            min_length=1,
        ),
    ] = (ALLOWED,)
    nodes: Annotated[
        tuple[str, ...],
        _doc(
            "Where they may go: names of hosts, networks and addresses, labels of nodes (env=prod). In a name, * "
            "and ? stand for no dot, but for a * at its beginning: web* is web1, *.prod is whatever ends so. A "
            "network allows its own addresses alone, however they were come by. Loopback, link-local and this "
            "host's own addresses, and those that give away a cloud's credentials, must be written out, or be a "
            "node's address. Of networks, only such as lie within loopback or link-local name these.",
            min_length=1,
        ),
    ] = ("*",)
    kinds: Annotated[
        Annotated[tuple[Kind, ...], msgspec.Meta(min_length=1)] | None,
        _doc(
            "The kinds of request it is for. None: those of the setting kinds. Without upload or download, sftp "
            "is told `permission denied' of each such file, and scp fails. A command may transfer what it likes."
        ),
    ] = None
    mfa: Annotated[
        Literal["login", "session"],
        _doc("session: the second factor is asked for before a session, and not only at the login."),
    ] = "login"
    mfa_grace: Annotated[
        Duration | None,
        _doc("For how long a code that was given counts for sessions that follow. None: each session asks."),
    ] = None
    require_sk: Annotated[
        bool, _doc("Only for users whose key is held by a FIDO security key (ssh-keygen -t ed25519-sk).")
    ] = False
    verify_required: Annotated[
        bool,
        _doc(
            "Only for users whose certificate has their security key ask for a PIN or a finger each time "
            "(sshrec-ca sign --verify-required)."
        ),
    ] = False
    recording: Annotated[
        Literal["strict", "best_effort"],
        _doc("strict: a session that cannot be recorded ends. best_effort: it goes on, marked for ever after."),
    ] = "strict"
    record_input: Annotated[
        bool | None,
        _doc("Keep what people type and send. None: what the setting record_input says."),
    ] = None
    session_length: Annotated[
        Duration | None, _doc("After which a session is ended. None: limits.session_length.")
    ] = None
    idle: Annotated[Duration | None, _doc("Nothing typed for so long ends a session. None: limits.idle.")] = None
    session_bytes: Annotated[
        Size | None, _doc("The size of the recording at which it is ended. None: limits.session_bytes.")
    ] = None
    stream_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        _doc("Bytes kept of each output stream of a command. None: limits.stream_bytes."),
    ] = None
    file_bytes: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        _doc("Bytes kept of each file that sftp or scp transfers. None: limits.file_bytes."),
    ] = None
    hours: Annotated[
        tuple[Hours, ...],
        _doc(
            "When sessions may begin, by the bastion's clock: days, times, or both, such as mon-fri 08:00-18:00. "
            "22:00-06:00 ends on the next day. None: always."
        ),
    ] = ()
    sources: Annotated[
        tuple[str, ...], _doc("Networks and addresses that users must come from. None: anywhere.")
    ] = ()
    sessions: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        _doc("A user with so many sessions gets no further one by this role. None: no limit of its own."),
    ] = None


def check_roles(roles: Sequence[Role], second_factor: str, name: str) -> None:
    """ConfigError where a role cannot be meant; `name`: what errors call the file."""
    if second_factor == "webauthn":
        raise ConfigError(
            f"{name}: second_factor: webauthn: there is no web page yet at which a security key could be shown",
            hint="otp; roles can ask for keys of security keys (require_sk)",
        )
    for role_name, count in Counter(role.name for role in roles).items():
        if count > 1:
            raise ConfigError(f"{name}: two roles are called {role_name!r}")
        if not _ROLE.fullmatch(role_name):
            raise ConfigError(f"{name}: {role_name!r} cannot be the name of a role: letters, digits and ._- only")
    for role in roles:
        setting = ""
        try:
            setting = "users"
            Names(role.users)
            setting = "logins"
            _check_logins(role.logins)
            setting = "nodes"
            Hosts(role.nodes)
            setting = "sources"
            for source in role.sources:
                network(source)
        except ValueError as error:
            hint = "deny by default: name those who may, there is no '!'" if "'!" in str(error) else None
            raise ConfigError(f"{name}: role {role.name}: {setting}: {error}", hint=hint) from None
        if role.mfa == "session" and second_factor == "off":
            raise ConfigError(f"{name}: role {role.name}: mfa: session cannot be met with second_factor: off")
        if role.mfa_grace is not None and role.mfa != "session":
            raise ConfigError(f"{name}: role {role.name}: mfa_grace is for mfa: session only")


def _check_logins(logins: Sequence[str]) -> None:
    for text in logins:
        if text != ALLOWED:
            own = text.replace(USER, "user")
            if not _LOGIN.fullmatch(own) or (own != text and {"*", "?"} & set(text)):
                raise ValueError(f"{text!r} is no login, pattern of logins, {ALLOWED} or {USER}")


_ROLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
_LOGIN = re.compile(r"[a-z_*?][a-z0-9_.*?-]{0,31}")
