"""python -m benchmarks.agent: what a login costs in the agent: a fresh key, and its certificate put in.

With an ssh-agent and a CA of its own; nothing of the machine's is touched.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from sshrec.openssh import destinations, keygen
from sshrec.openssh.agent import Agent, fresh_key
from sshrec.openssh.certificate import Terms
from sshrec.openssh.destinations import Constrained, Host
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import KeyFile, Ready, own_agent, unlocked

_ROUNDS = 30


def main() -> int:
    """The command: a table in Markdown. The budget of adding a certificate is 50 ms."""
    print(f"{time.strftime('%Y-%m-%d')}. {'; '.join(f'{n}: {v}' for n, v in machine.describe().items())}.\n")
    print("|                                      |   median |    worst |")
    print("|--------------------------------------|---------:|---------:|")
    with tempfile.TemporaryDirectory(prefix="sshrec-bench-") as name, own_agent() as socket:
        ca = Path(name, "ca")
        with unlocked(KeyFile(ca, keygen.make_key(ca, "ca")), lambda _: "") as ready:
            for pairs in (None, 10, 1000):
                constrained = _constrained(ready.public, pairs)
                words = "added" if pairs is None else f"added, for {pairs} logins on nodes"
                making, adding = zip(
                    *(_login(Agent(socket), ready, constrained) for _ in range(_ROUNDS)), strict=True
                )
                if pairs is None:
                    _row("a fresh key", making)
                _row(words, adding)
    return 0


def _constrained(ca: PublicKey, pairs: int | None) -> Constrained | None:
    if pairs is None:
        return None
    nodes = [Host(f"node{number}.example.com", (), (ca,)) for number in range(pairs)]
    found = destinations.constraints("joe", Host("bastion", (), (ca,)), [ca], [("root", node) for node in nodes])
    assert isinstance(found, Constrained)
    return found


def _login(agent: Agent, ready: Ready, constrained: Constrained | None) -> tuple[float, float]:
    now = int(time.time())
    began = time.perf_counter()
    with fresh_key("sshrec:joe") as (key, public):
        made = time.perf_counter()
        terms = Terms("user", "joe", ("sshrec:joe", "root"), now - 60, now + 3600, 1)
        certificate = keygen.sign(ready, public, terms)
        signed = time.perf_counter()
        agent.load(
            key,
            certificate,
            lifetime=3600,
            comment="sshrec:joe",
            constraints=constrained.constraints if constrained else (),
            known_hosts=constrained.known_hosts if constrained else "",
        )
        return made - began, time.perf_counter() - signed


def _row(what: str, seconds: tuple[float, ...]) -> None:
    print(f"| {what:<36} | {statistics.median(seconds) * 1e3:>5.1f} ms | {max(seconds) * 1e3:>5.1f} ms |")


if __name__ == "__main__":
    sys.exit(main())
