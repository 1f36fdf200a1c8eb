"""Fixtures of the tests through real ssh."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.transparent import Through
from tests.lab import Lab


@pytest.fixture
def through(lab: Lab) -> Through:
    """joe's laptop with the block of ~/.ssh/config in it."""
    return Through(lab)


@pytest.fixture
def scratch(lab: Lab) -> Iterator[Path]:
    """A directory that everybody, on every machine, can write in."""
    path = lab.directory / "scratch"
    path.mkdir()
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)
