"""What goes wrong, in the words a person reads. Knows nobody; libraries raise, one place prints."""

from __future__ import annotations

import os


class SshrecError(Exception):
    """Anything a person is told about.

    `str(error)`: one line, lower case, no full stop, naming the file, rule or setting at fault.
    `hint`: what to do about it, one line, or None.
    `exit_code`: from sysexits.h, for our commands; the gateway always ends with 255, as ssh(1) does.
    """

    exit_code = os.EX_SOFTWARE

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(SshrecError):
    """What was asked for cannot be understood."""

    exit_code = os.EX_USAGE


class DataError(SshrecError):
    """A file is not what it should be."""

    exit_code = os.EX_DATAERR


class NotFound(SshrecError):
    """No such file, recording or session."""

    exit_code = os.EX_NOINPUT


class Unreachable(SshrecError):
    """A host or one of our own processes does not answer."""

    exit_code = os.EX_UNAVAILABLE


class Denied(SshrecError):
    """Policy, or a check of the caller, says no."""

    exit_code = os.EX_NOPERM


class ConfigError(SshrecError):
    """The configuration is wrong or not to be trusted."""

    exit_code = os.EX_CONFIG


class RecordingError(SshrecError):
    """The recording cannot be written: the session must end."""

    exit_code = os.EX_IOERR


class DiskFull(RecordingError):
    """There is no room for it."""


def describe(error: OSError) -> str:
    """The operating system's words for an error, lower case, without its number."""
    return (error.strerror or type(error).__name__).lower()
