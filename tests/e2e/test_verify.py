"""`sshrec verify` and the replay's UNVERIFIED, as a person sees them, on real sessions and on files."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.cli.verify import Progress, Task
from sshrec.recording.seal import Outcome
from sshrec.session import session_id
from sshrec.storage.local import Store
from tests.lab import PROMPT, Lab
from tests.recordings import WALL_MS, Step, record

SSHREC = str(Path(sys.executable).with_name("sshrec"))
STEPS: list[Step] = [(0.5, b"hello\r\n"), (6.0, b"bye\r\n"), (6.0, b"really\r\n")]


class Place:
    """A configuration and its recordings."""

    def __init__(self, path: Path) -> None:
        self.config = path / "sshrec.yaml"
        self.config.write_text(f"data_dir: {path}\n")
        self.store = Store(path / "recordings")
        self._n = 0

    def put(self, *, wall_ms: int = WALL_MS, steps: list[Step] = STEPS, **how: Any) -> str:
        """A new recording; its session's id."""
        session = session_id(wall_ms + self._n, b"%010d" % self._n)
        self._n += 1
        path = self.store.path(session)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(record(steps, session=session, **how).text)
        return session

    def change(self, session: str, old: bytes, new: bytes) -> Path:
        """Change the plain file of a recording."""
        path = self.store.path(session)
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))
        return path

    def sshrec(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [SSHREC, "--config", str(self.config), *map(str, arguments)]
        env = {**os.environ, "TZ": "UTC"}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    def says(self, *arguments: str | Path) -> tuple[int, list[str]]:
        """The status of `sshrec verify`, and its lines, each blank in them once."""
        done = self.sshrec("verify", *arguments)
        assert "Traceback" not in done.stderr
        return done.returncode, [" ".join(line.split()) for line in done.stdout.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_one_of_each(place: Place) -> None:
    good, packed, bad = place.put(), place.put(), place.put()
    dead = place.put(outcome=None)
    aborted = place.put(outcome=Outcome("aborted", detail="its worker died"))
    place.store.pack(packed)
    place.change(bad, b'"bye', b'"lie')
    assert place.says(good) == (0, [f"COMPLETE {good}"])
    assert place.says(packed, good) == (0, [f"COMPLETE {packed}", f"COMPLETE {good}"])
    status, lines = place.says(bad)
    assert status == 1
    assert re.fullmatch(
        rf"BAD {bad} chunk 1, byte \d+, after 6\.500000 s: its text is not what was sealed", lines[0]
    )
    assert place.says(aborted) == (3, [f"INCOMPLETE {aborted} aborted: its worker died"])
    status, lines = place.says("--all")
    assert status == 1
    assert [line.split()[:2] for line in lines] == [
        ["COMPLETE", good],
        ["COMPLETE", packed],
        ["BAD", bad],
        ["INCOMPLETE", dead],
        ["INCOMPLETE", aborted],
    ]
    assert place.sshrec("verify", "--all").stderr == "5 recordings: 2 complete, 2 incomplete, 1 bad\n"
    assert [place.says("--all", "--jobs", str(jobs)) for jobs in (1, 2, 7)] == [(1, lines)] * 3


def test_json(place: Place) -> None:
    good, bad, dead = place.put(), place.put(), place.put(outcome=None)
    path = place.change(bad, b'"bye', b'"lie')
    done = place.sshrec("verify", "--all", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    first, second, third = document["recordings"]
    assert (first["id"], first["state"], first["seals"], first["torn"]) == (good, "COMPLETE", 3, False)
    assert first["end"] == {"reason": "exit", "status": 0}
    assert first["sealed"] == place.store.path(good).stat().st_size
    assert re.fullmatch("[0-9a-f]{64}", first["head"])
    assert (second["state"], second["path"]) == ("BAD", str(path))
    assert second["problem"] == {
        "what": "its text is not what was sealed",
        "chunk": 1,
        "offset": second["sealed"],
        "seconds": 6.5,
    }
    assert (third["id"], third["state"], third["incomplete"]["why"]) == (dead, "INCOMPLETE", "unfinished")


def test_live_then_dead(place: Place) -> None:
    session = place.put(outcome=None)
    path = place.store.path(session)
    with path.open("ab") as worker:
        fcntl.flock(worker, fcntl.LOCK_EX)
        worker.write(b'[99.000000,"o","tor')
        worker.flush()
        for name in (session, path):
            assert place.says(name) == (3, [f"INCOMPLETE {name} live"])
    status, (line,) = place.says(session)
    assert (status, line.split()[:3]) == (3, ["INCOMPLETE", session, "torn:"])


def test_a_torn_line_beside_it_and_one_that_is_all_there_is(place: Place) -> None:
    whole, never = place.put(outcome=None), place.put()
    path = place.store.path(whole)
    with path.open("ab") as file:
        file.write(b'[99.000000,"o","tor')
    place.store.recover(whole, WALL_MS, "its worker died")
    place.store.path(never).with_suffix(".torn").write_bytes(b'{"version":2,"wid')
    place.store.path(never).unlink()
    assert place.says("--all") == (
        3,
        [
            f"INCOMPLETE {whole} aborted: its worker died; a torn line is kept beside it",
            f"INCOMPLETE {never} torn: not even its header is whole",
        ],
    )


def test_while_both_are_there_the_plain_one_is_the_truth(place: Place) -> None:
    session = place.put()
    text = place.store.path(session).read_bytes()
    place.store.pack(session)
    place.store.path(session).write_bytes(text)
    place.store.packed(session).write_bytes(b"half of a try")
    assert place.says(session) == (0, [f"COMPLETE {session}"])
    place.store.path(session).unlink()
    assert place.says(session)[0] == 1


def test_exchanged_and_renamed(place: Place, tmp_path: Path) -> None:
    one, two = place.put(), place.put()
    first, second = place.store.path(one), place.store.path(two)
    content = first.read_bytes()
    (tmp_path / "evidence.cast").write_bytes(content)
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    status, lines = place.says("--all")
    assert status == 1
    assert lines == [
        f"BAD {one} chunk 0, byte 0, after 0.000000 s: it is the recording of session {two}",
        f"BAD {two} chunk 0, byte 0, after 0.000000 s: it is the recording of session {one}",
    ]
    assert place.says(tmp_path / "evidence.cast")[0] == 0, "a name that is no session's says nothing"


def test_since(place: Place) -> None:
    now = time.time_ns() // 1_000_000
    old, new = place.put(), place.put(wall_ms=now - 3_600_000)
    both = [f"COMPLETE {old}", f"COMPLETE {new}"]
    assert place.says("--all") == (0, both)
    for since in ("2h", "2025-11-24", "2025-11-23T10:14:16+01:00", "2025-11-23T09:14:15Z"):
        assert place.says("--since", since) == (0, both[1:]), since
    assert place.says("--since", "2025-11-23T10:14:14+01:00") == (0, both)
    assert place.says("--since", "1s") == (0, [])
    done = place.sshrec("verify", "--since", "tomorrow\x1b[2J")
    assert done.returncode == 64
    assert done.stderr.startswith("sshrec: error: --since 'tomorrow\\\\x1b[2J' is no time\nhint: ")


def test_what_there_is_not(place: Place, tmp_path: Path) -> None:
    good = place.put()
    for missing in ("01ZZ", str(tmp_path / "nothing.cast"), good[:3] + "ZZ"):
        done = place.sshrec("verify", good, missing)
        assert (done.returncode, done.stdout) == (66, "")
        assert done.stderr.count("\n") <= 2
    for arguments in ((), ("--all", good), ("--jobs", "0", good)):
        assert place.sshrec("verify", *arguments).returncode == 64
    (tmp_path / "empty").mkdir()
    empty = Place(tmp_path / "empty")
    done = empty.sshrec("verify", "--all")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"no recordings in {empty.store.root} yet\n"


def test_hostile_names_and_files(place: Place, tmp_path: Path) -> None:
    fifo, name = tmp_path / "fifo", tmp_path / "evil\x1b[2J\nCOMPLETE.cast"
    os.mkfifo(fifo)
    name.write_bytes(b"\0" * 100)
    sparse = tmp_path / "sparse.cast"
    with sparse.open("wb") as file:
        file.truncate(10 << 30)
    for path in (fifo, tmp_path, Path("/dev/zero"), name, sparse):
        status, lines = place.says(path)
        assert status == 1
        assert len(lines) == 1
        assert lines[0].startswith("BAD ")
        assert "\x1b" not in lines[0]
    session = place.put()
    path = place.store.path(session)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert place.says("--all") == (
        1,
        [f"BAD {session} chunk 0, byte 0, after 0.000000 s: it is no regular file"],
    )


def test_killed_in_the_middle_it_leaves_no_process(place: Place) -> None:
    for _ in range(40):
        place.put(steps=[(0.1, b"x" * 500_000)])
    command = [SSHREC, "--config", str(place.config), "verify", "--all", "--jobs", "2"]
    killed = 0
    for _ in range(50):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
        assert child.stdout is not None
        deadline = time.monotonic() + 20
        while len(_in_session(child.pid)) < 3 and child.poll() is None:
            assert time.monotonic() < deadline
        child.send_signal(signal.SIGKILL)
        killed += child.wait(timeout=10) == -signal.SIGKILL  # else it was too quick for us
        child.stdout.close()
        deadline = time.monotonic() + 10
        while _in_session(child.pid):
            assert time.monotonic() < deadline, "its workers died with it"
            time.sleep(0.02)
        if killed == 5:
            break
    assert killed == 5


def _in_session(number: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            state, _, _, session = stat.rpartition(")")[2].split()[:4]
            if int(session) == number and state != "Z":
                found.append(int(entry.name))
    return found


def test_the_progress_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    path = tmp_path / "a"
    path.write_bytes(b"x" * 4000)
    with open(terminal, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        progress = Progress([Task("a", path)])
        progress.add(1000)
        progress.clear()
        progress._began -= 10
        progress._last -= 10
        progress.add(1000)
        progress.clear()
    shown = b""
    with contextlib.suppress(OSError), open(main, "rb", buffering=0) as screen:  # EIO: all has been read
        while data := screen.read(1000):
            shown += data
    assert re.fullmatch(r"\r\[#{12} {13}\]  50 %  2\.0 KiB of 3\.9 KiB, .*/s\x1b\[K\r\x1b\[K", shown.decode())


# The replay


def test_the_replay_says_unverified_before_and_after(place: Place) -> None:
    session = place.put()
    place.change(session, b'"bye', b'"lie')
    done = place.sshrec("play", session)
    assert (done.returncode, done.stdout) == (0, "hello\nlie\nreally\n")
    said = done.stderr.splitlines()
    assert len(said) == 2
    assert said[0] == said[1]
    assert re.fullmatch(
        r"sshrec: UNVERIFIED: chunk 1, byte \d+, after 6\.500000 s: its text is not what was sealed", said[0]
    )


def test_the_replay_of_what_holds_says_nothing_and_that_of_others_neither(place: Place, tmp_path: Path) -> None:
    good, dead = place.put(), place.put(outcome=None)
    assert place.sshrec("play", good).stderr == ""
    assert "UNVERIFIED" not in place.sshrec("play", dead).stderr
    place.store.pack(good)
    assert place.sshrec("play", good).stderr == ""
    foreign = tmp_path / "theirs.cast"
    foreign.write_text('{"version": 2, "width": 80, "height": 24}\n[0.5, "o", "hello\\r\\n"]\n')
    done = place.sshrec("play", foreign)
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_a_recording_that_denies_being_ours_is_betrayed_by_its_name(place: Place) -> None:
    session = place.put()
    path = place.change(session, b'"sshrec":', b'"ssh":')
    assert place.sshrec("play", path).stderr.count("sshrec: UNVERIFIED: chunk 0, byte 0") == 2


def test_on_a_terminal_the_word_stands_before_and_after(place: Place) -> None:
    session = place.put()
    place.change(session, b'"bye', b'"lie')
    child = pexpect.spawn(
        SSHREC,
        ["--config", str(place.config), "play", "-s", "64", session],
        env={**os.environ, "NO_COLOR": "1"},
        timeout=20,
        encoding="utf-8",
    )
    for text in ("UNVERIFIED: chunk 1", "hello", "lie", "really", "UNVERIFIED: chunk 1"):
        child.expect_exact(text)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


# Real sessions


def verdicts(lab: Lab, *arguments: str) -> dict[str, str]:
    """What `sshrec verify --json` says, by session."""
    done = lab.sshrec("verify", "--json", *arguments, check=False)
    found = json.loads(done.stdout)["recordings"]
    assert done.returncode in (0, 1, 3)
    return {
        row["id"]: row["state"] + (f" {row['incomplete']['why']}" if "incomplete" in row else "") for row in found
    }


def test_whatever_a_session_records_is_complete(lab: Lab) -> None:
    lab.ssh("-A", "bastion", "root@web1", "echo out; echo err >&2; head -c 100000 /dev/urandom; exit 7")
    lab.ssh("-A", "bastion", "root@web1", "cat", input=os.urandom(200_000))
    lab.ssh("-tA", "bastion", "root@web1", "printf '\\377 S \\033[31m \"S\",'; seq 20000")
    child = lab.spawn("-tA", "bastion", "root@web1")
    child.expect(PROMPT)
    live = lab.recordings()[-1].name.partition(".")[0]
    assert verdicts(lab, live) == {live: "INCOMPLETE live"}
    child.sendline("exit")
    child.expect(pexpect.EOF)
    child.close()
    newest = [path.name.partition(".")[0] for path in lab.recordings()[-4:]]

    def complete() -> bool:
        return verdicts(lab, *newest) == dict.fromkeys(newest, "COMPLETE")

    lab.wait(complete, "every recording to be complete, packed or not")
