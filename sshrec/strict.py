"""YAML text to frozen dataclasses, strictly: an unknown or doubled key is an error that names the nearest one.

Knows the types that settings have, and no setting.
"""

from __future__ import annotations

import difflib
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
import yaml

from sshrec.duration import Duration
from sshrec.errors import ConfigError
from sshrec.hours import Hours
from sshrec.size import Size

T = TypeVar("T")

# Metadata of a field that the reader fills, and no key of the file does.
NOT_A_SETTING = {"setting": False}


def convert(text: str, kind: type[T], name: str) -> T:
    """A value of that dataclass from YAML text; ConfigError says what is wrong. `name`: what errors call it."""
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        message = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{name}: {message}") from error
    if raw is None:
        raw = {}
    try:
        return msgspec.convert(_normalise(raw, kind, name, ""), kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error


class _Loader(yaml.CSafeLoader):
    """The safe loader, but a key that stands twice is an error (PyYAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _normalise(raw: Any, kind: Any, name: str, where: str) -> Any:
    """Refuse unknown keys by their names, and take YAML's booleans back where words are meant."""
    kind = _plain(kind)
    if is_dataclass(kind):
        if not isinstance(raw, dict):
            raise ConfigError(f"{name}: {where or 'the file'} must be a mapping of settings")
        hints = get_type_hints(kind, include_extras=True)
        known = [setting.name for setting in fields(kind) if setting.metadata != NOT_A_SETTING]
        for key in raw:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else "known here: " + ", ".join(known)
                raise ConfigError(f"{name}: unknown setting {f'{where}.{key}'.lstrip('.')!r}", hint=hint)
        given = {
            key: _normalise(value, hints[key], name, f"{where}.{key}".lstrip("."))
            for key, value in raw.items()
            if value is not None
        }
        # A heading with nothing below it: as if it were not there.
        return {key: value for key, value in given.items() if value != {}}
    if get_origin(kind) is tuple and isinstance(raw, list):
        return [_normalise(value, get_args(kind)[0], name, f"{where}[{n}]") for n, value in enumerate(raw)]
    if get_origin(kind) is Literal and isinstance(raw, bool):
        raw = "on" if raw else "off"
    if kind is Path and not (isinstance(raw, str) and raw.startswith("/")):
        raise ConfigError(f"{name}: {where} must be an absolute path, not {raw!r}")
    if get_origin(kind) is tuple and not isinstance(raw, list):
        raise ConfigError(f"{name}: {where} must be a list, not {raw!r}")
    if get_origin(kind) is Literal and raw not in get_args(kind):
        raise ConfigError(f"{name}: {where} must be one of {', '.join(get_args(kind))}, not {str(raw)!r}")
    return raw


def _plain(kind: Any) -> Any:
    """A type without its annotations and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
        return _plain(kind)
    return kind


def _decode(kind: type, raw: Any) -> Any:
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    if kind is Duration and isinstance(raw, str):
        return Duration.parse(raw)
    if kind is Size and isinstance(raw, str):
        return Size.parse(raw)
    if kind is Hours and isinstance(raw, str):
        return Hours.parse(raw)
    raise msgspec.ValidationError(f"Expected {kind.__name__}, got {type(raw).__name__}")
