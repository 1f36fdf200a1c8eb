"""ssh-keygen: key pairs, certificates, key revocation lists. Knows no policy: who may have what is decided above.

Nothing it works on lies where others could have put a link: it gets copies in a fresh private directory.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sshrec.errors import SshrecError, UsageError, describe
from sshrec.openssh.certificate import FILE_LIMIT, PRINCIPALS, Certificate, Terms, check, read_certificate
from sshrec.openssh.public_key import PublicKey, read, read_file
from sshrec.openssh.signer import ENVIRONMENT, KEYGEN, Ready, converse, run, said, typeable
from sshrec.session import printable

if TYPE_CHECKING:
    from concurrent.futures import Future

SERIALS = range(1, 2**64)  # a KRL cannot name 0
MOMENT_SECONDS = 20.0  # for a key that is waited for
_TIMES = range(253402300800)  # Unix seconds of the years that ssh-keygen can be told, 1970 to 9999
_WORD = r"[A-Za-z0-9_.:@+][A-Za-z0-9_.:@+-]"
PRINCIPAL = re.compile(_WORD + "{0,255}")
KEY_ID = re.compile(_WORD + "{0,127}")
_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.@-]{0,127}")
_REVOKED_ID = re.compile(r"[^\s#](?:[^#\n\r]*[^\s#])?")
# Those that ssh-keygen knows, and checks the values of.
_CRITICAL = {"force-command", "source-address", "verify-required"}
_EXTENSIONS = {
    "no-touch-required",
    "permit-X11-forwarding",
    "permit-agent-forwarding",
    "permit-port-forwarding",
    "permit-pty",
    "permit-user-rc",
}


def make_key(path: Path, comment: str, passphrase: str | None = None) -> PublicKey:
    """Make an ed25519 key pair, PATH (0600) and PATH.pub; the public key. Never overwrites.

    Its directory must be there. UsageError for a passphrase that cannot be typed, SshrecError otherwise.
    """
    shown = printable(str(path))
    if passphrase is not None and not (passphrase and typeable(passphrase)):
        raise UsageError("a passphrase is 1 to 999 bytes without control characters")
    if printable(comment, 1000) != comment or len(comment) > 256:
        raise UsageError("the comment of a key has control characters, or more than 256")
    public = path.with_name(f"{path.name}.pub")
    try:
        with tempfile.TemporaryDirectory(prefix=".sshrec-", dir=path.parent) as directory:
            made = Path(directory, "key")
            _make(made, comment, passphrase)
            made.with_suffix(".pub").chmod(0o644)
            key = read(made.with_suffix(".pub"))
            for file in (made, made.with_suffix(".pub")):
                _sync(file)
            os.link(made, path)
            try:
                os.link(made.with_suffix(".pub"), public)
            except OSError:
                path.unlink()
                raise
        _sync(path.parent)
    except FileExistsError as error:
        there = path if os.path.lexists(path) else public
        raise SshrecError(f"{printable(str(there))} is there already", hint="it is not overwritten") from error
    except OSError as error:
        raise SshrecError(f"cannot make {shown}: {describe(error)}") from error
    return key


@contextmanager
def making(path: Path) -> Iterator[Callable[[], PublicKey]]:
    """Make an ed25519 key pair while others go on; what is given waits for it. Nothing of it is synced.

    SshrecError where there is none.
    """
    command = [KEYGEN, "-q", "-t", "ed25519", "-C", "", "-N", "", "-f", str(path)]
    null = subprocess.DEVNULL
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=null, stdout=null, stderr=subprocess.PIPE) as process:

        def made() -> PublicKey:
            _, output = process.communicate(timeout=MOMENT_SECONDS)
            if process.returncode:
                raise SshrecError(f"ssh-keygen made no key: {said(output)}")
            return read(path.with_suffix(".pub"))

        try:
            yield made
        finally:
            process.kill()


def _make(path: Path, comment: str, passphrase: str | None) -> None:
    command = [KEYGEN, "-q", "-t", "ed25519", "-C", comment, "-f", str(path)]
    if passphrase is None:
        result = run([*command, "-N", ""])
        status, output = result.returncode, result.stderr
    else:
        refused = SshrecError("ssh-keygen did not take the passphrase")
        status, output = converse(command, ENVIRONMENT, [passphrase] * 2, refused)
    if status:
        raise SshrecError(f"ssh-keygen made no key: {said(output)}")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sign(ready: Ready, key: PublicKey, terms: Terms) -> Certificate:
    """Have a key signed on these terms; what came out was read back and compared, field by field.

    UsageError for terms that must not be signed, such as none or endless validity; else the SshrecError of
    what failed. Nothing stays on disk.
    """
    arguments = _arguments(terms)
    with _private_directory() as directory:
        public = directory / "key.pub"
        public.write_text(f"{key.line}\n", "utf-8", "backslashreplace")
        ready.run([*arguments, str(public)], directory)
        signed = read_file(directory / "key-cert.pub", FILE_LIMIT)
    certificate = read_certificate(signed, "what ssh-keygen signed")
    check(certificate, terms, key, ready.public)
    return certificate


def sign_many(
    ready: Ready, requests: Iterable[tuple[PublicKey, Terms]], jobs: int | None = None
) -> Iterator[Certificate]:
    """Certificates in the order of the requests, up to `jobs` at once (default: as many as there are CPUs).

    Ends at the first that fails, with its error.
    """
    jobs = jobs or len(os.sched_getaffinity(0))
    if jobs == 1 or not ready.parallel:
        for key, terms in requests:
            yield sign(ready, key, terms)
        return
    under_way: deque[Future[Certificate]] = deque()
    from concurrent.futures import ThreadPoolExecutor  # not in sshrecd, whose workers sign nothing

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for key, terms in requests:
                under_way.append(pool.submit(sign, ready, key, terms))
                if len(under_way) > 2 * jobs:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        finally:
            for future in under_way:
                future.cancel()


def _arguments(terms: Terms) -> list[str]:
    """ssh-keygen's, every one of them checked: none could be taken for another, or for two."""
    _check(terms)
    words = ["-q", *(["-h"] if terms.kind == "host" else []), "-I", terms.key_id, "-n", ",".join(terms.principals)]
    words += ["-V", f"{_time(terms.valid_after)}:{_time(terms.valid_before)}", "-z", str(terms.serial)]
    options = ["clear"]
    for name, value in sorted(terms.critical_options.items()):
        known = name if name in _CRITICAL else f"critical:{name}"
        options.append(f"{known}={value}" if value else known)
    options += [name if name in _EXTENSIONS else f"extension:{name}" for name in terms.extensions]
    return words + [word for option in options for word in ("-O", option)]


def _check(terms: Terms) -> None:
    if terms.kind not in ("user", "host"):
        raise UsageError(f"a certificate is a user's or a host's, not {printable(str(terms.kind))}")
    if not KEY_ID.fullmatch(terms.key_id):
        raise UsageError(
            f"'{printable(terms.key_id, 60)}' cannot be a key id", hint="letters, digits and ._:@+-, at most 128"
        )
    if not 1 <= len(terms.principals) <= PRINCIPALS:
        raise UsageError(f"a certificate has 1 to {PRINCIPALS} principals, not {len(terms.principals)}")
    for principal in terms.principals:
        if not PRINCIPAL.fullmatch(principal):
            raise UsageError(
                f"'{printable(principal, 60)}' cannot be a principal",
                hint="letters, digits and ._:@+-, no wildcards",
            )
    if len(set(terms.principals)) != len(terms.principals):
        raise UsageError("a principal is there twice")
    if terms.serial not in SERIALS:
        raise UsageError(f"serial {terms.serial} is not within 1 and 2^64 - 1")
    if terms.valid_after not in _TIMES or terms.valid_before not in _TIMES:
        raise UsageError("the validity is not within the years 1970 and 9999")
    if terms.valid_after >= terms.valid_before:
        raise UsageError("the validity ends before it starts")
    for name in (*terms.critical_options, *terms.extensions):
        if not _OPTION.fullmatch(name):
            raise UsageError(f"'{printable(name, 60)}' cannot be an option of a certificate")
    if len(set(terms.extensions)) != len(terms.extensions):
        raise UsageError("an extension is there twice")
    for name, value in terms.critical_options.items():
        if len(value) > 4096 or printable(value, 5000) != value:
            raise UsageError(f"the value of {name} has control characters, or more than 4096")
        if not value and name in ("force-command", "source-address"):
            raise UsageError(f"{name} has no value")


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%d%H%M%SZ")


@contextmanager
def _private_directory() -> Iterator[Path]:
    """A fresh one that only we enter, gone afterwards; SshrecError for what the disk refuses meanwhile."""
    try:
        with tempfile.TemporaryDirectory(prefix="sshrec-") as directory:
            yield Path(directory)
    except OSError as error:
        raise SshrecError(f"cannot write temporary files: {describe(error)}") from error


@dataclass(frozen=True, slots=True)
class KrlSection:
    """What is revoked of one CA's certificates."""

    ca: PublicKey
    serials: Sequence[int] = ()
    key_ids: Sequence[str] = ()


def make_krl(sections: Sequence[KrlSection], number: int, revoked_keys: Sequence[PublicKey] = ()) -> bytes:
    """A key revocation list for sshd's RevokedKeys; without any revocation, one that revokes nothing.

    `number`: of the list, larger with each, 0 to 2^64 - 1. `revoked_keys`: whatever they are used for, as
    keys, in certificates or as a CA. UsageError for what a list cannot hold.
    """
    if number not in range(2**64):
        raise UsageError(f"a revocation list cannot have the number {number}")
    with _private_directory() as directory:
        krl, spec, ca = directory / "krl", directory / "spec", directory / "ca.pub"
        command = [KEYGEN, "-q", "-k", "-z", str(number), "-f", str(krl)]
        spec.write_text("".join(f"{key.algorithm} {key.blob}\n" for key in revoked_keys))
        _krl([*command, str(spec)])
        for section in sections:
            lines = [*map(_serial, section.serials), *map(_id, section.key_ids)]
            if lines:
                ca.write_text(f"{section.ca.algorithm} {section.ca.blob}\n")
                spec.write_text("".join(lines), "utf-8")
                _krl([*command, "-u", "-s", str(ca), str(spec)])
        return krl.read_bytes()


def _krl(command: list[str]) -> None:
    result = run(command, seconds=60)
    if result.returncode:
        raise SshrecError(f"ssh-keygen made no revocation list: {said(result.stderr)}")


def _serial(serial: int) -> str:
    if serial not in SERIALS:
        raise UsageError(f"serial {serial} cannot be revoked", hint="revoke it by its key id, or its key")
    return f"serial: {serial}\n"


def _id(key_id: str) -> str:
    if not _REVOKED_ID.fullmatch(key_id) or printable(key_id, 5000) != key_id:
        raise UsageError(
            f"'{printable(key_id, 60)}' cannot be revoked by its key id", hint="revoke it by its serial"
        )
    return f"id: {key_id}\n"
