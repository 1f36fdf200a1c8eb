"""A person's ssh-agent: what it holds, a certificate put into it with its key, and taken out again.

Speaks to it through ssh-add alone. The agent may be another's program, at the far end of a forwarded connection:
it may refuse, hang and lie. Knows neither users nor policy.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sshrec.errors import DataError, Denied, SshrecError, Unreachable, describe
from sshrec.openssh import keygen
from sshrec.openssh.certificate import FILE_LIMIT, Certificate, read_certificate
from sshrec.openssh.public_key import PublicKey, from_wire, key_line
from sshrec.openssh.signer import ENVIRONMENT, SSH_ADD, run, said
from sshrec.session import printable

_SECONDS = 10  # of a question; a forwarded agent may be far away
_TRIED = (2, 2 * _SECONDS + 2)  # seconds that a key is in it to see what it does with constraints; then longer
_MEMORY = Path("/dev/shm")  # a private directory is made there; what is in it reaches no disk


class NoAgent(Unreachable):
    """Nothing listens at the socket."""


class AgentSilent(Unreachable):
    """It does not answer in time."""


class AgentRefused(Denied):
    """It says no: it is locked, or takes no keys at all."""


class ConstraintsRefused(AgentRefused):
    """It says no to a key with destination constraints; it may yet take one without them."""


class NoCertificates(AgentRefused):
    """It cannot hold a certificate."""


class AgentLied(DataError):
    """What it answers is not of the agent's protocol, or no key."""


# The end of the socket's name, and whose it is.
_WITHOUT_CERTIFICATES = {"S.gpg-agent.ssh": "gpg-agent"}
# They pass a key on to an ssh-agent of theirs, and not what ssh tells it of the hosts on the way (session-bind@):
# a key with destination constraints would never be used.
_WITHOUT_CONSTRAINTS = {"keyring/ssh": "GNOME keyring", "gcr/ssh": "GNOME's gcr-ssh-agent"}


def without_certificates(socket: Path) -> str | None:
    """The name of the program whose socket this is by its path, if that is one that holds no certificates."""
    return _called(socket, _WITHOUT_CERTIFICATES)


def without_constraints(socket: Path) -> str | None:
    """The name of the program whose socket this is by its path, if it cannot use a constrained key."""
    return _called(socket, _WITHOUT_CONSTRAINTS)


def _called(socket: Path, names: dict[str, str]) -> str | None:
    return next((name for end, name in names.items() if str(socket).endswith(f"/{end}")), None)


@contextlib.contextmanager
def fresh_key(comment: str, scratch: Path | None = None) -> Iterator[tuple[Path, PublicKey]]:
    """A new ed25519 key: its private half, and the public one.

    `scratch`: the directory for it, None for one in memory where there is such. Nothing of it is left afterwards.
    SshrecError where it cannot be made.
    """
    with _private_directory(scratch) as directory:
        key = directory / "key"
        yield key, keygen.make_key(key, comment)


@contextlib.contextmanager
def _private_directory(scratch: Path | None) -> Iterator[Path]:
    parent = scratch or (_MEMORY if os.access(_MEMORY, os.W_OK | os.X_OK) else None)
    try:
        made = tempfile.TemporaryDirectory(prefix="sshrec-", dir=parent)
    except OSError as error:
        raise SshrecError(f"no directory for temporary files: {describe(error)}") from error
    with made as directory:
        yield Path(directory)


@dataclass(frozen=True, slots=True)
class Agent:
    """The agent that listens at `socket`.

    `called`: what errors call it, where not by its path; `scratch`: the directory for what is short-lived.
    """

    socket: Path
    called: str = ""
    scratch: Path | None = None

    @property
    def name(self) -> str:
        """What errors call it."""
        if self.called:
            return self.called
        known = without_certificates(self.socket) or without_constraints(self.socket)
        return known or f"the agent at {printable(str(self.socket))}"

    def identities(self) -> list[PublicKey | Certificate]:
        """What it holds, comments included; but for what is of a type that OpenSSH no longer or not yet has.

        NoAgent, AgentSilent, AgentRefused or AgentLied.
        """
        result = self._ask(["-L"])
        if result.returncode == 1 and result.stdout.startswith(b"The agent has no identities"):
            return []
        if result.returncode:
            raise self._failed(result.returncode, result.stderr)
        try:
            lines = [line for line in result.stdout.split(b"\n") if line]
            return [found for line in lines if (found := _identity(line, self.name))]
        except DataError as error:
            raise AgentLied(str(error)) from error

    def load(
        self,
        key_file: Path,
        certificate: Certificate,
        *,
        lifetime: int,
        comment: str,
        constraints: Sequence[str] = (),
        known_hosts: str = "",
        forwarded: bool = False,
    ) -> None:
        """Add a key with its certificate for `lifetime` seconds, and see that it holds the certificate alone.

        `key_file`: not encrypted, made with `comment` (`fresh_key`). `constraints`: for ssh-add's -h, with the
        host keys in `known_hosts`, a file's text. `forwarded`: whether the agent is at the far end of an ssh,
        which then must be one that tells it of us. Older certificates by the same CA under the same comment go
        once this one is in; whatever fails before leaves them.

        ConstraintsRefused where it may take the key without constraints, NoCertificates where it cannot hold
        what was added; else as `identities`.
        """
        if name := without_certificates(self.socket):
            raise NoCertificates(f"{name} holds no certificates", hint=OTHER_AGENT)
        if constraints and (name := without_constraints(self.socket)):
            raise ConstraintsRefused(f"{name} cannot use a key that is bound to destinations", hint=OTHER_AGENT)
        if constraints and forwarded and (refused := self.bound()):
            raise refused
        try:
            self._add(key_file, certificate.line, lifetime, constraints, known_hosts)
            # With the plain key beside it, ssh would sign for the certificate with that, and the agent refuse.
            self._ask(["-q", "-d", "-"], _lines([certificate.key]))
            held = self.identities()
            self._check(held, certificate, comment)
        except BaseException:  # Ctrl-C, too
            with contextlib.suppress(SshrecError):
                self._ask(["-q", "-d", "-"], _lines([certificate.key, certificate]))
            raise
        self._remove(_of(held, comment, certificate.ca, certificate))

    def remove(self, comment: str, ca: PublicKey | None = None) -> int:
        """Take out the certificates under a comment, of one CA or of all; how many there were.

        As `identities`, or AgentRefused where they stay.
        """
        found = _of(self.identities(), comment, ca)
        self._remove(found)
        return len(found)

    def _remove(self, certificates: Sequence[Certificate]) -> None:
        if certificates and (result := self._ask(["-q", "-d", "-"], _lines(certificates))).returncode:
            raise self._failed(result.returncode, result.stderr)

    def _add(
        self,
        key_file: Path,
        certificate: str,
        lifetime: int,
        constraints: Sequence[str],
        known_hosts: str,
    ) -> None:
        """`certificate`: the line of one, or "" for the plain key."""
        with _private_directory(self.scratch) as directory:
            key = directory / "key"
            key.symlink_to(key_file.absolute())
            if certificate:
                (directory / "key-cert.pub").write_text(f"{certificate}\n")
            arguments = ["-q", "-t", str(lifetime)]
            if constraints:
                hosts = directory / "known_hosts"
                hosts.write_text(known_hosts)
                arguments += ["-H", str(hosts), *(word for one in constraints for word in ("-h", one))]
            result = self._ask([*arguments, str(key)])
        if not result.returncode:
            return
        words = result.stderr.replace(f"{directory}/".encode(), b"")
        if constraints and b"option -- " in words:  # ssh-add's own: -h came with OpenSSH 8.9
            raise ConstraintsRefused("this host's ssh-add knows no destination constraints")
        if constraints and b"agent refused operation" in words:
            raise ConstraintsRefused(f"{self.name} refuses a key with destination constraints")
        raise self._failed(result.returncode, words)

    def bound(self) -> ConstraintsRefused | None:
        """See that it takes keys, at the far end of an ssh; and why it cannot use constrained ones, if it cannot.

        One that knows that it is forwarded (session-bind@openssh.com) does not show a key that may go from its own
        host to somewhere else alone, which we are not. Leaves a key of no use in it, for seconds. Raises as
        `identities`.
        """
        for lifetime in _TRIED:
            began = time.monotonic()
            refused = self._bound(lifetime)
            if refused or time.monotonic() - began < lifetime - 1:  # else the key may just have been over
                return refused
        return None

    def _bound(self, lifetime: int) -> ConstraintsRefused | None:
        """The same, with a key that lives for so many seconds; it may be one less, for agents count whole ones."""
        with fresh_key("sshrec", self.scratch) as (key, public):
            try:
                self._add(key, "", lifetime, ["nowhere"], f"nowhere {public.algorithm} {public.blob}\n")
            except ConstraintsRefused as refused:
                self._add(key, "", lifetime, (), "")  # or it is locked
                self._ask(["-q", "-d", "-"], _lines([public]))
                return refused
            if all(one.blob != public.blob for one in self.identities()):
                return None
            self._ask(["-q", "-d", "-"], _lines([public]))
        hint = "OpenSSH 8.9 and later does"
        return ConstraintsRefused("your ssh does not tell your agent by which hosts it is used", hint=hint)

    def _check(self, held: Sequence[PublicKey | Certificate], certificate: Certificate, comment: str) -> None:
        found = [one for one in held if one.blob == certificate.blob]
        if not found:
            raise NoCertificates(f"{self.name} took the key and not its certificate", hint=OTHER_AGENT)
        if any(one.blob == certificate.key.blob for one in held):
            raise AgentRefused(f"{self.name} keeps the key without its certificate, too", hint=OTHER_AGENT)
        if found[0].comment != comment:
            raise AgentRefused(f"{self.name} holds the certificate under another name than {printable(comment)}")

    def _ask(self, arguments: Sequence[str], typed: str = "") -> _Done:
        environment = {**ENVIRONMENT, "SSH_AUTH_SOCK": str(self.socket)}
        try:
            result = run([SSH_ADD, *arguments], environment, typed=typed.encode(), seconds=_SECONDS)
        except Unreachable as error:
            raise AgentSilent(f"{self.name} did not answer within {_SECONDS} seconds") from error
        return _Done(result.returncode, result.stdout, result.stderr)

    def _failed(self, status: int, stderr: bytes) -> SshrecError:
        words = said(stderr)
        if b"connecting to agent" in stderr or b"open a connection" in stderr:
            reason = words.rpartition(": ")[2].lower()
            return NoAgent(f"{self.name} does not answer: {reason}", hint="is it running, and yours?")
        if b"refused operation" in stderr or b"agent failure" in stderr:
            return AgentRefused(f"{self.name} refuses", hint="is it locked (ssh-add -X), or does it take no keys?")
        if b"communication with agent failed" in stderr or status == -signal.SIGPIPE:
            return NoAgent(f"{self.name} hung up")
        if b"error fetching identities" in stderr or b"invalid format" in stderr:
            return AgentLied(f"{self.name} does not answer as an agent does: {words}")
        return SshrecError(f"ssh-add failed: {words}")


OTHER_AGENT = "OpenSSH's ssh-agent can: eval $(ssh-agent), and again"


@dataclass(frozen=True, slots=True)
class _Done:
    returncode: int
    stdout: bytes
    stderr: bytes


def _identity(line: bytes, name: str) -> PublicKey | Certificate | None:
    """None for a type that we do not know. DataError for what is no key."""
    algorithm, blob, comment = key_line(line, name, FILE_LIMIT)
    if "-cert-v0" in algorithm:
        try:
            return read_certificate(line, name)
        except DataError:
            return None
    try:
        return from_wire(blob, comment)
    except ValueError:
        return None


def _of(
    held: Sequence[PublicKey | Certificate],
    comment: str,
    ca: PublicKey | None,
    but: Certificate | None = None,
) -> list[Certificate]:
    """The certificates under a comment. Another CA's are another bastion's, where a name may be the same."""
    return [
        one
        for one in held
        if isinstance(one, Certificate)
        and one.comment == comment
        and (ca is None or one.ca == ca)
        and (but is None or one.blob != but.blob)
    ]


def _lines(keys: Sequence[PublicKey | Certificate]) -> str:
    return "".join(f"{key.algorithm} {key.blob}\n" for key in keys)
