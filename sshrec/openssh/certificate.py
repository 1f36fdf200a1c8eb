"""Reading what sshd accepted: the key or certificate of a login. Verifies nothing; sshd has.

Only two fields are wanted, from every kind of key that sshd takes. The `cryptography` library refuses the
certificates of FIDO keys (sk-…), so the wire format is read here; it is in OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

import re
import struct
from base64 import b64decode

from sshrec.errors import Denied
from sshrec.session import Credential

_METHOD = re.compile(rb"publickey ([a-z0-9@.-]{1,64}) ([A-Za-z0-9+/]{16,65536}={0,2})")

# How many strings a certificate's public key has, between the nonce and the serial.
_KEY_FIELDS = {
    "ssh-ed25519-cert-v01@openssh.com": 1,
    "sk-ssh-ed25519-cert-v01@openssh.com": 2,
    "ssh-rsa-cert-v01@openssh.com": 2,
    "rsa-sha2-256-cert-v01@openssh.com": 2,
    "rsa-sha2-512-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp256-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp384-cert-v01@openssh.com": 2,
    "ecdsa-sha2-nistp521-cert-v01@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": 3,
}


def accepted(auth_info: bytes) -> Credential | None:
    """The credential in sshd's SSH_USER_AUTH file (sshd_config(5), ExposeAuthInfo); None where there is none.

    The last public key wins: with several in AuthenticationMethods it is the one that let the person in.
    Denied where a certificate cannot be read.
    """
    found = [match for line in auth_info.splitlines() if (match := _METHOD.fullmatch(line.strip()))]
    if not found:
        return None
    algorithm, blob = found[-1].group(1).decode(), found[-1].group(2).decode()
    if "-cert-v01@" not in algorithm:
        return Credential(algorithm, blob)
    try:
        key_id, serial = _read(b64decode(blob, validate=True))
    except (ValueError, KeyError, struct.error) as error:
        raise Denied("cannot read the certificate that opened this login") from error
    return Credential(algorithm, blob, key_id.decode("utf-8", "backslashreplace"), serial)


def _read(wire: bytes) -> tuple[bytes, int]:
    """Key id and serial. The type that counts is the one inside, not the one in the line."""
    kind, at = _string(wire, 0)
    for _ in range(1 + _KEY_FIELDS[kind.decode("ascii")]):
        _, at = _string(wire, at)
    serial, _ = struct.unpack_from(">QI", wire, at)
    key_id, _ = _string(wire, at + 12)
    return key_id, serial


def _string(wire: bytes, at: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">I", wire, at)
    start, end = at + 4, at + 4 + length
    if end > len(wire):
        raise ValueError("truncated")
    return wire[start:end], end
