"""What the commands of sshrec-ca share: the authority, opened; secrets, asked for; certificates, written."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from sshrec import privileges
from sshrec.atomic import open_directory, replace_file
from sshrec.audit.event import Fields
from sshrec.authority import outbox, revocation
from sshrec.authority.certificates import Asker
from sshrec.authority.keys import Keys
from sshrec.authority.ledger import Ledger
from sshrec.authority.log_key import LogKey
from sshrec.cli import asking
from sshrec.cli.main import Settings
from sshrec.config import Config
from sshrec.duration import Duration
from sshrec.errors import DataError, Denied, SshrecError, UsageError, describe
from sshrec.openssh.certificate import FOREVER, Certificate, read_certificate
from sshrec.openssh.public_key import read_file
from sshrec.privileges import Privileges
from sshrec.session import printable
from sshrec.storage.database import Database

CERTIFICATE_LIMIT = 64 * 1024  # bytes of a certificate's file


@dataclass(frozen=True, slots=True)
class Opened:
    """An authority at work. `now`: Unix time, in seconds, for all that one command does."""

    config: Config
    database: Database
    ledger: Ledger
    keys: Keys
    asker: Asker
    privileges: Privileges
    now: float

    def publish(self) -> None:
        """Bring what everybody may read up to date, the KRL too."""
        self.keys.publish()
        revocation.write_krl(self.ledger, self.keys, self.config.krl, self.now)
        if LogKey(self.config).restore():
            click.echo("sshrec-ca: warning: public/allowed_signers was not what was kept: restored", err=True)

    def tell(self, event: str, fields: Fields) -> None:
        """Tell the audit log what the caller did, where it is not the ledger that changed."""
        with self.database.transaction() as connection:
            outbox.tell(connection, event, {"user": self.asker.by, **fields}, int(self.now * 1000))

    def catch_up(self) -> None:
        """Retire what is due, and publish what a full disk or the end of a command left unpublished."""
        self.keys.settle(self.now)
        if (log_key := LogKey(self.config)).unfinished:
            with self.keys.alone():
                log_key.settle()
        if not self.ledger.authorities():
            return  # as the command itself is going to say
        try:
            current = self.keys.is_published() and revocation.is_current(self.ledger, self.config.krl, self.now)
            if not (current and log_key.is_public):
                self.publish()
        except SshrecError as error:
            click.echo(f"sshrec-ca: warning: what sshd trusts is out of date: {error}", err=True)


@contextlib.contextmanager
def opened(settings: Settings, *, create: bool = False) -> Iterator[Opened]:
    """The authority of the configuration, with the rights of its owner; `create` makes a new one's home."""
    config = settings.config
    asker = Asker(privileges.caller(), privileges.whence())
    rights = privileges.become_owner(config.authority_dir, config.authority.account, make=create)
    _check_owner(config.authority_dir)
    with Database.open(config.database_url, create=create) as database:
        ledger = Ledger(database)
        authority = Opened(config, database, ledger, Keys(config, ledger, asker.by), asker, rights, time.time())
        try:
            if not create:
                authority.catch_up()
            yield authority
        finally:
            _deliver(authority)


def _deliver(authority: Opened) -> None:
    """Give the audit log what it is to know of this, too, if it can be reached; what waits is safe where it is."""
    try:
        outbox.deliver(authority.database, authority.config)
    except SshrecError as error:
        click.echo(f"sshrec-ca: warning: the audit log has to wait for its events: {error}", err=True)


def _check_owner(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if directory.stat().st_uid != os.geteuid():
            raise Denied(f"{directory} is not yours", hint="run it as root, who becomes its owner")


def ask(prompt: str) -> str:
    """A passphrase or a PIN of a CA's key."""
    return asking.ask(prompt, "an ssh-agent can hold the key: authority.*.signer")


class DurationType(click.ParamType[Duration]):
    """--ttl 12h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Duration:
        if isinstance(value, Duration):
            return value
        try:
            return Duration.parse(str(value))
        except ValueError as error:
            return self.fail(printable(str(error)), param, ctx)


def moment(seconds: int) -> str:
    """A Unix time for people, in their zone."""
    if seconds >= FOREVER:
        return "forever"
    try:
        return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} seconds after 1970"


# ---- reading and writing certificates -------------------------------------------------------------------


def read_signed(source: str) -> Certificate:
    """The certificate in a file, or on standard input for "-"; to be read with the caller's rights."""
    return read_certificate(read_file(source, CERTIFICATE_LIMIT), "standard input" if source == "-" else source)


def beside(key: Path) -> Path:
    """Where ssh looks for the certificate of a key: KEY.pub → KEY-cert.pub."""
    return key.with_name(f"{key.name.removesuffix('.pub')}-cert.pub")


def is_certificate(data: bytes) -> bool:
    """Whether a file's beginning is a certificate's."""
    try:
        read_certificate(data, "")
    except DataError:
        return False
    return True


def check_output(path: Path, what: str = "certificate", fits: Callable[[bytes], bool] = is_certificate) -> None:
    """UsageError unless `what` can be put there: nothing is there, or one of before, as `fits` tells."""
    shown, parent = printable(str(path)), printable(str(path.parent))
    try:
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            with open(path, "rb", opener=_open_as_it_is) as file:
                data = file.read(CERTIFICATE_LIMIT + 1)
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UsageError(f"{parent} is no directory") from None
        status = None
    except OSError as error:
        raise UsageError(f"{shown}: {describe(error)}") from error
    if status and not stat.S_ISREG(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise UsageError(
            f"{shown} is {kind}, and nothing is written through it", hint="remove it, or use --output"
        )
    if status and not fits(data):
        raise UsageError(f"{shown} is there and is no {what}", hint="nothing is overwritten")
    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"cannot write in {parent}")
    try:
        os.close(open_directory(path.parent))
    except OSError as error:
        raise UsageError(f"cannot write in {parent}: {describe(error)}") from error


def _open_as_it_is(path: str, flags: int) -> int:
    """What has become of the regular file that was there is not followed, nor waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Put it under a name; a certificate of before is replaced, a link is not followed."""
    replace_file(path, f"{certificate.line}\n".encode(), 0o644)
