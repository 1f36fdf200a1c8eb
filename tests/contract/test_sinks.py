"""Every sink of the audit log, against something that really listens: in order, at least once, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sshrec.audit import follow
from sshrec.audit.appender import Appender
from sshrec.audit.event import packet
from sshrec.audit.follow import Cursor, Item, read_on
from sshrec.audit.log import Line
from sshrec.audit.sinks import Destination, Lost, Stdout, destination
from sshrec.audit.verify import read_anchors
from sshrec.config import Sink
from sshrec.errors import SshrecError
from sshrec.gateway.shipper import Lane
from tests.receivers import NETWORK, Http, Receiver, Tcp, Tls, first_seen, wait

HOSTILE = 'x\n<13>1 - evil - - - - \x1b]0;owned\x07 "]\\ \u202e\x00 [sshrec@32473 user="root"]\r\n'


@pytest.fixture(params=NETWORK, ids=lambda kind: kind.__name__)
def receiver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Receiver]:
    there: Receiver = request.param(tmp_path)
    yield there
    if there.running:
        there.stop()


class Log:
    """A log that is written to, and one sink's way through it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "audit"
        self.appender = Appender(self.directory)
        assert self.appender.lock()
        self.cursor = Cursor()
        self.up_to_date = 0

    def write(self, *events: dict[str, Any]) -> None:
        self.appender.append([{**event, "sender_uid": 0} for event in events])

    def items(self) -> list[Item]:
        return read_on(self.directory, Cursor(), 10_000)[0]

    def said(self) -> list[str]:
        return [item.raw[:-1].decode() if isinstance(item, Line) else item.text for item in self.items()]

    def lane(self, sink: Destination) -> Lane:
        def up_to_date(_: float) -> None:
            self.up_to_date += 1

        return Lane(sink, self.directory, self.directory.parent / "cursor.json", up_to_date)

    def ship(self, lane: Lane, turns: int = 1) -> int:
        """So many turns; the number of the next line."""
        for _ in range(turns):
            self.cursor, _pause = lane.turn(self.cursor)
        return self.cursor.n


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path)
    yield log
    log.appender.close()


def resize(number: int) -> dict[str, Any]:
    return packet("resize", {"sid": "S", "user": "joe", "size": f"{number}:25"})


def checkpoint() -> dict[str, Any]:
    return {**packet("resize", {}), "event": "checkpoint", "code": "SR002I", "heads": {}, "host": "bastion"}


def test_lines_and_anchors_come_as_they_are_in_the_log(receiver: Receiver, log: Log) -> None:
    receiver.start()
    log.write(resize(1), checkpoint(), resize(2))
    sink = destination(receiver.sink)
    sink.deliver(log.items())
    wait(lambda: len(receiver.messages) >= 4, "four messages")
    assert receiver.said() == log.said()
    anchor = next(item for item in log.items() if not isinstance(item, Line))
    assert receiver.said()[2] == f"sshrec-anchor n=1 sha256={anchor.sha256} host=bastion"
    sink.close()


def test_a_hostile_text_is_one_message(receiver: Receiver, log: Log) -> None:
    receiver.start()
    log.write(packet("exec", {"sid": HOSTILE, "user": HOSTILE, "command": HOSTILE}), resize(1))
    sink = destination(receiver.sink)
    sink.deliver(log.items())
    wait(lambda: len(receiver.messages) >= 2, "two messages")
    assert receiver.said() == log.said()
    assert all(byte >= 32 and byte != 127 for message in receiver.messages for byte in message)
    sink.close()


def test_a_line_as_long_as_they_may_be(receiver: Receiver, log: Log) -> None:
    receiver.start()
    log.write(packet("exec", {"command": "x" * 100_000}))
    assert len(log.said()[0]) > 60_000
    sink = destination(receiver.sink)
    sink.deliver(log.items())
    wait(lambda: receiver.messages, "it")
    assert receiver.said() == log.said()
    sink.close()


def test_an_absent_receiver_loses_nothing(receiver: Receiver, log: Log) -> None:
    sink = destination(receiver.sink)
    lane = log.lane(sink)
    log.write(*map(resize, range(3)))
    log.ship(lane)
    assert log.cursor == Cursor()
    assert not log.up_to_date
    receiver.start()
    log.ship(lane, 3)
    assert log.up_to_date
    receiver.stop()
    log.write(*map(resize, range(3, 700)), checkpoint())
    log.ship(lane, 3)
    receiver.start()
    log.ship(lane, 20)
    wait(lambda: first_seen(receiver.said()) == log.said(), "all of it, in order")
    sink.close()


def test_a_restart_goes_on_where_it_was(receiver: Receiver, log: Log, tmp_path: Path) -> None:
    receiver.start()
    log.write(*map(resize, range(3)))
    sink = destination(receiver.sink)
    log.ship(log.lane(sink))
    sink.close()
    log.write(*map(resize, range(3, 5)))
    log.cursor = follow.load_cursor(tmp_path / "cursor.json")
    assert log.cursor.n == 3
    sink = destination(receiver.sink)
    log.ship(log.lane(sink))
    wait(lambda: receiver.said() == log.said(), "each once")
    sink.close()


# ---- one or the other -------------------------------------------------------------------------------------


def test_a_broken_connection_sends_the_newest_again(tmp_path: Path, log: Log) -> None:
    receiver = Tcp(tmp_path)
    receiver.start()
    sink = destination(receiver.sink)
    lane = log.lane(sink)
    log.write(resize(1))
    log.ship(lane)
    wait(lambda: receiver.messages, "a line")
    receiver.stop()
    with pytest.raises(Lost, match="connection closed"):
        sink.deliver([])
    receiver.start()
    log.ship(lane)  # connects anew
    log.write(resize(2))
    log.ship(lane)
    wait(lambda: log.said()[1] in receiver.said(), "the second")
    receiver.stop()
    log.ship(lane)  # finds it closed
    assert log.cursor.n == 1 or log.cursor == Cursor()
    receiver.start()
    log.ship(lane, 2)
    wait(lambda: receiver.said().count(log.said()[1]) == 2, "the newest, again")
    assert first_seen(receiver.said()) == log.said()
    receiver.stop()


@pytest.mark.parametrize("fault", ["another ca", "another name"])
def test_a_receiver_that_is_not_the_one(fault: str, tmp_path: Path, log: Log) -> None:
    receiver = Tls(tmp_path)
    sink = receiver.sink
    if fault == "another ca":
        other = Tls(tmp_path / "other")
        other.directory.mkdir()
        sink = replace(sink, ca_file=other.sink.ca_file)
    else:
        sink = replace(sink, address=f"tls://localhost:{receiver.port}")
    receiver.start()
    log.write(resize(1))
    with pytest.raises(SshrecError, match="certificate"):
        destination(sink).deliver(log.items())
    receiver.stop()
    assert receiver.messages == []


def test_tls_is_verified_by_default(tmp_path: Path, log: Log) -> None:
    receiver = Tls(tmp_path)
    receiver.start()
    log.write(resize(1))
    with pytest.raises(SshrecError, match="self-signed"):
        destination(replace(receiver.sink, ca_file=None)).deliver(log.items())
    receiver.stop()
    assert ssl.create_default_context().check_hostname


@pytest.mark.parametrize("status", [301, 401, 413, 500])
def test_http_answers_that_are_no_yes(status: int, tmp_path: Path, log: Log) -> None:
    receiver = Http(tmp_path)
    receiver.status = status
    receiver.start()
    log.write(resize(1))
    lane = log.lane(destination(receiver.sink))
    with pytest.raises(SshrecError, match=f"answers {status}"):
        destination(receiver.sink).deliver(log.items())
    log.ship(lane)
    assert log.cursor == Cursor()
    receiver.status = 200
    log.ship(lane)
    assert receiver.said() == log.said()
    receiver.stop()


def test_http_sends_the_token_of_a_private_file(tmp_path: Path, log: Log) -> None:
    receiver = Http(tmp_path)
    receiver.start()
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    sink = destination(replace(receiver.sink, token_file=token))
    log.write(resize(1))
    token.chmod(0o644)
    with pytest.raises(SshrecError, match="open to everybody"):
        sink.deliver(log.items())
    token.chmod(0o600)
    sink.deliver(log.items())
    (request,) = receiver.requests
    assert request["Authorization"] == "Bearer s3cret"
    assert request["path"] == "/log?from=bastion"
    receiver.stop()


def test_standard_output(log: Log) -> None:
    log.write(resize(1), checkpoint())
    end, pipe = os.pipe()
    Stdout("journal", pipe).deliver(log.items())
    assert os.read(end, 65536).decode().splitlines() == log.said()
    os.close(end)
    with pytest.raises(SshrecError, match="broken pipe"):
        Stdout("journal", pipe).deliver(log.items())
    os.close(pipe)


def test_a_receiver_that_reads_nothing(tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sshrec.audit.sinks.TIMEOUT", 0.3)
    receiver = Tcp(tmp_path)
    listener = receiver._bind()  # nobody accepts
    log.write(*(packet("exec", {"command": "x" * 60_000}) for _ in range(100)))
    with pytest.raises(SshrecError, match="takes too long"):
        destination(Sink(name="deaf", type="syslog", address=f"tcp://127.0.0.1:{receiver.port}")).deliver(
            log.items() * 3
        )
    listener.close()


def test_a_disk_that_takes_no_cursor_stops_nothing(tmp_path: Path, log: Log) -> None:
    receiver = Tcp(tmp_path)
    receiver.start()
    sink = destination(receiver.sink)
    lane = log.lane(sink)
    (tmp_path / "cursor.json").mkdir()
    log.write(resize(1))
    log.ship(lane)
    log.write(resize(2))
    log.ship(lane)
    wait(lambda: receiver.said() == log.said(), "each once")
    sink.close()
    receiver.stop()


# ---- rsyslog ----------------------------------------------------------------------------------------------

RSYSLOG = """
global(workDirectory="{directory}" maxMessageSize="80k")
module(load="imuxsock" SysSock.Use="off")
module(load="imtcp")
input(type="imuxsock" Socket="{directory}/log" UseSpecialParser="off")
input(type="imtcp" Address="127.0.0.1" Port="{port}")
template(name="parts" type="list" option.jsonf="on") {{
    property(outname="facility" name="syslogfacility-text" format="jsonf")
    property(outname="severity" name="syslogseverity-text" format="jsonf")
    property(outname="app" name="app-name" format="jsonf")
    property(outname="msgid" name="msgid" format="jsonf")
    property(outname="data" name="structured-data" format="jsonf")
    property(outname="message" name="msg" format="jsonf")
}}
action(type="omfile" File="{directory}/out" Template="parts")
"""


@pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="no rsyslogd: apt-get install rsyslog")
@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_rsyslog_takes_it_apart_as_it_was_put_together(way: str, tmp_path: Path, log: Log) -> None:
    port = Tcp(tmp_path).reserve()
    conf, out = tmp_path / "rsyslog.conf", tmp_path / "out"
    conf.write_text(RSYSLOG.format(directory=tmp_path, port=port))
    log.write(packet("exec", {"sid": "S", "user": HOSTILE, "command": "x" * 60_000}, code="T3002E"), checkpoint())
    address = str(tmp_path / "log") if way == "unix" else f"tcp://127.0.0.1:{port}"
    sink = destination(Sink(name="rsyslog", type="syslog", address=address))
    lane = log.lane(sink)
    rsyslogd = subprocess.Popen(["rsyslogd", "-n", "-f", conf, "-i", tmp_path / "pid"], stderr=subprocess.DEVNULL)
    try:
        wait(lambda: log.ship(lane) == 2, "rsyslogd to take it")
        wait(lambda: out.exists() and out.read_bytes().count(b"\n") >= 3, "rsyslogd to write it")
    finally:
        sink.close()
        rsyslogd.terminate()
        rsyslogd.wait(20)
    event, point, anchor = (json.loads(line) for line in out.read_text().splitlines())
    assert [part["message"].lstrip() for part in (event, point, anchor)] == log.said()
    assert {part["app"] for part in (event, point, anchor)} == {"sshrec"}
    assert [part["msgid"] for part in (event, point, anchor)] == ["exec", "checkpoint", "anchor"]
    assert (event["severity"], point["severity"]) == ("err", "info")
    assert event["data"].startswith('[sshrec@32473 event="exec" n="0" sid="S" user="x\\\\n<13>1 - evil')
    assert [(found.n, found.sha256) for found in read_anchors(out)] == [
        (item.n, item.sha256) for item in log.items() if not isinstance(item, Line)
    ]
