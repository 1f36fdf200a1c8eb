"""The audit log's part of `sshrec verify`: which log, whose signatures, and what is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sshrec.audit.log import files, read_log
from sshrec.audit.verify import LATE_SECONDS, Check, Lapse, Report, read_anchors, verify_log
from sshrec.authority.log_key import ALLOWED_SIGNERS, NAMESPACE
from sshrec.cli.main import Settings
from sshrec.errors import ConfigError, DataError, NotFound, describe
from sshrec.openssh.sshsig import verify_data
from sshrec.recording.asciicast import rfc3339


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the log came to.

    `identity`: whose signatures counted, None where nobody's did; `own`: this host says itself who that is.
    """

    directory: Path
    report: Report
    identity: str | None
    own: bool

    def lapses(self, since: float) -> list[Lapse]:
        """What the log proves less of than it should, of the time since then, in Unix seconds."""
        return [lapse for lapse in self.report.lapses if max(lapse.begins, lapse.ends) >= since]

    def lines(self, since: float = 0) -> list[str]:
        """For people, the conclusion first; `since`: as `lapses` has it."""
        report = self.report
        told = [f"audit log {self.directory}: {report.lines} lines"]
        if self.identity is None:
            told[0] += ", unsigned: whoever can write there can make it anew"
        else:
            when = f", the last at {rfc3339(int(report.time * 1000))}" if report.time else ""
            told[0] += f", {report.signed} signed by {self.identity}{when}"
        if self.own:
            told.append("  checked with this host's own allowed_signers; an auditor's copy proves more")
        if report.anchored:
            told.append(f"  {report.anchored} anchors found in it")
        told += [f"BAD         audit log  {problem}" for problem in report.problems]
        return told + [f"INCOMPLETE  audit log  {lapse}" for lapse in self.lapses(since)]

    def as_object(self, since: float = 0) -> dict[str, Any]:
        """For machines; `since`: as `lapses` has it."""
        report = self.report
        return {
            "directory": str(self.directory),
            "lines": report.lines,
            "signed": report.signed,
            "identity": self.identity,
            "last_signed": rfc3339(int(report.time * 1000)) if report.time else None,
            "anchors": report.anchored,
            "problems": report.problems,
            "lapses": [
                {
                    "kind": lapse.kind,
                    "lines": [lapse.first, lapse.last],
                    "from": rfc3339(round(lapse.begins * 1000)),
                    "to": rfc3339(round(lapse.ends * 1000)),
                }
                for lapse in self.lapses(since)
            ],
        }


def evidence(
    settings: Settings, log: Path | None, signers: Path | None, anchors: Sequence[Path], *, needed: bool
) -> Evidence | None:
    """Read the log and prove it. None where there is none and nobody asked for it.

    `signers`: the auditor's allowed_signers; this host's own where None.
    """
    directory = log or settings.config.audit_dir
    try:
        there = bool(files(directory))
    except PermissionError as error:
        raise ConfigError(f"{directory}: {describe(error)}", hint="run it as root, or as sshrec") from error
    if not there:
        if needed or anchors or signers:
            raise NotFound(f"no audit log in {directory}")
        return None
    own = signers is None and log is None
    if own:
        signers = settings.config.public_dir / ALLOWED_SIGNERS
        if not signers.exists():
            signers = None
    identity = _identity(signers) if signers else None
    known = [anchor for path in anchors for anchor in read_anchors(path)]
    check = _check(signers, identity) if signers and identity else None
    late = max(LATE_SECONDS, 3.0 * settings.config.audit.checkpoint_interval)
    report = verify_log(read_log(directory), check, known, late)
    return Evidence(directory, report, identity, own and signers is not None)


def _identity(signers: Path) -> str:
    """Who signs, by the auditor's file: it must be about one signer."""
    try:
        text = signers.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        words = describe(error) if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"{signers}: {words}") from error
    names = {line.split()[0] for line in text.splitlines() if line.strip() and not line.startswith("#")}
    if len(names) != 1:
        raise DataError(
            f"{signers} names {len(names)} signers", hint="one bastion's log, one identity: copy its lines"
        )
    return names.pop()


def _check(signers: Path, identity: str) -> Check:
    def check(line: bytes, by: str, namespace: str, signature: str, at: int) -> None:
        if (by, namespace) != (identity, NAMESPACE):
            raise DataError(f"signed by {by!r} for {namespace!r}")
        verify_data(signers, identity, NAMESPACE, line, signature, at)

    return check
