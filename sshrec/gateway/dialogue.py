"""What people say to log in, and what they are told: `ssh login@bastion`, and `sshrec login` for those who are in.

Decides nothing: whether it is them, the auth service says. Nothing typed here is in a log, an argv or a file.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Sequence

from sshrec.access import invitation, password, qr
from sshrec.access.client import AuthService
from sshrec.access.protocol import Authenticated, Failed, Issued, Registration
from sshrec.config import Config
from sshrec.duration import left
from sshrec.errors import SshrecError, UsageError
from sshrec.gateway.talk import Cancelled, Talk
from sshrec.openssh import public_key
from sshrec.openssh.agent import Agent, ConstraintsRefused, fresh_key
from sshrec.openssh.certificate import read_certificate
from sshrec.openssh.destinations import Constrained, Host, Unconstrained, constraints
from sshrec.openssh.public_key import PublicKey

TRIES = 3
CHOICES = 10  # of a password
SPARE_SECONDS = 1  # of the agent's lifetime: it must not offer what has just expired


class Dialogue:
    """One of them. `agent`: None where none came along; `unicode`: whether the terminal shows more than ASCII.

    `source`: the client's address, for the log and for who fails too often.
    """

    def __init__(
        self,
        config: Config,
        service: AuthService,
        talk: Talk,
        agent: Agent | None,
        *,
        source: str | None,
        unicode: bool,
    ) -> None:
        self._config, self._service, self._talk, self._agent = config, service, talk, agent
        self._source, self._unicode = source, unicode
        self._factor = config.second_factor != "off"

    def run(self, user: str | None = None) -> int:
        """All of it; the exit status. `user`: who it is, where the bastion knows."""
        self._talk.say(self._talk.bold(f"sshrec at {self._config.bastion_host}"))
        self._talk.say()
        who = user or self._needed("Name, or invitation: ")
        if user is None and invitation.is_token(who):
            return self._come(who)
        if self._agent is None:
            raise UsageError(
                "no agent came with you, so there is nowhere to put a certificate",
                hint=f"start one (eval $(ssh-agent)) and come with it: {door(self._config)}",
            )
        refused = self._agent.bound()  # before a code is spent in vain
        done = self._login(who, known=user is not None)
        if done is None:
            return 1
        if done.codes_left is not None:
            self._talk.say(f"That recovery code is used up; {done.codes_left} are left.")
        self._load(done, self._agent, refused)
        return 0

    # ---- who it is -------------------------------------------------------------------------------------

    def _login(self, user: str, *, known: bool) -> Authenticated | None:
        for turn in range(TRIES):
            if turn and not known:
                user = self._talk.ask(f"Name [{user}]: ").strip() or user
            word = self._needed("Password: ", hidden=True)
            code = self._needed("Code: ") if self._factor else None
            answer = self._service.authenticate(user, word, code, self._source)
            if isinstance(answer, Authenticated):
                return answer
            self._talk.say(told(answer))
            if not answer.again:
                break
        return None

    def _needed(self, prompt: str, *, hidden: bool = False) -> str:
        """An answer that is not empty."""
        for _ in range(TRIES):
            answer = self._talk.ask(prompt, hidden=hidden)
            if answer.strip():
                return answer if hidden else answer.strip()
        raise Cancelled

    # ---- with an invitation ------------------------------------------------------------------------------

    def _come(self, token: str) -> int:
        begun = self._service.redeem(token, self._source)
        if isinstance(begun, Failed):
            self._talk.say(told(begun))
            return 1
        try:
            done = self._register(begun)
        except Cancelled:
            self._talk.say("Nothing was changed; the invitation is still good.")
            raise
        if done is None:
            return 1
        self._show_recovery(done.recovery)
        again = f"You are registered. To log in: {self._talk.bold(door(self._config))}"
        if self._agent is None:
            self._talk.say("No agent came with you, so there is nowhere to put a certificate.")
            self._talk.say(again)
            return 1
        try:
            self._load(done, self._agent, self._agent.bound())
        except SshrecError:
            self._talk.say(again)
            raise
        return 0

    def _register(self, begun: Registration) -> Authenticated | None:
        self._talk.say(f"Welcome, {begun.user}. You may log in to servers as {', '.join(begun.logins)}.")
        self._talk.say()
        word = self._choose(begun.user)
        if begun.uri is not None:
            self._show_seed(begun.uri, begun.secret)
        for _ in range(TRIES):
            code = self._needed("Code that it shows now: ") if begun.uri is not None else None
            answer = self._service.register(word, code)
            if isinstance(answer, Authenticated):
                if begun.uri is not None:
                    self._talk.erase()
                    self._talk.say("It is known now.")
                    self._talk.say()
                return answer
            self._talk.say(told(answer))
            if not answer.again or begun.uri is None:
                return None
        raise Cancelled

    def _choose(self, user: str) -> str:
        for _ in range(CHOICES):
            word = self._talk.ask(f"Choose a password ({password.SHORTEST} characters or more): ", hidden=True)
            try:
                password.check(word, user)
                if "\ufffd" in word:
                    raise UsageError("your terminal sends characters that are not UTF-8")
            except UsageError as error:
                self._talk.say(f"That will not do: {error}.")
                continue
            if self._talk.ask("The same again: ", hidden=True) == word:
                return word
            self._talk.say("That was another one.")
        raise Cancelled

    def _show_seed(self, uri: str, secret: str) -> None:
        size = self._talk.size
        picture = qr.draw(uri, size.columns, size.rows - 1, unicode=self._unicode) if self._talk.styled else []
        self._talk.say()
        if picture:
            self._lines("Your phone's authenticator app scans this, or you type it in:")
        else:
            self._lines("Type this into your phone's authenticator app:")
        # What follows is gone from a terminal of 24 lines once it has been scanned.
        self._talk.mark()
        self._lines(secret)
        for line in picture:
            self._talk.say(line)
        if not picture:
            self._lines("(This terminal is too small for a QR code, or cannot show one.)")

    def _show_recovery(self, codes: tuple[str, ...]) -> None:
        if not codes:
            return
        self._lines("Without the phone, each of these works once instead of a code. Keep them safe:")
        self._talk.say()
        wide = 2 if self._talk.size.columns >= 2 * len(codes[0]) + 7 else 1
        for at in range(0, len(codes), wide):
            self._talk.say("  " + "   ".join(codes[at : at + wide]))
        self._talk.say()

    def _lines(self, text: str) -> None:
        """A sentence, no wider than the terminal."""
        for line in textwrap.wrap(text, max(self._talk.size.columns - 1, 10)):
            self._talk.say(line)

    # ---- what they get ---------------------------------------------------------------------------------

    def _load(self, done: Authenticated, agent: Agent, refused: ConstraintsRefused | None) -> None:
        """`refused`: why the agent can use no constrained keys."""
        comment = f"sshrec:{done.user}"
        with fresh_key(comment, agent.scratch) as (file, public):
            issued = self._service.sign_key(public.line)
            certificate = read_certificate(issued.certificate.encode(), "the new certificate")
            lifetime = issued.valid_before - int(time.time()) - SPARE_SECONDS
            ways = constraints_of(done.user, issued)
            loose = ways.reason if isinstance(ways, Unconstrained) else str(refused) if refused else None
            bound = ways if isinstance(ways, Constrained) and not refused else Constrained((), "", logins=False)
            agent.load(
                file,
                certificate,
                lifetime=lifetime,
                comment=comment,
                constraints=bound.constraints,
                known_hosts=bound.known_hosts,
            )
        self._farewell(done.user, issued, loose)

    def _farewell(self, user: str, issued: Issued, loose: str | None) -> None:
        """What somebody who is logged in wants to know. `loose`: why the certificate is not bound."""
        self._lines(f"Logged in as {user} until {moment(issued.valid_before)}, for {rest(issued.valid_before)}.")
        if loose:
            self._lines(f"It is good from any host that you forward your agent to: {loose}.")
        login = f"{issued.logins[0]}@" if issued.logins else ""
        self._talk.say(f"From now on: {self._talk.bold(way(self._config, user) + f' {login}SERVER')}")


def door(config: Config) -> str:
    """The command that begins this dialogue."""
    return way(config, config.login_account)


def way(config: Config, account: str, *, terminal: bool = False) -> str:
    """The command that enters the bastion as an account of it. `terminal`: with one, whatever comes behind."""
    port = "" if config.bastion_port == 22 else f"-p {config.bastion_port} "
    return f"ssh {'-tA' if terminal else '-A'} {port}{account}@{config.bastion_host}"


def constraints_of(user: str, issued: Issued) -> Constrained | Unconstrained:
    """Where an agent is to let the certificate be used: what the bastion told, as its agent wants it."""
    host_cas = tuple(map(_key, issued.host_cas))

    def host(name: str, keys: Sequence[str]) -> Host:
        return Host(name, tuple(map(_key, keys)), host_cas)

    allowed = None
    if issued.nodes is not None:
        hosts = {node: host(node, issued.node_keys.get(node, ())) for _, node in issued.nodes}
        allowed = [(login, hosts[node]) for login, node in issued.nodes]
    bastion = host(issued.bastion, issued.bastion_keys)
    return constraints(user, bastion, [_key(line) for line in issued.gateway_cas], allowed)


def _key(line: str) -> PublicKey:
    return public_key.parse(line.encode(), "the bastion's answer")


def moment(at: int) -> str:
    """A time (Unix seconds) for people, in the bastion's zone."""
    return time.strftime("%a %d %b %H:%M %Z", time.localtime(at))


def rest(until: int) -> str:
    """How long it is until then (Unix seconds), for people: to the minute, or the last ones to the second."""
    seconds = until - time.time()
    return left(60 * round(seconds / 60) if seconds > 600 else seconds)


def told(failed: Failed) -> str:
    """A failure as a line for the person."""
    return f"{failed.reason[:1].upper()}{failed.reason[1:]}{'' if failed.reason.endswith('?') else '.'}"
