"""What has come of a file, as the audit log says it: Teleport's codes and fields, and what it lacks of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sshrec.gateway.transfer.fact import OK, Action, Change, Fact, File, spelled

# Teleport's numbers of what SFTP does; its codes have them, too.
_OPEN = 1
_ACTIONS: Final[Mapping[Action, int]] = {
    "setstat": 7,
    "remove": 11,
    "mkdir": 12,
    "rmdir": 13,
    "rename": 16,
    "symlink": 18,
    "link": 19,
}
_DISALLOWED = "TS020E"
_SCP = {"download": "T3004", "upload": "T3005"}


def told(protocol: str, fact: Fact, directory: bytes | None) -> tuple[str, dict[str, Any]]:
    """The code and the fields of the event that has the protocol's name. `directory`: the session's own."""
    grade = "I" if fact.outcome == OK else "E"
    if protocol == "scp":
        return _scp(fact, grade)
    fields = _named(fact)
    if directory is not None:
        fields |= spelled("working_directory", directory)
    if fact.outcome != OK:
        fields["error"] = fact.outcome
    if isinstance(fact, File):
        fields |= {"action": _OPEN, "direction": fact.direction, **_measured(fact)}
        if fact.flags is not None:
            fields["flags"] = fact.flags
        return _DISALLOWED if fact.denied else f"TS001{grade}", fields
    fields |= {"operation": fact.action, **fact.more}
    number = _ACTIONS.get(fact.action)
    if number is None:
        return f"SR500{grade}", fields
    return f"TS{number:03}{grade}", {**fields, "action": number}


def _scp(fact: Fact, grade: str) -> tuple[str, dict[str, Any]]:
    fields = _named(fact)
    if fact.outcome != OK:
        fields |= {"exitCode": "1", "exitError": fact.outcome}
    else:
        fields["exitCode"] = "0"
    if isinstance(fact, Change):
        return f"SR501{grade}", {**fields, "action": fact.action, **fact.more}
    fields |= {"action": fact.direction, **_measured(fact), "len": fact.size}
    return f"{_SCP[fact.direction]}{grade}", fields


def _named(fact: Fact) -> dict[str, Any]:
    fields = spelled("path", fact.path)
    if isinstance(fact, Change):
        return fields if fact.to is None else fields | spelled("target_path", fact.to)
    return fields if fact.name is None else fields | spelled("name", fact.name)


def _measured(fact: File) -> dict[str, Any]:
    said = fact.said()
    fields: dict[str, Any] = {name: said[name] for name in ("size", "sha256", "mode") if name in said}
    if "ranges" in said:
        fields["ranges"] = [f"{start}-{end}" for start, end in fact.ranges]
    return fields
