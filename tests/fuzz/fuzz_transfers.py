"""Fuzzing the decoders of sftp and scp with hypothesis: `make fuzz`, which is no part of bin/test.

SSHREC_FUZZ_EXAMPLES says how many examples each gets; what fails is kept in .hypothesis and tried first again.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sshrec.gateway.transfer.fact import Direction
from tests.fuzz import transfers
from tests.fuzz.conversations import scp_talks, sftp_talks

EXAMPLES = int(os.environ.get("SSHREC_FUZZ_EXAMPLES", "20000"))

pytestmark = pytest.mark.timeout(0)
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
cuts = st.sampled_from([1, 2, 3, 7, 20, 300])


@fuzzed
@given(sftp_talks(), cuts, st.sampled_from(transfers.FORBIDDEN))
def test_sftp(turns: list[transfers.Turn], cut: int, forbid: frozenset[Direction]) -> None:
    transfers.sftp(turns, cut, forbid)


@fuzzed
@given(st.sampled_from([b"scp -t x", b"scp -r -d -t /x"]), scp_talks(uploads=True), cuts)
def test_scp_up(command: bytes, turns: list[transfers.Turn], cut: int) -> None:
    transfers.scp(command, turns, cut)


@fuzzed
@given(st.sampled_from([b"scp -f x", b"scp -r -f /x/*"]), scp_talks(uploads=False), cuts)
def test_scp_down(command: bytes, turns: list[transfers.Turn], cut: int) -> None:
    transfers.scp(command, turns, cut)
