"""Roles at the gateway: what they allow happens, what none allows does not, and the log names the rule."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.recorded import last
from tests.lab import Lab

ROLES: list[dict[str, Any]] = [
    {"name": "others", "users": ["ann"], "logins": ["*"]},
    {
        "name": "joes",
        "users": ["jo?"],
        "logins": ["root"],
        "nodes": ["web1"],
        "kinds": ["exec"],
        "record_input": True,
    },
    {"name": "office", "logins": ["*"], "nodes": ["web2"], "sources": ["192.0.2.0/24"]},
]


@pytest.fixture
def lab_with_roles(lab: Lab) -> Lab:
    lab.stop_sshrecd()
    lab.start_sshrecd({"roles": ROLES})
    return lab


def test_what_a_role_allows_is_done_on_its_terms(lab_with_roles: Lab) -> None:
    done = lab_with_roles.ssh("-A", "bastion", "root@web1", "cat", input=b"kept\n")
    assert (done.returncode, done.stdout) == (0, b"kept\n")
    recorded = last(lab_with_roles)
    assert recorded.facts["rule"] == 'role "joes"'
    assert any(b'"i"' in line and b"kept" in line for line in recorded.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["root@web2", "id"], "the address 127.0.0.1 is not among 192.0.2.0/24"),
        (["nobody@web1", "id"], "login nobody is not among root"),
        (["root@web1"], "requests for a shell are not served"),
    ],
)
def test_what_no_role_allows_is_refused(lab_with_roles: Lab, words: list[str], said: str) -> None:
    lab, before = lab_with_roles, len(lab_with_roles.recordings())
    done = lab.ssh("-A", "bastion", *words)
    assert (done.returncode, done.stdout) == (255, b"")
    assert f"sshrec: error: {said}\n" in done.stderr.decode()
    assert len(lab.recordings()) == before
