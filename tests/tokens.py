"""A FIDO token in software: its public key, and an agent that signs as a token does (OpenSSH's PROTOCOL.u2f)."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sshrec.openssh.certificate import Certificate, read_certificate
from sshrec.openssh.public_key import PublicKey, Wire, from_wire, wire_string
from tests.agents import FAILURE, between
from tests.lab import Lab

Point = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_APPLICATION = b"ssh:"
_TOUCHED, _VERIFIED = 0x01, 0x04  # the flags of a signature: its holder was there; gave a PIN or a finger


def fido_key(public: Point) -> PublicKey:
    """The public key of a token that holds `public`; signing it needs no token."""
    if isinstance(public, ed25519.Ed25519PublicKey):
        fields = [b"sk-ssh-ed25519@openssh.com", public.public_bytes(Encoding.Raw, PublicFormat.Raw)]
    else:
        point = public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        fields = [b"sk-ecdsa-sha2-nistp256@openssh.com", b"nistp256", point]
    return from_wire(b"".join(map(wire_string, [*fields, _APPLICATION])), "token")


class Token:
    """A token with one ed25519 key, whose holder is always there, and gives the PIN where `verifies`."""

    def __init__(self) -> None:
        self._key = ed25519.Ed25519PrivateKey.generate()
        self._counter = itertools.count(1)
        self.public = fido_key(self._key.public_key())
        self.verifies = True

    @contextlib.contextmanager
    def agent(self, certificate: Certificate) -> Iterator[Path]:
        """The socket of an agent that holds this certificate of the token's key, and no more."""
        blob = b64decode(certificate.blob)

        def answer(message: bytes) -> bytes:
            wire = Wire(message[4:])
            kind = wire.number(1)
            if kind == 11:  # SSH_AGENTC_REQUEST_IDENTITIES; SSH_AGENT_IDENTITIES_ANSWER
                return wire_string(b"\x0c" + (1).to_bytes(4) + wire_string(blob) + wire_string(b"token"))
            if kind == 13 and wire.string() == blob:  # SSH_AGENTC_SIGN_REQUEST; SSH_AGENT_SIGN_RESPONSE
                return wire_string(b"\x0e" + wire_string(self._signature(wire.string())))
            return FAILURE

        with between(answer) as path:
            yield path

    def _signature(self, data: bytes) -> bytes:
        flags = _TOUCHED | (_VERIFIED if self.verifies else 0)
        seen = bytes([flags]) + next(self._counter).to_bytes(4)
        signed = hashlib.sha256(_APPLICATION).digest() + seen + hashlib.sha256(data).digest()
        return wire_string(b"sk-ssh-ed25519@openssh.com") + wire_string(self._key.sign(signed)) + seen


@contextlib.contextmanager
def token(lab: Lab, user: str, login: str, *options: str) -> Iterator[tuple[Token, dict[str, str]]]:
    """A token with a certificate by sshrec-ca for this login, and what makes ssh find it; `options`: of `sign`."""
    held = Token()
    words = ["--user", user, "--principals", login, *options]
    signed = lab.sshrec_ca("sign", "-", *words, input=f"{held.public.line}\n".encode()).stdout
    with held.agent(read_certificate(signed, "the token's")) as agent:
        yield held, {"SSH_AUTH_SOCK": str(agent)}
