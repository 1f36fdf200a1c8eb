"""One direction of the SFTP protocol, cut into packets whatever the chunks' sizes. Knows lengths, not meanings.

Payload is not copied: what belongs to a file goes to its Content as it comes, all else is what a recording keeps.
"""

from __future__ import annotations

from collections.abc import Callable

from sshrec.gateway.transfer.content import Content
from sshrec.gateway.transfer.fact import Data
from sshrec.gateway.transfer.wire import NotSftp

Parse = Callable[[memoryview | bytearray, int, int], int]


class Lane:
    """`parse(buffer, at, end)` reads the packet that begins there and returns how many bytes of it that took.

    Where it needs more, it returns minus how many, from the packet's beginning; what follows a packet's head as
    payload it announces by `payload`; NotSftp ends it all. `holds`: no packet goes on before `parse` has seen it,
    nor after it was refused. `between` gives what is to be put in where a packet has ended; that is kept, too.
    """

    def __init__(self, parse: Parse, *, holds: bool = False, between: Callable[[], bytes] = bytes) -> None:
        self.broken: str | None = None
        self._parse, self._holds, self._between = parse, holds, between
        self._stash = bytearray()  # a packet that has begun
        self._need = 0  # bytes of it, to go on
        self._payload = 0  # bytes still to come
        self._content: Content | None = None
        self._refused = False

    @property
    def whole(self) -> bool:
        """Whether a packet has ended, and none begun."""
        return not self._stash and not self._payload

    def payload(self, size: int, content: Content | None) -> None:
        """So many bytes follow the head of this packet; of this file, or of none that we know."""
        self._payload, self._content = size, content

    def refuse(self) -> None:
        """Neither this packet nor its payload goes on."""
        self._refused = True

    def feed(self, data: memoryview) -> tuple[Data, Data]:
        """What goes on; and what is no file's content, of that or of what was held."""
        if self.broken is not None:
            return b"" if self._holds else data, data
        size = len(data)
        at = sent = seen = 0  # up to where data is read, is in `out`, is in `kept`
        out: list[Data] = []
        kept: list[Data] = []
        stash, parse, holds = self._stash, self._parse, self._holds
        try:
            while at < size:
                if self._payload:
                    upto = min(size, at + self._payload)
                    self._payload -= upto - at
                    if self._content is not None:
                        kept.append(data[seen : at + self._content.add(data[at:upto])])
                        seen = upto
                    if self._refused:
                        out.append(data[sent:at])
                        sent = upto
                    at = upto
                elif stash:
                    upto = min(size, at + self._need - len(stash))
                    stash += data[at:upto]
                    if holds:
                        out.append(data[sent:at])
                        sent = upto
                    at = upto
                    if len(stash) < self._need:
                        break
                    used = parse(stash, 0, len(stash))
                    if used < 0:
                        self._need = -used
                        continue
                    if holds and not self._refused:
                        out.append(bytes(stash))
                    stash.clear()
                else:
                    used = parse(data, at, size)
                    if used < 0:
                        self._need = -used
                        stash += data[at:]
                        if holds:
                            out.append(data[sent:at])
                            sent = size
                        break
                    if self._refused:
                        out.append(data[sent:at])
                        sent = at + used
                    at += used
                if not self._payload:
                    self._refused = False
                    if extra := self._between():
                        out += (data[sent:at], extra)
                        kept += (data[seen:at], extra)
                        sent = seen = at
        except NotSftp as error:
            self.broken = str(error)
            if holds:
                out.append(data[sent:at])
                sent = size
        if not sent and not out:
            return data, _joined(kept, data, seen)
        return _joined(out, data, sent), _joined(kept, data, seen)


def _joined(parts: list[Data], data: memoryview, rest: int) -> Data:
    if not parts and not rest:
        return data
    return b"".join([*parts, data[rest:]])
