"""Fuzzing the reader and verification with hypothesis: `make fuzz`, which is no part of bin/test.

SSHREC_FUZZ_EXAMPLES says how many examples each gets; what fails is kept in .hypothesis and tried first again.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import attempts

EXAMPLES = int(os.environ.get("SSHREC_FUZZ_EXAMPLES", "20000"))

pytestmark = pytest.mark.timeout(0)
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))

# Pieces of which a hostile recording is likely to be made, beside any bytes.
pieces = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [
            b"\n",
            b'"S",',
            b'[0.100000,"S","{}"]\n',
            b'[1e308,"o",""]\n',
            b'[NaN,"o","\\ud800"]\n',
            b"[-Infinity,",
            b'{"version":2}\n',
            b'{"version":3,"term":{"cols":1e9}}\n',
            b"[" * 3000,
            b"9" * 5000,
            b"\x28\xb5\x2f\xfd",
            b"\x5e\x2a\x4d\x18\x00\x00\x00\x00",
            b"\xff\xff\xff\xff\x00\xb1\xea\x92\x8f",
            b"\0" * 1000,
            b"\xef\xbb\xbf",
            b"# comment\n",
        ]
    ),
)
places = st.integers(0, 1 << 16)
lengths = st.one_of(st.integers(0, 4), st.integers(0, 2000))
changes = st.lists(st.tuples(places, lengths, pieces), min_size=1, max_size=4)


def seed(number: int) -> bytes:
    return attempts.seeds()[number]


@fuzzed
@given(st.lists(pieces, max_size=20).map(b"".join))
def test_any_bytes(content: bytes) -> None:
    attempts.read(content)
    attempts.judge(content)


@fuzzed
@given(st.integers(0, 3), changes)
def test_recordings_that_were_changed(number: int, how: list[tuple[int, int, bytes]]) -> None:
    content = attempts.mutate(seed(number), how)
    attempts.read(content)
    attempts.judge(content)


@fuzzed
@given(changes)
def test_no_change_goes_unnoticed(how: list[tuple[int, int, bytes]]) -> None:
    attempts.tampered(attempts.mutate(seed(0), how))


@fuzzed
@given(st.permutations(range(40)).flatmap(lambda order: st.integers(1, 40).map(lambda n: order[:n])))
def test_no_order_of_lines_goes_unnoticed(order: list[int]) -> None:
    lines = seed(0).splitlines(keepends=True)
    attempts.tampered(b"".join(lines[n] for n in order if n < len(lines)))
