"""The file of the nodes that were enrolled: written here, read by sshrec.config as strictly as the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from sshrec.atomic import replace_file
from sshrec.config import Config, Node, with_inventory
from sshrec.errors import ConfigError, SshrecError, describe

_HEAD = "# Nodes that sshrec-ca enroll-node has enrolled; it keeps this file. Others: nodes in sshrec.yaml.\n"


def add(config: Config, node: Node) -> Node | None:
    """Have the inventory hold a node; what it held under that name before. ConfigError, SshrecError."""
    with _locked(config) as (path, nodes):
        before = next((known for known in nodes if known.name == node.name), None)
        if before != node:
            kept = [known for known in nodes if known.name != node.name]
            _write(path, sorted([*kept, node], key=lambda known: known.name))
        return before


def put_back(config: Config, name: str, before: Node | None) -> None:
    """Undo `add`."""
    if before is not None:
        add(config, before)
        return
    with _locked(config) as (path, nodes):
        _write(path, [node for node in nodes if node.name != name])


@contextlib.contextmanager
def _locked(config: Config) -> Iterator[tuple[Path, Sequence[Node]]]:
    """The file and what it holds, while nobody else changes it."""
    path = config.inventory
    if path is None:
        raise ConfigError("there is no file to keep nodes in", hint="inventory in sshrec.yaml names one")
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise SshrecError(f"{path.parent}: {describe(error)}") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield path, with_inventory(config).enrolled
    finally:
        os.close(directory)


def _write(path: Path, nodes: Sequence[Node]) -> None:
    listed = {"nodes": [_plain(node) for node in nodes]}
    text = _HEAD + yaml.safe_dump(listed, sort_keys=False, default_flow_style=None)
    try:
        if nodes:
            replace_file(path, text.encode(), 0o644)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise SshrecError(f"cannot write {path}: {describe(error)}") from error


def _plain(node: Node) -> dict[str, Any]:
    """As YAML has it; what is as by default is left out."""
    shown: dict[str, Any] = {"name": node.name}
    if node.address is not None:
        shown["address"] = node.address
    if node.port != 22:
        shown["port"] = node.port
    if node.labels:
        shown["labels"] = dict(node.labels)
    return shown
