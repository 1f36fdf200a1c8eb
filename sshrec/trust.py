"""Who could have written a file: it, and every directory above it. Reads no contents."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from pathlib import Path

from sshrec.errors import ConfigError, describe


def check_trust(path: Path, owners: Collection[int] | None = None) -> None:
    """ConfigError unless path and all directories above it are root's or ours, and nobody else may write there.

    `owners`: uids that may own them besides root; default: the caller's. A sticky directory (/tmp) may be
    writable to all: nobody can replace there what is somebody else's.
    """
    trusted = {0, *({os.geteuid()} if owners is None else owners)}
    try:
        for part in (path, *path.parents):
            status = part.stat()
            others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
            if status.st_uid not in trusted or (others and not sticky):
                raise ConfigError(
                    f"{part} can be changed by others than root and the caller",
                    hint=f"chown root {part}; chmod go-w {part}"
                    if part == path
                    else f"put {path} where only root can write",
                )
    except OSError as error:
        raise ConfigError(f"{path}: {describe(error)}") from error
