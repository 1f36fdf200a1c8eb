"""Certificates: what to sign, reading what was signed, and what sshd accepted (PROTOCOL.certkeys).

The `cryptography` library refuses the certificates of FIDO keys (sk-…), so the format is read here; it is
asked for signatures alone, and imported where it is: the gateway's workers read certificates, too.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from sshrec.errors import DataError, Denied, SshrecError
from sshrec.openssh.public_key import PublicKey, Wire, from_wire, key_fields, key_line, wire_string
from sshrec.session import Credential, printable

FILE_LIMIT = 64 * 1024  # bytes of a certificate file
PRINCIPALS = 256  # that ssh takes at most; SSHKEY_CERT_MAX_PRINCIPALS
FOREVER = 2**64 - 1

Kind = Literal["user", "host"]

_METHOD = re.compile(rb"publickey ([a-z0-9@.-]{1,64}) ([A-Za-z0-9+/]{16,65536}={0,2})")

# The type of a certificate, and of the key in it.
_TYPES = {
    "ssh-ed25519-cert-v01@openssh.com": "ssh-ed25519",
    "sk-ssh-ed25519-cert-v01@openssh.com": "sk-ssh-ed25519@openssh.com",
    "ssh-rsa-cert-v01@openssh.com": "ssh-rsa",
    "ecdsa-sha2-nistp256-cert-v01@openssh.com": "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384-cert-v01@openssh.com": "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521-cert-v01@openssh.com": "ecdsa-sha2-nistp521",
    "sk-ecdsa-sha2-nistp256-cert-v01@openssh.com": "sk-ecdsa-sha2-nistp256@openssh.com",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a certificate is to say. Times are Unix seconds; `critical_options` has "" for a flag."""

    kind: Kind
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    serial: int
    critical_options: Mapping[str, str] = field(default_factory=dict)
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says; who signed it is `verify_signature`'s to tell.

    `blob`: base64, as in a file. `valid_after`, `valid_before`: Unix seconds, FOREVER where it has no end.
    `extension_data`: of those extensions that have any. Text is as it was signed, hostile bytes included,
    what was no UTF-8 as `\\xNN`: `sshrec.session.printable` before it is shown.
    """

    algorithm: str
    blob: str = field(repr=False)
    comment: str = field(compare=False)
    kind: Kind
    key: PublicKey
    serial: int
    key_id: str
    principals: tuple[str, ...]
    valid_after: int
    valid_before: int
    critical_options: Mapping[str, str]
    extensions: tuple[str, ...]
    extension_data: Mapping[str, bytes]
    ca: PublicKey
    signature_algorithm: str
    signature: bytes = field(repr=False)

    @property
    def line(self) -> str:
        """One line of a certificate file, without its end."""
        return f"{self.algorithm} {self.blob} {self.comment}".rstrip()


def accepted(auth_info: bytes) -> Credential | None:
    """The credential in sshd's SSH_USER_AUTH file (sshd_config(5), ExposeAuthInfo); None where there is none.

    The last public key wins: with several in AuthenticationMethods it is the one that let the person in.
    Verifies nothing: sshd has. Denied where a certificate cannot be read.
    """
    found = [match for line in auth_info.splitlines() if (match := _METHOD.fullmatch(line.strip()))]
    if not found:
        return None
    algorithm, blob = found[-1].group(1).decode(), found[-1].group(2).decode()
    if "-cert-v01@" not in algorithm:
        return Credential(algorithm, blob)
    try:
        wire = Wire(b64decode(blob, validate=True))
        _key(wire)
        serial, _, key_id = wire.number(8), wire.number(4), _text(wire.string())
        wire.string()  # principals
        wire.number(8), wire.number(8)
        critical = _options(wire.string())
    except ValueError as error:
        raise Denied("cannot read the certificate that opened this login") from error
    # sshd holds a key that is in no token to nothing: the option is then a word (auth2-pubkey.c).
    verifies = algorithm.startswith("sk-") and "verify-required" in critical
    return Credential(algorithm, blob, key_id, serial, verifies)


def read_certificate(data: bytes, name: str) -> Certificate:
    """The one certificate in a file's bytes; `name` is what errors call the file. DataError where it is none."""
    shown = printable(name)
    algorithm, blob, comment = key_line(data, name, FILE_LIMIT)
    if "-cert-v0" not in algorithm:
        raise DataError(f"{shown} is no certificate", hint="give the signed file, KEY-cert.pub")
    try:
        certificate = _certificate(blob, comment)
    except ValueError as error:
        words = "a name that is not ASCII" if isinstance(error, UnicodeError) else error
        raise DataError(f"{shown} is no valid certificate: {words}") from error
    if certificate.algorithm != algorithm:
        raise DataError(f"{shown} says {printable(algorithm, 60)} and holds a {certificate.algorithm}")
    return certificate


def _certificate(blob: bytes, comment: str) -> Certificate:
    wire = Wire(blob)
    algorithm, key = _key(wire)
    serial, kind = wire.number(8), wire.number(4)
    if kind not in (1, 2):
        raise ValueError("neither a user's nor a host's")
    key_id, principals = _text(wire.string()), Wire(wire.string())
    names = []
    while principals.more:
        names.append(_text(principals.string()))
        if len(names) > PRINCIPALS:
            raise ValueError(f"more than {PRINCIPALS} principals")
    valid_after, valid_before = wire.number(8), wire.number(8)
    critical_options, extensions = _options(wire.string()), _options(wire.string())
    wire.string()  # reserved
    ca, signature = from_wire(wire.string()), wire.string()
    wire.end()
    return Certificate(
        algorithm=algorithm,
        blob=b64encode(blob).decode(),
        comment=comment,
        kind=get_args(Kind)[kind - 1],
        key=key,
        serial=serial,
        key_id=key_id,
        principals=tuple(names),
        valid_after=valid_after,
        valid_before=valid_before,
        critical_options={option: _text(_value(value)) for option, value in critical_options.items()},
        extensions=tuple(extensions),
        extension_data={option: _value(value) for option, value in extensions.items() if value},
        ca=ca,
        signature_algorithm=Wire(signature).string().decode("ascii"),
        signature=signature,
    )


def _key(wire: Wire) -> tuple[str, PublicKey]:
    """The certificate's type and the key in it: all up to the serial."""
    algorithm = wire.string().decode("ascii")
    if algorithm not in _TYPES:
        raise ValueError("an unknown type")
    wire.string()  # the nonce
    start, inner = wire.at, _TYPES[algorithm]
    key_fields(inner, wire)
    blob = wire_string(inner.encode()) + wire.data[start : wire.at]
    return algorithm, PublicKey(inner, b64encode(blob).decode())


def _options(data: bytes) -> dict[str, bytes]:
    """Names and their data, which must be in order and each there once."""
    wire, found, last = Wire(data), dict[str, bytes](), b""
    while wire.more:
        name, value = wire.string(), wire.string()
        if name <= last:
            raise ValueError("options that are not in order, or doubled")
        found[name.decode("ascii")] = value
        last = name
    return found


def _value(data: bytes) -> bytes:
    """An option's value: a string within its data (as all of OpenSSH's are), or the data, or nothing."""
    try:
        wire = Wire(data)
        value = wire.string()
        wire.end()
    except ValueError:
        return data
    return value


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace")


def check(certificate: Certificate, terms: Terms, key: PublicKey, ca: PublicKey) -> None:
    """SshrecError naming the first field that is not as it was to be; the signature is the last."""
    checks: list[tuple[str, object, object]] = [
        ("type", certificate.kind, terms.kind),
        ("public key", certificate.key.fingerprint, key.fingerprint),
        ("key id", certificate.key_id, terms.key_id),
        ("serial", certificate.serial, terms.serial),
        ("principals", certificate.principals, terms.principals),
        ("start of validity", certificate.valid_after, terms.valid_after),
        ("end of validity", certificate.valid_before, terms.valid_before),
        ("critical options", dict(certificate.critical_options), dict(terms.critical_options)),
        ("extensions", certificate.extensions, tuple(sorted(terms.extensions))),
        ("data of extensions", dict(certificate.extension_data), {}),
        ("signing key", certificate.ca.fingerprint, ca.fingerprint),
    ]
    for field_name, found, wanted in checks:
        if found != wanted:
            words = f"the {field_name} of the certificate: {printable(str(found))}, not {printable(str(wanted))}"
            raise SshrecError(words, hint="it is thrown away; the CA's signer is broken or not to be trusted")
    verify_signature(certificate)


def verify_signature(certificate: Certificate) -> None:
    """DataError unless the CA's key, which is in the certificate, signed it as OpenSSH would accept it."""
    from cryptography.exceptions import InvalidSignature

    try:
        _verify(certificate)
    except (InvalidSignature, ValueError) as error:
        raise DataError(f"the signature of certificate {certificate.serial} is not of its CA") from error


def _verify(certificate: Certificate) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    blob, wire = b64decode(certificate.blob), Wire(certificate.signature)
    signed = blob[: -len(wire_string(certificate.signature))]
    algorithm, signature = wire.string().decode("ascii"), wire.string()
    ca = certificate.ca.algorithm
    if ca.startswith("sk-"):
        _ask_ssh_keygen(certificate)
        return
    wire.end()
    public = serialization.load_ssh_public_key(f"{ca} {certificate.ca.blob}".encode())
    if isinstance(public, ed25519.Ed25519PublicKey) and algorithm == ca:
        public.verify(signature, signed)
    elif isinstance(public, ec.EllipticCurvePublicKey) and algorithm == ca:
        numbers = Wire(signature)
        r, s = numbers.mpint(public.key_size), numbers.mpint(public.key_size)
        numbers.end()
        digest = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[public.key_size]
        public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(digest))
    elif isinstance(public, rsa.RSAPublicKey) and algorithm in _RSA:
        padded = signature.rjust((public.key_size + 7) // 8, b"\0")  # some leave leading zeros out
        sha2: hashes.HashAlgorithm = hashes.SHA256() if algorithm == _RSA[0] else hashes.SHA512()
        public.verify(padded, signed, padding.PKCS1v15(), sha2)
    else:
        raise ValueError("not this key's kind of signature, or SHA-1")


_RSA = ("rsa-sha2-256", "rsa-sha2-512")


def _ask_ssh_keygen(certificate: Certificate) -> None:
    """ssh-keygen verifies what it lists (cert_parse in sshkey.c), also where a FIDO token signed."""
    from sshrec.openssh.signer import KEYGEN, run

    line = f"{certificate.algorithm} {certificate.blob}\n".encode()
    if run([KEYGEN, "-L", "-f", "-"], typed=line).returncode:
        raise ValueError("ssh-keygen refuses it")
