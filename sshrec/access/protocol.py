"""What is said between the auth service and those who ask it: one question, one answer, on a Unix stream socket.

Each message is its length in four bytes, big-endian, and so many bytes of JSON. Who asks, the kernel says.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

from sshrec.access.decision import Terms
from sshrec.errors import DataError
from sshrec.session import Kind

MESSAGE_MAX = 2 * 1024 * 1024
MESSAGE_SECONDS = 10.0  # for a message to come whole, once it has begun

T = TypeVar("T")


# ---- the audit log's signature -------------------------------------------------------------------------


class Position(msgspec.Struct, frozen=True, tag="position"):
    """Where does the signed part of the audit log end?"""


class Advance(msgspec.Struct, frozen=True, tag="advance"):
    """Lines of the audit log that follow what is signed, or what this connection has shown before."""

    lines: bytes


class Sign(msgspec.Struct, frozen=True, tag="sign"):
    """Sign this checkpoint, a line without its end, which continues what this connection has shown."""

    line: str


class At(msgspec.Struct, frozen=True, tag="at"):
    """How far the log was shown: the number that the next line must have, and the hash that it must name.

    `line`, `signature`: of the checkpoint that was signed last, "" where there is none. Where the log ends
    before that line, it was signed and never written: it comes next, and nothing else.
    """

    n: int
    prev: str
    line: str
    signature: str


class Signed(msgspec.Struct, frozen=True, tag="signed"):
    """A signature (the base64 of an SSHSIG), and whose it is for what."""

    signature: str
    identity: str
    namespace: str


# ---- a session -----------------------------------------------------------------------------------------


class Authorise(msgspec.Struct, frozen=True, kw_only=True, tag="authorise"):
    """May this session be? `addresses`: what the host's name resolved to; `own`: those that are the bastion's."""

    session: str
    user: str
    login: str
    host: str
    port: int | None
    kind: Kind
    source: str | None  # the client's address
    addresses: tuple[str, ...]
    own: tuple[str, ...]
    algorithm: str  # of the credential that opened the bastion
    fingerprint: str
    key_id: str | None
    serial: int | None
    verify_required: bool
    live: int  # sessions of this user at the time, without this one


class Allowed(msgspec.Struct, frozen=True, tag="allowed"):
    """Yes: to one of these addresses, on these terms."""

    rule: str
    addresses: tuple[str, ...]
    terms: Terms


class Forbidden(msgspec.Struct, frozen=True, tag="forbidden"):
    """No: by that rule, for that reason, which is a line for the person."""

    rule: str
    reason: str
    hint: str | None = None


class FactorNeeded(msgspec.Struct, frozen=True, tag="factor-needed"):
    """Yes, once this session has shown a code of the user's: CheckFactor, and the question again."""

    rule: str


class CheckFactor(msgspec.Struct, frozen=True, tag="check-factor"):
    """Is this a code of the user's second factor, for this session?"""

    session: str
    user: str
    code: str
    source: str | None


class CertifyHost(msgspec.Struct, frozen=True, tag="certify-host"):
    """A certificate for this public key, by which it is that session's host to whoever comes through the bastion.

    Whatever kind of session it is to be.
    """

    asked: Authorise
    public_key: str


class HostCertified(msgspec.Struct, frozen=True, tag="host-certified"):
    """It."""

    certificate: str


class Locks(msgspec.Struct, frozen=True, tag="locks"):
    """Who and what is locked now?"""


class Lock(msgspec.Struct, frozen=True):
    """One of them, as in access/decision.py."""

    kind: Literal["user", "login", "node", "session"]
    name: str
    reason: str
    until_ms: int | None = None


class Locked(msgspec.Struct, frozen=True, tag="locked"):
    """These are."""

    locks: tuple[Lock, ...]


# ---- a person: on one connection, who is known by what it has shown ---------------------------------------


class Redeem(msgspec.Struct, frozen=True, tag="redeem"):
    """Begin the registration that this invitation is for."""

    token: str
    source: str | None


class Registration(msgspec.Struct, frozen=True, tag="registration"):
    """Begun, and nothing lasts yet. `uri`: of the TOTP seed, for the QR code; `secret`: the same, to be typed."""

    user: str
    logins: tuple[str, ...]
    uri: str | None = None
    secret: str = ""


class Register(msgspec.Struct, frozen=True, tag="register"):
    """Finish it: the password that was chosen, and a code that proves the seed has arrived."""

    password: str
    code: str | None


class Authenticate(msgspec.Struct, frozen=True, tag="authenticate"):
    """Log in."""

    user: str
    password: str
    code: str | None
    source: str | None


class Authenticated(msgspec.Struct, frozen=True, tag="authenticated"):
    """It is the user, and this connection may ask for certificates.

    `recovery`: new codes, shown once; `codes_left`: of those, where one was used just now.
    """

    user: str
    logins: tuple[str, ...]
    recovery: tuple[str, ...] = ()
    codes_left: int | None = None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Not this time, and why. `wait`: seconds before which another try is useless; `again`: whether any is not."""

    reason: str
    wait: float = 0
    again: bool = True


class SignKey(msgspec.Struct, frozen=True, tag="sign-key"):
    """A certificate for this public key (a line), of the user whom this connection has proved.

    `ttl`: seconds, None for the usual time.
    """

    public_key: str
    ttl: int | None = None


class Issued(msgspec.Struct, frozen=True, kw_only=True, tag="issued"):
    """The certificate, and what its owner's agent and known_hosts should know.

    `known_hosts`: lines; `host_cas`, `gateway_cas`: public keys of the CAs of hosts, and of the gateway's own host
    certificates. `nodes`: (login, node) that the user may go to, None where they are not to be told apart. The
    bastion proves itself by a certificate for `bastion` or one of the plain `bastion_keys`, a node by one for its
    name or one of its `node_keys`.
    """

    certificate: str
    valid_before: int
    logins: tuple[str, ...]
    known_hosts: tuple[str, ...]
    host_cas: tuple[str, ...]
    gateway_cas: tuple[str, ...]
    bastion: str
    bastion_keys: tuple[str, ...]
    nodes: tuple[tuple[str, str], ...] | None
    node_keys: dict[str, tuple[str, ...]]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """No, and why: a line for people."""

    reason: str
    hint: str | None = None


SealingQuestion = Position | Advance | Sign
SessionQuestion = Authorise | CheckFactor | CertifyHost | Locks
PersonQuestion = Redeem | Register | Authenticate | SignKey
Question = SealingQuestion | SessionQuestion | PersonQuestion
Answer = (
    At
    | Signed
    | Allowed
    | Forbidden
    | FactorNeeded
    | HostCertified
    | Locked
    | Registration
    | Authenticated
    | Failed
    | Issued
    | Refused
)

_question: msgspec.json.Decoder[Question] = msgspec.json.Decoder(Question)
_answer: msgspec.json.Decoder[Answer] = msgspec.json.Decoder(Answer)
_encode = msgspec.json.Encoder().encode


def packed(message: Question | Answer) -> bytes:
    """A message as it goes over the wire. DataError where it is too long."""
    data = _encode(message)
    if len(data) > MESSAGE_MAX:
        raise DataError(f"a message of {len(data)} bytes is too long")
    return len(data).to_bytes(4) + data


def send(peer: socket.socket, message: Question | Answer) -> None:
    """Send a message whole. OSError as it comes; DataError where it is too long."""
    peer.sendall(packed(message))


def receive_question(peer: socket.socket) -> Question | None:
    """The next question, None where the peer has hung up. DataError where it is none, or stops in the middle.

    Waits for its beginning as long as the socket says.
    """
    patience = peer.gettimeout()

    def receive(size: int) -> bytes:
        data = peer.recv(size)
        peer.settimeout(MESSAGE_SECONDS)
        return data

    try:
        return _received(receive, _question)
    finally:
        peer.settimeout(patience)


def receive_answer(receive: Callable[[int], bytes]) -> Answer | None:
    """The next answer, None where the service has hung up. DataError where it is none.

    `receive` waits for so many bytes at most, and gives none where there will be no more.
    """
    return _received(receive, _answer)


def _received(receive: Callable[[int], bytes], decoder: msgspec.json.Decoder[T]) -> T | None:
    head = _read(receive, 4)
    if not head:
        return None
    length = int.from_bytes(head)
    if len(head) < 4 or length > MESSAGE_MAX:
        raise DataError("not a message")
    data = _read(receive, length)
    if len(data) < length:
        raise DataError("a message that was cut short")
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise DataError(f"not a message: {error}") from error


def _read(receive: Callable[[int], bytes], length: int) -> bytes:
    data = bytearray()
    while len(data) < length and (more := receive(min(length - len(data), 1 << 16))):
        data += more
    return bytes(data)
