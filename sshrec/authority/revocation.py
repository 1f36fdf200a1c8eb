"""What counts no more: the ledger's revocations, as the KRL that sshd reads (see ssh-keygen(1))."""

from __future__ import annotations

from pathlib import Path

from sshrec.atomic import replace_file
from sshrec.authority.keys import KINDS, Keys, Kind
from sshrec.authority.ledger import Ledger
from sshrec.errors import SshrecError, describe
from sshrec.openssh import keygen
from sshrec.openssh.keygen import KrlSection

# Certificates that expired stay in the list for a while: a host's clock may be late.
_KEPT_SECONDS = 86400


def krl(ledger: Ledger, keys: Keys, now: float) -> bytes:
    """The list of all that is revoked and not yet expired, under the CAs that are trusted."""
    sections = []
    for kind in KINDS:
        key_ids = [revoked.key_id for revoked in ledger.revoked_key_ids(kind)]
        for ca in keys.trusted(kind):
            serials = ledger.revoked_serials(ca.fingerprint, int(now) - _KEPT_SECONDS)
            if serials or key_ids:
                sections.append(KrlSection(ca, serials, key_ids))
    # Whoever still trusts a retired CA, because nobody told them otherwise, learns it here.
    retired = [ca for kind in KINDS for ca in keys.retired(kind)]
    return keygen.make_krl(sections, ledger.next_krl_number(int(now * 1000)), retired)


def check_key_id(keys: Keys, kind: Kind, key_id: str) -> None:
    """UsageError where no list can name it: with it in the ledger, no list could be written any more."""
    keygen.make_krl([KrlSection(keys.trusted(kind)[0], key_ids=[key_id])], 1)


def is_krl(data: bytes) -> bool:
    """Whether a file's beginning is a list's (PROTOCOL.krl), or nothing: sshd takes that for an empty list."""
    return not data or data.startswith(b"SSHKRL\n\0")


def write_krl(ledger: Ledger, keys: Keys, path: Path, now: float) -> None:
    """Put the list under a name, whole: sshd reads the old one or the new one (sshd_config(5), RevokedKeys)."""
    with keys.publishing():
        data = krl(ledger, keys, now)
        try:
            replace_file(path, data, 0o644)
        except OSError as error:
            raise SshrecError(
                f"cannot write {path}: {describe(error)}",
                hint="the ledger has it; sshrec-ca krl writes the list again",
            ) from error
