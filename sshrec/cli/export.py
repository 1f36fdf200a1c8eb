"""`sshrec export`: a recording into a file or a pipe, as it is or in another form; the audit log knows who did."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import click

from sshrec.atomic import writing
from sshrec.cli.identity import identity_option
from sshrec.cli.main import Settings
from sshrec.cli.play import Proof, find, ours, tell_access
from sshrec.errors import SshrecError, UsageError, describe
from sshrec.playback import export
from sshrec.playback.export import Copied, Stream
from sshrec.recording import reader
from sshrec.recording.identity import Identities
from sshrec.recording.reader import Recording
from sshrec.session import printable

EXIT_BAD, EXIT_INCOMPLETE = 1, 3  # as verify's

_STANDARD = "-"
_FORMATS = {"text": export.as_text, "json": export.as_json}


@click.command("export")
@click.argument("recording")
@click.option(
    "-f",
    "--format",
    "form",
    type=click.Choice(["cast", "text", "raw", "json"]),
    default="cast",
    show_default=True,
    help="What to make of it.",
)
@click.option("--stream", type=click.Choice(["stdout", "stderr"]), help="Of raw: whose bytes.  [default: stdout]")
@click.option("-o", "--output", metavar="FILE", default=_STANDARD, help="Write it there, for nobody else to read.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@identity_option
@click.pass_obj
def command(
    settings: Settings,
    recording: str,
    form: str,
    stream: Stream | None,
    output: str,
    force: bool,
    identities: Identities,
) -> int:
    """Write a recording as another program wants it.

    RECORDING is a file, - for standard input, or the id of a session or its beginning.

    \b
    cast  the asciicast as it was recorded, unpacked and decrypted
    text  what was to be read: no colours, no control sequences
    raw   the exact bytes of a stream
    json  a JSON object a line: what happened, and when

    The status is 1 where it is not what was sealed, and 3 where the recording does not have all of it.
    """
    if stream is not None and form != "raw":
        raise UsageError("--stream is for --format raw")
    target = None if output == _STANDARD else Path(output)
    if force and target is None:
        raise UsageError("--force is for --output FILE")
    if target is not None:
        _check(target, force=force)
    elif form in ("cast", "raw") and sys.stdout.isatty():
        raise UsageError(
            f"a terminal might obey what is in {form}",
            hint="--output FILE, a pipe, or --format text; or sshrec play",
        )
    path = find(settings, recording)
    with (
        _opened(path, form, identities) as source,
        Proof(path if path and ours(path, source) else None, identities) as proof,
    ):
        tell_access(settings, source, action="export", format=form)
        parts = _parts(source, form, stream or "stdout")
        with _out(target, force=force) as out:
            for piece in export.pieces(parts):
                out.write(piece)
        proof.wait()
    missing = parts.missing if isinstance(parts, export.Bytes) else 0
    if missing:
        click.echo(f"sshrec: {missing} bytes were counted, and are not in the recording", err=True)
    if not source.complete:
        click.echo("sshrec: the recording ends here, and is not finished: it is live, or was cut off", err=True)
    if proof.failed:
        return EXIT_BAD
    return EXIT_INCOMPLETE if missing or not source.complete else 0


def _opened(path: Path | None, form: str, identities: Identities) -> Recording:
    """The recording; of `cast` one that keeps its lines."""
    copied = form == "cast"
    if path is not None:
        return (export.open_path if copied else reader.open_path)(path, identities)
    if sys.stdin.isatty():
        raise UsageError("standard input is this terminal, not a recording")
    opened = export.open_stream if copied else reader.open_stream
    return opened(open(0, "rb", buffering=0, closefd=False), "standard input", identities)


def _parts(source: Recording, form: str, stream: Stream) -> Iterable[bytes]:
    if isinstance(source, Copied):
        return export.as_recorded(source)
    return _raw(source, stream) if form == "raw" else _FORMATS[form](source)


def _raw(source: Recording, stream: Stream) -> export.Bytes:
    if stream == "stderr" and source.header.facts.get("terminal") is True:
        raise UsageError("a session with a terminal has one stream: stdout")
    return export.Bytes(source, stream)


def _check(path: Path, *, force: bool) -> None:
    """UsageError where nothing may be put there."""
    shown = printable(str(path))
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise UsageError(f"{shown}: {describe(error)}") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{shown} is no regular file, and nothing is written through it")
    if not force:
        raise UsageError(f"{shown} is there already", hint="--force replaces it")


@contextlib.contextmanager
def _out(path: Path | None, *, force: bool) -> Iterator[BinaryIO]:
    """Where it goes; a file is there when it is whole."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with writing(path, 0o600, replace=force) as out:
            yield out
    except FileExistsError as error:
        raise UsageError(f"{printable(str(path))} is there already", hint="--force replaces it") from error
    except OSError as error:
        raise SshrecError(f"cannot write {printable(str(path))}: {describe(error)}") from error
