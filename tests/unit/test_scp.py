"""scp's own protocol decoded between the real scp and itself, and what it is worth as a disguise for a shell."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from sshrec.gateway.transfer.content import HELD
from sshrec.gateway.transfer.fact import PATH_BYTES
from sshrec.gateway.transfer.scp import Command, Scp, which
from tests.transfers import Middle

BIG = os.urandom(3_000_001)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def scp(middle: Middle, *arguments: str | Path) -> str:
    """What scp says, between here and the host called there."""
    done = subprocess.run(
        ["scp", "-O", "-q", "-S", middle.program, *arguments], capture_output=True, text=True, timeout=60
    )
    return done.stdout + done.stderr


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    (path / "tree/inner").mkdir(parents=True)
    (path / "big").write_bytes(BIG)
    (path / "big").chmod(0o640)
    (path / "empty").write_bytes(b"")
    (path / "tree/x").write_text("x")
    (path / "tree/inner/y").write_text("yy")
    return path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    path = tmp_path / "there"
    path.mkdir()
    return path


# ---- the real program --------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [262144, 997])
def test_up(tmp_path: Path, here: Path, there: Path, chunk: int) -> None:
    middle = Middle(tmp_path / "m", chunk=chunk)
    assert scp(middle, "-p", here / "big", here / "empty", f"there:{there}") == ""
    assert (there / "big").read_bytes() == BIG
    assert middle.facts() == [
        {"action": "upload", "path": f"{there}/big", "name": "big", "size": len(BIG), "mode": "0640"}
        | {"sha256": sha256(BIG), "outcome": "ok"},
        {"action": "upload", "path": f"{there}/empty", "name": "empty", "size": 0, "mode": "0644"}
        | {"sha256": sha256(b""), "outcome": "ok"},
    ]
    assert middle.read("from-client") == middle.read("to-server")
    assert middle.read("from-server") == middle.read("to-client") == middle.read("kept-out")
    assert len(middle.read("kept-in")) + len(BIG) == len(middle.read("from-client"))


@pytest.mark.parametrize("chunk", [262144, 997])
def test_down(tmp_path: Path, here: Path, there: Path, chunk: int) -> None:
    (there / "a").write_bytes(BIG)
    middle = Middle(tmp_path / "m", chunk=chunk)
    assert scp(middle, f"there:{there}/a", here / "got") == ""
    assert (here / "got").read_bytes() == BIG
    assert middle.facts() == [
        {"action": "download", "path": f"{there}/a", "name": "a", "size": len(BIG), "mode": "0644"}
        | {"sha256": sha256(BIG), "outcome": "ok"}
    ]
    assert middle.read("from-server") == middle.read("to-client")
    assert middle.read("kept-out") == b"C0644 3000001 a\n\0"


def test_trees(tmp_path: Path, here: Path, there: Path) -> None:
    up, down = Middle(tmp_path / "up"), Middle(tmp_path / "down")
    scp(up, "-rp", here / "tree", f"there:{there}")
    scp(down, "-r", f"there:{there}/tree", here / "back")
    assert (here / "back/inner/y").read_text() == "yy"
    assert sorted((fact["action"], fact["path"], fact.get("size")) for fact in up.facts()) == [
        ("mkdir", f"{there}/tree", None),
        ("mkdir", f"{there}/tree/inner", None),
        ("upload", f"{there}/tree/inner/y", 2),
        ("upload", f"{there}/tree/x", 1),
    ]
    assert sorted((fact["action"], fact["path"], fact["sha256"]) for fact in down.facts()) == [
        ("download", f"{there}/tree/inner/y", sha256(b"yy")),
        ("download", f"{there}/tree/x", sha256(b"x")),
    ]


def test_what_goes_wrong_is_told(tmp_path: Path, here: Path, there: Path) -> None:
    (there / "a").write_text("a")
    up, down = Middle(tmp_path / "up"), Middle(tmp_path / "down")
    scp(up, here / "empty", f"there:{there}/no/such")
    scp(down, f"there:{there}/nothing", f"there:{there}/a", here)
    assert [(fact["action"], fact["size"], fact["outcome"]) for fact in up.facts()] == [
        ("upload", 0, f"scp: {there}/no/such: No such file or directory")
    ]
    first = down.facts()[0]
    assert (first["action"], first["path"], first["size"], first["outcome"]) == (
        ("download", f"{there}/nothing", 0, f"scp: {there}/nothing: No such file or directory")
    )


# ---- which command is one ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (b"scp -t /tmp", Command("upload", b"/tmp")),
        (b"scp -v -r -p -d -t -- -x y", Command("upload", b"-x y", True)),
        (b"/usr/bin/scp -prf /etc/*.conf", Command("download", b"/etc/*.conf")),
        (b"scp -t x; sh", Command("upload", b"x; sh")),  # then it does not parse, and is recorded
        (b"scp /etc/motd host:", None),
        (b"scp -t", None),
        (b"scp -t -f x", None),
        (b"scp -S sh -t x", None),
        (b"cat | scp -t x", None),
        (b"", None),
        (b"\xff\0", None),
    ],
)
def test_which(command: bytes, found: Command | None) -> None:
    assert which(command) == found


# ---- disguises -----------------------------------------------------------------------------------------------


class Talk:
    """A decoder, and what both sides said to it."""

    def __init__(self, command: bytes, **how: Any) -> None:
        found = which(command)
        assert found is not None
        self.decoder = Scp(found, **how)
        self.recorded = b""  # of the output

    def client(self, *said: bytes) -> str | None:
        for data in said:
            assert self.decoder.client(memoryview(data)).forward == data
        self._flush()
        return self.decoder.broken

    def server(self, *said: bytes) -> str | None:
        for data in said:
            passed = self.decoder.server(memoryview(data))
            assert passed.forward == data
            self._flush()
            self.recorded += passed.kept
        return self.decoder.broken

    def _flush(self) -> None:
        if self.decoder.broken is not None:
            self.recorded += self.decoder.held.take()[0]


def test_a_shell_in_the_place_of_scp_is_recorded_from_its_first_byte() -> None:
    for command in (b"scp -t /x", b"scp -f /x"):
        talk = Talk(command)
        assert talk.server(b"root@web1:~# ") is not None
        talk.client(b"id\n")
        talk.server(b"uid=0(root)\n")
        assert talk.recorded == b"root@web1:~# uid=0(root)\n"


def test_a_huge_file_is_no_place_to_talk() -> None:
    """The shell plays along until there is a content: it may not say a word within."""
    talk = Talk(b"scp -t /x")
    talk.server(b"\0")
    talk.client(b"C0644 99999999 x\n")
    talk.server(b"\0")
    assert talk.client(b"id\n") is None
    assert talk.server(b"uid=0(root)\n") == "the receiver says what it was not asked for"
    talk.client(b"cat /etc/shadow\n")
    talk.server(b"root:x:\n")
    assert talk.recorded == b"\0\0uid=0(root)\nroot:x:\n"
    (fact,) = talk.decoder.facts
    assert fact.said()["outcome"] == "not finished"
    assert fact.said()["ranges"] == [[0, 3]]


def test_what_a_shell_is_told_in_contents_is_kept_where_input_is() -> None:
    talk = Talk(b"scp -t /x", keep=(HELD, 0))
    talk.server(b"\0")
    talk.client(b"C0644 99999999 x\n")
    talk.server(b"\0")
    said = os.urandom(HELD + 1)
    assert talk.decoder.client(memoryview(said)).kept == said[:HELD]


def test_a_download_has_no_questions() -> None:
    """A shell whose output is a huge file's content: the first word to it brings to light what it said."""
    talk = Talk(b"scp -f /x")
    talk.client(b"\0")
    talk.server(b"C0644 99999999 x\n")
    talk.client(b"\0")
    assert talk.server(b"root@web1:~# ") is None
    assert talk.recorded == b"C0644 99999999 x\n"
    assert talk.client(b"id\n") == "the receiver says what it was not asked for"
    talk.server(b"uid=0(root)\n")
    assert talk.recorded == b"C0644 99999999 x\nroot@web1:~# uid=0(root)\n"


def test_who_talks_in_errors_has_contents_recorded() -> None:
    talk = Talk(b"scp -f /x")
    talk.client(b"\0")
    talk.server(b"C0644 2 x\n")
    talk.client(b"\0")
    talk.server(b"# \0")
    assert talk.recorded == b"C0644 2 x\n\0"
    talk.client(b"\1id\n")
    talk.server(b"C0644 12 x\n")
    talk.client(b"\0")
    assert talk.server(b"uid=0(root)\n\0") is None
    assert talk.recorded == b"C0644 2 x\n\0C0644 12 x\nuid=0(root)\n\0"
    talk.client(b"\0")
    first, second = (fact.said() for fact in talk.decoder.facts)
    assert (first["outcome"], second["outcome"]) == ("id", "ok")


def test_what_is_held_back_is_recorded_once() -> None:
    """The chunk in which it breaks is recorded whole, whatever of it was taken for content."""
    talk = Talk(b"scp -f /x")
    talk.client(b"\0")
    talk.server(b"C0644 4 x\n")
    talk.client(b"\0")
    assert talk.server(b"ab", b"cd#") is not None
    assert talk.recorded == b"C0644 4 x\nabcd#"


def test_a_role_may_ask_for_the_beginning_of_each_file() -> None:
    talk = Talk(b"scp -f /x", keep=(0, 3))
    for name in (b"a", b"b"):
        talk.client(b"\0")
        talk.server(b"C0644 5 %b\n" % name)
        talk.client(b"\0")
        talk.server(b"12", b"345", b"\0")
    assert talk.recorded == b"C0644 5 a\n123\0C0644 5 b\n123\0"


LIES = {
    "a sender that does not wait": (b"scp -t x", [(b"C0644 1 x\n", "c")]),
    "a sender that waits for no answer": (b"scp -t x", [(b"\0", "s"), (b"C0644 1 x\n", "c"), (b"x", "c")]),
    "a name with a slash": (b"scp -t x", [(b"\0", "s"), (b"C0644 1 ../x\n", "c")]),
    "a name that is the directory above": (b"scp -t x", [(b"\0", "s"), (b"D0755 0 ..\n", "c")]),
    "a size without end": (b"scp -t x", [(b"\0", "s"), (b"C0644 9999999999999999999 x\n", "c")]),
    "the end of no directory": (b"scp -t x", [(b"\0", "s"), (b"E\n", "c")]),
    "a line without end": (b"scp -t x", [(b"\0", "s"), (b"C" * 20_000, "c")]),
    "an answer without end": (b"scp -t x", [(b"\1" + b"x" * 20_000, "s")]),
    "an answer nobody waits for": (b"scp -t x", [(b"\0\0", "s")]),
    "more after the last word": (b"scp -t x", [(b"\2bye\n", "s"), (b"C0644 1 x\n", "c")]),
    "content that does not end": (
        b"scp -f x",
        [(b"\0", "c"), (b"C0644 1 x\n", "s"), (b"\0", "c"), (b"x", "s"), (b"y", "s")],
    ),
    "a sender in the receiver's place": (b"scp -f x", [(b"C0644 1 x\n", "c")]),
    "times that are none": (b"scp -t x", [(b"\0", "s"), (b"Tnow\n", "c")]),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str) -> None:
    command, turns = LIES[lie]
    talk = Talk(command)
    for data, side in turns:
        assert talk.decoder.broken is None
        talk.client(data) if side == "c" else talk.server(data)
    assert talk.decoder.broken is not None


def test_directories_without_end() -> None:
    talk = Talk(b"scp -r -t x")
    talk.server(b"\0")
    for _ in range(1000):
        if talk.client(b"D0755 0 %b\n" % (b"d" * 1000)) or talk.server(b"\0"):
            break
    assert talk.decoder.broken == "directories 256 deep"
    assert max(len(fact.path) for fact in talk.decoder.facts) <= PATH_BYTES + 1
