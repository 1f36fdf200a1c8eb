"""What fuzzing asks of the decoders of transfers, whatever two peers say, in chunks of whatever size.

A conversation is a list of turns: whether the client speaks, and what it says.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from sshrec.gateway.transfer.content import HELD
from sshrec.gateway.transfer.fact import PATH_BYTES, Data, Direction, Passed
from sshrec.gateway.transfer.known import HANDLES, REMEMBERED
from sshrec.gateway.transfer.scp import LINE_BYTES, Scp, which
from sshrec.gateway.transfer.sftp import REQUESTS, Sftp
from sshrec.gateway.transfer.told import told
from sshrec.gateway.transfer.wire import PACKET_MAX
from sshrec.recording import asciicast

Turn = tuple[bool, bytes]

FORBIDDEN: tuple[frozenset[Direction], ...] = (frozenset(), frozenset({"upload"}), frozenset({"download"}))


def sftp(turns: Sequence[Turn], cut: int, forbid: frozenset[Direction]) -> None:
    """Any conversation is SFTP, or broken from some byte on; what goes on and what is kept is what should be."""
    whole, pieces = Sftp(forbid), Sftp(forbid)
    sent = {True: b"", False: b""}
    kept = {True: b"", False: b""}
    for client, data in turns:
        was_broken = whole.broken is not None
        passed = _say(whole, client, data)
        in_pieces = [_say(pieces, client, piece) for piece in _cut(data, cut)]
        _agree(passed, in_pieces)
        sent[client] += passed.forward
        kept[client] += passed.kept
        if not forbid:
            assert (passed.forward, passed.reply) == (data, b"")
        if was_broken:
            assert passed.kept == data
            assert passed.forward == (b"" if forbid and client else data)
        _bounded(whole)
    for decoder in (whole, pieces):
        decoder.end()
    assert whole.facts == pieces.facts
    assert whole.broken == pieces.broken
    if "upload" in forbid:
        assert not any(kind == 6 or (kind == 3 and _flags(body) & ~1) for kind, body in _packets(sent[True]))
    if "download" in forbid:
        opened = [_flags(body) for kind, body in _packets(sent[True]) if kind == 3]
        assert not any(kind == 5 for kind, _ in _packets(sent[True]))
        assert all(flags & 2 and not flags & 1 for flags in opened)
    _told(whole)


def scp(command: bytes, turns: Sequence[Turn], cut: int) -> None:
    """Likewise. The receiver's words are kept, all of them; of the sender's, all but declared contents."""
    found = which(command)
    assert found is not None
    whole, pieces = Scp(found), Scp(found)
    for client, data in turns:
        was_broken = whole.broken is not None
        passed = _say(whole, client, data)
        in_pieces = [_say(pieces, client, piece) for piece in _cut(data, cut)]
        assert (passed.forward, passed.reply) == (data, b"")
        assert b"".join(one.forward for one in in_pieces) == data
        assert len(passed.kept) <= len(data)
        if was_broken or whole.broken is not None or client == (found.direction == "download"):
            assert passed.kept == data
        assert len(whole._line) <= LINE_BYTES + 1
        assert len(whole._answer) <= LINE_BYTES + 1
        assert len(whole.held.take()[0]) <= HELD
        assert whole.broken == pieces.broken
    for decoder in (whole, pieces):
        decoder.end()
    assert [fact.said() for fact in whole.facts] == [fact.said() for fact in pieces.facts]
    _told(whole)


def _say(decoder: Sftp | Scp, client: bool, data: bytes) -> Passed:
    return decoder.client(memoryview(data)) if client else decoder.server(memoryview(data))


def _agree(whole: Passed, pieces: Sequence[Passed]) -> None:
    """The size of the chunks makes no difference."""
    assert b"".join(one.forward for one in pieces) == whole.forward
    assert b"".join(one.kept for one in pieces) == whole.kept
    assert b"".join(one.reply for one in pieces) == whole.reply


def _bounded(decoder: Sftp) -> None:
    for lane in (decoder._up, decoder._down):
        assert len(lane._stash) <= PACKET_MAX + 4
    known = decoder._known
    assert len(known._handles) <= HANDLES
    assert max(len(known._names), len(known._attributes)) <= REMEMBERED
    assert len(decoder._asked) <= 4 * REQUESTS
    assert len(decoder.held._data) <= HELD


def _told(decoder: Sftp | Scp) -> None:
    """Every fact can be put into a recording and into the audit log."""
    for fact in decoder.facts:
        asciicast.canonical(fact.said())
        _, fields = told("sftp" if isinstance(decoder, Sftp) else "scp", fact, b"/root")
        assert len(fact.path) <= 2 * PATH_BYTES + 2
        assert all(isinstance(value, str | int | list) for value in fields.values())


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def _packets(stream: Data) -> Iterator[tuple[int, bytes]]:
    """What goes on from a client, read by somebody else; it ends with a whole packet."""
    at = 0
    while at < len(stream):
        (length,) = struct.unpack_from(">I", stream, at)
        packet = bytes(stream[at + 4 : at + 4 + length])
        assert len(packet) == length
        yield packet[0], packet[1:]
        at += 4 + length


def _flags(body: bytes) -> int:
    """Of an OPEN: number, path, flags."""
    (length,) = struct.unpack_from(">I", body, 4)
    return int(struct.unpack_from(">I", body, 8 + length)[0])
