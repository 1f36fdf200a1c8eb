"""The words of a decision: who asks for what, where and when, and what comes of it. Values; decides nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from typing import Literal

from sshrec.patterns import Address, Hosts, Names
from sshrec.session import Kind


@dataclass(frozen=True, slots=True)
class Lock:
    """Who or what is shut out for now, and why. ValueError where `name` is no pattern of such.

    `name`: a user's or a login's name or pattern; of a node what a role's `nodes` may have; a session's id.
    `until_ms`: in Unix milliseconds, None: until it is lifted. `kept`: it is one that was stored; where its name
    is no pattern, it is for just what is called so.
    """

    kind: Literal["user", "login", "node", "session"]
    name: str
    reason: str
    until_ms: int | None = None
    kept: InitVar[bool] = False
    names: Names = field(init=False, repr=False, compare=False)
    hosts: Hosts = field(init=False, repr=False, compare=False)

    def __post_init__(self, kept: bool) -> None:
        node = self.kind == "node"
        try:
            names, hosts = Names(() if node else (self.name,)), Hosts((self.name,) if node else ())
        except ValueError:
            if not kept:
                raise
            names, hosts = Names(()), Hosts(())
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "hosts", hosts)

    def said(self, who: str) -> str:
        """To whom it stops: `user joe is locked until 2026-11-23 14:00:00 UTC: laptop stolen`."""
        until = ""
        if self.until_ms is not None:
            until = time.strftime(" until %Y-%m-%d %H:%M:%S UTC", time.gmtime(self.until_ms / 1000))
        return f"{self.kind} {who} is locked{until}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Who asks, and what is known of it; what is None is not known, and then no role that wants it allows.

    `logins`: that the user was given; `source`: the client's address; `algorithm`: of the key or certificate
    that opened the bastion; `verify_required`: whether that is the certificate of a FIDO key that has to verify
    its holder; `live`: the user's sessions, without the one that is asked for; `locks`: all.
    """

    user: str
    logins: frozenset[str] | None = None
    source: Address | None = None
    algorithm: str | None = None
    verify_required: bool = False
    live: int | None = None
    locks: tuple[Lock, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """What a target's name stands for: the name it is known by, what to resolve, and the port to dial."""

    name: str
    lookup: str
    port: int
    named: bool  # the inventory gives this very address, so it may be any
    literal: bool = False  # the name is itself an address
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is to be decided.

    `addresses`: what the place's name resolved to, once; `own`: those of them that are the bastion's; `when`: by
    the bastion's clock and in its zone; `session`: the id, where there is one already.
    """

    subject: Subject
    login: str
    kind: Kind
    place: Place
    addresses: tuple[Address, ...]
    own: frozenset[Address]
    when: datetime
    session: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How an allowed session is conducted. Times in seconds; None: no limit."""

    record_input: bool = False
    recording: Literal["strict", "best_effort"] = "strict"  # what becomes of it when it cannot be recorded
    stream_bytes: int = 16 * 1024 * 1024  # kept of each output stream of a command
    upload: bool = True  # whether files may be sent by sftp and scp
    download: bool = True
    file_bytes: int = 0  # kept of each file so transferred
    longest: float | None = None
    idle: float | None = None
    size: int | None = None  # bytes of the recording


@dataclass(frozen=True, slots=True)
class SessionMfa:
    """A code must be shown for this session. `grace`: seconds that one shown before still counts."""

    grace: float = 0


@dataclass(frozen=True, slots=True)
class Allow:
    """Go on: to one of these addresses, on these terms. `rule` is what allowed it."""

    rule: str
    addresses: tuple[Address, ...]
    terms: Terms
    mfa: SessionMfa | None = None


@dataclass(frozen=True, slots=True)
class Deny:
    """Not so. `rule` is what denied it, `reason` says it to the person, `hint` what may help."""

    rule: str
    reason: str
    hint: str | None = None


@dataclass(frozen=True, slots=True)
class Unmet:
    """Why a role does not allow a case. `met`: how many of its conditions were met before this one was not."""

    rule: str
    reason: str
    met: int
