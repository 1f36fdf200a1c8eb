"""Public keys: one line of a file, what is inside it, and OpenSSH's wire format that both are read by.

Judges shape and strength; whether a point is on its curve is ssh-keygen's word. Imports nothing heavy: the
workers of the gateway read what sshd accepted with it.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from sshrec.errors import DataError, NotFound, describe
from sshrec.session import printable

FILE_LIMIT = 16 * 1024  # bytes of a public key file; the largest RSA key takes 3 KiB
RSA_BITS = range(3072, 16384 + 1)

_ECDSA = re.compile(r"(?:sk-)?ecdsa-sha2-(nistp(?:256|384|521))(?:@openssh\.com)?")
_LISTED = re.compile(rb"(?:ssh|sk|ecdsa)-[a-z0-9@.-]+[ \t]+AAAA")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PRIVATE = re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|PuTTY-User-Key-File-")
_ALGORITHMS = {
    "ssh-ed25519",
    "sk-ssh-ed25519@openssh.com",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256@openssh.com",
    "ssh-rsa",
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key. Equal where the key is, whatever the comment says.

    `blob`: base64, as in a file; `comment`: as in the file, without control bytes, `\\xNN` where it was no
    UTF-8; `sshrec.session.printable` before it is shown.
    """

    algorithm: str
    blob: str
    comment: str = field(default="", compare=False)

    @property
    def line(self) -> str:
        """One line of a public key file, without its end."""
        return f"{self.algorithm} {self.blob} {self.comment}".rstrip()

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` shows it: SHA256:…"""
        return fingerprint(self.blob)

    @property
    def bits(self) -> int:
        """As `ssh-keygen -l` shows it."""
        wire = Wire(b64decode(self.blob))
        return key_fields(wire.string().decode("ascii"), wire)


def fingerprint(blob: str) -> str:
    """As `ssh-keygen -l` shows it: of a public key in base64."""
    digest = hashlib.sha256(b64decode(blob)).digest()
    return "SHA256:" + b64encode(digest).decode().rstrip("=")


class Wire:
    """Reads OpenSSH's wire format (RFC 4251, section 5) piece by piece; ValueError where it ends too soon."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, length: int) -> bytes:
        """The next `length` bytes."""
        start, self.at = self.at, self.at + length
        if self.at > len(self.data):
            raise ValueError("truncated")
        return self.data[start : self.at]

    def number(self, length: int) -> int:
        """A uint32 (4) or uint64 (8)."""
        return int.from_bytes(self.take(length))

    def string(self) -> bytes:
        return self.take(self.number(4))

    def mpint(self, limit: int) -> int:
        """A positive number of at most `limit` bits, in its shortest form."""
        data = self.string()
        if not data or data[0] & 0x80 or (data[0] == 0 and (len(data) < 2 or not data[1] & 0x80)):
            raise ValueError("a number that is not positive or not in its shortest form")
        if len(data) > limit // 8 + 1 or (number := int.from_bytes(data)).bit_length() > limit:
            raise ValueError("a number that is too large")
        return number

    @property
    def more(self) -> bool:
        return self.at < len(self.data)

    def end(self) -> None:
        """ValueError unless everything has been read."""
        if self.more:
            raise ValueError("trailing bytes")


def wire_string(data: bytes) -> bytes:
    """A string as the wire format has it."""
    return len(data).to_bytes(4) + data


def key_fields(algorithm: str, wire: Wire) -> int:
    """Read the fields of a key that follow its type's name; its bits. ValueError where they are wrong."""
    if algorithm in ("ssh-ed25519", "sk-ssh-ed25519@openssh.com"):
        if len(wire.string()) != 32:
            raise ValueError("a point of the wrong size")
        bits = 256
    elif match := _ECDSA.fullmatch(algorithm):
        bits = int(match[1].removeprefix("nistp"))
        if wire.string() != match[1].encode():
            raise ValueError("a curve that is not its type's")
        point = wire.string()
        if len(point) != 1 + 2 * ((bits + 7) // 8) or point[0] != 4:
            raise ValueError("a point of the wrong size")
    elif algorithm == "ssh-rsa":
        exponent, bits = wire.mpint(64), wire.mpint(RSA_BITS[-1]).bit_length()
        if exponent < 3 or not exponent & 1:
            raise ValueError("a useless exponent")
    else:
        raise ValueError("an unknown type")
    if algorithm.startswith("sk-"):
        wire.string()  # the application
    return bits


def from_wire(data: bytes, comment: str = "") -> PublicKey:
    """The key in a blob, of any strength; ValueError where it is none."""
    wire = Wire(data)
    algorithm = wire.string().decode("ascii")
    if algorithm not in _ALGORITHMS:
        raise ValueError("an unknown type")
    key_fields(algorithm, wire)
    wire.end()
    return PublicKey(algorithm, b64encode(data).decode(), comment)


def parse(data: bytes, name: str) -> PublicKey:
    """The one public key in a file's bytes; `name` is what errors call the file.

    DataError for all else: nothing in it, too much, a private key, a certificate, options, a weak key, …
    """
    shown = printable(name)
    algorithm, blob, comment = key_line(data, name, FILE_LIMIT)
    if "-cert-v0" in algorithm:
        raise DataError(f"{shown} is a certificate, already signed", hint="give the key it was made for, KEY.pub")
    if algorithm == "ssh-dss":
        raise DataError(f"{shown} is a DSA key, which OpenSSH no longer takes", hint=_HINT)
    if algorithm not in _ALGORITHMS:
        raise DataError(f"{shown}: unknown type of key {printable(algorithm, 40)}", hint=_HINT)
    try:
        key = from_wire(blob, comment)
    except ValueError as error:
        raise DataError(f"{shown} is no valid public key: {_reason(error)}", hint=_COPY) from error
    if key.algorithm != algorithm:
        raise DataError(f"{shown} says {algorithm} and holds a key of {key.algorithm}", hint=_COPY)
    if key.algorithm == "ssh-rsa" and key.bits not in RSA_BITS:
        raise DataError(f"{shown} is an RSA key of {key.bits} bits; 3072 are the least", hint=_HINT)
    return key


_HINT = "ssh-keygen -t ed25519 makes a good one"
_COPY = "copy the whole line of the .pub file"


def key_line(data: bytes, name: str, limit: int) -> tuple[str, bytes, str]:
    """Type, decoded base64 and comment of the one key or certificate in a file's bytes.

    The type is what stands outside, unchecked. DataError where there is not exactly one line of that form.
    """

    def refuse(words: str, hint: str = _COPY) -> NoReturn:
        raise DataError(f"{printable(name)} {words}", hint=hint)

    if len(data) > limit:
        refuse(f"has more than {limit // 1024} KiB", "give a file with one public key")
    if _PRIVATE.search(data):
        refuse("is a private key", "this is a private key; give the .pub file, and this one to nobody")
    lines = [line for end in data.split(b"\n") if (line := end.rstrip(b"\r").strip(b" \t"))]
    lines = [line for line in lines if not line.startswith(b"#")]
    if any(_CONTROL.search(line) for line in lines):
        refuse("holds control bytes")
    if not lines:
        refuse("holds no public key")
    if lines[0].startswith(b"-----BEGIN ") or lines[0].startswith(b"---- BEGIN "):
        refuse("is not in OpenSSH's format", "ssh-keygen -i converts it; see -m in ssh-keygen(1)")
    if len(lines) > 1:
        refuse(f"has {len(lines)} lines", "give one key at a time, on one line")
    words = lines[0].split(maxsplit=2)
    if not _LISTED.match(lines[0]) and _LISTED.search(lines[0]):
        refuse("has options before the key", "give the line from the type of the key on")
    if len(words) < 2:
        refuse("holds no public key")
    try:
        blob = b64decode(words[1], validate=True)
    except ValueError:
        blob = b""
    if not blob or b64encode(blob) != words[1]:
        refuse(f"is no public key: what follows {printable(words[0], 40)} is not base64")
    comment = b" ".join(words[2].split()) if len(words) > 2 else b""
    return words[0].decode("ascii", "backslashreplace"), blob, comment.decode("utf-8", "backslashreplace")


def _reason(error: ValueError) -> str:
    return "a type that is not ASCII" if isinstance(error, UnicodeError) else str(error)


def read(source: str | Path) -> PublicKey:
    """The public key in a file, or on standard input for "-". NotFound or DataError where there is none."""
    return parse(read_file(source, FILE_LIMIT), "standard input" if str(source) == "-" else str(source))


def read_file(source: str | Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of a regular file, or of standard input for "-"; never waits for a FIFO."""
    name, fd = str(source), 0
    if name != "-":
        fd = _open(name)
    try:
        data = b""
        while len(data) <= limit and (more := os.read(fd, limit + 1 - len(data))):
            data += more
    except OSError as error:
        raise DataError(f"{printable(name)}: {describe(error)}") from error
    finally:
        if fd:
            os.close(fd)
    return data


def _open(name: str) -> int:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"{printable(name)}: no such file") from error
    except (OSError, ValueError) as error:
        words = describe(error) if isinstance(error, OSError) else "not a file's name"
        raise DataError(f"{printable(name)}: {words}") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DataError(f"{printable(name)} is not a regular file", hint="give a file, or - and the key as input")
    return fd
