"""The person's side of a session: who came, with which credential, and the descriptors that sshd gave them."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import pwd
import termios

from sshrec.errors import Denied
from sshrec.gateway import terminal
from sshrec.gateway.handoff import Hello
from sshrec.gateway.relay import half_close
from sshrec.openssh import certificate
from sshrec.openssh.client import checked_term
from sshrec.patterns import Address
from sshrec.session import Credential, User, printable


def _address(words: str) -> Address | None:
    """Of `address port`."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(words.partition(" ")[0])
    return None


class Visit:
    """What came with the hello. The descriptors are this object's to close."""

    def __init__(self, hello: Hello) -> None:
        self.uid = hello.uid
        self.stdin, self.stdout, self.stderr = hello.descriptors
        self._blocking = {fd: os.get_blocking(fd) for fd in hello.descriptors}
        self.modes: terminal.Modes | None = None
        with contextlib.suppress(termios.error):  # no terminal, or one that has just hung up
            self.modes = terminal.Modes(self.stdin)
        self.terminal = self.modes is not None
        facts = hello.facts
        self.command = facts.get("command", b"")
        self.term = checked_term(facts.get("term", b""))
        self.lang = facts.get("lang", b"")
        self.agent = "agent" in facts
        self.tty = printable(facts.get("tty", b""), 40)
        self._auth = facts.get("auth", b"")
        words = facts.get("connection", b"").decode("ascii", "replace").split()
        self.client = printable(" ".join(words[:2]), 80)  # address and port
        self.local = printable(" ".join(words[2:4]), 80)  # of the bastion, as the client dialled it
        self.channel = facts.get("channel", b"").decode("ascii", "replace")  # of which connection
        self._place()

    def _place(self) -> None:
        self.source = _address(self.client)  # the client's
        server = _address(self.local)  # the bastion's, as the client dialled it
        self.server: frozenset[Address] = frozenset({server} if server else ())

    @property
    def account(self) -> str | None:
        """The Unix account that came, by the kernel's word; None where the uid has no name."""
        try:
            return pwd.getpwuid(self.uid).pw_name
        except KeyError:
            return None

    def identify(self) -> tuple[User, Credential]:
        """The person by the kernel's word, and the credential that sshd accepted; Denied where they differ."""
        if (name := self.account) is None:
            raise Denied(f"no account has the uid {self.uid}")
        credential = certificate.accepted(self._auth)
        if credential is None:
            raise Denied(
                "sshd named no key that opened this login",
                hint="log in with a key or certificate; sshd needs ExposeAuthInfo yes for this account",
            )
        if credential.key_id not in (None, name):
            raise Denied(
                f"the certificate of '{printable(credential.key_id or '', 80)}' opened the account {name}"
            )
        return User(name, self.uid), credential

    def behind(self, client: str, local: str) -> None:
        """A channel of a connection whose ends sshd does not know: it comes from there."""
        self.client, self.local = client, local
        self._place()

    def give_up(self, fd: int) -> None:
        """Let go of a descriptor that somebody else has now."""
        if self._blocking.pop(fd, None) is not None:
            os.close(fd)

    def credential(self) -> Credential | None:
        """What sshd accepted; None where it does not say."""
        return certificate.accepted(self._auth)

    def let_go(self, fd: int) -> None:
        """Half-close one of the descriptors: its reader sees the end."""
        if self._blocking.pop(fd, None) is not None:
            half_close(fd)

    def drop(self) -> None:
        """Let go of everything, from another thread: what still writes there writes to nobody."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in tuple(self._blocking):
            os.dup2(null, fd, inheritable=False)
        os.close(null)

    def close(self) -> None:
        """Put the terminal back and let go of everything: a client waits for the last holder."""
        if self.modes is not None:
            self.modes.restore()
        for fd, blocking in self._blocking.items():
            with contextlib.suppress(OSError):
                os.set_blocking(fd, blocking)
            os.close(fd)
        self._blocking.clear()
