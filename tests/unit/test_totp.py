"""Codes of RFC 6238: its own examples, early and late ones, and each once. And the picture for the app."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from sshrec.access import qr, totp

SEED = b"12345678901234567890"


@pytest.mark.parametrize(
    ("now", "code"),
    # RFC 6238, appendix B, the last six digits
    [
        (59, "287082"),
        (1111111109, "081804"),
        (1234567890, "005924"),
        (2000000000, "279037"),
        (20000000000, "353130"),
    ],
)
def test_the_examples_of_the_rfc(now: int, code: str) -> None:
    assert totp.match(SEED, code, now) == now // 30
    assert totp.match(SEED, f" {code[:3]} {code[3:]}", now) == now // 30


def test_a_step_early_and_a_step_late_and_no_more() -> None:
    step = 1234567890 // 30
    for steps, found in ((-2, None), (-1, step), (0, step), (1, step), (2, None)):
        assert totp.match(SEED, "005924", 1234567890 + 30 * steps) == found


def test_each_once_and_none_of_before() -> None:
    now, step = 1234567890, 1234567890 // 30
    assert totp.match(SEED, "005924", now, step - 1) == step
    assert totp.match(SEED, "005924", now, step) is None
    assert totp.match(SEED, "005924", now, step + 1) is None  # the clock went back


@pytest.mark.parametrize(
    "code",
    ["", "00592", "0059241", "005924x", "-05924", "00592٤", "００５９２４", "5924", "\0" * 6, "005924" * 9999],
)
def test_what_is_no_code(code: str) -> None:
    assert totp.match(SEED, code, 1234567890) is None


@given(now=st.integers(0, 2**40), off=st.integers(-5, 5), last=st.integers(-5, 5))
def test_a_match_is_near_and_after_the_last(now: int, off: int, last: int) -> None:
    from cryptography.hazmat.primitives.hashes import SHA1
    from cryptography.hazmat.primitives.twofactor.hotp import HOTP

    step = max(now // 30 + off, 0)
    code = HOTP(SEED, 6, SHA1()).generate(step).decode()  # noqa: S303
    found = totp.match(SEED, code, now, now // 30 + last)
    assert found is None or (abs(found - now // 30) <= 1 and found > now // 30 + last)
    if abs(step - now // 30) <= 1 and step > now // 30 + last:
        assert found is not None


def test_what_the_app_is_told() -> None:
    parts = urlsplit(totp.uri(SEED, "joe", "bastion.example.com"))
    assert (parts.scheme, parts.netloc, unquote(parts.path)) == ("otpauth", "totp", "/bastion.example.com:joe")
    told = {"secret": ["GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"], "issuer": ["bastion.example.com"]}
    assert parse_qs(parts.query) == told
    assert totp.spelled(SEED) == "GEZD GNBV GY3T QOJQ GEZD GNBV GY3T QOJQ"
    assert len(totp.new_seed()) == 20
    assert totp.new_seed() != totp.new_seed()


# ---- the picture -------------------------------------------------------------------------------------------

_LOOKS = {" ": (0, 0), "▀": (1, 0), "▄": (0, 1), "█": (1, 1)}


def _dots(picture: list[str]) -> list[list[int]]:
    """What a camera sees: the rows of dots, 1 for dark."""
    rows: list[list[int]] = []
    for line in picture:
        found = re.fullmatch(r"\x1b\[38;5;16;48;5;231m([ ▀▄█]+)\x1b\[0m", line)
        assert found
        pairs = [_LOOKS[character] for character in found[1]]
        rows += [[upper for upper, _ in pairs], [lower for _, lower in pairs]]
    return rows


def _matrix(text: str, border: int) -> list[list[int]]:
    code = segno.make(text, error="l", micro=False, boost_error=False)
    return [[int(bool(dot)) for dot in row] for row in code.matrix_iter(border=border)]


def test_the_picture_is_the_code() -> None:
    text = totp.uri(SEED, "joe", "bastion")
    rows, wanted = _dots(qr.draw(text, 80, 24)), _matrix(text, 2)
    assert rows[: len(wanted)] == wanted
    assert not any(map(any, rows[len(wanted) :]))


@pytest.mark.parametrize("user", ["j", "a" * 32])
@pytest.mark.parametrize("issuer", ["b", "bastion.example.com", "b" * 18])
def test_the_picture_fits_a_small_terminal(user: str, issuer: str) -> None:
    picture = qr.draw(totp.uri(SEED, user, issuer), 80, 23)
    assert 0 < len(picture) <= 23
    assert max(map(len, _dots(picture))) <= 80


def test_no_picture_rather_than_half_of_one() -> None:
    assert qr.draw(totp.uri(SEED, "joe", "bastion"), 80, 10) == []
    assert qr.draw(totp.uri(SEED, "joe", "bastion"), 20, 50) == []
    assert qr.draw("x" * 400, 80, 24) == []


def test_without_unicode_each_dot_is_two_columns() -> None:
    text = totp.uri(SEED, "joe", "bastion")
    picture = qr.draw(text, 200, 60, unicode=False)
    dots = [[int(shade == "16") for shade in re.findall(r"\x1b\[48;5;([0-9]+)m  ", line)] for line in picture]
    assert dots == _matrix(text, 2)
    assert all(line.isascii() for line in picture)
    assert qr.draw(text, 80, 24, unicode=False) == []
