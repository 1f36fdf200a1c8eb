"""What a session left behind: its recording, read with our own reader and judged by its raw lines."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from sshrec.recording import events, reader
from sshrec.recording.seal import Chain, is_seal, read_seal
from tests.lab import Lab


class Recorded:
    """One finished, packed recording."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session = path.name.partition(".")[0]
        with reader.open_path(path) as recording:
            self.events = list(recording)
            assert recording.complete
            self.facts = recording.header.facts
            self.size = recording.header.size
        self.lines = subprocess.run(["zstd", "-dcq", path], capture_output=True, check=True).stdout.splitlines(
            True
        )

    @property
    def end(self) -> dict[str, Any]:
        """The outcome in the last seal."""
        outcome = read_seal(self.lines[-1])["end"]
        assert isinstance(outcome, dict)
        return outcome

    @property
    def text(self) -> str:
        """All output, as a player shows it."""
        return "".join(event.data for event in self.events if event.code == events.OUTPUT)

    def coded(self, code: str) -> list[str]:
        """The data of all events with a code."""
        return [event.data for event in self.events if event.code == code]

    def streams(self) -> dict[str, bytes]:
        """What was kept of each output stream, exactly."""
        kept = {"stdout": b"", "stderr": b""}
        for output in reader.output(self.events):
            kept[output.stream] += output.data
        return kept

    def counts(self) -> dict[str, tuple[int, str]]:
        """Bytes and SHA-256 of each stream, as they were counted."""
        facts = [msgspec.json.decode(data) for data in self.coded(events.COUNT)]
        return {fact["stream"]: (fact["bytes"], fact.get("sha256", "")) for fact in facts}

    def check_chain(self) -> None:
        """Every seal covers what it says, the last line is one, and times never go back."""
        chain = Chain(self.session)
        for line in self.lines:
            if is_seal(line):
                seal = read_seal(line)
                assert {key: seal[key] for key in ("n", "count", "bytes", "sha256", "prev")} == chain.expected()
                chain.close(line)
            else:
                chain.add(line)
        assert is_seal(self.lines[-1])
        times = [event.time for event in self.events]
        assert times == sorted(times)


def fingerprint(data: bytes) -> tuple[int, str]:
    """As `counts` gives it."""
    return len(data), hashlib.sha256(data).hexdigest()


def packed(lab: Lab, count: int) -> list[Path]:
    """The newest recordings, once they are finished and packed."""

    def all_packed() -> list[Path]:
        newest = lab.recordings()[-count:]
        return newest if len(newest) == count and all(path.suffix == ".zst" for path in newest) else []

    return lab.wait(all_packed, "the newest recordings to be packed")


def last(lab: Lab) -> Recorded:
    """The newest recording, once it is finished and packed; its chain is checked."""
    recorded = Recorded(packed(lab, 1)[0])
    recorded.check_chain()
    return recorded
