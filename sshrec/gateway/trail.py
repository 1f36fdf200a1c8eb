"""What a session tells the audit log: its start before anything is shown, its end once the recording is durable.

Turns a session's facts, as its recording has them, into Teleport's fields. Decides nothing but when to tell.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sshrec.audit.client import Journal, tell
from sshrec.audit.event import AuditError, uid_of
from sshrec.errors import DataError, RecordingError, SshrecError
from sshrec.gateway.ending import FOREVER
from sshrec.gateway.relay import Loop
from sshrec.gateway.transfer.carried import carried
from sshrec.gateway.transfer.fact import Fact
from sshrec.gateway.transfer.told import told
from sshrec.recording.asciicast import rfc3339
from sshrec.recording.packing import last_line
from sshrec.recording.recorder import Stream
from sshrec.recording.seal import Outcome, read_seal
from sshrec.session import Winsize

if TYPE_CHECKING:
    from sshrec.storage.encrypting import Made

START_SECONDS = 10.0  # for the log to have a session's start, until the session is refused
END_SECONDS = 5.0  # for it to have the end; what it has not by then, recovery tells
TOLD_AHEAD = 256  # events of files that need not be durable yet
RESIZE_SECONDS = 1.0  # between two resizes of a session that are told

# What the event of a packed recording repeats of its end.
_PACKED = (
    *("sid", "user", "account_uid", "login", "namespace", "cluster_name", "server_hostname"),
    *("recording_bytes", "seal", "seal_sha256"),
)

Facts = Mapping[str, Any]


class Trail:
    """One session's events. `facts`: what the header of its recording says: sshrec-recording(5)."""

    def __init__(self, journal: Journal, loop: Loop, facts: Facts) -> None:
        self._journal, self._loop, self._facts = journal, loop, facts
        self._session: str = facts["session"]
        self._common = common(facts)
        self._start: str | None = None
        self._refuse_at = FOREVER
        self._size: Winsize | None = None  # to be told
        self._resize_at = 0.0
        self._candidate: tuple[int, str, int] | None = None  # a seal, and the bytes that must be on disk for it
        self._told = -1
        self._transfers = 0
        journal.watch(lambda fd: loop.watch(fd, self._answered), loop.unwatch)

    def started(self, size: Winsize, local: str) -> None:
        """Tell the start; `local`: the bastion's address and port. `is_begun` says when it is durable."""
        fields = {**self._common, "size": _size(size), "addr.local": _endpoint(local), "proto": "ssh"}
        fields |= {"interactive": self._facts["terminal"], "session_recording": self._facts["recording"]}
        fields |= _also(self._facts, "rule", "target", "key", "key_id", "serial", "command", "tty", "connection")
        self._refuse_at = time.monotonic() + START_SECONDS
        self._start = self._journal.send("session.start", fields, uid=uid_of(self._session, "session.start"))
        self._turn_soon()

    def is_begun(self) -> bool:
        """Whether the start is durable; AuditError where it cannot be: then there must be no session."""
        if self._start not in self._journal.pending and self._start not in self._journal.errors:
            self._refuse_at = FOREVER
            return True
        reason = self._journal.errors.get(self._start or "") or self._journal.refused
        if reason is None and time.monotonic() >= self._refuse_at:
            reason = "its writer does not answer"
        if reason is not None:
            self._refuse_at = FOREVER
            raise AuditError(f"this session cannot be logged: {reason}", hint="sshrecd's log has the reason")
        return False

    def _answered(self, _events: int) -> None:
        busy = self.busy
        self._journal.receive()
        self._turn_soon()
        if busy and not self.busy:
            self._loop.within(0)

    def _turn_soon(self) -> None:
        """Have `tick` called when the journal wants it: a writer may be gone, and another not there yet."""
        self._loop.within(min(self._journal.tick(), 1.0))

    def resized(self, size: Winsize) -> None:
        """The terminal has another size."""
        self._size = size
        self.tick()

    def unrecorded(self, error: RecordingError, since: str) -> None:
        """Tell that the session goes on without being recorded; returns once that is durable.

        AuditError where it cannot be: then the session must end.
        """
        fields = {**self._common, "reason": str(error), "unrecorded": since}
        try:
            tell(self._journal, "session.recording.failed", fields, seconds=END_SECONDS)
        except AuditError as refused:
            raise AuditError(f"this session can be neither recorded nor logged: {error}") from refused

    def synced(self, head: tuple[int, str], written: int, on_disk: int) -> None:
        """More of the recording is durable. `head`: number of the next seal, and the hash of the newest."""
        n, digest = head[0] - 1, head[1]
        if self._candidate is None and n > self._told:
            self._candidate = (n, digest, written)
        if self._candidate is not None and on_disk >= self._candidate[2]:
            self._told = self._candidate[0]
            self._journal.head(self._session, *self._candidate[:2])
            self._candidate = None

    @property
    def busy(self) -> bool:
        """Whether what is told should wait for what was told."""
        return len(self._journal.pending) >= TOLD_AHEAD

    def transferred(self, protocol: str, fact: Fact, directory: bytes | None) -> None:
        """Tell what has come of a file. `directory`: of the session, where that is known."""
        code, fields = told(protocol, fact, directory)
        self._transfers += 1
        uid = uid_of(self._session, f"{protocol}/{self._transfers}")
        self._journal.send(protocol, {**self._common, **fields}, uid=uid, code=code)

    def tick(self) -> float:
        """Tell what was held back; seconds until there is more to do."""
        now = time.monotonic()
        if self._size is not None and now >= self._resize_at:
            self._journal.send("resize", {**self._common, "size": _size(self._size)})
            self._size, self._resize_at = None, now + RESIZE_SECONDS
        waits = [self._journal.tick(), self._refuse_at - now]
        if self._size is not None:
            waits.append(self._resize_at - now)
        return max(0.0, min(waits))

    def ended(self, path: Path, outcome: Outcome, counts: Mapping[Stream, int], *, ran: bool) -> None:
        """Tell the end of a session whose recording is sealed and durable.

        `path`: the recording; `counts`: bytes of its streams; `ran`: whether there was a hop.
        """
        if self._size is not None:
            self._journal.send("resize", {**self._common, "size": _size(self._size)})
            self._size = None
        if outcome.reason in ("client-disconnect", "killed"):
            self._journal.send("client.disconnect", {**self._common, "reason": outcome.detail or outcome.reason})
        if ran and self._facts["kind"] == "exec":
            said = {"exitCode": str(outcome.status), **_also(self._facts, "command", "command_bytes")}
            said |= carried(self._facts.get("command", ""))
            if outcome.detail:
                said["exitError"] = outcome.detail
            code = "T3002E" if outcome.status else "T3002I"
            self._journal.send("exec", {**self._common, **said}, code=code)
        if ran and "subsystem" in self._facts:
            said = {"name": self._facts["subsystem"]}
            if outcome.status:
                said["exitError"] = outcome.detail or f"exit status {outcome.status}"
            code = "T3001E" if outcome.status else "T3001I"
            self._journal.send("subsystem", {**self._common, **said}, code=code)
        sent = {"tx": counts["stdout"] + counts["stderr"], "rx": counts["stdin"]}
        self._journal.send("session.data", {**self._common, **sent})
        fields, uid = end_of(path)
        self._journal.send("session.end", fields, uid=uid)

    def close(self) -> None:
        """Wait until what was told is durable, but not for ever."""
        self._journal.wait(END_SECONDS)
        self._journal.close()


def tell_end(journal: Journal, path: Path) -> None:
    """Tell the end of a session by its finished, plain recording; AuditError where the log cannot have it.

    Where its worker has told it already, the log knows it by its uid.
    """
    try:
        fields, uid = end_of(path)
    except (SshrecError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {error}") from error
    tell(journal, "session.end", fields, uid=uid)


def tell_packing(journal: Journal, plain: Path, packed: Path) -> None:
    """Tell of a recording that is packed, while it is there plain, too; AuditError where the log cannot have it.

    Told again after a crash, the same file is known by the event's uid.
    """
    with packed.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        packed_bytes = file.seek(0, os.SEEK_END)
    try:
        end, _ = end_of(plain)
    except (SshrecError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{plain}: {error}") from error
    fields = {name: end[name] for name in _PACKED if name in end}
    fields |= {"file_bytes": packed_bytes, "file_sha256": digest}
    tell(journal, "recording.pack", fields, uid=uid_of(end["sid"], f"recording.pack/{digest}"))


def tell_encryption(journal: Journal, made: Made) -> None:
    """Tell that a recording is encrypted; AuditError where the log cannot have it: then nothing may be removed.

    Each time under a uid of its own: made anew after a crash, it is another file.
    """
    facts = made.header
    try:
        fields = {**common(facts), **_also(facts, "rule", "target", "kind", "key", "key_id", "serial", "command")}
        fields |= {**_also(made.end, "reason", "status", "signal", "detail"), "session_start": facts["start"]}
    except (KeyError, TypeError) as error:
        raise DataError(f"its header says no {error}") from error
    tell(journal, "recording.encrypt", {**fields, **made.fields})


def tell_refusal(journal: Journal, status: Facts, error: SshrecError, rule: str | None) -> None:
    """Tell, as far as that can be, that a visit came to nothing. `status`: what its worker says of it."""
    fields = {"sid": status["session"], "namespace": "default", "cluster_name": os.uname().nodename}
    fields |= _also(status, "user", "target", "login") | {"reason": str(error)}
    if "uid" in status:
        fields["account_uid"] = status["uid"]
    if status.get("client"):
        fields["addr.remote"] = _endpoint(status["client"])
    if rule is not None:
        fields["rule"] = rule
    with contextlib.suppress(SshrecError):  # whoever was turned away got nothing, logged or not
        tell(journal, "session.rejected", fields)


def common(facts: Facts) -> dict[str, Any]:
    """What every event of a session says."""
    fields = {
        "sid": facts["session"],
        "user": facts["user"],
        "account_uid": facts["uid"],
        "login": facts["login"],
        "namespace": "default",
        "cluster_name": os.uname().nodename,
        "server_hostname": facts["host"],
    }
    return fields | ({"addr.remote": _endpoint(facts["client"])} if facts.get("client") else {})


def end_of(path: Path) -> tuple[dict[str, Any], str]:
    """The fields of session.end, and its uid, of a finished plain recording."""
    with path.open("rb") as file:
        facts: Facts = msgspec.json.decode(file.readline(), type=dict[str, Any])["sshrec"]
        line = last_line(file)
        size = file.seek(0, os.SEEK_END)
    seal = read_seal(line)
    end = seal["end"]
    fields = {
        **common(facts),
        **_also(facts, "rule", "target", "key", "key_id", "serial", "connection"),
        **_also(end, "reason", "status", "signal", "detail", "host_key", "unrecorded"),
        "session_start": facts["start"],
        "session_stop": rfc3339(seal["wall"]),
        "interactive": facts["terminal"],
        "participants": [facts["user"]],
        "session_recording": facts["recording"],
        "enhanced_recording": False,
        "proto": "ssh",
        "recording_bytes": size,
        "seal": seal["n"],
        "seal_sha256": hashlib.sha256(line).hexdigest(),
    }
    if "address" in end:
        fields["server_addr"] = end["address"]
    return fields, uid_of(facts["session"], "session.end")


def _also(facts: Facts, *names: str) -> dict[str, Any]:
    return {name: facts[name] for name in names if facts.get(name) is not None}


def _size(size: Winsize) -> str:
    return f"{size.columns}:{size.rows}"


def _endpoint(words: str) -> str:
    """`address port`, as sshd has it, with a colon."""
    address, _, port = words.partition(" ")
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
