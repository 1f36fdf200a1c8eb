"""What counts no more: the ledger's revocations, as the KRL that sshd reads (see ssh-keygen(1))."""

from __future__ import annotations

import struct
from pathlib import Path

from sshrec.atomic import replace_file
from sshrec.authority.keys import KINDS, Keys, Kind
from sshrec.authority.ledger import Ledger
from sshrec.errors import SshrecError, describe
from sshrec.openssh import keygen
from sshrec.openssh.keygen import KrlSection

_MAGIC = b"SSHKRL\n\0"
_AGAIN = "the ledger has it; sshrec-ca krl writes the list again"

# Certificates that expired stay in the list for a while: a host's clock may be late.
_KEPT_SECONDS = 86400


def krl(ledger: Ledger, keys: Keys, now: float) -> bytes:
    """The list of all that is revoked and not yet expired, under the CAs that are trusted."""
    number = ledger.next_krl_number(int(now * 1000))  # first: what is revoked meanwhile makes this list an old one
    sections = []
    for kind in KINDS:
        key_ids = [revoked.key_id for revoked in ledger.revoked_key_ids(kind)]
        for ca in keys.trusted(kind):
            serials = ledger.revoked_serials(ca.fingerprint, int(now) - _KEPT_SECONDS)
            if serials or key_ids:
                sections.append(KrlSection(ca, serials, key_ids))
    # Whoever still trusts a retired CA, because nobody told them otherwise, learns it here.
    retired = [ca for kind in KINDS for ca in keys.retired(kind)]
    return keygen.make_krl(sections, number, retired)


def check_key_id(keys: Keys, kind: Kind, key_id: str) -> None:
    """UsageError where no list can name it: with it in the ledger, no list could be written any more."""
    keygen.make_krl([KrlSection(keys.trusted(kind)[0], key_ids=[key_id])], 1)


def is_krl(data: bytes) -> bool:
    """Whether a file's beginning is a list's (PROTOCOL.krl), or nothing: sshd takes that for an empty list."""
    return not data or data.startswith(_MAGIC)


def is_current(ledger: Ledger, path: Path, now: float) -> bool:
    """Whether the list under that name is the newest, and says all that the ledger does.

    One from a time to come is not: what seemed expired to it, when the clock was wrong, it may have left out.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError:
        return False
    if len(head) < _HEAD.size:
        return False
    magic, _, number, made = _HEAD.unpack(head)
    return bool(magic == _MAGIC and number == ledger.krl_number() and made <= now + 1)


_HEAD = struct.Struct(">8sIQQ")  # magic, format, number, Unix time: PROTOCOL.krl


def write_krl(ledger: Ledger, keys: Keys, path: Path, now: float) -> None:
    """Put the list under a name, whole: sshd reads the old one or the new one (sshd_config(5), RevokedKeys)."""
    with keys.alone():
        try:
            replace_file(path, krl(ledger, keys, now), 0o644)
        except OSError as error:
            raise SshrecError(f"cannot write {path}: {describe(error)}", hint=_AGAIN) from error
        except SshrecError as error:
            error.hint = _AGAIN
            raise
