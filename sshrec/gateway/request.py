"""The grammar of what people ask for: `[login@]host[:port] [command…]`. Bytes in, a Request out, or refused.

The command is opaque: it is forwarded byte for byte, and looked into only for mosh, so that people learn why
it does not work. The target is ASCII, and nothing in it means anything to a shell or to ssh.
"""

from __future__ import annotations

import ipaddress
import re

from sshrec.errors import UsageError
from sshrec.session import HOST, LOGIN, Request, Target, never_a_target, printable

LIMIT = 64 * 1024  # bytes of target and command; past 128 KiB sshd itself cannot start us

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_MOSH = re.compile(rb"(?:sh -c [^;]* ; )?(?:\S*/)?mosh-server '?new\b")  # as mosh(1) asks for it
_FORM = "the form is: ssh -A bastion [login@]host[:port] [command…]"


def parse(words: bytes, *, terminal: bool, login: str) -> Request:
    """What a person asked for.

    `words`: SSH_ORIGINAL_COMMAND, not empty; `login`: where none is named. UsageError where it is
    not in the grammar; its text shows no control character.
    """
    if len(words) > LIMIT:
        raise UsageError(f"the command has {len(words)} bytes, and {LIMIT} is the most")
    target, space, rest = words.partition(b" ")
    command = rest.lstrip(b" ") if space else b""
    return Request(parse_target(target, login), command or None, terminal)


def check_recordable(wanted: Request) -> None:
    """UsageError for a program that takes the session elsewhere, as far as it says so."""
    if _MOSH.match(wanted.command or b""):
        raise UsageError(
            "mosh cannot be recorded: it goes on over UDP, past this bastion",
            hint="ssh, and tmux or screen on the target, which keep a session when the connection breaks",
        )


def parse_target(word: bytes, login: str) -> Target:
    """`[login@]host[:port]`; UsageError names what is wrong with it."""
    try:
        text = word.decode("ascii")
    except UnicodeDecodeError:
        raise _fault("the target may have ASCII characters only", word) from None
    if not text:
        raise _fault("there is no target before the first space", word)
    if any(character <= " " or character == "\x7f" for character in text):
        raise _fault("a target has no control characters", word)
    if never_a_target(text):
        raise UsageError(
            f"'{printable(text, 40)}' is not a target, and nothing runs on the bastion itself",
            hint=f"name the host first; {_FORM}",
        )
    before, at, host = text.rpartition("@")
    if at and not LOGIN.fullmatch(before):
        raise _fault("the login is not a Unix account's name", before or word)
    if not at and not LOGIN.fullmatch(login):
        raise _fault("your account's name is no login; name one: login@host", login)
    host, port = _split_port(host)
    return Target(before if at else login, _host(host, word), port)


def _split_port(text: str) -> tuple[str, int | None]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, None
    if not _PORT.fullmatch(port) or int(port) > 65535:
        raise _fault("the port is not a number from 1 to 65535", port)
    return host, int(port)


def _host(host: str, word: bytes) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            if "%" in host:
                raise ValueError
            return str(ipaddress.IPv6Address(host[1:-1]))
        except ValueError:
            raise _fault("not an IPv6 address", host) from None
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        pass
    host = host.lower()
    if not HOST.fullmatch(host):
        raise _fault("not a host name", host or word)
    return host


def _fault(what: str, text: str | bytes) -> UsageError:
    return UsageError(f"{what}: '{printable(text, 80)}'", hint=_FORM)
