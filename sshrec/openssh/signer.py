"""Where a CA's private key is: a file, an ssh-agent, a token; and having ssh-keygen sign with it.

Secrets are typed at a prompt, under a PTY: never in an argument or the environment. Knows no certificates.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect

from sshrec.errors import ConfigError, DataError, Denied, NotFound, SshrecError, Unreachable, UsageError, describe
from sshrec.openssh.public_key import PublicKey
from sshrec.session import printable
from sshrec.trust import check_trust

KEYGEN = "/usr/bin/ssh-keygen"
SSH_ADD = "/usr/bin/ssh-add"
SSH_AGENT = "/usr/bin/ssh-agent"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
# What PKCS#11 libraries find their tokens by, and nothing else of the caller's.
_TOKEN_ENVIRONMENT = (
    "HOME",
    "SOFTHSM2_CONF",
    "OPENSC_CONF",
    "P11_KIT_SERVER_ADDRESS",
    "PKCS11_PROXY_SOCKET",
    "TPM2_PKCS11_STORE",
    "TPM2_PKCS11_TCTI",
    "YUBIHSM_PKCS11_CONF",
    "AWS_CLOUDHSM_CONFIG",
    "ChrystokiConfigurationPath",
)

_QUICK, _SLOW = 20, 120  # seconds; slow is what may wait for a person to touch or confirm
_PROMPT = rb"(?:passphrase|PIN)[^\n]*: $"
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A private key file, perhaps with a passphrase."""

    path: Path
    public: PublicKey


@dataclass(frozen=True, slots=True)
class AgentKey:
    """A key that the ssh-agent at `socket` holds."""

    public: PublicKey
    socket: Path


@dataclass(frozen=True, slots=True)
class TokenKey:
    """A key on a token that the PKCS#11 library `provider` reaches."""

    public: PublicKey
    provider: Path


Signer = KeyFile | AgentKey | TokenKey


@dataclass(slots=True)
class Ready:
    """A CA's key that can be used: `run` has ssh-keygen do so. `parallel`: several at once are worth it."""

    public: PublicKey
    name: str
    parallel: bool
    _options: tuple[str, ...]  # without -s CA.pub where the key is no file
    _environment: Mapping[str, str]
    _pin: str | None = field(default=None, repr=False)  # "" after a wrong one
    _one: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def run(self, arguments: Sequence[str], directory: Path) -> None:
        """`ssh-keygen -s CA arguments`, the CA's public key in the private `directory` where it is needed."""
        if "-s" not in self._options:
            ca = directory / "ca.pub"
            ca.write_text(f"{self.public.algorithm} {self.public.blob}\n")
            arguments = ["-s", str(ca), *arguments]
        command = [KEYGEN, *self._options, *arguments]
        if self._pin is not None:
            with self._one:
                status, output = self._with_pin(command)
        else:
            result = run(command, self._environment, seconds=_SLOW)
            status, output = result.returncode, result.stderr
        if status:
            raise self._refused(said(output.replace(f"{directory}/".encode(), b"")))

    def _with_pin(self, command: list[str]) -> tuple[int, bytes]:
        """Types the PIN; after a wrong one never again, for tokens lock themselves after a few."""
        wrong = Denied(f"wrong PIN for {self.name}", hint="a few wrong ones in a row lock a token")
        if not self._pin:
            raise wrong
        status, output = converse(command, self._environment, [self._pin] * 2, wrong, seconds=_SLOW)
        if b"login failed" in output:
            self._pin = ""
            if b"PIN incorrect" in output or b"PIN length" in output:
                raise wrong
        return status, output

    def _refused(self, words: str) -> SshrecError:
        if "agent refused" in words:
            return Denied(f"{self.name} refuses to sign", hint="is its key to be confirmed, or the agent locked?")
        if "-U" in self._options and "ouldn't certify" not in words:
            return Unreachable(f"{self.name} no longer has the key {self.public.fingerprint}: {words}")
        return SshrecError(f"ssh-keygen did not sign: {words}")


@contextmanager
def unlocked(signer: Signer, ask: Callable[[str], str]) -> Iterator[Ready]:
    """Check that the key can be used and is the one that `signer.public` says, and hold it ready to sign.

    `ask`: called once, with a prompt, where there is a passphrase or PIN; what it returns stays in memory,
    the key of an encrypted file in an agent of our own, which ends with the thread that called (so: have
    the main thread call). ConfigError, NotFound, Denied, Unreachable and others of theirs, before a signature.
    """
    if isinstance(signer, AgentKey):
        name = f"the agent at {printable(str(signer.socket))}"
        yield _with_agent(signer.public, signer.socket, name)
    elif isinstance(signer, TokenKey):
        yield _with_token(signer, ask)
    elif _opens(signer):
        yield Ready(
            signer.public, printable(str(signer.path)), True, ("-s", str(signer.path.absolute())), ENVIRONMENT
        )
    else:
        with own_agent() as socket:
            _add(signer, socket, ask)
            yield _with_agent(signer.public, socket, f"the agent for {printable(str(signer.path))}")


def _opens(signer: KeyFile) -> bool:
    """Whether the file needs no passphrase. Raises unless it is a private key of ours alone."""
    path, shown = signer.path, printable(str(signer.path))
    _check_private(path)
    result = run([KEYGEN, "-y", "-P", "", "-f", str(path.absolute())])
    if result.returncode:
        if b"incorrect passphrase" in result.stderr:
            return False
        raise DataError(f"{shown} is no private key: {said(result.stderr)}")
    if signer.public.blob.encode() not in result.stdout.split():
        raise ConfigError(f"{shown} is not the private key of {signer.public.fingerprint}", hint=_PAIR)
    return True


_PAIR = "give the public key that was made with the private key"


def _check_private(path: Path) -> None:
    shown = printable(str(path))
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(
            f"{shown}: no such private key", hint="put it back from a backup, or sshrec-ca rotate makes a new CA"
        ) from error
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise ConfigError(f"{shown} is a symbolic link", hint="name the private key itself") from error
        words = describe(error) if isinstance(error, OSError) else "not a file's name"
        raise ConfigError(f"{shown}: {words}", hint="run as the owner of the key") from error
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{shown} is not a regular file", hint="name the private key itself")
    if status.st_uid != os.geteuid():
        raise ConfigError(
            f"{shown} belongs to uid {status.st_uid}, not to {os.geteuid()}", hint="run as the owner of the key"
        )
    if status.st_mode & 0o077:
        raise ConfigError(f"others than its owner may use {shown}", hint=f"chmod 600 {shown}")
    check_trust(path.absolute().parent)


def _with_agent(public: PublicKey, socket: Path, name: str) -> Ready:
    environment = {**ENVIRONMENT, "SSH_AUTH_SOCK": str(socket)}
    result = run([SSH_ADD, "-L"], environment)
    if result.returncode not in (0, 1):
        raise Unreachable(f"{name} does not answer: {said(result.stderr)}", hint="is it running, and ours?")
    if public.blob.encode() not in result.stdout.split():
        raise ConfigError(f"{name} does not hold the key {public.fingerprint}", hint="ssh-add puts it there")
    return Ready(public, name, True, ("-U",), environment)


def _with_token(signer: TokenKey, ask: Callable[[str], str]) -> Ready:
    provider, public = signer.provider, signer.public
    name = f"the token of {printable(str(provider))}"
    if not provider.is_file():
        raise ConfigError(f"{printable(str(provider))}: no such PKCS#11 library")
    check_trust(provider.absolute())
    environment = ENVIRONMENT | {word: os.environ[word] for word in _TOKEN_ENVIRONMENT if word in os.environ}
    result = run([KEYGEN, "-D", str(provider)], environment)
    if public.blob.encode() not in result.stdout.split():
        words = f": {said(result.stderr)}" if result.returncode else ""
        raise ConfigError(
            f"{name} does not hold the key {public.fingerprint}{words}", hint="ssh-keygen -D lists what it holds"
        )
    return Ready(public, name, False, ("-D", str(provider)), environment, ask(f"PIN for {name}: ") or None)


@contextmanager
def own_agent() -> Iterator[Path]:
    """An ssh-agent that nobody else reaches; it dies with us."""
    parent = os.getpid()

    def prepare() -> None:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # where ssh-agent is setgid, exec would forget the next line
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(255)

    try:
        private = tempfile.TemporaryDirectory(prefix="sshrec-agent-", ignore_cleanup_errors=True)
    except OSError as error:
        raise SshrecError(f"no directory for temporary files: {describe(error)}") from error
    with private as directory:
        socket = Path(directory, "agent")
        try:
            agent = subprocess.Popen(
                [SSH_AGENT, "-D", "-a", socket],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=ENVIRONMENT,
                start_new_session=True,
                preexec_fn=prepare,
            )
        except OSError as error:
            raise _missing(SSH_AGENT, error) from error
        with agent:
            try:
                assert agent.stdout
                # It tells its socket once it listens.
                if not select.select([agent.stdout], [], [], _QUICK)[0] or not agent.stdout.readline():
                    raise SshrecError("ssh-agent did not start", hint=f"could it make {socket}?")
                yield socket
            finally:
                agent.kill()


def _add(signer: KeyFile, socket: Path, ask: Callable[[str], str]) -> None:
    shown = printable(str(signer.path))
    wrong = Denied(f"wrong passphrase for {shown}")
    passphrase = ask(f"passphrase for {shown}: ")
    if not passphrase or not typeable(passphrase):
        raise wrong
    environment = {**ENVIRONMENT, "SSH_AUTH_SOCK": str(socket)}
    command = [SSH_ADD, "-q", "-k", str(signer.path.absolute())]
    status, output = converse(command, environment, [passphrase], wrong)
    if status:
        raise DataError(f"{shown} cannot be loaded: {said(output)}")
    if signer.public.blob.encode() not in run([SSH_ADD, "-L"], environment).stdout.split():
        raise ConfigError(f"{shown} is not the private key of {signer.public.fingerprint}", hint=_PAIR)


def typeable(secret: str) -> bool:
    """Whether a terminal takes it as it is: no control character, not too long for its line."""
    return len(secret.encode("utf-8", "replace")) < 1000 and not any(c < " " or c == "\x7f" for c in secret)


def run(
    command: Sequence[str],
    environment: Mapping[str, str] = ENVIRONMENT,
    *,
    typed: bytes = b"",
    seconds: float = _QUICK,
) -> subprocess.CompletedProcess[bytes]:
    """Run one of OpenSSH's programs, with `typed` as its standard input and no terminal to ask at.

    SshrecError where it is not installed, Unreachable where it takes more than `seconds`.
    """
    name = Path(command[0]).name
    try:
        return subprocess.run(
            command, input=typed, capture_output=True, env=environment, timeout=seconds, start_new_session=True
        )
    except subprocess.TimeoutExpired as error:
        raise Unreachable(f"{name} did not end within {seconds:g} seconds") from error
    except ValueError as error:  # a NUL in what should be a file's name
        raise UsageError(f"{name} cannot be given a name with a NUL in it") from error
    except OSError as error:
        raise _missing(command[0], error) from error


def converse(
    command: Sequence[str],
    environment: Mapping[str, str],
    answers: Sequence[str],
    asked_again: SshrecError,
    *,
    seconds: float = _QUICK,
) -> tuple[int, bytes]:
    """Run a program at a terminal of its own and type an answer at each prompt; its status and what it said.

    Raises `asked_again` where it asks more often than there are answers.
    """
    name, left = Path(command[0]).name, list(answers)
    if not all(map(typeable, answers)):
        raise asked_again
    try:
        child: Any = pexpect.spawn(command[0], list(command[1:]), env={**environment}, timeout=seconds)
    except (OSError, pexpect.ExceptionPexpect) as error:
        raise _missing(command[0], error) from error
    child.delaybeforesend = None  # the programs turn off echo before they ask
    child.ptyproc.delayafterclose = child.ptyproc.delayafterterminate = 0.01
    output = b""
    try:
        while child.expect([_PROMPT, pexpect.EOF]) == 0:
            output += child.before
            if not left:
                raise asked_again
            with contextlib.suppress(OSError):  # it has ended meanwhile; what it said is still to come
                child.sendline(left.pop(0))
        output += child.before
        child.wait()
        return (child.exitstatus if child.exitstatus is not None else 255), output
    except pexpect.TIMEOUT as error:
        raise Unreachable(f"{name} did not end within {seconds:g} seconds") from error
    finally:
        with contextlib.suppress(pexpect.ExceptionPexpect):
            child.close(force=True)


def _missing(program: str, error: Exception) -> SshrecError:
    words = describe(error) if isinstance(error, OSError) else "not found"
    return SshrecError(f"cannot run {program}: {words}", hint="it is in Debian's openssh-client")


def said(output: bytes) -> str:
    """What a program wrote, as one printable line."""
    lines = [line.strip() for line in output.replace(b"\r", b"\n").split(b"\n")]
    return printable(b"; ".join(dict.fromkeys(filter(None, lines)))) or "it said nothing"
