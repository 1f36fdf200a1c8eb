"""The decoders of transfers, in conversations of all kinds: a little of what `make fuzz` does at length."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sshrec.gateway.transfer.fact import Direction
from tests.fuzz import transfers
from tests.fuzz.conversations import scp_talks, sftp_talks

some = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
cuts = st.sampled_from([1, 3, 20, 300])


@some
@given(sftp_talks(), cuts, st.sampled_from(transfers.FORBIDDEN))
def test_sftp(turns: list[transfers.Turn], cut: int, forbid: frozenset[Direction]) -> None:
    transfers.sftp(turns, cut, forbid)


@some
@given(st.booleans().flatmap(lambda uploads: st.tuples(st.just(uploads), scp_talks(uploads=uploads))), cuts)
def test_scp(talk: tuple[bool, list[transfers.Turn]], cut: int) -> None:
    uploads, turns = talk
    transfers.scp(b"scp -r -t /x" if uploads else b"scp -r -f /x", turns, cut)
