"""Files through the bastion, by sftp and scp: named in recording and log, and denied where a role says so."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from sshrec.recording import events
from tests.e2e.recorded import Recorded, last
from tests.e2e.transparent import Through
from tests.lab import Lab

BIG = os.urandom(2_000_001)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "big").write_bytes(BIG)
    (tmp_path / "big").chmod(0o640)
    return tmp_path


def files(recorded: Recorded) -> list[dict[str, Any]]:
    return [msgspec.json.decode(data) for data in recorded.coded(events.FILE)]


def logged(lab: Lab, session: str, event: str) -> list[dict[str, Any]]:
    """The events of a session, once its end is in the log."""

    def of_session() -> list[dict[str, Any]]:
        lines = [
            line
            for path in sorted((lab.data_dir / "audit").glob("*.jsonl"))
            for line in path.read_bytes().splitlines()
        ]
        found = [said for line in lines if (said := json.loads(line)).get("sid") == session]
        return found if any(said["event"] == "session.end" for said in found) else []

    return [said for said in lab.wait(of_session, "the session's end in the log") if said["event"] == event]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_sftp_is_named_file_by_file(lab: Lab, through: Through, here: Path, scratch: Path) -> None:
    batch = f"put {here}/big {scratch}/a\nget {scratch}/a {here}/back\nrename {scratch}/a {scratch}/b\n"
    batch += f"-rm {scratch}/none\n"
    done = through.run("sftp", "-b", "-", "root@web1", input=batch.encode())
    assert done.returncode == 0, done.stderr
    assert (here / "back").read_bytes() == BIG
    recorded = last(lab)
    assert recorded.size
    assert recorded.facts["subsystem"] == "sftp"
    put, get, rename, remove = files(recorded)
    assert put == {
        "protocol": "sftp",
        "action": "upload",
        "path": f"{scratch}/a",
        "size": len(BIG),
        "sha256": sha256(BIG),
        "mode": "0640",
        "outcome": "ok",
    }
    assert (get["action"], get["path"], get["sha256"]) == ("download", f"{scratch}/a", sha256(BIG))
    assert (rename["action"], rename["path"], rename["to"]) == ("rename", f"{scratch}/a", f"{scratch}/b")
    assert (remove["action"], remove["outcome"]) == ("remove", "no such file")
    counts, kept = recorded.counts(), recorded.streams()["stdout"]
    assert counts["stdin"][0] > len(BIG)
    assert counts["stdout"][0] == len(kept) + len(BIG)  # all but the content
    told = logged(lab, recorded.session, "sftp")
    assert [(said["code"], said["action"], said.get("direction")) for said in told] == [
        ("TS001I", 1, "upload"),
        ("TS001I", 1, "download"),
        ("TS016I", 16, None),
        ("TS011E", 11, None),
    ]
    assert told[0]["sha256"] == sha256(BIG)
    assert told[0]["working_directory"].endswith("/root")
    assert told[3]["error"] == "no such file"
    (subsystem,) = logged(lab, recorded.session, "subsystem")
    assert (subsystem["code"], subsystem["name"]) == ("T3001I", "sftp")


def test_scp_by_its_own_protocol(lab: Lab, through: Through, here: Path, scratch: Path) -> None:
    assert through.run("scp", "-O", here / "big", f"root@web1:{scratch}/a").returncode == 0
    up = last(lab)
    assert through.run("scp", "-O", f"root@web1:{scratch}/a", here / "back").returncode == 0
    down = last(lab)
    assert (here / "back").read_bytes() == BIG
    for recorded, action, code in ((up, "upload", "T3005I"), (down, "download", "T3004I")):
        (file,) = files(recorded)
        assert (file["protocol"], file["action"], file["path"]) == ("scp", action, f"{scratch}/a")
        assert (file["size"], file["sha256"], file["mode"]) == (len(BIG), sha256(BIG), "0640")
        (said,) = logged(lab, recorded.session, "scp")
        assert (said["code"], said["action"], said["len"]) == (code, action, len(BIG))
        assert len(logged(lab, recorded.session, "exec")) == 1
    assert down.streams()["stdout"] == b"C0640 2000001 a\n\0"
    assert down.counts()["stdout"][0] == len(BIG) + len(b"C0640 2000001 a\n\0")


def test_scp_by_the_hop(lab: Lab, scratch: Path) -> None:
    """Any client may speak it: by hand, for the bastion's own command line."""
    (scratch / "a").write_bytes(b"12345")
    (scratch / "a").chmod(0o644)
    done = lab.ssh("-A", "bastion", f"root@web1 scp -f {scratch}/a", input=b"\0\0\0")
    assert done.stdout == b"C0644 5 a\n12345\0"
    recorded = last(lab)
    # All three answers came at once: who does not wait for the questions does not speak the protocol.
    assert recorded.streams()["stdout"] == b"C0644 5 a\n12345\0"


def test_a_shell_in_scps_place_is_recorded(lab: Lab, scratch: Path) -> None:
    """An alias, or a program of that name, which plays along until it is sent a huge file: it says one word."""
    disguised = scratch / "scp"
    disguised.write_text("#!/bin/sh\nprintf '\\0'; read line; printf '\\0'; read line; $line\n")
    disguised.chmod(0o755)
    client = lab.popen("-A", "bastion", f"root@web1 {disguised} -t /tmp/x")
    assert client.stdin and client.stdout
    assert client.stdout.read(1) == b"\0"
    client.stdin.write(b"C0644 99999999 x\n")
    client.stdin.flush()
    assert client.stdout.read(1) == b"\0"
    client.stdin.write(b"id -un\n")
    client.stdin.close()
    assert client.stdout.read() == b"root\n"
    assert client.wait(20) == 0
    recorded = last(lab)
    assert recorded.facts["command"] == f"{disguised} -t /tmp/x"
    assert recorded.streams()["stdout"] == b"\0\0root\n"
    (mark,) = recorded.coded(events.MARKER)
    assert mark.startswith("sshrec: not scp: the receiver says what it was not asked for")
    (file,) = files(recorded)
    assert (file["size"], file["outcome"]) == (7, "not finished")


def roles(kinds: list[str], **terms: Any) -> dict[str, Any]:
    return {"roles": [{"name": "r", "logins": ["*"], "kinds": kinds, **terms}]}


@pytest.fixture
def restart(lab: Lab) -> Iterator[Any]:
    def again(settings: dict[str, Any]) -> None:
        lab.stop_sshrecd()
        lab.start_sshrecd(settings)

    yield again
    again({})


def test_forbidden_uploads(lab: Lab, through: Through, here: Path, scratch: Path, restart: Any) -> None:
    (scratch / "a").write_bytes(BIG)
    restart(roles(["shell", "exec", "download"]))
    batch = f"-put {here}/big {scratch}/b\nget {scratch}/a {here}/back\n"
    done = through.run("sftp", "-b", "-", "root@web1", input=batch.encode())
    assert done.returncode == 0
    assert b"Permission denied" in done.stderr
    assert (here / "back").read_bytes() == BIG
    recorded = last(lab)
    assert [(file["action"], file["outcome"]) for file in files(recorded)] == [
        ("upload", "permission denied: uploads are not allowed here"),
        ("download", "ok"),
    ]
    assert [said["code"] for said in logged(lab, recorded.session, "sftp")] == ["TS020E", "TS001I"]
    done = through.run("scp", "-O", here / "big", f"root@web1:{scratch}/b")
    assert done.returncode == 1
    assert b"sshrec: error: permission denied: uploads are not allowed here\n" in done.stderr
    assert through.run("scp", "-O", f"root@web1:{scratch}/a", here / "again").returncode == 0
    assert not (scratch / "b").exists()


def test_forbidden_downloads(lab: Lab, through: Through, here: Path, scratch: Path, restart: Any) -> None:
    (scratch / "a").write_bytes(BIG)
    restart(roles(["upload"]))
    batch = f"-get {scratch}/a {here}/back\nput {here}/big {scratch}/b\n"
    done = through.run("sftp", "-b", "-", "root@web1", input=batch.encode())
    assert b"Permission denied" in done.stderr
    assert (scratch / "b").read_bytes() == BIG
    assert [file["outcome"] for file in files(last(lab))] == [
        "permission denied: downloads are not allowed here",
        "ok",
    ]
    assert not (here / "back").exists() or not (here / "back").read_bytes()


def test_what_is_not_sftp_ends_where_something_is_forbidden(lab: Lab, through: Through, restart: Any) -> None:
    restart(roles(["download"]))
    with through.popen("-s", "root@web1", "sftp") as client:
        said, _ = client.communicate(packet(1, u32(3)) + packet(99, b"anything"), timeout=30)
    assert client.returncode == 255  # sshd has no standard error for a subsystem: the reason is in the recording
    recorded = last(lab)
    assert recorded.end["reason"] == "forbidden"
    wanted = "this is not sftp, which alone is allowed here: a packet 99 from the client"
    assert recorded.end["detail"] == wanted
    assert recorded.streams()["stdout"] == said
    (mark,) = recorded.coded(events.MARKER)
    assert mark == "sshrec: not sftp: a packet 99 from the client; recorded from here on as any command's streams"


def test_with_a_terminal_nothing_would_be_filtered(lab: Lab, through: Through, restart: Any) -> None:
    restart(roles(["download"]))
    done = through.run("ssh", "-tt", "-s", "root@web1", "sftp", input=b"")
    assert done.returncode == 255
    assert b"sftp has no terminal where uploads are not allowed" in done.stdout + done.stderr


def test_a_hundred_thousand_requests_ahead(lab: Lab, through: Through, scratch: Path) -> None:
    """As paramiko asks for a large file: all of it, before it reads the first answer."""
    count = 100_000
    data = os.urandom(count)
    (scratch / "a").write_bytes(data)
    path, handle = string(f"{scratch}/a".encode()), string(u32(0))
    with through.popen("-s", "root@web1", "sftp") as client:
        assert client.stdin and client.stdout
        client.stdin.write(packet(1, u32(3)) + packet(3, u32(0), path, u32(1), u32(0)))
        client.stdin.flush()
        version, opened = answer(client.stdout), answer(client.stdout)
        assert (version[0], opened[0]) == (2, 102)

        def ask(out: IO[bytes]) -> None:
            for number in range(count):
                out.write(packet(5, u32(number), handle, u32(0), u32(number), u32(1)))
            out.write(packet(4, u32(count), handle))
            out.flush()  # and not closed: the server ends at once then

        asking = threading.Thread(target=ask, args=(client.stdin,))
        asking.start()
        got = b"".join(answer(client.stdout)[9:] for _ in range(count))
        assert answer(client.stdout)[0] == 101
        asking.join(30)
    assert got == data
    (file,) = files(last(lab))
    assert (file["size"], file["outcome"], file["ranges"]) == (
        count,
        "ok",
        [[0, count]],
    )  # nobody said it ends there


def test_what_was_under_way_when_the_session_ended(lab: Lab, through: Through, scratch: Path) -> None:
    path, handle = string(f"{scratch}/a".encode()), string(u32(0))
    client = through.popen("-s", "root@web1", "sftp")
    assert client.stdin and client.stdout
    client.stdin.write(packet(1, u32(3)) + packet(3, u32(0), path, u32(0x1A), u32(0)))
    client.stdin.flush()
    assert [answer(client.stdout)[0] for _ in range(2)] == [2, 102]
    client.stdin.write(packet(6, u32(1), handle, u32(0), u32(0), string(b"half")))
    client.stdin.flush()
    assert answer(client.stdout)[0] == 101
    client.kill()
    client.communicate()
    recorded = last(lab)
    (file,) = files(recorded)
    assert (file["action"], file["size"], file["outcome"], file["ranges"]) == ("upload", 4, "not closed", [[0, 4]])
    (said,) = logged(lab, recorded.session, "sftp")
    assert (said["code"], said["error"]) == ("TS001E", "not closed")


def u32(number: int) -> bytes:
    return struct.pack(">I", number)


def string(data: bytes) -> bytes:
    return u32(len(data)) + data


def packet(kind: int, *parts: bytes) -> bytes:
    body = bytes([kind]) + b"".join(parts)
    return u32(len(body)) + body


def answer(stream: IO[bytes]) -> bytes:
    """The next packet, without its length."""
    (length,) = struct.unpack(">I", stream.read(4))
    return stream.read(length)


def test_a_role_may_have_contents_kept(
    lab: Lab, through: Through, scratch: Path, here: Path, restart: Any
) -> None:
    (scratch / "a").write_bytes(BIG)
    restart(roles(["download", "upload"], file_bytes=1000))
    batch = f"get {scratch}/a {here}/back\nput {here}/big {scratch}/b\n"
    assert through.run("sftp", "-b", "-", "root@web1", input=batch.encode()).returncode == 0
    recorded = last(lab)
    kept = recorded.streams()["stdout"]
    assert BIG[:1000] in kept
    assert recorded.counts()["stdout"][0] == len(kept) + len(BIG) - 1000


def test_many_files(lab: Lab, through: Through, here: Path, scratch: Path) -> None:
    (here / "many").mkdir()
    for number in range(700):
        (here / "many" / f"{number:03}").write_text(str(number))
    assert through.run("scp", "-r", here / "many", f"root@web1:{scratch}").returncode == 0
    recorded = last(lab)
    uploads = [file for file in files(recorded) if file["action"] == "upload"]
    assert {file["path"]: file["sha256"] for file in uploads} == {
        f"{scratch}/many/{number:03}": sha256(str(number).encode()) for number in range(700)
    }
    told = logged(lab, recorded.session, "sftp")
    assert len([said for said in told if said.get("direction") == "upload"]) == 700
