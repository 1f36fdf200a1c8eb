"""Syslog messages, byte for byte: RFC 5424 §6, RFC 5425 §4.3."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from sshrec.audit.rfc5424 import encode, octet_counted

# §6, as far as we use it: no PROCID, one element of structured data, a message of ASCII.
_MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (-|\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:\d\d)) "
    rb"([!-~]{1,255}) sshrec - ([!-~]{1,32}) "
    rb'\[sshrec@32473((?: [!#-<>-\\^-~]{1,32}="(?:[^"\\\]]|\\["\\\]])*")*)\] (.*)',
    re.DOTALL,
)


def test_an_event() -> None:
    message = encode(
        b'{"event":"session.start"}',
        severity=6,
        time="2026-11-23T12:00:00.001Z",
        host="bastion",
        name="session.start",
        parameters={"event": "session.start", "sid": "01KARVVVZ0B9GPPM3T5V7PZW0Q", "user": "joe"},
    )
    assert message == (
        b"<110>1 2026-11-23T12:00:00.001Z bastion sshrec - session.start "
        b'[sshrec@32473 event="session.start" sid="01KARVVVZ0B9GPPM3T5V7PZW0Q" user="joe"] '
        b'{"event":"session.start"}'
    )
    assert octet_counted(b"<110>1 x") == b"8 <110>1 x"


def test_what_would_end_a_value_is_escaped() -> None:
    message = encode(
        b"{}", severity=3, time="x", host="", name="a b", parameters={"user": '"] \\\n\x1b[0m\u202eé'}
    )
    assert (
        message == '<107>1 - - sshrec - ab [sshrec@32473 user="\\"\\] \\\\\\\\n\\\\x1b[0m\\\\u202eé"] {}'.encode()
    )


@given(st.text(), st.text(), st.text(), st.dictionaries(st.sampled_from(["sid", "user", "login"]), st.text()))
def test_whatever_it_is_it_is_one_message(time: str, host: str, name: str, parameters: dict[str, str]) -> None:
    message = encode(b"{}", severity=6, time=time, host=host, name=name, parameters=parameters)
    found = _MESSAGE.fullmatch(message)
    assert found is not None
    assert found[6] == b"{}"
    assert len(re.findall(rb'[a-z]="', found[5])) >= len(parameters)
    assert message.decode().isprintable()
