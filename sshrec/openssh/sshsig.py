"""Signatures of data by ssh-keygen -Y (PROTOCOL.sshsig): made with a key file or an agent's key, and judged.

A signature is handled as the base64 between its armour's lines, without line feeds, so that it fits into a
line of JSON. ssh-keygen takes it back in that form.
"""

from __future__ import annotations

import re
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from sshrec.errors import DataError, SshrecError
from sshrec.openssh.signer import ENVIRONMENT, KEYGEN, AgentKey, KeyFile, run, said

SIGNATURE_MAX = 64 * 1024

_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_BASE64 = re.compile(r"[A-Za-z0-9+/]{16,}={0,2}")


def sign_data(signer: KeyFile | AgentKey, data: bytes, namespace: str, certificate: Path | None = None) -> str:
    """Sign data for one purpose, the namespace. SshrecError where ssh-keygen cannot.

    `certificate`: of the key, which then stands in the signature: of a key file, KEY-cert.pub beside it.
    """
    environment = dict(ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="sshrec-sig-") as name:
        if isinstance(signer, AgentKey):
            environment["SSH_AUTH_SOCK"] = str(signer.socket)
            key = certificate or Path(name, "key.pub")
            if certificate is None:
                key.write_text(f"{signer.public.line}\n")
        else:
            key = certificate or signer.path
        result = run([KEYGEN, "-q", "-Y", "sign", "-f", str(key), "-n", namespace], environment, typed=data)
    body = result.stdout.partition(_BEGIN)[2].partition(_END)[0]
    signature = b"".join(body.split()).decode("ascii", "replace")
    if result.returncode or not _BASE64.fullmatch(signature):
        raise SshrecError(f"ssh-keygen did not sign with {key}: {said(result.stderr)}")
    return signature


def verify_data(
    allowed_signers: Path, identity: str, namespace: str, data: bytes, signature: str, at: int | None = None
) -> None:
    """DataError unless `identity` signed that data for that purpose, as allowed_signers (ssh-keygen(1)) has it.

    `at`: Unix time at which the signer's key had to be valid; None for now.
    """
    if len(signature) > SIGNATURE_MAX or not _BASE64.fullmatch(signature):
        raise DataError("what should be a signature is none")
    with tempfile.TemporaryDirectory(prefix="sshrec-sig-") as name:
        file = Path(name, "signature")
        file.write_bytes(b"%s\n%s\n%s\n" % (_BEGIN, signature.encode(), _END))
        command = [KEYGEN, "-q", "-Y", "verify", "-f", str(allowed_signers), "-I", identity, "-n", namespace]
        command += ["-s", str(file)]
        if at is not None:
            command.append(f"-Overify-time={datetime.fromtimestamp(at, UTC):%Y%m%d%H%M%SZ}")
        result = run(command, typed=data)
    if result.returncode:
        raise DataError(f"the signature is not {identity}'s: {said(result.stderr or result.stdout)}")
