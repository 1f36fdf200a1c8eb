"""The CAs: where their keys are, which of them signs, which are trusted, and how one follows another.

Each kind of CA has one key that signs (current), maybe one to come (next), and some that went (old), which
stay trusted until their grace is over. Signs nothing itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

from sshrec.atomic import replace_file
from sshrec.authority.ledger import AuthorityRow, Ledger
from sshrec.config import Config, HeldKey
from sshrec.duration import Duration
from sshrec.errors import ConfigError, Denied, NotFound, SshrecError, describe
from sshrec.openssh import keygen, known_hosts, public_key
from sshrec.openssh.destinations import GATEWAY
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.signer import AgentKey, KeyFile, Signer, TokenKey
from sshrec.storage.database import Conflict
from sshrec.trust import check_trust

Kind = Literal["user", "host", "gateway"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_TRUSTED = ("current", "next", "old")

_WORK = ".sshrec-*/"  # where keygen.make_key works

# The files in public/, and whose keys they hold.
USER_CA, KNOWN_HOSTS = "user_ca.pub", "known_hosts"


class Keys:
    """The CAs of one authority, as its ledger has them. `now`: Unix time in seconds, everywhere.

    `by`: who is at work, for the audit log.
    """

    def __init__(self, config: Config, ledger: Ledger, by: str) -> None:
        self._config = config
        self._ledger = ledger
        self._by = by
        self._directory = config.authority_dir / "keys"

    # ---- the first ones --------------------------------------------------------------------------------

    def init(self, now: float, passphrase: str | None) -> list[AuthorityRow]:
        """Make those of the three CAs that are missing, or take up those that the configuration names."""
        self._make_directory()
        with self.alone():
            # Some may be there: an init that was killed, or whose disk was full.
            missing = [kind for kind in KINDS if not self._ledger.authorities(kind)]
            paths = [self._directory / f"{kind}_ca" for kind in missing if self._held(kind) is None]
            if strange := [str(path) for path in paths if os.path.lexists(path)]:
                raise Denied(
                    f"{strange[0]} exists, and the ledger does not know it",
                    hint=f"nothing is overwritten; move away {' '.join(strange)}",
                )
            rows = [self._new(kind, "current", now, passphrase) for kind in missing]
            if rows:
                self._ledger.add_authorities(rows, self._by, int(now * 1000))
            return rows

    def _make_directory(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            status = self._directory.lstat()
        except OSError as error:
            raise ConfigError(f"cannot make {self._directory}: {describe(error)}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ConfigError(f"{self._directory} must be a directory of our own, for nobody else to look into")

    def _new(self, kind: Kind, phase: str, now: float, passphrase: str | None) -> AuthorityRow:
        held = self._held(kind)
        name = None
        if held is not None:
            public = public_key.read(held.public_key)
        else:
            taken = {row.file for row in self._ledger.authorities(kind)}
            names = (f"{kind}_ca{f'.{n}' if n else ''}" for n in (0, *range(2, 1000)))
            name = next(name for name in names if name not in taken and not (self._directory / name).exists())
            public = keygen.make_key(self._directory / name, f"sshrec {kind} CA", passphrase)
        return AuthorityRow(
            fingerprint=public.fingerprint,
            kind=kind,
            public_key=public.line,
            phase=phase,
            made_ms=int(now * 1000),
            current_ms=int(now * 1000) if phase == "current" else None,
            old_ms=None,
            retires_at=None,
            retired_ms=None,
            file=name,
        )

    def _held(self, kind: Kind) -> HeldKey | None:
        held: HeldKey | None = getattr(self._config.authority, kind)
        return held

    # ---- who signs, who is trusted -----------------------------------------------------------------------

    def rows(self, kind: Kind, *phases: str) -> list[AuthorityRow]:
        """The CAs of a kind in these phases, in the phases' order; NotFound where there never was one."""
        return _of(self._ledger.authorities(kind), kind, *phases)

    def trusted(self, kind: Kind) -> list[PublicKey]:
        """Whose certificates count: the current CA's first, then the next one's and the old ones'."""
        return [_public(row) for row in self.rows(kind, *_TRUSTED)]

    def retired(self, kind: Kind) -> list[PublicKey]:
        """Whose certificates count no more."""
        return [_public(row) for row in self.rows(kind, "retired")]

    def signer(self, kind: Kind) -> Signer:
        """Who signs certificates of that kind. ConfigError where the private key is not where it should be."""
        (row,) = self.rows(kind, "current")
        public, held = _public(row), self._held(kind)
        if row.file is not None:
            check_trust(self._directory)
            return KeyFile(self._directory / row.file, public)
        if held is None:
            raise ConfigError(
                f"no agent and no token holds the {kind} CA {row.fingerprint}", hint=f"authority.{kind} names one"
            )
        if held.signer == "agent":
            socket = held.agent or Path(os.environ.get("SSH_AUTH_SOCK", ""))
            if not socket.is_absolute():
                raise ConfigError(f"no agent to ask for the {kind} CA", hint="SSH_AUTH_SOCK, or authority.*.agent")
            return AgentKey(public, socket)
        if held.provider is None:
            raise ConfigError(f"authority.{kind}: a PKCS#11 token needs its provider, a library")
        return TokenKey(public, held.provider)

    # ---- one follows another -----------------------------------------------------------------------------

    def introduce(self, kind: Kind, now: float, passphrase: str | None) -> AuthorityRow:
        """A new CA beside the current one: trusted from now on, and signing nothing yet."""
        with self.alone():
            rows = self.rows(kind)
            if any(row.phase == "next" for row in rows):
                raise Denied(f"there is a next {kind} CA already", hint=f"sshrec-ca rotate {kind} has it sign")
            held = self._held(kind)
            if held and any(row.fingerprint == public_key.read(held.public_key).fingerprint for row in rows):
                raise ConfigError(
                    f"{held.public_key} is no new key", hint=f"have authority.{kind} name the new one's public key"
                )
            row = self._new(kind, "next", now, passphrase)
            try:
                self._ledger.add_authorities([row], self._by, int(now * 1000))
            except Conflict:  # by another host, on the same database
                self._destroy(row)
                raise
        return row

    def switch(self, kind: Kind, now: float, grace: Duration) -> AuthorityRow:
        """The next CA signs from now on; the one that did stays trusted for `grace`."""
        at = int(now * 1000)

        def rule(rows: Sequence[AuthorityRow]) -> list[AuthorityRow]:
            following = _of(rows, kind, "next")
            if not following:
                raise Denied(f"there is no next {kind} CA", hint=f"sshrec-ca rotate {kind} makes one")
            (current,) = _of(rows, kind, "current")
            old = dataclasses.replace(current, phase="old", old_ms=at, retires_at=int(now) + grace)
            return [old, dataclasses.replace(following[0], phase="current", current_ms=at)]

        return self._ledger.change_authorities(rule, self._by, at)[1]

    def roll_back(self, kind: Kind, now: float) -> AuthorityRow:
        """Undo the last step: forget the next CA, or have the newest old one sign again. Returns who signs."""

        def rule(rows: Sequence[AuthorityRow]) -> list[AuthorityRow]:
            if following := _of(rows, kind, "next"):
                return _retired(following, now)
            (current,) = _of(rows, kind, "current")
            before = max(_of(rows, kind, "old"), key=lambda row: row.old_ms or 0, default=None)
            if before is None:
                raise Denied(f"there is no {kind} CA to go back to")
            back = dataclasses.replace(before, phase="current", old_ms=None, retires_at=None)
            return [dataclasses.replace(current, phase="next"), back]

        self._change(rule, now, "rolled back")
        (current,) = self.rows(kind, "current")
        return current

    def retire(self, kind: Kind, now: float) -> list[AuthorityRow]:
        """End the grace of the old CAs: nothing they signed counts any more. Denied where there is none."""

        def rule(rows: Sequence[AuthorityRow]) -> list[AuthorityRow]:
            if old := _of(rows, kind, "old"):
                return _retired(old, now)
            raise Denied(
                f"there is no old {kind} CA", hint=f"what signs is replaced first: sshrec-ca rotate {kind} --now"
            )

        return self._change(rule, now)

    def settle(self, now: float) -> list[AuthorityRow]:
        """Retire the old CAs whose grace is over; those that were. Finish what a killed command began."""
        rows = self._ledger.authorities()
        for row in rows:
            if row.phase == "retired":
                self._destroy(row)
        if any(self._directory.glob(_WORK)):
            with self.alone():  # so nobody is at work there; what is left has private keys in it
                for path in self._directory.glob(_WORK):
                    shutil.rmtree(path)

        def due(rows: Sequence[AuthorityRow]) -> list[AuthorityRow]:
            return _retired([row for row in rows if row.phase == "old" and (row.retires_at or 0) <= now], now)

        return self._change(due, now, "its time is over") if due(rows) else []

    def _change(
        self, rule: Callable[[Sequence[AuthorityRow]], list[AuthorityRow]], now: float, why: str = ""
    ) -> list[AuthorityRow]:
        """Change what the rule says; of those that it retires, the private keys go."""
        changed = self._ledger.change_authorities(rule, self._by, int(now * 1000), why)
        for row in changed:
            if row.phase == "retired":
                self._destroy(row)
        return changed

    def _destroy(self, row: AuthorityRow) -> None:
        """Remove a private key: one that nobody trusts is only good for theft."""
        for name in (row.file, f"{row.file}.pub") if row.file is not None else ():
            (self._directory / name).unlink(missing_ok=True)

    # ---- what everybody may read ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time makes keys, or publishes: what was read first could be what is written last.

        The lock is on keys/, which nobody else can open, and so not hold either.
        """
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"{self._directory}: {describe(error)}", hint="sshrec-ca init makes it") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def publish(self) -> None:
        """Bring the public files up to date: each is replaced whole, and only where it changed."""
        with self.alone():
            self._publish()

    def is_published(self) -> bool:
        """Whether the public files are up to date, and everybody can read them."""
        directory = self._config.public_dir
        return _is(directory, stat.S_IFDIR | 0o755) and not self._to_publish()

    def _publish(self) -> None:
        directory = self._config.public_dir
        try:
            directory.mkdir(mode=0o755, exist_ok=True)
            directory.chmod(0o755)
            for path, data in self._to_publish():
                replace_file(path, data, 0o644)
        except OSError as error:
            raise SshrecError(f"cannot write {error.filename or directory}: {describe(error)}") from error

    def _to_publish(self) -> list[tuple[Path, bytes]]:
        """The public files that are not as they should be, with what should be in them."""
        hosts = self._config.authority.hosts
        files = {
            USER_CA: known_hosts.plain(self.trusted("user")),
            KNOWN_HOSTS: known_hosts.authorities(self.trusted("host"), hosts),
            known_hosts.GATEWAY_KNOWN_HOSTS: known_hosts.authorities(
                self.trusted("gateway"), f"{GATEWAY},*.{GATEWAY}"
            ),
        }
        wanted = [(self._config.public_dir / name, text.encode()) for name, text in files.items()]
        public = stat.S_IFREG | 0o644
        return [(path, data) for path, data in wanted if not _is(path, public) or path.read_bytes() != data]


def _is(path: Path, mode: int) -> bool:
    """Whether that is there, of that type and with those permissions."""
    try:
        return stat.S_IFMT(found := path.stat().st_mode) | found & 0o777 == mode
    except OSError:
        return False


def _of(rows: Sequence[AuthorityRow], kind: Kind, *phases: str) -> list[AuthorityRow]:
    """Those of a kind in these phases, in the phases' order; NotFound where there never was one."""
    rows = [row for row in rows if row.kind == kind]
    if not rows:
        raise NotFound("there is no CA yet", hint="sshrec-ca init makes them")
    order = phases or (*_TRUSTED, "retired")
    return sorted((row for row in rows if row.phase in order), key=lambda row: order.index(row.phase))


def _retired(rows: Sequence[AuthorityRow], now: float) -> list[AuthorityRow]:
    return [dataclasses.replace(row, phase="retired", retired_ms=int(now * 1000)) for row in rows]


def _public(row: AuthorityRow) -> PublicKey:
    return public_key.parse(row.public_key.encode(), f"the ledger's {row.kind} CA {row.fingerprint}")
