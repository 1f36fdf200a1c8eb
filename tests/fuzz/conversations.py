"""Conversations for the decoders of transfers: what honest peers might say, and in it what they never would."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

Turn = tuple[bool, bytes]
Exchange = list[Turn]

numbers = st.sampled_from([0, 1, 2, 3, 9, 1000, (1 << 32) - 1])
offsets = st.sampled_from([0, 1, 5, 10, 1 << 20, (1 << 63) - 2, (1 << 64) - 1])
handles = st.sampled_from([b"", b"\0\0\0\0", b"\0\0\0\1", b"h" * 256, b"h" * 257])
paths = st.sampled_from([b"", b".", b"/a", b"/b", b"a", b"\xff\n\x1b[2J", b"/" + b"long" * 2000]) | st.binary(
    max_size=8
)
contents = st.sampled_from([b"", b"12345", b"x" * 700]) | st.binary(max_size=12)


def u32(number: int) -> bytes:
    return struct.pack(">I", number & 0xFFFFFFFF)


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def string(data: bytes) -> bytes:
    return u32(len(data)) + data


def packet(kind: int, *parts: bytes) -> bytes:
    body = bytes([kind]) + b"".join(parts)
    return u32(len(body)) + body


_ATTRIBUTES = [u32(0), u32(1) + u64(5), u32(5) + u64(1 << 63) + u32(0o100644), u32(2) + u32(0) * 2, b""]
_ATTRIBUTES += [u32(8) + u32(1) * 2, u32(0x80000000) + u32(1) + string(b"a") * 2, u32(1 << 31) * 2, u32(0xFFFF)]
attributes = st.sampled_from(_ATTRIBUTES)


@st.composite
def requests(draw: st.DrawFn) -> Exchange:
    """A request, and mostly an answer that fits it."""
    number = u32(draw(st.integers(0, 5)))
    status = packet(
        101, number, u32(draw(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 77]))), string(b"No\nspace"), u32(0)
    )
    handle = string(draw(handles))
    kind = draw(st.sampled_from([3, 3, 4, 5, 5, 6, 6, 7, 8, 9, 10, 11, 12, 13, 14, 16, 18, 19, 20, 200, 200]))
    match kind:
        case 3:
            rest = (
                string(draw(paths)) + u32(draw(st.sampled_from([0, 1, 2, 3, 4, 0x1A, 0x0A, 0x0E, 0x80]))) + u32(0)
            )
            answer = draw(st.sampled_from([packet(102, number, handle), packet(102, number, handle), status]))
        case 5:
            size = draw(numbers)
            rest = handle + u64(draw(offsets)) + u32(size)
            data = draw(contents)[: draw(st.sampled_from([size, 1 << 20]))]
            answer = draw(st.sampled_from([packet(103, number, string(data)), status]))
        case 6:
            rest, answer = handle + u64(draw(offsets)) + string(draw(contents)), status
        case 4 | 12:
            rest, answer = handle, status
        case 8:
            rest, answer = handle, packet(105, number, draw(attributes))
        case 7:
            rest = string(draw(paths))
            answer = draw(st.sampled_from([packet(105, number, draw(attributes)), status]))
        case 9 | 14:
            rest, answer = string(draw(paths)) + draw(attributes), status
        case 10:
            rest, answer = handle + draw(attributes), status
        case 11:
            rest, answer = string(draw(paths)), packet(102, number, handle)
        case 13 | 19:
            rest, answer = string(draw(paths)), status
        case 16:
            name = string(draw(paths)) + string(b"") + draw(attributes)
            rest, answer = string(draw(paths)), packet(104, number, u32(1), name)
        case 18 | 20:
            rest, answer = string(draw(paths)) + string(draw(paths)), status
        case _:
            rest, answer = draw(extensions()), draw(st.sampled_from([status, packet(201, number, b"any")]))
    return [(True, packet(kind, number, rest)), (False, answer)]


@st.composite
def extensions(draw: st.DrawFn) -> bytes:
    two = string(draw(paths)) + string(draw(paths))
    handle = string(draw(handles))
    name, rest = draw(
        st.sampled_from(
            [
                (b"posix-rename@openssh.com", two),
                (b"hardlink@openssh.com", two),
                (b"lsetstat@openssh.com", two),
                (b"expand-path@openssh.com", string(b"~")),
                (b"limits@openssh.com", b""),
                (b"fsync@openssh.com", handle),
                (b"copy-data", handle + u64(0) * 2 + handle + u64(0)),
                (b"unheard@of", b"anything"),
            ]
        )
    )
    return string(name) + rest


anything = st.tuples(
    st.booleans(),
    st.binary(max_size=30)
    | st.builds(packet, st.integers(0, 255), st.binary(max_size=20))
    | st.sampled_from([u32(1 << 31), u32(0), packet(1, u32(3)), packet(2, u32(3)), b"root@web1:~# ", b"\0" * 40]),
)


@st.composite
def files(draw: st.DrawFn) -> Exchange:
    """A file from OPEN to CLOSE, as honest peers have it, but for a size or an offset now and then."""
    number, flags = draw(st.integers(10, 1000)) * 100, draw(st.sampled_from([1, 0x1A, 0x0A, 0x0E, 3]))
    handle, path = string(u32(number)), string(draw(paths))
    talk: Exchange = [(True, packet(17, u32(number), path)), (False, packet(105, u32(number), u32(1), u64(5)))]
    talk += [(True, packet(3, u32(number), path, u32(flags), u32(0))), (False, packet(102, u32(number), handle))]
    at, late = 0, []
    for one in range(draw(st.integers(0, 5))):
        data, request = draw(contents), u32(number + one)
        offset = draw(st.sampled_from([at, at, at, at, 7]))
        at = offset + len(data)
        if flags & 2:
            talk.append((True, packet(6, request, handle, u64(offset), string(data))))
            late.append((False, packet(101, request, u32(0), u32(0), u32(0))))
        else:
            talk.append((True, packet(5, request, handle, u64(offset), u32(len(data) + 1))))
            late.append((False, packet(103, request, string(data))))
        if draw(st.booleans()):
            talk, late = talk + late, []
    ends = [
        (True, packet(4, u32(number + 99), handle)),
        (False, packet(101, u32(number + 99), u32(0), u32(0) * 2)),
    ]
    return talk + late + draw(st.sampled_from([ends, ends, ends[:1], []]))


@st.composite
def spoiled(draw: st.DrawFn, exchanges: st.SearchStrategy[Exchange]) -> list[Turn]:
    """Conversations one after the other; in half of them a lie is put in, a turn goes missing or comes late."""
    talk = [turn for one in draw(st.lists(exchanges, min_size=1, max_size=8)) for turn in one]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        at = draw(st.integers(0, len(talk)))
        match draw(st.integers(0, 3)):
            case 0:
                talk.insert(at, draw(anything))
            case 1:
                del talk[at : at + 1]
            case 2:
                talk[at : at + 2] = reversed(talk[at : at + 2])
            case _ if at < len(talk):
                client, said = talk[at]
                place = draw(st.integers(0, len(said)))
                talk[at] = (client, said[:place] + draw(st.binary(min_size=1, max_size=2)) + said[place + 1 :])
    return talk


def sftp_talks() -> st.SearchStrategy[list[Turn]]:
    """Mostly with the versions first."""
    versions = [(True, packet(1, u32(3))), (False, packet(2, u32(3), string(b"limits@openssh.com"), string(b"1")))]
    talks = spoiled(files()) | spoiled(files() | requests())
    begun = talks.map(lambda talk: [*versions, *talk])
    return st.integers(0, 9).flatmap(lambda number: begun if number else talks)


# scp: what either side may say; which side is which, its command tells.
_LINES = [b"C0644 5 x\n", b"C0644 0 y\n", b"C0755 99999999 z\n", b"D0755 0 d\n", b"E\n", b"T1 0 1 0\n", b"12345\0"]
_LINES += [
    b"\0",
    b"\0",
    b"12345\1broken\n",
    b"12345",
    b"\1warning\n",
    b"\2fatal\n",
    b"C0644 x\n",
    b"C0644 1 ../x\n",
]
_LINES += [b"C" * 20_000, b"\x01" + b"x" * 20_000, b"root# ", b"\0" * 3, b"C0644 5 x\n12345\0", b"x" * 700]


@st.composite
def entries(draw: st.DrawFn, uploads: bool, depth: int = 2) -> Exchange:
    """A file or a directory, and what is in it; or any line."""
    answer = draw(st.sampled_from([b"\0", b"\0", b"\0", b"\1no\n"]))
    match draw(st.integers(0, 5)):
        case 0 if depth and answer == b"\0":
            inner = draw(st.lists(entries(uploads, depth - 1), max_size=3))
            talk = [(uploads, b"D0755 0 d\n"), (not uploads, answer), *(turn for one in inner for turn in one)]
            return [*talk, (uploads, b"E\n"), (not uploads, b"\0")]
        case 1:
            return [(draw(st.booleans()), draw(st.sampled_from(_LINES)))]
    data = draw(contents)
    talk = [(uploads, b"C0644 %d x\n" % len(data)), (not uploads, answer)]
    if draw(st.booleans()):
        talk = [(uploads, b"T1 0 1 0\n"), (not uploads, b"\0"), *talk]
    ends = draw(st.sampled_from([b"\0", b"\0", b"\1read error\n"]))
    return (
        talk
        if answer != b"\0"
        else [*talk, (uploads, data + ends), (not uploads, draw(st.sampled_from([b"\0", b"\1no\n"])))]
    )


def scp_talks(uploads: bool) -> st.SearchStrategy[list[Turn]]:
    """The first answer, and then whatever."""
    return spoiled(entries(uploads)).map(lambda talk: [(not uploads, b"\0"), *talk])
