"""python -m benchmarks.policy: what a decision costs with 1000 users, 10 000 nodes and 100 roles.

In one process, without a file and without a socket: the rule engine alone, in CPU time, for a machine is seldom
quiet for as short as that.
"""

from __future__ import annotations

import gc
import ipaddress
import random
import statistics
import sys
import time
from dataclasses import replace
from datetime import datetime

from benchmarks import machine
from sshrec.access.decision import Allow, Case, Lock, Place, Subject
from sshrec.access.policy import Policy
from sshrec.config import Config, Node
from sshrec.hours import Hours
from sshrec.role import Role
from sshrec.session import Target

_USERS, _NODES, _ROLES, _LOCKS, _CASES = 1000, 10_000, 100, 20, 5000
_NOON = datetime(2026, 11, 23, 12, 0)


def main() -> int:
    """The command: a table in Markdown."""
    config = company()
    start = time.process_time()
    policy = Policy(config)
    compiled = time.process_time() - start
    cases = list(some(policy))
    for_all = tuple(replace(role, users=("*",), logins=("nobody",)) for role in config.roles)
    hardest = Policy(replace(config, roles=for_all))
    locks = tuple(Lock("node" if n % 2 else "user", f"nobody{n}", "x") for n in range(_LOCKS))
    locked = [replace(case, subject=replace(case.subject, locks=locks)) for case in cases]
    allowed = sum(isinstance(policy.authorise(case), Allow) for case in cases) / len(cases)
    gc.collect()
    gc.freeze()  # what stays need not be looked through again: a full collection takes 20 ms with so many nodes
    samples = _timed(policy, cases)
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.\n")
    print(f"{_USERS} users, {_NODES} nodes, {_ROLES} roles; {allowed:.0%} of {len(cases)} decisions allow.\n")
    print("|                                                  |    median |       p99 |     worst |")
    print("|--------------------------------------------------|----------:|----------:|----------:|")
    for what, times in (
        ("a decision", samples),
        ("every role is for everybody, and none allows", _timed(hardest, cases)),
        (f"a decision, with {_LOCKS} locks", _timed(policy, locked)),
        ("a decision for every user: who may?", [sum(samples) / len(samples) * _USERS]),
        ("the configuration, compiled", [compiled]),
    ):
        figures = (statistics.median(times), sorted(times)[int(len(times) * 0.99)], max(times))
        cells = (
            [f"{seconds * 1000:.3f} ms" for seconds in figures]
            if len(times) > 1
            else [f"{times[0] * 1000:.0f} ms"]
        )
        print(f"| {what:<48} | " + " | ".join(f"{cell:>9}" for cell in (*cells, "", "")[:3]) + " |")
    return 0


def company() -> Config:
    """Roles of all sorts: people by name and by pattern, hosts by name, pattern, network and label."""
    nodes = tuple(
        Node(
            name=f"host{n}.rack{n % 40}.{'prod' if n % 3 else 'test'}",
            address=str(ipaddress.ip_address(0x0A000000 + n)),
            labels={"env": "prod" if n % 3 else "test", "team": f"team{n % 50}"},
        )
        for n in range(_NODES)
    )
    roles = tuple(
        Role(
            name=f"role{n}",
            users=(*(f"user{(n * 7 + m) % _USERS}" for m in range(20)), f"ext{n}-*"),
            logins=("{allowed}", "{user}-adm", f"app{n}"),
            nodes=(
                f"*.rack{n % 40}.prod",
                f"host{n}.rack{n % 40}.test",
                f"10.{n % 4}.{n}.0/24",
                f"team=team{n % 50}",
            ),
            hours=(Hours.parse("mon-fri 08:00-18:00"), Hours.parse("sat 10:00-14:00")) if n % 2 else (),
            sources=("10.0.0.0/8", "192.0.2.0/24") if n % 3 else (),
            sessions=10,
        )
        for n in range(_ROLES)
    )
    return Config(nodes=nodes, roles=roles)


def some(policy: Policy) -> list[Case]:
    """People who want to go somewhere, the same in each run."""
    choice = random.Random(5)  # noqa: S311 - no secret
    cases = []
    for _ in range(_CASES):
        number, user = choice.randrange(_NODES), f"user{choice.randrange(_USERS)}"
        host = f"host{number}.rack{number % 40}.{'prod' if number % 3 else 'test'}"
        place = policy.locate(Target("root", host))
        assert isinstance(place, Place)
        subject = Subject(
            user=user, logins=frozenset({"root", user}), source=ipaddress.ip_address("10.9.9.9"), live=1
        )
        cases.append(
            Case(
                subject=subject,
                login=choice.choice(["root", user, f"{user}-adm", "app3"]),
                kind=choice.choice(["shell", "exec"]),
                place=place,
                addresses=(ipaddress.ip_address(place.lookup),),
                own=frozenset(),
                when=_NOON,
            )
        )
    return cases


def _timed(policy: Policy, cases: list[Case]) -> list[float]:
    samples = []
    for case in cases:
        start = time.process_time()
        policy.authorise(case)
        samples.append(time.process_time() - start)
    return samples


if __name__ == "__main__":
    sys.exit(main())
