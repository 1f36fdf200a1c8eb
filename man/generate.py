"""Writes sshrec.yaml(5) and contrib/sshrec.yaml.sample from the comments in sshrec/config.py.

python man/generate.py [--check]

With --check it writes nothing, and fails where a file is not what it would write.
"""

from __future__ import annotations

import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.hours import Hours
from sshrec.size import Size
from sshrec.strict import NOT_A_SETTING

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "man/sshrec.yaml.5.in"
PAGE = ROOT / "man/man5/sshrec.yaml.5"
SAMPLE = ROOT / "contrib/sshrec.yaml.sample"


@dataclass(frozen=True)
class Setting:
    """One key of the file. `default`: as YAML, None where there is none; `inner`: the keys below it."""

    name: str
    comment: str
    kind: str
    default: str | None
    inner: tuple[Setting, ...]
    listed: bool  # `inner` are the keys of each item of a list
    example: str = ""  # YAML, the key with it


def settings(kind: type) -> Iterator[Setting]:
    """The keys of a configuration dataclass, in the order they are written there."""
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):
        if field.metadata == NOT_A_SETTING:
            continue
        annotated, *metas = get_args(hints[field.name])
        meta = next(meta for meta in metas if isinstance(meta, msgspec.Meta))
        bounds = _bounds(annotated) or meta
        plain = _plain(annotated)
        listed = get_origin(plain) is tuple
        inner = _plain(get_args(plain)[0]) if listed else plain
        default = field.default if field.default_factory is MISSING else field.default_factory()
        yield Setting(
            field.name,
            str(meta.description),
            _kind(plain, bounds),
            None if default is MISSING or is_dataclass(default) else _yaml(default),
            tuple(settings(inner)) if isinstance(inner, type) and is_dataclass(inner) else (),
            listed,
            "".join(meta.examples or ()),
        )


def _bounds(kind: Any) -> msgspec.Meta | None:
    """The constraints of `Annotated[…] | None`."""
    parts = [meta for part in get_args(kind) for meta in getattr(part, "__metadata__", ())]
    return next((meta for meta in parts if isinstance(meta, msgspec.Meta)), None)


def _plain(kind: Any) -> Any:
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (typing.Union, types.UnionType):
        return _plain(next(part for part in get_args(kind) if part is not type(None)))
    return kind


def _kind(kind: Any, meta: msgspec.Meta) -> str:
    """What may stand there, in a word or two."""
    if get_origin(kind) is tuple:
        item = _kind(_plain(get_args(kind)[0]), meta)
        return "list of " + {"path": "paths", "text": "texts"}.get(item, item)
    if get_origin(kind) is Literal:
        return " | ".join(get_args(kind))
    if kind is bool:
        return "yes | no"
    if kind is Duration:
        return "duration"
    if kind is Size:
        return "size"
    if kind is Hours:
        return "hours"
    if kind is int:
        low, high = meta.ge, meta.le
        return "number" + (f" from {low}" if low is not None else "") + (f" to {high}" if high is not None else "")
    if kind is Path:
        return "path"
    if get_origin(kind) is not None and issubclass(get_origin(kind), Mapping):
        return "names and texts"
    return "text" if kind is str else "settings"


def _yaml(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_yaml, value))}]"
    return "{}" if value == {} else f'"{value}"' if str(value)[:1] in ("*", "{") else str(value)


def page() -> str:
    """sshrec.yaml(5): the template with the settings in it."""
    return TEMPLATE.read_text().replace("@SETTINGS@\n", "\n".join(_mdoc(settings(Config))) + "\n")


def _mdoc(keys: typing.Iterable[Setting]) -> Iterator[str]:
    yield ".Bl -tag -width Ds"
    for key in keys:
        yield f".It Ic {key.name} : Ar {_escape(key.kind).replace(' | ', ' | Ar ')}"
        yield from _sentences(key.comment)
        if key.default:
            yield "Default:"
            yield f".Ql {_escape(key.default)} ."
        if key.example:
            yield "For example:"
            yield from (".Bd -literal -offset indent", *map(_escape, key.example.splitlines()), ".Ed", ".Pp")
        if key.inner:
            yield "Each of them has:" if key.listed else "Below it:"
            yield from _mdoc(key.inner)
    yield ".El"


def _sentences(text: str) -> Iterator[str]:
    """Each sentence on lines of its own, as mdoc(7) wants it."""
    for sentence in re.split(r"(?<=[.?!]) (?=[A-Z0-9])", text):
        yield from map(_escape, textwrap.wrap(sentence, 78, break_on_hyphens=False))


def _escape(text: str) -> str:
    text = text.replace("\\", r"\e").replace("^", r"\(ha").replace("~", r"\(ti").replace("`", r"\(ga")
    return rf"\&{text}" if text.startswith((".", "'")) else text


def sample() -> str:
    """sshrec.yaml with every setting commented out at its default."""
    head = (
        "# /etc/sshrec/sshrec.yaml: the settings of sshrec, each at its default. sshrec.yaml(5) has more.\n"
        "# The file, and every directory above it, must be root's and not writable by others.\n"
    )
    return head + "".join(_sample(settings(Config), ""))


def _sample(keys: typing.Iterable[Setting], indent: str) -> Iterator[str]:
    for key in keys:
        comment = key.comment
        if key.listed and key.inner:
            comment += f" Each has: {', '.join(inner.name for inner in key.inner)}."
        if key.kind.startswith("list of ") and "|" in key.kind:
            comment += f" Some of: {key.kind.removeprefix('list of ').replace(' | ', ', ')}."
        yield "\n" if not indent else ""
        prefix = f"{indent}# "
        yield textwrap.fill(comment, 100, initial_indent=prefix, subsequent_indent=prefix) + "\n"
        yield f"{indent}#{key.name}:{' ' + key.default if key.default else ''}\n"
        yield from (f"{indent}# {line}\n" for line in key.example.splitlines())
        if key.inner and not key.listed:
            yield from _sample(key.inner, indent + "  ")


def main(arguments: list[str]) -> int:
    """Write, or check; the exit status."""
    status = 0
    for path, text in ((PAGE, page()), (SAMPLE, sample())):
        if "--check" not in arguments:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            print(f"{path.relative_to(ROOT)} is not what sshrec/config.py says: make man", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
