"""SFTP decoded between the real sftp and scp and the real sftp-server, and against peers that lie."""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sshrec.gateway.transfer.content import HELD
from sshrec.gateway.transfer.fact import PATH_BYTES
from sshrec.gateway.transfer.sftp import PATHS, REQUESTS, Sftp
from tests.transfers import SFTP_SERVER, Middle

BIG = os.urandom(3_000_001)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sftp(middle: Middle, *lines: str) -> str:
    """What sftp says for a batch of commands; one that fails does not end it where it begins with a dash."""
    done = subprocess.run(
        ["sftp", "-q", "-b", "-", "-D", str(middle.program)],
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": "/"},
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """A directory of the target's."""
    path = tmp_path / "there"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the person's."""
    path = tmp_path / "here"
    path.mkdir()
    (path / "big").write_bytes(BIG)
    (path / "empty").write_bytes(b"")
    (path / "big").chmod(0o640)
    return path


def without(facts: list[dict[str, Any]], *actions: str) -> list[dict[str, Any]]:
    return [fact for fact in facts if fact["action"] not in actions]


# ---- the real programs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [262144, 997, 7])
@pytest.mark.parametrize("forbid", ["", "download"])
def test_put(tmp_path: Path, here: Path, there: Path, chunk: int, forbid: str) -> None:
    data = BIG if chunk > 7 else BIG[:20_000]
    (here / "big").write_bytes(data)
    middle = Middle(tmp_path / "m", SFTP_SERVER, chunk, forbid)
    sftp(middle, f"put {here}/big {there}/big", f"put {here}/empty {there}")
    assert middle.facts() == [
        {"action": "upload", "path": f"{there}/big", "size": len(data), "mode": "0640"}
        | {"sha256": sha256(data), "outcome": "ok"},
        {"action": "upload", "path": f"{there}/empty", "size": 0, "mode": "0644"}
        | {"sha256": sha256(b""), "outcome": "ok"},
    ]
    assert (there / "big").read_bytes() == data
    assert middle.read("from-client") == middle.read("to-server")
    assert middle.read("from-server") == middle.read("to-client") == middle.read("kept-out")
    assert len(middle.read("kept-in")) + len(data) == len(middle.read("from-client"))


@pytest.mark.parametrize("chunk", [262144, 997, 7])
def test_get(tmp_path: Path, here: Path, there: Path, chunk: int) -> None:
    data = BIG if chunk > 7 else BIG[:20_000]
    (there / "big").write_bytes(data)
    (there / "empty").write_bytes(b"")
    middle = Middle(tmp_path / "m", SFTP_SERVER, chunk)
    sftp(middle, f"get {there}/big {here}/got", f"get {there}/empty {here}")
    assert middle.facts() == [
        {"action": "download", "path": f"{there}/big", "size": len(data), "mode": "0644"}
        | {"sha256": sha256(data), "outcome": "ok"},
        {"action": "download", "path": f"{there}/empty", "size": 0, "mode": "0644"}
        | {"sha256": sha256(b""), "outcome": "ok"},
    ]
    assert (here / "got").read_bytes() == data
    assert middle.read("from-client") == middle.read("to-server") == middle.read("kept-in")
    assert middle.read("from-server") == middle.read("to-client")
    assert len(middle.read("kept-out")) + len(data) == len(middle.read("from-server"))


def test_what_is_resumed_is_a_part(tmp_path: Path, here: Path, there: Path) -> None:
    (there / "a").write_bytes(BIG)
    (here / "a").write_bytes(BIG[:1_000_000])
    (there / "b").write_bytes(BIG[:1_000_000])
    middle = Middle(tmp_path / "m", SFTP_SERVER)
    sftp(middle, f"reget {there}/a {here}/a", f"reput {here}/big {there}/b")
    assert (here / "a").read_bytes() == (there / "b").read_bytes() == BIG
    download, upload = middle.facts()
    rest = [[1_000_000, len(BIG)]]
    assert (download["action"], download["ranges"], download["size"]) == ("download", rest, len(BIG) - 1_000_000)
    assert (upload["action"], upload["ranges"], upload["size"]) == ("upload", rest, len(BIG) - 1_000_000)
    assert "sha256" not in download
    assert "sha256" not in upload


def test_a_session_with_everything(tmp_path: Path, here: Path, there: Path) -> None:
    (here / "tree/inner").mkdir(parents=True)
    (here / "tree/inner/x").write_text("x")
    middle = Middle(tmp_path / "m", SFTP_SERVER, 100)
    sftp(
        middle,
        f"cd {there}",
        "mkdir sub",
        "-mkdir sub",
        f"put {here}/tree/inner/x sub/x",
        "rename sub/x sub/y",
        "chmod 600 sub/y",
        "ln -s y sub/symbolic",
        "ln sub/y sub/hard",
        "ls -l sub",
        "df sub",
        "rm sub/hard",
        f"put -rp {here}/tree .",
        f"-get nowhere {here}",
        "rm sub/*",
        "rmdir sub",
    )
    sub = f"{there}/sub"
    facts = middle.facts()
    assert [(fact["action"], fact["path"], fact.get("to"), fact["outcome"]) for fact in facts] == [
        ("mkdir", sub, None, "ok"),
        ("mkdir", sub, None, "failure"),
        ("upload", f"{sub}/x", None, "ok"),
        ("rename", f"{sub}/x", f"{sub}/y", "ok"),
        ("setstat", f"{sub}/y", None, "ok"),
        ("symlink", "y", f"{sub}/symbolic", "ok"),
        ("link", f"{sub}/y", f"{sub}/hard", "ok"),
        ("remove", f"{sub}/hard", None, "ok"),
        ("mkdir", f"{there}/tree", None, "ok"),
        ("mkdir", f"{there}/tree/inner", None, "ok"),
        ("upload", f"{there}/tree/inner/x", None, "ok"),
        ("setstat", f"{there}/tree/inner", None, "ok"),
        ("setstat", f"{there}/tree", None, "ok"),
        ("remove", f"{sub}/symbolic", None, "ok"),
        ("remove", f"{sub}/y", None, "ok"),
        ("rmdir", sub, None, "ok"),
    ]
    assert facts[4]["mode"] == "0600"
    assert middle.read("from-client") == middle.read("to-server")


def test_a_directory_is_fetched_file_by_file(tmp_path: Path, here: Path, there: Path) -> None:
    for number in range(50):
        (there / f"file{number:02}").write_text("x" * number)
    middle = Middle(tmp_path / "m", SFTP_SERVER, 5000)
    sftp(middle, f"get -r {there} {here}")
    facts = middle.facts()
    assert sorted((fact["path"], fact["size"], fact["sha256"]) for fact in facts) == [
        (f"{there}/file{number:02}", number, sha256(b"x" * number)) for number in range(50)
    ]


def test_scp_speaks_it_too(tmp_path: Path, here: Path, there: Path) -> None:
    (there / "old").write_bytes(BIG + b"longer than what comes")
    put, get = Middle(tmp_path / "put", SFTP_SERVER), Middle(tmp_path / "get", SFTP_SERVER)
    subprocess.run(["scp", "-s", "-D", put.program, f"{here}/big", f"x:{there}/old"], check=True, timeout=60)
    subprocess.run(
        ["scp", "-s", "-p", "-D", get.program, f"x:{there}/old", f"{here}/back"], check=True, timeout=60
    )
    assert (there / "old").read_bytes() == (here / "back").read_bytes() == BIG
    (upload,), (download,) = put.facts(), get.facts()
    assert (upload["action"], upload["path"], upload["sha256"]) == ("upload", f"{there}/old", sha256(BIG))
    assert (download["action"], download["path"], download["sha256"]) == ("download", f"{there}/old", sha256(BIG))


@pytest.mark.parametrize("chunk", [262144, 997, 11])
def test_forbidden_uploads_are_denied_one_by_one(tmp_path: Path, here: Path, there: Path, chunk: int) -> None:
    (there / "a").write_bytes(BIG[:50_000])
    middle = Middle(tmp_path / "m", SFTP_SERVER, chunk, "upload")
    said = sftp(middle, f"-put {here}/big {there}/b", f"get {there}/a {here}/a", f"-put {here}/empty {there}/c")
    assert said.count("permission denied: uploads are not allowed here") == 0  # sftp has its own words
    assert said.count("Permission denied") == 2
    assert [(fact["action"], fact["outcome"], fact["size"]) for fact in middle.facts()] == [
        ("upload", "permission denied: uploads are not allowed here", 0),
        ("download", "ok", 50_000),
        ("upload", "permission denied: uploads are not allowed here", 0),
    ]
    assert sorted(path.name for path in there.iterdir()) == ["a"]
    assert f"{there}/b".encode() + struct.pack(">I", 0x1A) not in middle.read("to-server")


def test_forbidden_downloads(tmp_path: Path, here: Path, there: Path) -> None:
    (there / "a").write_bytes(BIG)
    middle = Middle(tmp_path / "m", SFTP_SERVER, 262144, "download")
    sftp(middle, f"-get {there}/a {here}/a", f"put {here}/big {there}/b", "ls")
    assert [(fact["action"], fact["outcome"]) for fact in middle.facts()] == [
        ("download", "permission denied: downloads are not allowed here"),
        ("upload", "ok"),
    ]
    assert not (here / "a").exists() or not (here / "a").read_bytes()


# ---- peers that do as they please --------------------------------------------------------------------------


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def string(data: bytes) -> bytes:
    return u32(len(data)) + data


def packet(kind: int, *parts: bytes | int) -> bytes:
    """A packet; whole numbers are of four bytes."""
    body = bytes([kind]) + b"".join(part if isinstance(part, bytes) else u32(part) for part in parts)
    return u32(len(body)) + body


def u64(number: int) -> bytes:
    return struct.pack(">Q", number)


def opened(request: int, path: bytes, flags: int = 1) -> bytes:
    return packet(3, request, string(path), flags, 0)


def status(request: int, code: int = 0, text: bytes = b"") -> bytes:
    return packet(101, request, code, string(text), string(b""))


def read(request: int, handle: bytes, offset: int, size: int) -> bytes:
    return packet(5, request, string(handle), u64(offset), size)


def write(request: int, handle: bytes, offset: int, data: bytes) -> bytes:
    return packet(6, request, string(handle), u64(offset), string(data))


class Talk:
    """A decoder, and what both sides said to it."""

    def __init__(self, **how: Any) -> None:
        self.decoder = Sftp(**how)
        assert self.client(packet(1, 3)) == (packet(1, 3), b"")
        assert self.server(packet(2, 3)) == packet(2, 3)

    def client(self, *packets: bytes) -> tuple[bytes, bytes]:
        """What went on, and what came back at once."""
        passed = self.decoder.client(memoryview(b"".join(packets)))
        return bytes(passed.forward), passed.reply

    def server(self, *packets: bytes) -> bytes:
        return bytes(self.decoder.server(memoryview(b"".join(packets))).forward)

    def open(self, handle: bytes = b"h", flags: int = 1, path: bytes = b"/f") -> None:
        self.client(opened(900, path, flags))
        self.server(packet(102, 900, string(handle)))

    def facts(self) -> list[tuple[Any, ...]]:
        self.decoder.end()
        said = [fact.said() for fact in self.decoder.facts]
        return [(fact["action"], fact["path"], fact.get("size"), fact["outcome"]) for fact in said]


def test_answers_in_any_order() -> None:
    talk = Talk()
    talk.open(b"a", path=b"/a")
    talk.open(b"b", path=b"/b")
    talk.client(read(1, b"a", 0, 9), read(2, b"b", 0, 9), packet(17, 3, string(b"/c")), read(4, b"b", 3, 9))
    talk.server(packet(103, 2, string(b"BBB")), packet(105, 3, 1, u64(7)), packet(103, 1, string(b"AA")))
    talk.server(status(4, 1))
    talk.client(packet(4, 5, string(b"b")), packet(4, 6, string(b"a")))
    talk.server(status(6), status(5))
    facts = talk.decoder.facts
    assert talk.decoder.broken is None
    assert [fact.said() for fact in facts] == [
        {"action": "download", "path": "/a", "size": 2, "ranges": [[0, 2]], "outcome": "ok"},
        {"action": "download", "path": "/b", "size": 3, "sha256": sha256(b"BBB"), "outcome": "ok"},
    ]


def test_writes_out_of_order_have_ranges() -> None:
    talk = Talk()
    talk.open(flags=0x1A)
    talk.client(write(1, b"h", 4, b"5678"), write(2, b"h", 0, b"1234"), write(3, b"h", 100, b""))
    talk.server(status(1), status(2), status(3))
    talk.client(packet(4, 4, string(b"h")))
    talk.server(status(4))
    (fact,) = talk.decoder.facts
    assert fact.said()["ranges"][:2] == [[4, 8], [0, 4]]
    assert "sha256" not in fact.said()


def test_a_write_that_fails_is_told() -> None:
    talk = Talk()
    talk.open(flags=0x1A)
    talk.client(write(1, b"h", 0, b"1234"), packet(4, 2, string(b"h")))
    talk.server(status(1, 4, b"No space left on device"), status(2))
    assert talk.facts() == [("upload", "/f", 4, "failure: No space left on device")]
    assert talk.decoder.facts[0].said()["ranges"] == [[0, 4]]


def test_a_write_to_a_handle_that_nobody_knows_must_fail() -> None:
    """A server that numbers its handles takes one before it has given it: then its file would seem empty."""
    for flags, handle in ((0x1A, b"other"), (1, b"h")):
        talk = Talk()
        talk.open(flags=flags)
        talk.client(write(1, handle, 0, b"1234"), write(2, handle, 0, b"1234"))
        talk.server(status(1, 4))
        assert talk.decoder.broken is None
        talk.server(status(2))
        assert talk.decoder.broken == "what was written went to a file that was not open for writing"


def test_without_being_cut_a_file_may_have_had_more() -> None:
    """Written from its beginning, but not known to end there."""
    for size, whole in ((None, False), (3, True), (5, False)):
        talk = Talk()
        if size is not None:
            talk.client(packet(17, 1, string(b"/f")))
            talk.server(packet(105, 1, 1, u64(size)))
        talk.open(flags=0x0A)
        talk.client(write(1, b"h", 0, b"1234"), packet(4, 2, string(b"h")))
        talk.server(status(1), status(2))
        assert ("sha256" in talk.decoder.facts[0].said()) == whole, size


def test_relative_paths_are_the_sessions() -> None:
    talk = Talk()
    talk.client(packet(16, 1, string(b".")), packet(16, 2, string(b"link")))
    talk.server(packet(104, 1, 1, string(b"/root"), string(b""), 0))
    talk.server(packet(104, 2, 1, string(b"/srv/real"), string(b""), 0))
    talk.client(packet(13, 3, string(b"x")), packet(13, 4, string(b"link")))
    talk.server(status(3), status(4))
    assert [fact[1] for fact in talk.facts()] == ["/root/x", "/srv/real"]


def test_paths_of_every_kind() -> None:
    talk = Talk()
    long = b"/" + b"x" * 65_000
    talk.client(packet(13, 1, string(b"/new\nline\x1b[2J")), packet(13, 2, string(b"/caf\xe9")))
    talk.client(packet(13, 3, string(long)))
    talk.server(status(1), status(2), status(3))
    first, second, third = (fact.said() for fact in talk.decoder.facts)
    assert first["path"] == "/new\nline\x1b[2J"
    assert (second["path"], second["path_bytes"]) == ("/caf\ufffd", b"/caf\xe9".hex())
    assert (len(third["path"]), third["path_cut"]) == (PATH_BYTES, 1)


def test_what_was_open_at_the_end_is_told() -> None:
    talk = Talk()
    talk.open(b"w", 0x1A, b"/w")
    talk.client(write(1, b"w", 0, b"abc"), opened(2, b"/never"), packet(13, 3, string(b"/gone")))
    assert talk.facts() == [
        ("download", "/never", 0, "not answered"),
        ("remove", "/gone", None, "not answered"),
        ("upload", "/w", 3, "not closed"),
    ]


def test_our_answer_waits_its_turn() -> None:
    talk = Talk(forbid=frozenset({"upload"}))
    refused = opened(2, b"/f", 0x1A)
    forward, reply = talk.client(packet(17, 1, string(b"/a")), refused, packet(17, 3, string(b"/b")))
    assert (forward, reply) == (packet(17, 1, string(b"/a")) + packet(17, 3, string(b"/b")), b"")
    answer = packet(105, 1, 1, u64(7))
    assert talk.server(answer[:6]) == answer[:6]  # in the midst of a packet nothing of ours
    said = talk.server(answer[6:] + status(3)[:2])
    denied = status(2, 3, b"permission denied: uploads are not allowed here")
    assert said == answer[6:] + denied + status(3)[:2]
    assert talk.server(status(3)[2:]) == status(3)[2:]
    assert talk.client(refused) == (b"", denied)
    assert talk.facts() == [("upload", "/f", 0, "permission denied: uploads are not allowed here")] * 2


def test_a_guessed_handle_is_of_no_use() -> None:
    talk = Talk(forbid=frozenset({"upload", "download"}))
    for number, hostile in enumerate(
        [
            write(7, b"\0\0\0\0", 0, b"secret" * 99),
            read(7, b"\0\0\0\0", 0, 99),
            packet(200, 7, string(b"x@y"), b"z"),
        ]
    ):
        for size in (1, 5, 30, 1000):
            forward = reply = b""
            for at in range(0, len(hostile), size):
                more = talk.client(hostile[at : at + size])
                forward, reply = forward + more[0], reply + more[1]
            assert (forward, reply[4:5], reply[5:9]) == (b"", b"\x65", u32(7)), (number, size)


def test_with_something_forbidden_nothing_unknown_goes_on() -> None:
    talk = Talk(forbid=frozenset({"upload"}))
    stat = packet(17, 1, string(b"/a"))
    assert talk.client(stat, packet(99, 2), opened(3, b"/f", 0x1A)) == (stat, b"")
    assert talk.decoder.broken == "a packet 99 from the client"
    assert talk.client(opened(3, b"/f", 0x1A)) == (b"", b"")


LIES = {
    "a client that says nothing first": ([], b"hello, world"),
    "a packet without end": ([], u32(1 << 30) + b"\1"),
    "an empty packet": ([packet(1, 3)], u32(0) + b"\1"),
    "an old version": ([], packet(1, 2)),
    "two versions": ([packet(1, 3)], packet(1, 3)),
    "a request of the server's kind": ([packet(1, 3)], status(1)),
    "a path longer than its packet": ([packet(1, 3)], packet(13, 1, 1000, b"x")),
    "more than there should be": ([packet(1, 3)], packet(13, 1, string(b"x"), b"y")),
    "a write that claims more than it has": ([packet(1, 3)], packet(6, 1, string(b"h"), u64(0), 9, b"x")),
    "a write with a long handle": ([packet(1, 3)], packet(6, 1, string(b"h" * 257), u64(0), string(b"x"))),
    "a short write": ([packet(1, 3)], packet(6, 1)),
    "a write beyond every file": ([packet(1, 3)], write(1, b"h", (1 << 63) - 1, b"x")),
    "one number twice": ([packet(1, 3), packet(13, 1, string(b"x"))], packet(13, 1, string(b"x"))),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_of_the_client(lie: str) -> None:
    before, hostile = LIES[lie]
    for size in (1, 4, 100_000):
        decoder = Sftp()
        for one in before:
            decoder.client(memoryview(one))
        assert decoder.broken is None
        kept = b"".join(
            bytes(decoder.client(memoryview(hostile[at : at + size])).kept) for at in range(0, len(hostile), size)
        )
        assert decoder.broken is not None, size
        assert kept == hostile


ANSWERS = {
    "a shell's prompt": b"root@web1:~# ",
    "data that nobody asked for": packet(103, 77, string(b"x")),
    "more data than was asked for": packet(103, 1, string(b"x" * 10)),
    "data that claims less than it has": packet(103, 1, 2, b"xxx"),
    "short data": packet(103, 1),
    "data of what is not open": packet(103, 2, string(b"x")),
    "a handle for a read": packet(102, 1, string(b"h")),
    "the same handle twice": packet(102, 3, string(b"h")),
    "names without end": packet(104, 4, 0xFFFFFFFF, string(b"a"), string(b""), 0),
    "attributes of another protocol": packet(105, 5, 0xFFFF, u64(0)),
    "another version": packet(2, 3),
    "a version like 6": packet(2, 6),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_lies_of_the_server(answer: str) -> None:
    hostile = ANSWERS[answer] + b"anything"
    for size in (1, 4, 100_000):
        talk = Talk()
        talk.open()
        talk.client(read(1, b"h", 0, 9), read(2, b"other", 0, 9), opened(3, b"/g"))
        talk.client(packet(16, 4, string(b".")), packet(17, 5, string(b"/")))
        kept = b""
        for at in range(0, len(hostile), size):
            kept += bytes(talk.decoder.server(memoryview(hostile[at : at + size])).kept)
        assert talk.decoder.broken is not None, size
        assert kept == hostile
        assert ("download", "/f", 0, "not closed") in talk.facts()


def test_what_was_elided_of_an_open_file_is_still_there_when_it_breaks() -> None:
    talk = Talk()
    talk.open()
    talk.client(read(1, b"h", 0, 100_000), read(2, b"h", 100_000, 100_000))
    secret = os.urandom(100_000)
    passed = talk.decoder.server(memoryview(packet(103, 1, string(secret))))
    assert len(passed.kept) == 13
    talk.server(b"root# rm -rf /")
    assert talk.decoder.broken is not None
    assert talk.decoder.held.take() == (secret[:HELD], 100_000 - HELD)


def test_a_role_may_ask_for_the_beginning_of_each_file() -> None:
    talk = Talk(keep=(3, 5))
    talk.open()
    talk.client(read(1, b"h", 0, 9), read(2, b"h", 2, 9))
    passed = talk.decoder.server(memoryview(packet(103, 1, string(b"ab")) + packet(103, 2, string(b"cdefgh"))))
    assert bytes(passed.kept) == packet(103, 1, string(b"ab")) + packet(103, 2, string(b"cdefgh"))[:-3]
    assert passed.forward == packet(103, 1, string(b"ab")) + packet(103, 2, string(b"cdefgh"))
    talk.open(b"w", 0x1A)
    sent = write(3, b"w", 0, b"12345")
    assert bytes(talk.decoder.client(memoryview(sent)).kept) == sent[:-2]


def test_an_unanswered_client_is_asked_to_wait_and_then_not_followed() -> None:
    talk = Talk()
    talk.open()
    for number in range(REQUESTS):
        assert not talk.decoder.full
        talk.client(read(number, b"h", number, 1))
    assert talk.decoder.full
    talk.server(status(0, 1))
    assert not talk.decoder.full
    paths = Talk()
    for number in range(PATHS):
        assert not paths.decoder.full
        paths.client(packet(13, number, string(b"x" * 60_000)))
    assert paths.decoder.full
    for number in range(5 * REQUESTS):
        talk.client(read(REQUESTS + number, b"h", number, 1))
    assert talk.decoder.broken is not None


def test_no_more_handles_than_a_server_can_have() -> None:
    talk = Talk()
    for number in range(1024):
        talk.open(u32(number))
    assert talk.decoder.broken is None
    talk.open(b"one more")
    assert talk.decoder.broken == "more than 1024 files are open"
