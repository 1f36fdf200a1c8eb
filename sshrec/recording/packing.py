"""A finished recording packed into zstd frames, and back. Knows bytes and frames; names and locks are storage's.

The packed form is zstd's seekable format: frames one after the other, each of whole chunks, then a skippable
frame with the table of their sizes. `zstd -dc` gives the text back. A part is the packed form of the chunks that a
live recording had by some time.
https://github.com/facebook/zstd/blob/dev/contrib/seekable_format/zstd_seekable_compression_format.md
"""

from __future__ import annotations

import io
import os
import struct
import sys
from collections.abc import Sequence
from typing import BinaryIO, NamedTuple

from sshrec.errors import DataError
from sshrec.recording.seal import is_seal, read_seal

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAGIC = b"\x28\xb5\x2f\xfd"  # of a zstd frame: RFC 8878, 3.1.1
LINE_MAX = 64 * 1024 * 1024

# Measured on terminal output of short lines and base64, and of cursor moves, colours and box drawing, read 4 to
# 64 KiB at a time: level 3 packs the first to 0.38 of its size and the second to 0.26, in 0.30 CPU seconds per
# 100 MB and 0.1 to compare. Level 1 takes two thirds of that, and 0.40 and 0.28; level 6 gets the second to 0.245
# for a whole second. Frames of 256 KiB are no quicker, and twice the size where output repeats itself. A jump to
# anywhere unpacks one frame: a millisecond.
LEVEL = 3
FRAME_BYTES = 1024 * 1024

# What packed bytes may become: this much in any case, and past it no more than so many times their own size
# (`yes` packs to a thousandth). A frame of zeros is 30 000 times its size.
UNPACKED_MAX = 4 * 1024 * 1024 * 1024
RATIO_MAX = 2000

_SKIPPABLE = 0x184D2A5E
_SEEKABLE = 0x8F92EAB1
_FOOTER = struct.Struct("<IBI")
_ENTRY = struct.Struct("<II")
_HEAD = struct.Struct("<II")
_CHECKSUMS = 0x80
_RESERVED = 0x7C
_BLOCK = 128 * 1024


class Frame(NamedTuple):
    """One zstd frame: where it is in the packed file, and which part of the text it holds."""

    offset: int
    packed: int  # bytes in the file
    start: int  # offset in the text
    size: int  # bytes of text


def pack(source: BinaryIO, target: BinaryIO) -> None:
    """Write the packed form of a finished recording to `target`, which may hold a part of it.

    Of a part the frames stay that are, bit for bit, what they should be: whatever else it holds is written anew.
    DataError where the recording is not finished.
    """
    source.seek(max(0, source.seek(0, os.SEEK_END) - 1))
    if source.read(1) != b"\n" or outcome(last_line(source)) is None:
        raise DataError("the recording is not finished")
    _write(source, target, _resume(source, target), ahead=False)


def pack_ahead(source: BinaryIO, part: BinaryIO, most: int) -> bool:
    """Bring the part of a live recording up to date, by `most` bytes of text or a frame more; whether it grew.

    Nothing of it is believed later because it is here: `pack` compares. So its own table is believed now.
    """
    try:
        sizes = [(frame.packed, frame.size) for frame in frames(part)]
    except DataError:
        sizes = _resume(source, part)
    else:
        part.seek(sum(packed for packed, _ in sizes))
        source.seek(sum(text for _, text in sizes))
    before = len(sizes)
    _write(source, part, sizes, ahead=True, most=most)
    return len(sizes) > before


def packed_ahead(part: BinaryIO) -> int:
    """How many bytes of text a part holds, by its own word; none where it has been torn."""
    try:
        return sum(frame.size for frame in frames(part))
    except DataError:
        return 0


def _write(
    source: BinaryIO, target: BinaryIO, sizes: list[tuple[int, int]], *, ahead: bool, most: int = sys.maxsize
) -> None:
    """Go on with a packed form whose frames have these sizes; both files stand behind them."""
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: LEVEL,
            zstd.CompressionParameter.checksum_flag: 1,
        }
    )
    target.truncate()
    done = 0
    while done < most and (text := _chunks(source)):
        if ahead and not _is_whole(text):
            break
        compressor.set_pledged_input_size(len(text))
        packed = compressor.compress(text, compressor.FLUSH_FRAME)
        target.write(packed)
        sizes.append((len(packed), len(text)))
        done += len(text)
    target.write(_seek_table(sizes))


def _resume(source: BinaryIO, target: BinaryIO) -> list[tuple[int, int]]:
    """Sizes, packed and of text, of the frames in `target` that `source` has, too; both stand behind them."""
    source.seek(0)
    target.seek(0)
    sizes: list[tuple[int, int]] = []
    at = start = 0
    while text := _chunks(source):
        # Incompressible text grows by 3 bytes a block, a header and a checksum: RFC 8878, 3.1.1.
        target.seek(at)
        packed = target.read(len(text) + len(text) // 1024 + 64)
        decompressor = zstd.ZstdDecompressor()
        try:
            same = decompressor.decompress(packed, len(text) + 1) == text and decompressor.eof
        except zstd.ZstdError:
            same = False
        if not same:
            break
        sizes.append((len(packed) - len(decompressor.unused_data), len(text)))
        at += sizes[-1][0]
        start += len(text)
    source.seek(start)
    target.seek(at)
    return sizes


def _is_whole(text: bytes) -> bool:
    """Whether a frame of this text can be followed by others: whole chunks, and enough of them."""
    return len(text) >= FRAME_BYTES and text.endswith(b"\n") and is_seal(text[text.rindex(b"\n", 0, -1) + 1 :])


def _chunks(source: BinaryIO) -> bytes:
    """The next whole chunks, FRAME_BYTES of them or more while there are any; what is left at the end."""
    parts = [source.read(FRAME_BYTES)]
    room = LINE_MAX
    while line := source.readline(room + 1):
        parts.append(line)
        room -= len(line)
        if is_seal(line):
            break
        if room < 0:
            raise DataError(f"a chunk of more than {LINE_MAX} bytes is none of ours")
    return b"".join(parts)


def _seek_table(sizes: Sequence[tuple[int, int]]) -> bytes:
    entries = b"".join(_ENTRY.pack(packed, size) for packed, size in sizes)
    footer = _FOOTER.pack(len(sizes), 0, _SEEKABLE)
    return _HEAD.pack(_SKIPPABLE, len(entries) + len(footer)) + entries + footer


def frames(packed: BinaryIO) -> tuple[Frame, ...]:
    """The frames of a packed recording, by its seek table; DataError where it has none that fits the file."""
    end = packed.seek(0, os.SEEK_END)
    foot = max(0, end - _FOOTER.size)
    packed.seek(foot)
    tail = packed.read(_FOOTER.size)
    if len(tail) < _FOOTER.size:
        raise DataError("no seek table")
    number, descriptor, magic = _FOOTER.unpack(tail)
    if magic != _SEEKABLE or descriptor & _RESERVED:
        raise DataError("no seek table")
    width = _ENTRY.size + (4 if descriptor & _CHECKSUMS else 0)
    head = foot - number * width - _HEAD.size
    if head < 0:
        raise DataError("the seek table is longer than the file")
    packed.seek(head)
    if packed.read(_HEAD.size) != _HEAD.pack(_SKIPPABLE, number * width + _FOOTER.size):
        raise DataError("the seek table is damaged")
    table = packed.read(number * width)
    found = []
    offset = start = 0
    for n in range(number):
        size, text = _ENTRY.unpack_from(table, n * width)
        found.append(Frame(offset, size, start, text))
        offset += size
        start += text
    if offset != head:
        raise DataError("the seek table does not fit the file")
    return tuple(found)


def head(packed: BinaryIO, frame: Frame, size: int) -> bytes:
    """The first `size` bytes, or fewer, of a frame's text."""
    packed.seek(frame.offset)
    try:
        return zstd.ZstdDecompressor().decompress(packed.read(min(frame.packed, size)), size)
    except zstd.ZstdError as error:
        raise DataError(f"damaged: {error}") from error


def unpack(packed: BinaryIO, frame: Frame) -> bytes:
    """The text of one frame; DataError where it is damaged or not of the size the table says."""
    if frame.size > FRAME_BYTES + LINE_MAX:
        raise DataError(f"a frame of {frame.size} bytes is none of ours")
    packed.seek(frame.offset)
    decompressor = zstd.ZstdDecompressor()
    try:
        text = decompressor.decompress(packed.read(frame.packed), frame.size + 1)
    except zstd.ZstdError as error:
        raise DataError(f"damaged: {error}") from error
    if len(text) != frame.size or not decompressor.eof or decompressor.unused_data:
        raise DataError("damaged: a frame and the seek table disagree")
    return text


def same(source: BinaryIO, packed: BinaryIO) -> bool:
    """Whether the packed form, unpacked, is the source bit for bit, and its seek table right."""
    source.seek(0)
    try:
        return all(
            source.read(frame.size) == unpack(packed, frame) for frame in frames(packed)
        ) and not source.read(1)
    except DataError:
        return False


class Unpacked(io.RawIOBase):
    """The text of a zstd stream of any number of frames, in constant memory, within bounds; not seekable."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._decompressor: zstd.ZstdDecompressor | None = None
        self._ahead = b""
        self._read = 0
        self._made = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader passes
        while True:
            text = self._some(len(buffer))
            if text is None:
                return 0
            if text:
                break
        self._made += len(text)
        if self._made > max(UNPACKED_MAX, RATIO_MAX * self._read):
            raise DataError(f"{self._read} packed bytes unpack to more than {self._made}: not read any further")
        buffer[: len(text)] = text
        return len(text)

    def _some(self, limit: int) -> bytes | None:
        """At most `limit` bytes of text, b"" where more has to be read first, None at the end."""
        if self._decompressor is None or self._decompressor.eof:
            if self._decompressor is not None:
                self._ahead = self._decompressor.unused_data
            if not self._ahead and not self._fill():
                return None
            self._decompressor = zstd.ZstdDecompressor()
        elif self._decompressor.needs_input and not self._fill():
            raise DataError("the packed recording ends in the middle")
        data, self._ahead = self._ahead, b""
        try:
            return self._decompressor.decompress(data, limit)
        except zstd.ZstdError as error:
            raise DataError(f"damaged after {self._made} bytes of text: {error}") from error

    def _fill(self) -> bool:
        self._ahead = self._packed.read(_BLOCK)
        self._read += len(self._ahead)
        return bool(self._ahead)

    def close(self) -> None:
        self._packed.close()
        super().close()


def last_line(file: BinaryIO) -> bytes:
    """The last whole line of a text, b"" where there is none; what follows the last newline does not count."""
    end = file.seek(0, os.SEEK_END)
    size = 4096
    while True:
        start = max(0, end - size)
        file.seek(start)
        lines = file.read(end - start).split(b"\n")[:-1]
        if lines and (len(lines) > 1 or start == 0):
            return lines[-1] + b"\n"
        if start == 0 or size > LINE_MAX:
            return b""
        size *= 8


def outcome(line: bytes) -> dict[str, object] | None:
    """What the last seal of a recording says of the session's end; None for any other line."""
    if not is_seal(line):
        return None
    end = read_seal(line).get("end")
    return end if isinstance(end, dict) else None
