"""What would happen, and why: each role's answer to a case, and whom it would let in. Decides nothing itself.

What nobody said of a case (where from, with which key, beside how many sessions) is no reason against it here: it
is told as a condition instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from sshrec.access.decision import Allow, Case, Deny, Unmet
from sshrec.access.policy import Policy
from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.role import Role
from sshrec.size import Size


@dataclass(frozen=True, slots=True)
class Answer:
    """What one role says by itself. `conditions`: what a yes leaves open."""

    decision: Allow | Unmet
    conditions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, and what each role says, in their order. `by`: the answer that decided, if one allows."""

    verdict: Allow | Deny
    answers: tuple[Answer, ...]
    by: Answer | None


class Explainer:
    """A configuration that is asked what it would do. `anywhere`: cases do not say where the client is."""

    def __init__(self, config: Config, *, anywhere: bool) -> None:
        known = tuple(_relaxed(role, anywhere=anywhere) for role in config.roles)
        self.policy = Policy(replace(config, roles=known))
        self._conditions = tuple(_conditions(role, anywhere=anywhere) for role in config.roles) or ((),)

    def explain(self, case: Case) -> Explanation:
        """What would happen."""
        decisions = tuple(_exactly(case, decision) for decision in self.policy.weigh(case))
        answers = tuple(
            Answer(decision, conditions if isinstance(decision, Allow) else ())
            for decision, conditions in zip(decisions, self._conditions, strict=True)
        )
        verdict = self.policy.authorise(case)
        if isinstance(verdict, Allow) and (unmet := _exactly(case, verdict)) is not verdict:
            assert isinstance(unmet, Unmet)
            verdict = Deny(unmet.rule, unmet.reason)
        by = next((answer for answer in answers if answer.decision == verdict), None)
        return Explanation(verdict, answers, by)

    def who(self, case: Case, users: Mapping[str, frozenset[str]]) -> Iterator[tuple[str, Answer]]:
        """Of these users, each with the logins that were given, whoever may; the case says the rest."""
        for user, logins in sorted(users.items()):
            subject = replace(case.subject, user=user, logins=logins)
            if answer := self.explain(replace(case, subject=subject)).by:
                yield user, answer


def terms(allow: Allow) -> tuple[str, ...]:
    """What is unusual about a session that would be allowed so, in words."""
    said = []
    if allow.mfa is not None:
        within = f", if none was given for {Duration(allow.mfa.grace)}" if allow.mfa.grace else ""
        said.append(f"a code for each session{within}")
    if allow.terms.record_input:
        said.append("what is typed is recorded")
    if allow.terms.recording == "best_effort":
        said.append("goes on where it cannot be recorded")
    if allow.terms.longest is not None:
        said.append(f"{Duration(allow.terms.longest)} at most")
    if allow.terms.idle is not None:
        said.append(f"{Duration(allow.terms.idle)} idle at most")
    if allow.terms.size is not None:
        said.append(f"{Size(allow.terms.size)} at most")
    return tuple(said)


def _exactly(case: Case, decision: Allow | Unmet) -> Allow | Unmet:
    """A role that serves one kind of transfers lets in a session that may want the other, and denies that then."""
    if isinstance(decision, Unmet):
        return decision
    for kind, served in (("upload", decision.terms.upload), ("download", decision.terms.download)):
        if case.kind == kind and not served:
            return Unmet(decision.rule, f"{kind}s are not served", 4)
    return decision


def _relaxed(role: Role, *, anywhere: bool) -> Role:
    return replace(
        role, require_sk=False, verify_required=False, sessions=None, sources=() if anywhere else role.sources
    )


def _conditions(role: Role, *, anywhere: bool) -> tuple[str, ...]:
    said = []
    if role.sources and anywhere:
        said.append(f"from {', '.join(role.sources)}")
    if role.require_sk:
        said.append("with a FIDO security key")
    if role.verify_required:
        said.append("with a certificate that has verify-required")
    if role.sessions is not None:
        said.append(f"with fewer than {role.sessions} {'session' if role.sessions == 1 else 'sessions'}")
    return tuple(said)
