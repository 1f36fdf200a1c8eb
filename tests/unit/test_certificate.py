"""Certificates of every kind, as ssh-keygen makes and lists them; and what only looks like one."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from sshrec.errors import DataError, Denied, SshrecError
from sshrec.openssh.certificate import (
    FOREVER,
    Certificate,
    Terms,
    accepted,
    check,
    read_certificate,
    verify_signature,
)
from sshrec.openssh.public_key import PublicKey, Wire, parse, wire_string
from tests.tokens import Point, fido_key

KINDS = ["ed25519", "rsa", "ecdsa256", "ecdsa384", "ecdsa521", "sk-ed25519", "sk-ecdsa"]
START, END = 1_800_000_000, 1_800_003_600
TERMS = Terms(
    "user",
    "joe",
    ("joe", "sshrec:joe"),
    START,
    END,
    42,
    {"force-command": 'echo "hi"', "source-address": "10.0.0.0/8", "verify-required": ""},
    ("permit-pty", "permit-agent-forwarding"),
)
ARGUMENTS = [
    "-I",
    "joe",
    "-n",
    "joe,sshrec:joe",
    "-V",
    "20270115080000Z:20270115090000Z",
    "-z",
    "42",
    "-O",
    "clear",
]
ARGUMENTS += ["-O", "permit-pty", "-O", "permit-agent-forwarding", "-O", "verify-required"]
ARGUMENTS += ["-O", "source-address=10.0.0.0/8", "-O", 'force-command=echo "hi"']


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A key file of each kind; those of tokens lack the private half."""
    directory = tmp_path_factory.mktemp("keys")
    for kind in KINDS:
        name = kind.rstrip("0123456789")
        if kind == "sk-ecdsa":
            token: Point = ec.generate_private_key(ec.SECP256R1()).public_key()
        elif kind == "sk-ed25519":
            token = ed25519.Ed25519PrivateKey.generate().public_key()
        else:
            bits = kind.removeprefix("ecdsa") if name == "ecdsa" else "3072"
            kind_of = name if name == "ecdsa" else kind
            make = [
                "ssh-keygen",
                "-q",
                "-t",
                kind_of,
                "-b",
                bits,
                "-N",
                "",
                "-C",
                kind,
                "-f",
                str(directory / kind),
            ]
            subprocess.run(make, check=True)
            continue
        (directory / f"{kind}.pub").write_text(f"{fido_key(token).line}\n")
    return {kind: directory / kind for kind in KINDS}


@pytest.fixture(scope="module")
def signed(keys: dict[str, Path]) -> Callable[..., Certificate]:
    def sign(key: str, ca: str = "ed25519", arguments: list[str] = ARGUMENTS) -> Certificate:
        """Has ssh-keygen sign one of the keys with another."""
        command = ["ssh-keygen", "-q", "-s", str(keys[ca]), *arguments, f"{keys[key]}.pub"]
        subprocess.run(command, check=True)
        return read_certificate(Path(f"{keys[key]}-cert.pub").read_bytes(), "key-cert.pub")

    return sign


@pytest.fixture(scope="module")
def certificate(signed: Callable[..., Certificate]) -> Certificate:
    return signed("ed25519")


def public(path: Path) -> PublicKey:
    return parse(Path(f"{path}.pub").read_bytes(), "key.pub")


def listed(line: str) -> str:
    env = {"PATH": os.environ["PATH"], "TZ": "UTC"}
    command = ["ssh-keygen", "-L", "-f", "-"]
    return subprocess.run(command, input=line, capture_output=True, text=True, check=True, env=env).stdout


def as_listed(certificate: Certificate) -> str:
    """A certificate in the words of `ssh-keygen -L`."""

    def name(key: PublicKey) -> str:
        fido = "-SK" if key.algorithm.startswith("sk-") else ""
        return key.algorithm.removeprefix("sk-").removeprefix("ssh-").split("-")[0].split("@")[0].upper() + fido

    def block(title: str, rows: list[str]) -> list[str]:
        return [f"{title}: ", *(f"        {row}" for row in rows)] if rows else [f"{title}: (none)"]

    def wall(seconds: int) -> str:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")

    ca = certificate.ca
    lines = [
        f"Type: {certificate.algorithm} {certificate.kind} certificate",
        f"Public key: {name(certificate.key)}-CERT {certificate.key.fingerprint}",
        f"Signing CA: {name(ca)} {ca.fingerprint} (using {certificate.signature_algorithm})",
        f'Key ID: "{certificate.key_id}"',
        f"Serial: {certificate.serial}",
        "Valid: forever"
        if certificate.valid_before == FOREVER
        else f"Valid: from {wall(certificate.valid_after)} to {wall(certificate.valid_before)}",
        *block("Principals", list(certificate.principals)),
        *block("Critical Options", [f"{k} {v}".rstrip() for k, v in certificate.critical_options.items()]),
        *block("Extensions", list(certificate.extensions)),
    ]
    return "(stdin):1:\n" + "".join(f"        {line}\n" for line in lines)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_key(kind: str, keys: dict[str, Path], signed: Callable[..., Certificate]) -> None:
    certificate = signed(kind)
    assert as_listed(certificate) == listed(certificate.line)
    assert certificate.key == public(keys[kind])
    assert f"{certificate.line}\n" == Path(f"{keys[kind]}-cert.pub").read_text()
    check(certificate, TERMS, public(keys[kind]), public(keys["ed25519"]))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("sk-")])
def test_every_kind_of_ca(kind: str, keys: dict[str, Path], signed: Callable[..., Certificate]) -> None:
    certificate = signed("sk-ed25519", ca=kind)
    assert as_listed(certificate) == listed(certificate.line)
    check(certificate, TERMS, public(keys["sk-ed25519"]), public(keys[kind]))


def test_a_host_certificate_of_little(signed: Callable[..., Certificate]) -> None:
    certificate = signed("ecdsa256", arguments=["-h", "-I", "", "-n", "web1"])
    assert as_listed(certificate) == listed(certificate.line)
    assert (certificate.kind, certificate.serial, certificate.key_id) == ("host", 0, "")
    assert (certificate.valid_after, certificate.valid_before) == (0, FOREVER)


def test_hostile_text_is_kept_for_whoever_shows_it(signed: Callable[..., Certificate]) -> None:
    long = "x" * 20_000
    options = ["-O", "extension:z@example.com=data", "-O", "critical:a@example.com=data"]
    certificate = signed("ed25519", arguments=["-I", f"a\x1b]0;b\n{long}", "-n", "a b,*", *options])
    assert certificate.key_id == f"a\x1b]0;b\n{long}"
    assert certificate.principals == ("a b", "*")
    assert certificate.critical_options == {"a@example.com": "data"}
    assert certificate.extension_data == {"z@example.com": b"data"}


# Forged, and broken.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "host"}, "the type of the certificate: user, not host"),
        ({"key_id": "jane"}, "the key id of the certificate: joe, not jane"),
        ({"serial": 43}, "the serial of the certificate: 42, not 43"),
        ({"principals": ("joe",)}, "the principals of the certificate"),
        ({"principals": ("sshrec:joe", "joe")}, "the principals of the certificate"),
        ({"valid_after": START + 1}, "the start of validity"),
        ({"valid_before": END - 1}, "the end of validity"),
        ({"critical_options": {}}, "the critical options"),
        ({"extensions": ("permit-pty",)}, "the extensions"),
    ],
)
def test_check_names_the_field_that_differs(
    change: dict[str, object], words: str, certificate: Certificate, keys: dict[str, Path]
) -> None:
    terms = replace(TERMS, **change)  # type: ignore[arg-type]
    with pytest.raises(SshrecError, match=words) as caught:
        check(certificate, terms, public(keys["ed25519"]), public(keys["ed25519"]))
    assert caught.value.hint


def test_check_knows_the_key_and_the_ca(certificate: Certificate, keys: dict[str, Path]) -> None:
    own, other = public(keys["ed25519"]), public(keys["rsa"])
    differ = f"{own.fingerprint}, not {other.fingerprint}"
    with pytest.raises(SshrecError) as caught:
        check(certificate, TERMS, other, own)
    assert str(caught.value) == f"the public key of the certificate: {differ}"
    with pytest.raises(SshrecError) as caught:
        check(certificate, TERMS, own, other)
    assert str(caught.value) == f"the signing key of the certificate: {differ}"


def rebuilt(certificate: Certificate, sign: Callable[[bytes], bytes], **change: bytes) -> bytes:
    """The file of a certificate with fields changed, and signed anew by a hand-made CA."""
    wire = Wire(base64.b64decode(certificate.blob))
    head = b"".join(wire_string(wire.string()) for _ in range(3))
    fields = {
        "serial": wire.take(8),
        "kind": wire.take(4),
        "key_id": wire_string(wire.string()),
        "principals": wire_string(wire.string()),
        "validity": wire.take(16),
        "critical_options": wire_string(wire.string()),
        "extensions": wire_string(wire.string()),
        "reserved": wire_string(wire.string()),
        "ca": wire_field(certificate.ca),
        **change,
    }
    to_be_signed = head + b"".join(fields.values())
    blob = to_be_signed + wire_string(sign(to_be_signed))
    return f"{certificate.algorithm} {base64.b64encode(blob).decode()}\n".encode()


def wire_field(key: PublicKey) -> bytes:
    return wire_string(base64.b64decode(key.blob))


def unsigned(data: bytes) -> bytes:
    return wire_string(b"ssh-ed25519") + wire_string(bytes(64))


def options(*pairs: tuple[bytes, bytes]) -> bytes:
    return wire_string(b"".join(wire_string(name) + wire_string(data) for name, data in pairs))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": (3).to_bytes(4)}, "neither a user's nor a host's"),
        ({"principals": wire_string(wire_string(b"a") * 257)}, "more than 256 principals"),
        ({"principals": wire_string(b"\0\0\0\5joe")}, "truncated"),
        ({"extensions": options((b"b", b""), (b"a", b""))}, "not in order"),
        ({"extensions": options((b"a", b""), (b"a", b""))}, "doubled"),
        ({"critical_options": options((b"", b""))}, "not in order"),
        ({"critical_options": options((b"\xff", b""))}, "not ASCII"),
        ({"ca": wire_string(b"")}, "truncated"),
        ({"ca": wire_string(wire_string(b"ssh-dss"))}, "an unknown type"),
        ({"reserved": b""}, "truncated|wrong size"),
        ({"reserved": wire_string(b"") * 2}, "truncated"),
    ],
)
def test_broken_certificates(change: dict[str, bytes], words: str, certificate: Certificate) -> None:
    with pytest.raises(DataError, match=f"x-cert.pub is no valid certificate: .*({words})"):
        read_certificate(rebuilt(certificate, unsigned, **change), "x-cert.pub")


def test_text_that_is_no_utf8(certificate: Certificate) -> None:
    found = read_certificate(rebuilt(certificate, unsigned, key_id=wire_string(b"j\xf6e")), "x")
    assert found.key_id == "j\\xf6e"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "holds no public key"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGo=\n", "is no certificate"),
        (b"ssh-ed448-cert-v01@openssh.com AAAA\n", "is no valid certificate: truncated"),
        (b"x" * 100_000, "has more than 64 KiB"),
    ],
)
def test_files_that_are_no_certificate(data: bytes, words: str) -> None:
    with pytest.raises(DataError, match=f"^x-cert.pub {words}"):
        read_certificate(data, "x-cert.pub")


def test_one_certificate_at_a_time(certificate: Certificate) -> None:
    with pytest.raises(DataError, match="has 2 lines"):
        read_certificate(f"{certificate.line}\n{certificate.line}\n".encode(), "x")
    other = certificate.line.replace("ssh-ed25519-cert", "ssh-rsa-cert", 1)
    with pytest.raises(DataError, match=r"says ssh-rsa-cert-v01@openssh\.com and holds a ssh-ed25519-cert"):
        read_certificate(other.encode(), "x")


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_signed(certificate: Certificate, data: st.DataObject) -> None:
    blob = bytearray(base64.b64decode(certificate.blob))
    at = data.draw(st.integers(0, len(blob) * 8 - 1))
    blob[at // 8] ^= 1 << at % 8
    with pytest.raises(DataError):
        line = f"{certificate.algorithm} {base64.b64encode(blob).decode()}".encode()
        verify_signature(read_certificate(line, "x"))


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_any_change_gives_a_certificate_or_a_data_error(
    signed: Callable[..., Certificate], data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from(KINDS))
    certificate = _CACHE.get(kind) or _CACHE.setdefault(kind, signed(kind, ca="ecdsa384"))
    blob = bytearray(base64.b64decode(certificate.blob))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(blob)))
        end = data.draw(st.integers(start, min(len(blob), start + 40)))
        blob[start:end] = data.draw(st.binary(max_size=40) | st.just(b"\xff\xff\xff\xff"))
    line = f"{certificate.algorithm} {base64.b64encode(blob).decode()}".encode()
    try:
        found = read_certificate(line, "x")
        verify_signature(found)
    except DataError:
        assert bytes(blob) != base64.b64decode(certificate.blob)
    else:
        assert found == certificate


_CACHE: dict[str, Certificate] = {}


# Signatures.


def test_a_signature_of_sha1_or_of_another_kind_counts_for_nothing(certificate: Certificate) -> None:
    private = rsa.generate_private_key(65537, 3072)
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    ca = parse(line, "ca.pub")

    def by(name: bytes, digest: hashes.HashAlgorithm) -> Certificate:
        def sign(data: bytes) -> bytes:
            return wire_string(name) + wire_string(private.sign(data, padding.PKCS1v15(), digest))

        return read_certificate(rebuilt(certificate, sign, ca=wire_field(ca)), "x")

    verify_signature(by(b"rsa-sha2-256", hashes.SHA256()))
    verify_signature(by(b"rsa-sha2-512", hashes.SHA512()))
    for name, digest in ((b"ssh-rsa", hashes.SHA1()), (b"rsa-sha2-256", hashes.SHA512()), (b"", hashes.SHA256())):  # noqa: S303
        with pytest.raises(DataError, match="the signature of certificate 42 is not of its CA"):
            verify_signature(by(name, digest))


@pytest.mark.parametrize("kind", ["sk-ed25519", "sk-ecdsa"])
def test_a_ca_on_a_fido_token(kind: str, certificate: Certificate) -> None:
    """What a token signs: hashes of application and message, flags, a counter (PROTOCOL.u2f)."""
    edwards, curve = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    ca = fido_key(edwards.public_key() if kind == "sk-ed25519" else curve.public_key())

    def sign(data: bytes) -> bytes:
        tail = b"\1" + (7).to_bytes(4)
        message = hashlib.sha256(b"ssh:").digest() + tail + hashlib.sha256(data).digest()
        if kind == "sk-ed25519":
            signature = edwards.sign(message)
        else:
            numbers = decode_dss_signature(curve.sign(message, ec.ECDSA(hashes.SHA256())))
            signature = b"".join(wire_string(_mpint(number)) for number in numbers)
        return wire_string(ca.algorithm.encode()) + wire_string(signature) + tail

    found = read_certificate(rebuilt(certificate, sign, ca=wire_field(ca)), "x")
    assert found.ca == ca
    verify_signature(found)
    forged = read_certificate(rebuilt(certificate, lambda data: sign(data + b"!"), ca=wire_field(ca)), "x")
    with pytest.raises(DataError, match="is not of its CA"):
        verify_signature(forged)


def _mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1)


# What sshd accepted.


@pytest.mark.parametrize("kind", KINDS)
def test_key_id_and_serial_of_a_login(kind: str, signed: Callable[..., Certificate]) -> None:
    certificate = signed(kind, arguments=["-I", "joe@laptop", "-n", "joe", "-z", str(2**64 - 1)])
    found = accepted(f"publickey {certificate.algorithm} {certificate.blob}\n".encode())
    assert found is not None
    assert (found.key_id, found.serial) == ("joe@laptop", 2**64 - 1)
    assert found.line == f"{certificate.algorithm} {certificate.blob}\n"


@pytest.mark.parametrize("kind", KINDS)
def test_whether_the_key_verifies_its_holder(kind: str, signed: Callable[..., Certificate]) -> None:
    for arguments, required in ([], False), (["-O", "verify-required"], kind.startswith("sk-")):
        certificate = signed(kind, arguments=["-I", "joe", "-n", "joe", *arguments])
        found = accepted(f"publickey {certificate.algorithm} {certificate.blob}\n".encode())
        assert found is not None
        assert found.verify_required is required


def test_a_plain_key_has_no_key_id() -> None:
    found = accepted(b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGo=\n")
    assert found is not None
    assert found.key_id is None


def test_the_last_key_counts() -> None:
    found = accepted(
        b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAA\n"
        b"publickey ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBBB\n"
        b"keyboard-interactive/pam\n"
    )
    assert found is not None
    assert found.blob.endswith("BBB")


@pytest.mark.parametrize("info", [b"", b"password\n", b"publickey \x1b[31m AAAA\n", b"publickey ssh-rsa ../..\n"])
def test_a_login_without_a_key(info: bytes) -> None:
    assert accepted(info) is None


@pytest.mark.parametrize(
    "wire", [b"", b"\0\0\0\x20ssh-ed25519", b"\xff" * 40, wire_string(b"ssh-unknown-cert-v01@openssh.com")]
)
def test_a_broken_certificate_is_refused(wire: bytes) -> None:
    blob = base64.b64encode(wire.ljust(16, b"\0"))
    with pytest.raises(Denied):
        accepted(b"publickey ssh-ed25519-cert-v01@openssh.com " + blob)


def test_workers_pay_for_nothing_heavy() -> None:
    heavy = "{'subprocess', 'cryptography', 'pexpect'} & set(sys.modules)"
    code = f"import sys, sshrec.openssh.certificate; sys.exit(repr({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True)
