"""What `sshrec login` on a laptop and `sshrec-login` on the bastion say: a line of JSON each, through ssh.

Knows only the words; who may have a certificate is the auth service's to say, what becomes of it the laptop's.
"""

from __future__ import annotations

import msgspec

REQUEST_MAX = 64 * 1024  # bytes of a line, its end included
ANSWER_MAX = 8 * 1024 * 1024


class LoginRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A person's name and factors, and the key that is to be certified. Its `repr` shows no secret.

    `code`: of the second factor, "" where none was typed; `public_key`: one line of a public key file;
    `ttl`: seconds, None for as long as policy gives; `nodes`: whether `destinations` are of use.
    """

    user: str
    password: str
    code: str = ""
    public_key: str
    ttl: int | None = None
    nodes: bool = True

    def __repr__(self) -> str:
        return f"LoginRequest(user={self.user!r}, public_key={self.public_key!r}, ttl={self.ttl!r})"


class Bastion(msgspec.Struct, frozen=True, kw_only=True):
    """How the bastion proves itself: `names` are principals of its host certificate, `keys` plain host keys.

    Any one of the names will do for an agent, so long as every certificate of the bastion has it: the first.
    """

    names: list[str] = []
    keys: list[str] = []


class LoginAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate and what goes with it; or nothing but `error`, and a `hint` where one helps.

    `certificate`: one line of a certificate file. `known_hosts`: lines with `@cert-authority`. `gateway_ca`: the
    public key of the CA that certifies the gateway's own names for nodes (the transparent way in), "" without one.
    `destinations`: login and node of each pair that policy allows, None where they cannot be listed, and
    `node_keys` the plain host keys of those nodes that have no certificate. `valid_before`: Unix seconds.
    """

    certificate: str = ""
    logins: list[str] = []
    known_hosts: list[str] = []
    bastion: Bastion = Bastion()
    gateway_ca: str = ""
    destinations: list[tuple[str, str]] | None = None
    node_keys: dict[str, list[str]] = {}
    valid_before: int = 0
    error: str | None = None
    hint: str | None = None
