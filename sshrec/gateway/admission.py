"""From a visit to a grant: what is asked for, where that is, and whether it may be. Starts nothing.

The questions to the person (which target? which code?) are asked here, the decision is a judge's.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from sshrec.access.decision import Allow, Case, Deny, Subject
from sshrec.access.policy import Policy
from sshrec.access.protocol import FactorNeeded
from sshrec.config import Config
from sshrec.errors import Denied, Unreachable, UsageError
from sshrec.gateway import network, request
from sshrec.gateway.asking import Questioner
from sshrec.gateway.channel import Whose
from sshrec.gateway.dialogue import told
from sshrec.gateway.grant import Grant
from sshrec.gateway.judge import AuthServiceJudge, Judge, OwnJudge
from sshrec.gateway.relay import Loop
from sshrec.gateway.terminal import Line
from sshrec.gateway.visit import Visit
from sshrec.session import KINDS, Credential, Kind, Request, Target, User

TRIES = 5  # at typing a target
CODES = 3  # at typing a code
USAGE = "ssh -A bastion [login@]host[:port] [command…]"

T = TypeVar("T")


class NotAllowed(Denied):
    """Policy says no. `rule`: which."""

    def __init__(self, answer: Deny) -> None:
        super().__init__(answer.reason, hint=answer.hint)
        self.rule = answer.rule


@dataclass(frozen=True, slots=True)
class Passage:
    """What a transparent connection may have.

    `ahead`: how ssh may go to the target before there is a session, None where that wants a code, or an agent;
    `certify`: a host's public key, a line; its certificate for the target, another.
    """

    ahead: Grant | None
    certify: Callable[[str], str]


class Admission:
    """Of one visit. `until` turns the loop, and raises Gone where the person leaves meanwhile.

    `known` is told what the watchers may know by then. `live`: sessions of this person at the time, None where
    nobody counts them: then there is no sshrecd, and the configuration alone decides.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        visit: Visit,
        *,
        session: str,
        loop: Loop,
        until: Callable[[Callable[[], bool]], None],
        known: Callable[..., None],
        live: int | None,
    ) -> None:
        self._config, self._policy, self._visit, self._session = config, policy, visit, session
        self._loop, self._until, self._known, self._live = loop, until, known, live
        self._judge: Judge = (
            OwnJudge(policy) if live is None else AuthServiceJudge(config.auth_socket, loop, until)
        )

    def grant(self, user: User, credential: Credential, channel: Whose | None = None) -> Grant:
        """What the person may have; UsageError, Denied or Unreachable where that is nothing.

        `channel`: of which connection it is one.
        """
        if channel is not None:
            self._check_number()
        wanted = self._request(user) if channel is None else channel.request(self._visit)
        self._known(login=wanted.target.login, target=str(wanted.target))
        request.check_recordable(wanted)
        outer = channel is not None and channel.agent
        if not self._visit.agent and not outer:
            raise Denied("no agent came with you, and the target wants your key", hint=f"connect with -A: {USAGE}")
        case = self._case(user, credential, wanted.target, wanted.kind)
        try:
            decision = self._decided(case, wanted.target, credential)
        finally:
            self._judge.close()
        if channel is None:
            return Grant(user, credential, wanted, case.place, decision)
        agent = Path(self._config.run_dir, channel.connection, "agent") if outer else None
        return Grant(user, credential, wanted, case.place, decision, channel.connection, agent)

    def _check_number(self) -> None:
        """Of a person's sessions at once: sshrecd, which counts, did not know whose a channel is."""
        most = self._config.limits.sessions_per_user
        if self._live is not None and self._live >= most:
            raise Unreachable(f"you have {most} sessions, and no more are allowed at once")

    def passage(self, user: User, credential: Credential, target: Target) -> Passage:
        """Of a transparent connection; Denied where the person may have no session of any kind there."""
        self._known(login=target.login, target=str(target))
        case = self._case(user, credential, target, "shell")
        refused: Deny | None = None
        for kind in KINDS:  # which kind it will be, is decided for each session
            answer = self._judge.authorise(dataclasses.replace(case, kind=kind), target, credential)
            if not isinstance(answer, Deny):
                break
            refused = refused or answer
        else:
            assert refused is not None
            raise NotAllowed(refused)
        ahead = None
        if isinstance(answer, Allow) and self._visit.agent:
            agent = Path(self._config.run_dir, self._session, "agent")
            asked = Request(target, None, terminal=False)
            ahead = Grant(user, credential, asked, case.place, answer, self._session, agent)
        return Passage(ahead, lambda public_key: self._certified(case, target, credential, public_key))

    def _certified(self, case: Case, target: Target, credential: Credential, public_key: str) -> str:
        try:
            return _allowed(self._judge.certify_host(case, target, credential, public_key))
        finally:
            self._judge.close()

    def _case(self, user: User, credential: Credential, target: Target, kind: Kind) -> Case:
        visit = self._visit
        place = _allowed(self._policy.locate(target))
        self._known(host=place.name)
        seconds = self._config.hop.connect_timeout
        addresses = network.resolve(place.lookup, place.port, seconds, self._loop, self._until)
        self._known(addresses=list(map(str, addresses)))
        return Case(
            subject=Subject(
                user=user.name,
                source=visit.source,
                algorithm=credential.algorithm,
                verify_required=credential.verify_required,
                live=self._live,
            ),
            login=target.login,
            kind=kind,
            place=place,
            addresses=addresses,
            own=visit.server | {address for address in addresses if network.is_own(address)},
            when=datetime.now(),
            session=self._session,
        )

    def _decided(self, case: Case, target: Target, credential: Credential) -> Allow:
        answer = self._judge.authorise(case, target, credential)
        while isinstance(answer, FactorNeeded):  # again, where the auth service was restarted after the code
            self._ask_code(case, answer)
            answer = self._judge.authorise(case, target, credential)
        return _allowed(answer)

    def _ask_code(self, case: Case, needed: FactorNeeded) -> None:
        wanted = f"{needed.rule} wants a code for each session"
        if not self._visit.terminal:
            hint = f"show one first: ssh -tA {self._config.bastion_host} sshrec login"
            raise NotAllowed(Deny(needed.rule, f"{wanted}, and there is no terminal to ask for it", hint))
        with self._lines(Line(f"Code for {case.login}@{case.place.name}: "), CODES) as (questioner, lines):
            for line in lines:
                failed = self._judge.check_factor(case, line.strip())
                if failed is None:
                    return
                questioner.show(f"{told(failed)}\r\n")
                if not failed.again:
                    break
        raise NotAllowed(Deny(needed.rule, f"{wanted}, and none was right"))

    def _request(self, user: User) -> Request:
        """What sshd was given, or what the person types when asked."""
        visit = self._visit
        if visit.command:
            return request.parse(visit.command, terminal=visit.terminal, login=user.name)
        if not visit.terminal:
            raise UsageError("no target was named", hint=f"name one: {USAGE}")
        return Request(self._ask_target(user), None, terminal=True)

    def _ask_target(self, user: User) -> Target:
        with self._lines(Line("Connect to: ", self._config.node_names), TRIES) as (questioner, lines):
            for line in lines:
                try:
                    if line.strip():
                        return request.parse_target(line.strip().encode(), user.name)
                except UsageError as error:
                    questioner.show(f"{error}\r\n")
        raise UsageError("no target was named", hint=f"name one: {USAGE}")

    @contextlib.contextmanager
    def _lines(self, line: Line, tries: int) -> Any:
        questioner = Questioner(self._visit, self._loop, self._until)
        with contextlib.closing(questioner.lines(line, tries)) as lines:
            yield questioner, lines


def _allowed(answer: T | Deny) -> T:
    """What policy answers, unless it is no."""
    if isinstance(answer, Deny):
        raise NotAllowed(answer)
    return answer
