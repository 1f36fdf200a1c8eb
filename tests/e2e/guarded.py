"""A bastion with roles, nodes that have labels, and people with accounts in the database and codes to show."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import re
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from sshrec.access.client import AuthService
from sshrec.access.protocol import Authenticated, Authorise, Registration
from sshrec.audit.log import Line, read_log
from sshrec.hours import DAYS
from tests.lab import Lab, parts

PASSWORD = "correct horse battery"
_OTHER_DAY = DAYS[(datetime.now().weekday() + 3) % 7]

ROLES: list[dict[str, Any]] = [
    {"name": "codes", "users": ["joe"], "logins": ["deploy"], "nodes": ["web1", "quiet"], "mfa": "session"},
    {"name": "grace", "logins": ["deploy"], "nodes": ["web2"], "mfa": "session", "mfa_grace": "10m"},
    {"name": "hardware", "users": ["joe"], "logins": ["alice"], "nodes": ["web1"], "require_sk": True},
    {
        "name": "night",
        "users": ["joe"],
        "logins": ["alice"],
        "nodes": ["web2"],
        "hours": [f"{_OTHER_DAY} 03:00-04:00"],
    },
    {"name": "office", "users": ["joe"], "logins": ["joe"], "nodes": ["web2"], "sources": ["127.0.9.0/24"]},
    {"name": "few", "users": ["joe"], "logins": ["joe"], "nodes": ["env=prod"], "sessions": 1},
    {"name": "verified", "users": ["alice"], "logins": ["deploy"], "nodes": ["web1"], "verify_required": True},
    {"name": "copies", "users": ["alice"], "logins": ["root"], "nodes": ["127.0.0.0/8"], "kinds": ["shell"]},
    {"name": "staff", "logins": ["{allowed}"], "nodes": ["env=*"]},
]
GIVEN = {"joe": "root", "alice": "alice"}

_sources = itertools.count(1)


class Guarded:
    """The lab with these roles. One directory of its own, so that a test may break the database."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self._quiet = socket.create_server(("127.0.0.2", 0))  # accepts, and says nothing
        lab.stop_sshrecd()
        self.start()
        self._people = {name: Person(self, name) for name in lab.people}
        for name in lab.people:
            self.admin("users", "add", name, GIVEN[name], "--no-unix-account")

    def close(self) -> None:
        self._quiet.close()

    def start(self, settings: Mapping[str, Any] | None = None) -> None:
        """sshrecd and the auth service, with the roles and these settings."""
        ports = {name: self.lab.sshds[name].port for name in ("web1", "web2")}
        nodes = [
            {"name": "web1", "address": "127.0.0.1", "port": ports["web1"], "labels": {"env": "prod"}},
            {"name": "web2", "address": "127.0.0.1", "port": ports["web2"], "labels": {"env": "staging"}},
            {"name": "quiet", "address": "127.0.0.2", "port": self._quiet.getsockname()[1]},
        ]
        self.lab.start_sshrecd({"roles": ROLES, "nodes": nodes, **(settings or {})})

    def restart(self, settings: Mapping[str, Any] | None = None) -> None:
        """The same, after they were stopped."""
        self.lab.stop_sshrecd()
        self.start(settings)

    def person(self, name: str) -> Person:
        return self._people[name]

    def admin(self, *words: str, program: str = "sshrec") -> str:
        """A command as the administrator gives it; what it said."""
        argv = [str(self.lab.installation.programs / program), "--config", str(self.lab.config), *words]
        return parts.run(argv, {"PATH": parts.PATH, "LANG": "C.UTF-8"})

    def in_authority(self, code: str, *words: str, check: bool = True) -> str:
        """Run Python as the auth service's uid, whose files they are."""
        account = self.lab.account("sshrec-auth")
        own: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []}
        done = subprocess.run(
            [self.lab.installation.programs / "python", "-c", code, *words],
            env={"PATH": parts.PATH},
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            **(own if self.lab.several_uids else {}),
        )
        assert not check or done.returncode == 0, done.stderr
        said: str = done.stdout
        return said

    @contextlib.contextmanager
    def service(self, seconds: float = 10.0) -> Iterator[AuthService]:
        """The auth service, asked as a worker asks."""
        asked = AuthService(self.lab.directory / "run-auth" / "auth.sock", seconds)
        with contextlib.closing(asked):
            yield asked

    def events(self, name: str) -> list[dict[str, Any]]:
        """The audit log's events of a kind, oldest first."""
        lines = [item for item in read_log(self.lab.data_dir / "audit") if isinstance(item, Line)]
        return [line.fields for line in lines if line.fields["event"] == name]

    def rejected(self, reason: str) -> dict[str, Any]:
        """The newest refusal in the audit log, once it is that for this reason."""

        def there() -> dict[str, Any] | None:
            found = self.events("session.rejected")
            return found[-1] if found and reason in found[-1]["reason"] else None

        return self.lab.wait(there, f"a refusal in the audit log: {reason}") or {}

    def statuses(self) -> list[dict[str, Any]]:
        """What `sshrec who` says."""
        found: list[dict[str, Any]] = json.loads(self.lab.sshrec("who", "--json").stdout)["sessions"]
        return found

    def wait_for(self, **facts: Any) -> dict[str, Any]:
        """The session of which these facts are true, once there is one."""

        def there() -> dict[str, Any] | None:
            return next((one for one in self.statuses() if facts.items() <= one.items()), None)

        return self.lab.wait(there, f"a session with {facts}") or {}

    def renew(self, name: str) -> None:
        """A new laptop for somebody whose certificates were revoked."""
        self.lab.close_laptop(self.lab.laptops[name])
        self.lab.open_laptop(name)

    def unlock_all(self) -> None:
        """Lift every lock that holds."""
        with self.service() as service:
            held = service.locks()
        for one in held:
            with contextlib.suppress(parts.LabError):  # it has just expired, or is no lock: a revoked certificate
                self.admin("unlock", one.kind, one.name)


class Person:
    """Somebody's authenticator app and recovery codes, once they have registered (anew)."""

    def __init__(self, bastion: Guarded, name: str) -> None:
        self._bastion, self.name = bastion, name
        self._seed = b""
        self._recovery: list[str] = []
        self._step = 0

    def register(self) -> None:
        """With an invitation of now, whatever there was before; failures of before are forgotten."""
        said = json.loads(self._bastion.admin("users", "reset", self.name, "--json"))
        with self._bastion.service() as service:
            begun = service.redeem(said["invitation"]["token"], source())
            assert isinstance(begun, Registration)
            secret = begun.secret.replace(" ", "")
            self._seed = base64.b32decode(secret + "=" * (-len(secret) % 8))
            self._step = 0
            answer = service.register(PASSWORD, self.code())
            assert isinstance(answer, Authenticated), answer
        self._recovery = list(answer.recovery)

    def code(self) -> str:
        """What the app shows, never the same twice; after the first three, the next comes half a minute later."""
        now = int(time.time() + 3) // 30
        self._step = max(self._step + 1, now - 1)
        while self._step > time.time() // 30 + 1:
            time.sleep(0.1)
        return HOTP(self._seed, 6, SHA1()).generate(self._step).decode()  # noqa: S303

    def recovery_code(self) -> str:
        """One that was not given before."""
        return self._recovery.pop()


def source() -> str:
    """An address on loopback that nobody came from before, for failures and grace are counted by it."""
    number = next(_sources)
    return f"127.0.{10 + number // 250}.{1 + number % 250}"


def question(lab: Lab, login: str = "root", host: str = "web1", **other: Any) -> Authorise:
    """What a worker asks for joe."""
    facts: dict[str, Any] = {
        "session": "01KARVVVZ0B9GPPM3T5V7PZW0Q",
        "user": "joe",
        "login": login,
        "host": host,
        "port": None,
        "kind": "exec",
        "source": "127.0.0.1",
        "addresses": ("127.0.0.1",),
        "own": ("127.0.0.1",),
        "algorithm": "ssh-ed25519-cert-v01@openssh.com",
        "fingerprint": "SHA256:x",
        "key_id": "joe",
        "serial": lab.laptops["joe"].serial,
        "verify_required": False,
        "live": 0,
    }
    return Authorise(**{**facts, **other})


def errors(data: bytes) -> str:
    """What sshrec said on a standard error, or on a terminal."""
    text = data.decode(errors="replace").replace("\r\n", "\n")
    return "".join(re.findall(r"^(?:sshrec: error|hint): .*\n", text, re.MULTILINE))


def sqlite(bastion: Guarded, statement: str) -> None:
    """Change the database behind everybody's back."""
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=20); c.execute(sys.argv[2]); c.commit()"
    bastion.in_authority(code, str(bastion.lab.authority_dir / "sshrec.db"), statement)
