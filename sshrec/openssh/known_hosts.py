"""Lines that tell ssh and sshd whose certificates count: known_hosts, authorized_keys, TrustedUserCAKeys."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from sshrec.atomic import replace_file
from sshrec.errors import DataError, describe
from sshrec.openssh.public_key import PublicKey, parse, read_file
from sshrec.session import printable

GATEWAY_KNOWN_HOSTS = "gateway_known_hosts"  # among what the authority publishes
_LIMIT = 64 * 1024 * 1024  # bytes of a person's known_hosts


def plain(keys: Iterable[PublicKey]) -> str:
    """Lines for TrustedUserCAKeys (sshd_config(5)): the bare public keys."""
    return "".join(f"{key.line}\n" for key in keys)


def authorized_keys(keys: Iterable[PublicKey]) -> str:
    """Lines for authorized_keys (sshd(8))."""
    return "".join(f"cert-authority {key.line}\n" for key in keys)


def authorities(keys: Iterable[PublicKey], hosts: str) -> str:
    """Lines for known_hosts (sshd(8)): these CAs vouch for hosts that match the pattern."""
    return "".join(f"@cert-authority {hosts} {key.line}\n" for key in keys)


def merged(text: bytes, hosts: str, keys: Sequence[PublicKey], comment: str) -> bytes:
    """A known_hosts file in which these CAs, and no others under this comment, vouch for the hosts.

    All other lines stay as they are. The same again changes nothing.
    """
    ours = [f"@cert-authority {hosts} {key.algorithm} {key.blob}".encode() for key in keys]
    mark = comment.encode()
    lines, there = [], set[bytes]()
    for line in text.splitlines(keepends=True):
        words = line.split(maxsplit=4)
        if words[:2] == [b"@cert-authority", hosts.encode()] and len(words) >= 4:
            fact = b" ".join(words[:4])
            if fact in there or (fact not in ours and b"".join(words[4:]).strip() == mark):
                continue
            if fact in ours:
                there.add(fact)
        lines.append(line)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    return b"".join(lines) + b"".join(line + b" " + mark + b"\n" for line in ours if line not in there)


def merge(path: Path, hosts: str, keys: Sequence[PublicKey], comment: str) -> bool:
    """`merged` of a file, which keeps its mode, or is made; whether that changed it. DataError or OSError."""
    path = path.resolve()  # a link to the file stays one
    text, mode = b"", 0o600
    if path.exists():
        text, mode = read_file(path, _LIMIT), stat.S_IMODE(path.stat().st_mode)
        if len(text) > _LIMIT:
            raise DataError(f"{printable(str(path))} is too large")
    new = merged(text, hosts, keys, comment)
    if new == text:
        return False
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, new, mode)
    except OSError as error:
        raise DataError(f"{printable(str(path))}: {describe(error)}") from error
    return True


def vouching(line: str) -> tuple[str, bytes] | None:
    """Hosts, and the key's line, of a line with @cert-authority; None for any other."""
    words = line.split(maxsplit=2)
    return (words[1], words[2].encode()) if len(words) == 3 and words[0] == "@cert-authority" else None


def host_keys(data: bytes) -> dict[str, list[PublicKey]]:
    """The plain host keys in a known_hosts file, by the names that it spells out.

    Patterns, hashed names and marked lines (@cert-authority, @revoked) are passed over, and lines that are none.
    """
    found: dict[str, list[PublicKey]] = {}
    for line in data.splitlines():
        names, _, rest = line.strip().partition(b" ")
        if not rest or names[:1] in (b"#", b"@", b"|"):
            continue
        try:
            key = parse(rest.strip() + b"\n", "known_hosts")
        except DataError:
            continue
        for name in names.decode("ascii", "replace").split(","):
            if not set(name) & set("*?!"):
                found.setdefault(name, []).append(key)
    return found
