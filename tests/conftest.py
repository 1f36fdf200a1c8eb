"""Fixtures for all tests: the lab, and the check that a test leaves nothing behind in it."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest

from tests.lab import Lab, parts, several_uids_reason
from tests.lab.sshd import QUICK

os.environ.setdefault(QUICK, "curve25519-sha256")  # thousands of connections: minutes of each run


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--one-uid",
        action="store_true",
        help="run the lab as the caller's uid alone, even as root; tests that need several are skipped",
    )


def pytest_report_header() -> str:
    """Which OpenSSH the tests are about: bin/with-openssh may have put another one in the system's place."""
    bastion, targets = parts.sshd_version(), parts.sshd_version(parts.targets_openssh())
    return f"OpenSSH: {bastion[0]}.{bastion[1]}, on targets {targets[0]}.{targets[1]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reason = "--one-uid" if config.getoption("--one-uid") else several_uids_reason()
    if reason:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def several_uids(request: pytest.FixtureRequest) -> bool:
    """Whether labs have a uid for each account."""
    return several_uids_reason() is None and not request.config.getoption("--one-uid")


@pytest.fixture(scope="session")
def shared_lab(several_uids: bool) -> Iterator[Lab]:
    """The one lab of this run (of each pytest-xdist worker); tests take `lab`."""
    with Lab(several_uids=several_uids) as lab:
        yield lab


@pytest.fixture
def lab(shared_lab: Lab) -> Iterator[Lab]:
    """The lab with sshrecd running; the test fails if it leaves a process, socket, directory or descriptor."""
    shared_lab.reset()
    yield shared_lab
    try:
        shared_lab.expect_nothing_left()
    finally:
        shared_lab.end_sessions()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the ends of the lab's logs with what failed."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        report.sections.append(("logs of the lab", lab.logs(lines=30)))
    return report
