"""The audit log leaves the bastion: whoever dies on the way, all of it comes; where it must, or nobody enters."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit.log import Line, read_log
from sshrec.audit.verify import read_anchors
from tests.lab import Lab
from tests.lab.processes import children
from tests.receivers import Datagrams, Http, Receiver, Tcp, Tls, first_seen


@pytest.fixture
def place(lab: Lab) -> Path:
    """Where sshrecd can find a receiver."""
    place = lab.directory / "receivers"
    place.mkdir(exist_ok=True)
    place.chmod(0o755)
    return place


@pytest.fixture
def receivers(lab: Lab, place: Path) -> Iterator[Callable[[type[Receiver]], Receiver]]:
    """Makes them; they are stopped after the test, and sshrecd forgets them."""
    made: list[Receiver] = []

    def make(kind: type[Receiver]) -> Receiver:
        directory = place / kind.__name__
        directory.mkdir(exist_ok=True)
        made.append(kind(directory))
        return made[-1]

    yield make
    lab.stop_sshrecd()
    for receiver in made:
        if receiver.running:
            receiver.stop()
    for path in (lab.data_dir / "audit-cursors").glob("*"):
        path.unlink()
    lab.start_sshrecd()


def setting(receiver: Receiver, **more: Any) -> dict[str, Any]:
    """A receiver as sshrec.yaml names it."""
    sink = receiver.sink
    settings = {"name": sink.name, "type": sink.type, "address": sink.address, **more}
    return settings | ({"ca_file": str(sink.ca_file)} if sink.ca_file else {})


def restart(lab: Lab, *sinks: dict[str, Any]) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"audit": {"sinks": list(sinks)}})


def logged(lab: Lab) -> list[Line]:
    return [item for item in read_log(lab.data_dir / "audit") if isinstance(item, Line)]


def wait_for_all(lab: Lab, *receivers: Receiver) -> None:
    """Until each has every line of the log, in order; anchors aside."""

    def all_there() -> bool:
        expected = [line.raw[:-1].decode() for line in logged(lab)]
        return all(
            first_seen([text for text in receiver.said() if text.startswith("{")])[: len(expected)] == expected
            for receiver in receivers
        )

    lab.wait(all_there, "the whole log at every receiver", 60)


def visit(lab: Lab) -> None:
    """A session, until its end is in the log."""

    def ends() -> int:
        there = any((lab.data_dir / "audit").glob("*.jsonl"))
        return sum(line.event == "session.end" for line in logged(lab)) if there else 0

    before = ends()
    assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == 0
    lab.wait(lambda: ends() > before, "the end of the session in the log")


def refusal(lab: Lab) -> str:
    """What a person is told who is not let in; nothing where they are."""
    done = lab.ssh("-A", "bastion", "root@web1", "true")
    return done.stderr.decode() if done.returncode else ""


def shipper(lab: Lab, but: int = 0) -> int:
    there: list[int] = lab.wait(
        lambda: [pid for pid in children(lab.sshrecd_pid, "sshrec-shipper") if pid != but], "the shipper"
    )
    return there[0]


def test_a_session_and_its_anchors_reach_every_sink(
    lab: Lab, receivers: Callable[[type[Receiver]], Receiver], tmp_path: Path
) -> None:
    there = [receivers(kind) for kind in (Datagrams, Tcp, Tls, Http)]
    for receiver in there:
        receiver.start()
    restart(lab, *map(setting, there), {"name": "journal", "type": "stdout"})
    visit(lab)
    wait_for_all(lab, *there)

    def anchored() -> bool:
        last = max(line.n for line in logged(lab) if line.event == "session.end")
        return all(
            any(int(n) > last for text in receiver.said() for n in re.findall(r"^sshrec-anchor n=(\d+)", text))
            for receiver in there
        )

    lab.wait(anchored, "an anchor of the session's end at every receiver", 60)
    digests = {line.n: line.digest for line in logged(lab)}
    for receiver in there:
        syslog = tmp_path / "syslog"
        syslog.write_bytes(b"\n".join(receiver.messages))
        assert all(digests[anchor.n] == anchor.sha256 for anchor in read_anchors(syslog))
    output = (lab.directory / "sshrecd.log").read_text()
    assert '"event":"session.end"' in output
    assert "\nsshrec-anchor n=" in output


def test_nothing_is_lost_whoever_dies(lab: Lab, receivers: Callable[[type[Receiver]], Receiver]) -> None:
    there = receivers(Tcp)
    restart(lab, setting(there))
    visit(lab)  # nobody listens yet
    first = shipper(lab)
    there.start()
    wait_for_all(lab, there)
    os.kill(first, signal.SIGKILL)
    visit(lab)
    wait_for_all(lab, there)
    shipper(lab, but=first)
    there.stop()
    visit(lab)
    lab.stop_sshrecd(signal.SIGKILL)
    there.start()
    lab.start_sshrecd({"audit": {"sinks": [setting(there)]}})
    visit(lab)
    wait_for_all(lab, there)
    assert "what it has not got waits in the log" in lab.logs(1000)


def test_nobody_enters_while_a_required_sink_is_behind(
    lab: Lab, receivers: Callable[[type[Receiver]], Receiver]
) -> None:
    there = receivers(Tcp)
    there.start()
    restart(lab, setting(there, required=True, max_lag="1s"))
    wait_for_all(lab, there)
    lab.wait(lambda: lab.ssh("-A", "bastion", "root@web1", "true").returncode == 0, "a session")
    there.stop()
    said = lab.wait(lambda: refusal(lab), "a refusal")
    assert re.search(
        r"^sshrec: error: the audit log's sink tcp is required here, and has been behind for \d+s\r?$", said, re.M
    ), said
    assert "hint: sessions begin again once it has caught up" in said
    # An sshrecd that starts now knows it at once.
    restart(lab, setting(there, required=True, max_lag="1s"))
    assert "is required here" in refusal(lab)
    there.start()
    lab.wait(lambda: not refusal(lab), "a session again", 60)
    wait_for_all(lab, there)


def test_a_best_effort_sink_keeps_nobody_out(lab: Lab, receivers: Callable[[type[Receiver]], Receiver]) -> None:
    there = receivers(Tcp)
    restart(lab, setting(there, max_lag="1s"))
    lab.wait(lambda: "what it has not got waits in the log" in lab.logs(1000), "a warning")
    assert lab.ssh("-A", "bastion", "root@web1", "true").returncode == 0


def test_nobody_enters_while_the_shipper_stands_still(
    lab: Lab, receivers: Callable[[type[Receiver]], Receiver]
) -> None:
    there = receivers(Tcp)
    there.start()
    restart(lab, setting(there, required=True, max_lag="1s"))
    stuck = shipper(lab)
    os.kill(stuck, signal.SIGSTOP)
    try:
        said = lab.wait(lambda: refusal(lab), "a refusal")
        assert "the audit log's sink tcp is required here" in said
    finally:
        os.kill(stuck, signal.SIGKILL)
    lab.wait(lambda: not refusal(lab), "a session, by the help of another shipper", 60)
    wait_for_all(lab, there)
