"""Passwords: which are good enough, and what is kept of them. Knows no users and no storage.

A password is compared as NFKC (NIST SP 800-63B §5.1.1.2), so it does not depend on who composed its accents.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import unicodedata

from sshrec.errors import UsageError

SHORTEST, LONGEST_BYTES = 10, 1024

# RFC 9106 §4, the second recommended option: 64 MiB, three passes; the first option's 2 GiB for each of a few
# people who log in at once would be a bastion's whole memory. One lane, and not four: OpenSSL computes lanes in
# threads of one pool for the process, where two hashes at once wait for each other for ever (seen with 4.0.3); and
# a guesser, who has many passwords to try, is none the faster for it.
_MEMORY_KIB, _PASSES, _LANES, _SALT, _LENGTH = 64 * 1024, 3, 1, 16, 32
_PARAMETERS = f"$argon2id$v=19$m={_MEMORY_KIB},t={_PASSES},p={_LANES}$"

# What is left of many leaked passwords without the digits and punctuation around it.
_WORDS = """
    password passwort passw0rd p@ssword p@ssw0rd pass letmein welcome willkommen bienvenue changeme change
    secret geheim admin administrator root toor login user guest test testing temp default master superuser
    sysadmin server company office qwerty qwertz azerty qwertyuiop qwertzuiop azertyuiop asdf asdfgh
    asdfghjkl zxcvbn zxcvbnm yxcvbnm qazwsx qazwsxedc qweasd qweasdzxc qwert abc abcd abcdef abcdefg
    abcdefgh abcdefghij abcdefghijkl iloveyou loveyou princess sunshine monkey dragon football baseball
    basketball superman batman spiderman starwars pokemon trustno shadow michael jennifer jordan liverpool
    arsenal chelsea barcelona charlie summer winter spring autumn sommer monday friday january february
    october november december computer internet samsung google facebook linkedin whatever freedom nothing
    hello helloworld ninja mustang access flower cheese cookie pepper chocolate butterfly sshrec bastion
    gateway openssh correcthorsebatterystaple
"""
_AROUND = re.compile(r"^[\W\d_]+|[\W\d_]+$")
_RUNS = "01234567890123456789 abcdefghijklmnopqrstuvwxyz qwertyuiop asdfghjkl zxcvbnm qwertzuiop yxcvbnm"
_COMMON = frozenset(_WORDS.split())


class Passwords:
    """Makes and checks hashes, a few at once: each takes 64 MiB, and a flood of logins must not take them all."""

    def __init__(self, at_once: int = 2) -> None:
        self._room = threading.BoundedSemaphore(at_once)

    def make_hash(self, password: str) -> str:
        """As the function below."""
        with self._room:
            return make_hash(password)

    def verify(self, password: str, kept: str | None) -> bool:
        """As the function below."""
        with self._room:
            return verify(password, kept)


def check(password: str, user: str) -> None:
    """UsageError where a user may not choose it. What is said never quotes it."""
    plain = _plain(password)
    if plain is None:
        raise UsageError(f"a password has at most {LONGEST_BYTES} bytes, and no control characters")
    text = unicodedata.normalize("NFKC", password)
    if len(text) < SHORTEST:
        raise UsageError(f"a password has at least {SHORTEST} characters", hint="a few words are easy to remember")
    folded = text.casefold()
    if user and user.casefold() in folded:
        raise UsageError("a password may not contain the user's name")
    if _is_common(folded):
        raise UsageError("that password is one of the first that anybody would try")


def make_hash(password: str) -> str:
    """What is kept: a PHC string ($argon2id$…) salted. UsageError for what `verify` never takes."""
    plain = _plain(password)
    if plain is None:
        raise UsageError(f"a password has at most {LONGEST_BYTES} bytes, and no control characters")
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # not in sshrecd, which only knows `check`

    argon2 = Argon2id(
        salt=os.urandom(_SALT), length=_LENGTH, iterations=_PASSES, lanes=_LANES, memory_cost=_MEMORY_KIB
    )
    return argon2.derive_phc_encoded(plain)


def verify(password: str, kept: str | None) -> bool:
    """Whether it is the password whose hash is `kept`. None, a user that is not there, takes the same time."""
    plain = _plain(password)
    from cryptography.exceptions import InvalidKey
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

    try:
        Argon2id.verify_phc_encoded(plain or b"", kept or _DUMMY)
    except InvalidKey:
        return False
    return plain is not None and kept is not None


def is_outdated(kept: str) -> bool:
    """Whether the hash was made with other parameters than ours now, so the next login should make it anew."""
    return not kept.startswith(_PARAMETERS)


def _plain(password: str) -> bytes | None:
    """What is hashed; None for what cannot be a password."""
    if len(password) > LONGEST_BYTES or any(unicodedata.category(c) in ("Cc", "Cs") for c in password):
        return None
    if len(password.encode()) > LONGEST_BYTES:
        return None
    return unicodedata.normalize("NFKC", password).encode()


def _is_common(folded: str) -> bool:
    words = "".join(folded.split())
    if len(set(words)) <= 3 or words in _COMMON or _AROUND.sub("", words) in _COMMON:
        return True
    half = words[: len(words) // 2]
    if half * 2 == words:  # the same twice
        return True
    return any(words in run or words in run[::-1] for run in _RUNS.split(" "))


def _unpadded(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


_DUMMY = f"{_PARAMETERS}{_unpadded(bytes(_SALT))}${_unpadded(bytes(_LENGTH))}"
