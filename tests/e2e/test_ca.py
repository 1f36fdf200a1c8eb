"""The command `sshrec-ca`: what it says, what it writes, and that bad input signs and overwrites nothing.

Most of it runs within this process, on an authority of its own; programs are started where a terminal, a
standard input, a signal or another uid is the point.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pexpect
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sshrec.cli.authority import check_output
from sshrec.cli.ca import sshrec_ca
from sshrec.cli.main import run
from sshrec.errors import UsageError
from sshrec.openssh.certificate import read_certificate
from sshrec.openssh.public_key import from_wire, wire_string
from tests.lab.parts import wait

SSHREC_CA = str(Path(sys.executable).with_name("sshrec-ca"))
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
JOE = ("--user", "joe", "--principals", "joe,root")
REFUSAL = re.compile(r"sshrec-ca: error: ([^\n]*[^\n.])\n(?:hint: [^\n]*[^\n.]\n)?")
FINGERPRINT = r"SHA256:[A-Za-z0-9+/]{43}"


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str


class Authority:
    """An authority of its own in a directory, and the command that works on it."""

    def __init__(self, directory: Path, authority: Mapping[str, Any] | None = None, **settings: Any) -> None:
        self.directory = directory
        self.config = directory / "sshrec.yaml"
        self.home = directory / "data-auth"
        self.keys = self.home / "keys"
        self.public = self.home / "public"
        self.database = self.home / "sshrec.db"
        content = {"data_dir": f"{directory}/data", "run_dir": "/run/sshrec", **settings}
        self.config.write_text(yaml.safe_dump({**content, "authority": dict(authority or {})}))

    def __call__(self, *words: str | Path) -> Said:
        """Run the command within this process."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = run(sshrec_ca, "sshrec-ca", self.words(words))
        return Said(status, out.getvalue(), err.getvalue())

    def words(self, words: tuple[str | Path, ...]) -> list[str]:
        return ["--config", str(self.config), *map(str, words)]

    def ok(self, *words: str | Path) -> str:
        """What it printed; it must have had nothing to complain about."""
        said = self(*words)
        assert (said.status, said.err) == (0, "")
        return said.out

    def process(self, *words: str | Path, given: bytes = b"", **how: Any) -> Said:
        """Run the program, without a terminal."""
        done = subprocess.run(
            [SSHREC_CA, *self.words(words)],
            input=given,
            capture_output=True,
            timeout=60,
            start_new_session=True,
            **how,
        )
        return Said(done.returncode, done.stdout.decode(), done.stderr.decode())

    def at_a_terminal(self, *words: str | Path, **environment: str) -> pexpect.spawn[str]:
        env = {**os.environ, "NO_COLOR": "1", **environment}
        return pexpect.spawn(SSHREC_CA, self.words(words), env=env, encoding="utf-8", timeout=20)

    def typing(self, prompt: str, answer: str, **environment: str) -> Callable[..., Said]:
        """To run the program at a terminal, where a person answers one question."""

        def at_a_terminal(*words: str | Path) -> Said:
            child = self.at_a_terminal(*words, **environment)
            child.expect_exact(prompt)
            child.sendline(answer)
            return ended(child)

        return at_a_terminal

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(query).fetchall()

    def ledger(self) -> dict[int, tuple[str, str]]:
        """Key id and key of each certificate that counts as handed out."""
        found = self.rows("SELECT serial, key_id, key_fingerprint FROM certificates WHERE withdrawn IS NULL")
        return {serial: (key_id, key) for serial, key_id, key in found}

    def copy(self, directory: Path) -> Authority:
        """Another one with the same keys and ledger, to be broken."""
        shutil.copytree(self.home, directory / "data-auth")
        return Authority(directory)


def ended(child: pexpect.spawn[str]) -> Said:
    """What it said from now on to its end, which is all one at a terminal."""
    child.expect(pexpect.EOF)
    said = str(child.before).replace("\r\n", "\n").lstrip("\n")
    return Said(child.wait(), "", said)


def files(directory: Path) -> dict[str, tuple[int, bytes | str]]:
    """What is in a directory, but the database: modes, contents, and where links go."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for path in sorted(directory.rglob("*")):
        if not path.name.startswith("sshrec.db"):
            mode = path.lstat().st_mode
            content: bytes | str = b""
            with contextlib.suppress(PermissionError):
                content = (
                    str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
                )
            found[str(path)] = mode, content
    return found


def refused(
    authority: Authority, *words: str | Path, by: Callable[..., Said] | None = None, nearby: Path | None = None
) -> tuple[int, str]:
    """The exit code and what the error line says, of a command that must have changed nothing at all."""
    before = authority.ledger() if authority.database.is_file() else {}, files(authority.directory)
    around = files(nearby) if nearby else {}
    said = (by or authority)(*words)
    assert said.out == ""
    complaint = REFUSAL.fullmatch(said.err)
    assert complaint, said.err
    assert complaint[1].isprintable()
    assert "mistake in sshrec" not in said.err
    with contextlib.suppress(sqlite3.DatabaseError):
        assert (authority.ledger() if authority.database.is_file() else {}) == before[0]
    assert files(authority.directory) == before[1]
    assert (files(nearby) if nearby else {}) == around
    return said.status, complaint[1]


def ssh_keygen(*words: str | Path) -> str:
    done = subprocess.run(["ssh-keygen", *map(str, words)], capture_output=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


def make_key(path: Path, *how: str) -> Path:
    ssh_keygen("-q", "-N", "", "-C", "joe@laptop", "-f", path, *(how or ("-t", "ed25519")))
    return path.with_name(f"{path.name}.pub")


def beside(public: Path) -> Path:
    return public.with_name(f"{public.name.removesuffix('.pub')}-cert.pub")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that signed nothing yet."""
    made = Authority(tmp_path_factory.mktemp("fresh"))
    made.ok("init")
    return made


@pytest.fixture(scope="module")
def authority(fresh: Authority, tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One that tests share: they sign, and change nothing else."""
    return fresh.copy(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def own(fresh: Authority, tmp_path: Path) -> Authority:
    """One that a test may break."""
    directory = tmp_path / "own"
    directory.mkdir()
    return fresh.copy(directory)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A public key of each kind that is signed; nobody holds the token's."""
    directory = tmp_path_factory.mktemp("keys")
    made = {
        "ed25519": make_key(directory / "ed25519"),
        "rsa": make_key(directory / "rsa", "-t", "rsa", "-b", "3072"),
        "ecdsa": make_key(directory / "ecdsa", "-t", "ecdsa"),
        "sk": directory / "sk.pub",
    }
    point = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    blob = b"".join(map(wire_string, [b"sk-ssh-ed25519@openssh.com", point, b"ssh:"]))
    made["sk"].write_text(f"{from_wire(blob).line} token\n")
    return made


@pytest.fixture
def key(keys: dict[str, Path], tmp_path: Path) -> Path:
    """A public key in a directory of its own."""
    (tmp_path / "laptop").mkdir()
    return Path(shutil.copy(keys["ed25519"], tmp_path / "laptop" / "key.pub"))


# ---- the CAs ------------------------------------------------------------------------------------------------


def test_init(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    umask = os.umask(0o077)
    try:
        lines = authority.ok("init").splitlines()
    finally:
        os.umask(umask)
    assert lines[0] == f"the authority is in {authority.home}"
    for line, kind in zip(lines[1:4], ("user", "host", "gateway"), strict=True):
        assert re.fullmatch(rf" +{kind} CA +{FINGERPRINT}  keys/{kind}_ca", line)
        private = authority.keys / f"{kind}_ca"
        assert private.stat().st_mode & 0o777 == 0o600
        assert f" {line.split()[2]} sshrec {kind} CA (ED25519)" in ssh_keygen("-lf", f"{private}.pub")
    assert lines[4] == f"what sshd and ssh are to trust is in {authority.public}"
    assert authority.keys.stat().st_mode & 0o777 == 0o700
    assert authority.database.stat().st_mode & 0o777 == 0o600
    for path in (authority.home, authority.public):
        assert path.stat().st_mode & 0o777 == 0o755
    published = {path.name: path.stat().st_mode & 0o777 for path in authority.public.iterdir()}
    assert published == dict.fromkeys(
        ["allowed_signers", "gateway_known_hosts", "known_hosts", "krl", "user_ca.pub"], 0o644
    )
    assert refused(authority, "init") == (77, f"{authority.home} has its CAs already")


def test_init_overwrites_no_key_of_before(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.keys.mkdir(0o700, parents=True)
    (authority.keys / "host_ca").write_text("somebody's\n")
    status, words = refused(authority, "init")
    assert (status, words) == (77, f"{authority.keys}/host_ca exists, and the ledger does not know it")


def test_an_init_that_was_cut_short_is_taken_up(own: Authority, key: Path) -> None:
    own.rows("DELETE FROM authorities WHERE kind = 'gateway'")
    for path in own.keys.glob("gateway_ca*"):
        path.unlink()
    user_ca = (own.public / "user_ca.pub").read_text()
    said = own.ok("init")
    assert re.findall("(user|host|gateway) CA", said) == ["gateway"]
    assert (own.public / "user_ca.pub").read_text() == user_ca
    own.ok("sign", key, *JOE)


@pytest.mark.parametrize("where", ["keys", "data-auth"])
def test_init_follows_no_link(tmp_path: Path, where: str) -> None:
    authority = Authority(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(0o755)
    if where == "keys":
        authority.home.mkdir(0o755)
        authority.keys.symlink_to(elsewhere)
        assert refused(authority, "init") == (
            78,
            f"{authority.keys} must be a directory of our own, for nobody else to look into",
        )
    else:  # that the whole of it is elsewhere is an administrator's right
        authority.home.symlink_to(elsewhere)
        authority.ok("init")


def test_before_init_every_command_says_what_to_do(tmp_path: Path, key: Path) -> None:
    authority = Authority(tmp_path)
    for words in (("sign", key, *JOE), ("ls",), ("status",), ("revoke", "joe"), ("krl",), ("rotate", "user")):
        status, complaint = refused(authority, *words, nearby=key.parent)
        assert (status, complaint) == (66, f"database {authority.database} does not exist")
    assert not authority.home.exists()


def test_status(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE)
    said = own("status")
    assert (said.status, said.err) == (0, "5 events wait until sshrecd runs here, for the audit log\n")
    headings, *rows = said.out.splitlines()
    assert headings.split() == ["CA", "PHASE", "SINCE", "GOOD", "LAST", "EXPIRES", "FINGERPRINT"]
    assert [row.split()[:2] for row in rows] == [[kind, "current"] for kind in ("user", "host", "gateway")]
    user, host, _ = json.loads(own.ok("status", "--json"))["authorities"]
    assert (user["good"], host["good"], host["last_expires"]) == (1, 0, None)
    assert user["public_key"] == (own.public / "user_ca.pub").read_text().rstrip()


# ---- what the audit log is told ---------------------------------------------------------------------------


def events(authority: Authority) -> list[dict[str, Any]]:
    """What waits for an audit log, the oldest first."""
    return [json.loads(said) for (said,) in authority.rows("SELECT said FROM outbox ORDER BY id")]


def test_the_first_keys_are_told(own: Authority) -> None:
    told = events(own)
    assert [(event["event"], event["ca_type"]) for event in told] == [
        ("ca.init", kind) for kind in ("user", "host", "gateway", "audit")
    ]
    user, *_, audit = told
    assert user["ca_fingerprint"] == json.loads(own.ok("status", "--json"))["authorities"][0]["fingerprint"]
    assert audit["ca_fingerprint"] in ssh_keygen("-lf", own.keys / "audit.pub")
    assert {event["cluster_name"] for event in told} == {os.uname().nodename}


def test_a_certificate_is_told_with_what_it_says(own: Authority, key: Path) -> None:
    made = own.ok("sign", key, *JOE, "--ttl", "1h", "--source-address", "10.0.0.0/8", "--json")
    (certificate,) = json.loads(made)["certificates"]
    event = events(own)[-1]
    assert (event["event"], event["code"], event["cert_type"]) == ("cert.create", "TC000I", "user")
    assert event["identity.user"] == event["key_id"] == "joe"
    assert event["identity.logins"] == event["principals"] == ["sshrec:joe", "joe", "root"]
    assert event["identity.expires"] == event["valid_before"]
    assert datetime.fromisoformat(event["valid_before"]) == datetime.fromisoformat(certificate["valid_before"])
    for name in ("serial", "key_fingerprint", "ca_fingerprint"):
        assert event[name] == certificate[name]
    assert event["critical_options.source_address"] == "10.0.0.0/8"
    (entry,) = json.loads(own.ok("ls", "--json"))["certificates"]
    assert (event["user"], event["asked_from"]) == (entry["asked_by"], entry["asked_from"])
    assert event["occurred"] == entry["made"]


def test_a_host_s_certificate_names_no_user_and_no_login(own: Authority, key: Path) -> None:
    own.ok("sign-host", key, "--hostname", "web1,10.0.0.5")
    event = events(own)[-1]
    assert (event["cert_type"], event["key_id"], event["principals"]) == ("host", "web1", ["web1", "10.0.0.5"])
    assert not [name for name in event if name.startswith("identity.")]


def test_a_certificate_that_never_left_is_told_as_such(own: Authority, key: Path) -> None:
    absurd = Authority(own.directory, {"host_ttl_limit": "999999999y"})
    assert absurd("sign-host", key, "--hostname", "web1", "--ttl", "99999y").status == 64
    *_, made, withdrawn = events(own)
    assert (made["event"], withdrawn["event"]) == ("cert.create", "cert.withdraw")
    assert made["serial"] == withdrawn["serial"]
    assert withdrawn["reason"] == "the validity is not within the years 1970 and 9999"


def test_revocations_are_told_once(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE)
    own.ok("sign", key, *JOE)
    first, second = own.ledger()
    before = len(events(own))
    own.ok("revoke", str(first), "--reason", "lost laptop")
    own.ok("revoke", str(first), "--reason", "again")
    own.ok("revoke", "joe", "--reason", "left")
    own.ok("revoke", "--undo", "joe")
    one, everything, undone = events(own)[before:]
    assert (one["event"], one["serial"], one["key_id"]) == ("cert.revoke", first, "joe")
    assert one["reason"] == "lost laptop"
    assert (everything["event"], everything["key_id"]) == ("cert.revoke", "joe")
    assert (everything["serials"], everything["count"], everything["reason"]) == ([second], 1, "left")
    assert (undone["event"], undone["cert_type"], undone["key_id"]) == ("cert.unrevoke", "user", "joe")


def test_each_step_of_a_rotation_is_told(own: Authority) -> None:
    before = len(events(own))
    own("rotate", "user")
    own("rotate", "user")
    own("rotate", "user", "--retire")
    own("rotate", "host")
    own("rotate", "host", "--rollback")
    steps = [
        (event["event"], event["ca_type"], event.get("phase_before"), event["phase"], event.get("reason"))
        for event in events(own)[before:]
    ]
    assert steps == [
        ("ca.rotate", "user", None, "next", None),
        ("ca.rotate", "user", "current", "old", None),
        ("ca.rotate", "user", "next", "current", None),
        ("ca.rotate", "user", "old", "retired", None),
        ("ca.rotate", "host", None, "next", None),
        ("ca.rotate", "host", "next", "retired", "rolled back"),
    ]


def test_a_ca_that_retires_by_itself_is_told(own: Authority) -> None:
    own("rotate", "user", "--now")
    own.rows("UPDATE authorities SET retires_at = 1 WHERE phase = 'old'")
    own("ls")
    event = events(own)[-1]
    assert (event["phase_before"], event["phase"], event["reason"]) == ("old", "retired", "its time is over")


def test_the_next_key_of_the_audit_log_is_told(own: Authority) -> None:
    time.sleep(1.1)  # what is good from when counts in seconds
    assert own("audit-key", "--renew").status == 0
    event = events(own)[-1]
    assert (event["event"], event["ca_type"], event["phase"]) == ("ca.rotate", "audit", "current")
    assert event["ca_fingerprint"] in ssh_keygen("-lf", own.keys / "audit.pub")


@pytest.mark.parametrize("kind", ["user", "host", "gateway"])
def test_export(authority: Authority, kind: str) -> None:
    line = (authority.keys / f"{kind}_ca.pub").read_text()
    assert authority.ok("export", "--type", kind, "--format", "openssh") == line
    assert authority.ok("export", "--type", kind, "--format", "authorized_keys") == f"cert-authority {line}"
    known = authority.ok("export", "--type", kind, "--format", "known_hosts", "--hosts", "*.example.com,10.0.0.*")
    assert known == f"@cert-authority *.example.com,10.0.0.* {line}"
    default = line if kind == "user" else f"@cert-authority * {line}"
    assert authority.ok("export", "--type", kind) == default


@pytest.mark.parametrize("hosts", ["", "a b", "*\n@cert-authority *", "web1 #", "\udcff", "é"])
def test_export_takes_no_pattern_that_would_be_two_words(authority: Authority, hosts: str) -> None:
    status, words = refused(authority, "export", "--type", "host", "--hosts", hosts)
    assert status == 64
    assert words.endswith("is no pattern of known_hosts")


# ---- signing ------------------------------------------------------------------------------------------------


def listed(path: Path) -> dict[str, list[str]]:
    """What `ssh-keygen -L` says: each heading and what follows it."""
    found: dict[str, list[str]] = {}
    for line in ssh_keygen("-L", "-f", path).splitlines()[1:]:
        heading, colon, value = line.strip().partition(":")
        if colon and line.startswith(" " * 8) and not line.startswith(" " * 9):
            values = found.setdefault(heading, [value.strip()] if value.strip() else [])
        else:
            values.append(line.strip())
    return found


def test_sign(authority: Authority, key: Path) -> None:
    said = authority.ok("sign", key, *JOE, "--ttl", "2h")
    cert = beside(key)
    assert cert.stat().st_mode & 0o777 == 0o644
    as_listed = listed(cert)
    serial = as_listed["Serial"][0]
    assert as_listed["Type"] == ["ssh-ed25519-cert-v01@openssh.com user certificate"]
    assert as_listed["Key ID"] == ['"joe"']
    assert as_listed["Principals"] == ["sshrec:joe", "joe", "root"]
    assert as_listed["Critical Options"] == ["(none)"]
    assert as_listed["Extensions"] == ["permit-agent-forwarding", "permit-pty"]
    key_fingerprint = ssh_keygen("-lf", key).split()[1]
    ca = ssh_keygen("-lf", authority.keys / "user_ca.pub").split()[1]
    facts = shown(said)
    assert said.startswith("signed joe's key\n")
    assert re.fullmatch("[-0-9]+ [0-9:]+ to [-0-9]+ [0-9:]+", facts.pop("valid"))
    assert facts == {
        "principals": "sshrec:joe, joe, root",
        "options": "permit-agent-forwarding, permit-pty",
        "serial": serial,
        "key": f"{key_fingerprint} ssh-ed25519 joe@laptop",
        "signed by": ca,
        "written to": str(cert),
    }
    certificate = read_certificate(cert.read_bytes(), "cert")
    assert certificate.valid_before - certificate.valid_after == 2 * 3600 + 300
    assert abs(certificate.valid_after + 300 - time.time()) < 60
    assert authority.ledger()[int(serial)] == ("joe", key_fingerprint)


def test_sign_again_replaces_the_certificate_of_before(authority: Authority, key: Path) -> None:
    authority.ok("sign", key, *JOE)
    first, other = beside(key).read_bytes(), key.with_name("hard-link")
    other.hardlink_to(beside(key))
    authority.ok("sign", key, *JOE)
    assert beside(key).read_bytes() != first
    assert other.read_bytes() == first
    assert sorted(path.name for path in key.parent.iterdir()) == ["hard-link", "key-cert.pub", "key.pub"]


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa", "sk"])
def test_every_kind_of_key(authority: Authority, keys: dict[str, Path], kind: str, tmp_path: Path) -> None:
    cert = tmp_path / "somewhere"
    authority.ok("sign", keys[kind], *JOE, "-o", cert)
    assert listed(cert)["Key ID"] == ['"joe"']
    assert not beside(keys[kind]).exists()


def test_options(authority: Authority, keys: dict[str, Path], tmp_path: Path) -> None:
    words = ["--source-address", "10.0.0.0/8,2001:db8::1", "--force-command", 'echo "é", $HOME; x']
    authority.ok("sign", keys["sk"], *JOE, *words, "--verify-required", "-o", tmp_path / "cert")
    assert listed(tmp_path / "cert")["Critical Options"] == [
        'force-command echo "é", $HOME; x',
        "source-address 10.0.0.0/8,2001:db8::1/128",
        "verify-required",
    ]


def test_sign_from_standard_input_to_standard_output(authority: Authority, key: Path) -> None:
    said = authority.process("sign", "-", *JOE, given=key.read_bytes())
    assert said.status == 0
    certificate = read_certificate(said.out.encode(), "stdout")
    assert said.out == f"{certificate.line}\n"
    assert said.err.startswith("signed joe's key\n  principals   sshrec:joe, joe, root\n")
    said = authority.process("sign", "-", *JOE, "--json", given=key.read_bytes())
    serial = read_certificate(said.out.encode(), "stdout").serial
    assert [made["serial"] for made in json.loads(said.err)["certificates"]] == [serial]


def test_sign_to_standard_output(authority: Authority, key: Path) -> None:
    said = authority("sign", key, *JOE, "-o", "-")
    assert read_certificate(said.out.encode(), "stdout").serial in authority.ledger()
    assert not beside(key).exists()


def test_sign_many(authority: Authority, key: Path) -> None:
    many = [Path(shutil.copy(key, key.with_name(f"key{number}.pub"))) for number in range(60)]
    assert authority.ok("sign", *many, *JOE, "--jobs", "4") == "signed 60 keys for joe\n"
    serials = {read_certificate(beside(path).read_bytes(), "cert").serial for path in many}
    assert len(serials) == 60
    assert serials <= set(authority.ledger())


def test_sign_json(authority: Authority, key: Path) -> None:
    document = json.loads(authority.ok("sign", key, *JOE, "--source-address", "10.0.0.1", "--json"))
    assert document["schema"] == 1
    (made,) = document["certificates"]
    certificate = read_certificate(beside(key).read_bytes(), "cert")
    assert made["file"] == str(beside(key))
    assert (made["serial"], made["key_id"]) == (certificate.serial, "joe")
    assert made["principals"] == ["sshrec:joe", "joe", "root"]
    assert made["critical_options"] == {"source-address": "10.0.0.1/32"}


def test_sign_host(authority: Authority, key: Path) -> None:
    said = authority.ok("sign-host", key, "--hostname", "web1,web1.example.com,10.0.0.5,2001:DB8::0:1")
    assert said.startswith("signed the key of web1\n")
    as_listed = listed(beside(key))
    assert as_listed["Type"] == ["ssh-ed25519-cert-v01@openssh.com host certificate"]
    assert as_listed["Key ID"] == ['"web1"']
    assert as_listed["Principals"] == ["web1", "web1.example.com", "10.0.0.5", "2001:db8::1"]
    assert as_listed["Extensions"] == ["(none)"]
    ca = ssh_keygen("-lf", authority.keys / "host_ca.pub").split()[1]
    assert as_listed["Signing CA"] == [f"ED25519 {ca} (using ssh-ed25519)"]


def test_the_most_principals_that_there_may_be(authority: Authority, key: Path) -> None:
    authority.ok("sign", key, "--user", "joe", "--principals", ",".join(f"l{n}" for n in range(128)))
    assert len(listed(beside(key))["Principals"]) == 129


def test_names_of_files_that_a_terminal_would_act_on(authority: Authority, key: Path) -> None:
    for name in ("e\x1b]0;x\ny.pub", "k\udcff.pub"):
        hostile = key.with_name(name)
        shutil.copy(key, hostile)
        said = authority.process("sign", hostile, *JOE)
        assert (said.status, said.err) == (0, "")
        assert all(line.isprintable() for line in said.out.splitlines())
        beside(hostile).write_text("no certificate\n")
        status, words = refused(authority, "sign", hostile, *JOE, nearby=key.parent)
        assert (status, words.endswith("-cert.pub is there and is no certificate")) == (64, True)


@pytest.mark.parametrize(
    ("principals", "says"),
    [
        ("", "'' cannot be a principal"),
        (",", "'' cannot be a principal"),
        ("a,", "'' cannot be a principal"),
        ("*", "'*' cannot be a principal"),
        ("web?", "'web?' cannot be a principal"),
        ("!root", "'!root' cannot be a principal"),
        ("a b", "'a b' cannot be a principal"),
        (" a", "' a' cannot be a principal"),
        ("a\nb", r"'a\\nb' cannot be a principal"),
        ("a\n", r"'a\\n' cannot be a principal"),
        ("a\x1b[2J", r"'a\\x1b[2J' cannot be a principal"),
        ("-O", "'-O' cannot be a principal"),
        ("é", "'é' cannot be a principal"),
        ("rооt", "'rооt' cannot be a principal"),  # Cyrillic
        ("١", "'١' cannot be a principal"),
        ("\u202eroot", r"'\\u202eroot' cannot be a principal"),
        ("\udcff", r"'\\udcff' cannot be a principal"),
        ("sshrec:alice", "'sshrec:alice' cannot be a principal"),
        ("a" * 65, f"'{'a' * 65}' cannot be a principal"),
        (",".join(f"l{n}" for n in range(129)), "129 names are more than a certificate may have, 128"),
    ],
)
def test_bad_principals(authority: Authority, key: Path, principals: str, says: str) -> None:
    words = refused(authority, "sign", key, "--user", "joe", "--principals", principals, nearby=key.parent)
    assert words == (64, says)


@pytest.mark.parametrize("user", ["", "Joe", "a b", "joe\n", "joe\x1b]0;x\x07", "-I", "j" * 33, "é", "a,b", "*"])
def test_bad_users(authority: Authority, key: Path, user: str) -> None:
    status, words = refused(authority, "sign", key, "--user", user, "--principals", "root", nearby=key.parent)
    assert (status, words.endswith(" cannot be a user")) == (64, True)


@pytest.mark.parametrize(
    "hostnames", ["", "*", "*.example.com", "web1,", "web 1", "web1\n", "WEB1", "web1,*", "é"]
)
def test_bad_hostnames(authority: Authority, key: Path, hostnames: str) -> None:
    status, words = refused(authority, "sign-host", key, "--hostname", hostnames, nearby=key.parent)
    assert (status, words.endswith(" cannot be a hostname")) == (64, True)


@pytest.mark.parametrize(
    "ttl",
    [
        "",
        "0",
        "0s",
        "12",
        "-5m",
        "+5m",
        "always",
        "forever",
        "always:forever",
        "1h:2h",
        "9" * 30 + "y",
        "٣h",
        "1h\n2h",
    ],
)
@pytest.mark.parametrize("command", [("sign", *JOE), ("sign-host", "--hostname", "web1")], ids=["user", "host"])
def test_bad_validity(authority: Authority, key: Path, command: tuple[str, ...], ttl: str) -> None:
    status, words = refused(authority, *command, key, "--ttl", ttl, nearby=key.parent)
    assert (status, words.startswith("invalid value for '--ttl': ")) == (64, True)


@pytest.mark.parametrize("ttl", ["86401s", "25h", "52w", "999999999y"])
def test_validity_beyond_the_limit(authority: Authority, key: Path, ttl: str) -> None:
    status, words = refused(authority, "sign", key, *JOE, "--ttl", ttl, nearby=key.parent)
    assert (status, words.endswith(" is longer than a user's certificate may be good for, 1d")) == (64, True)
    authority.ok("sign", key, *JOE, "--ttl", "24h")


def test_an_absurd_limit_gives_no_absurd_certificate(own: Authority, key: Path) -> None:
    """ssh-keygen knows the years up to 9999 only; the row of what was not signed is withdrawn."""
    absurd = Authority(own.directory, {"host_ttl_limit": "999999999y"})
    assert refused(absurd, "sign-host", key, "--hostname", "web1", "--ttl", "99999y", nearby=key.parent) == (
        64,
        "the validity is not within the years 1970 and 9999",
    )
    (withdrawn,) = absurd.rows("SELECT withdrawn FROM certificates WHERE withdrawn IS NOT NULL")
    assert withdrawn == ("the validity is not within the years 1970 and 9999",)
    assert "withdrawn" in absurd.ok("ls", "--all")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--source-address", ""), "'' is no address and no network"),
        (("--source-address", "10.0.0.5/24"), "'10.0.0.5/24' is no address and no network"),
        (("--source-address", "10.0.0.1, 10.0.0.2"), "' 10.0.0.2' is no address and no network"),
        (("--source-address", "!10.0.0.1"), "'!10.0.0.1' is no address and no network"),
        (("--source-address", "web1"), "'web1' is no address and no network"),
        (("--force-command", ""), "'' cannot be a forced command: one line without controls"),
        (("--force-command", "id\nrm x"), r"'id\\nrm x' cannot be a forced command: one line without controls"),
        (("--force-command", "x\udcff"), r"certificate for 'joe': 'x\udcff' has control characters"),
        (("--verify-required",), "a key of type ssh-ed25519 verifies nobody"),
        (("--jobs", "0"), "invalid value for '--jobs': 0 is not in the range 1<=x<=64"),
        (("--ttl",), "option '--ttl' requires an argument"),
        (("--nonsense",), "no such option '--nonsense'"),
    ],
)
def test_bad_options(authority: Authority, key: Path, option: tuple[str, ...], says: str) -> None:
    assert refused(authority, "sign", key, *JOE, *option, nearby=key.parent) == (64, says)


def bad_keys(directory: Path) -> Iterator[tuple[str, Path, int, str]]:
    """Files that are no key to sign: a name, the file, the exit code, and how the complaint ends."""

    def file(name: str, content: bytes) -> Path:
        path = directory / name
        path.write_bytes(content)
        return path

    good = make_key(directory / "good").read_bytes()
    weak = make_key(directory / "weak", "-t", "rsa", "-b", "2048")
    yield "RSA of 2048 bits", weak, 65, " is an RSA key of 2048 bits; 3072 are the least"
    dsa = b"ssh-dss AAAAB3NzaC1kc3MAAACBAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA== joe\n"
    yield "DSA", file("dsa.pub", dsa), 65, ""
    yield "a private key", directory / "good", 65, "good is a private key"
    yield "a private key called .pub", file("x.pub", (directory / "good").read_bytes()), 65, " is a private key"
    yield "two keys", file("two.pub", good + good), 65, " has 2 lines"
    yield "options", file("options.pub", b'command="id" ' + good), 65, " has options before the key"
    yield "ESC in the comment", file("esc.pub", good[:-1] + b"\x1b]0;x\x07\n"), 65, " holds control bytes"
    yield "NUL", file("nul.pub", good[:-1] + b"\0\n"), 65, " holds control bytes"
    yield "nothing", file("nothing.pub", b""), 65, " holds no public key"
    yield "noise", file("noise.pub", bytes(range(256))), 65, ""
    yield "half a key", file("half.pub", good[:40] + b"\n"), 65, ""
    big = directory / "big.pub"
    big.write_bytes(good)
    os.truncate(big, 100_000_000)
    yield "100 MB", big, 65, " has more than 16 KiB"
    os.mkfifo(directory / "fifo.pub")
    yield "a FIFO", directory / "fifo.pub", 65, " is not a regular file"
    (directory / "directory.pub").mkdir()
    yield "a directory", directory / "directory.pub", 65, " is not a regular file"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s.pub"))
    yield "a socket", directory / "s.pub", 65, "no such device or address"
    yield "a device", Path("/dev/zero"), 65, " is not a regular file"
    (directory / "dangling.pub").symlink_to("nowhere")
    yield "a link to nothing", directory / "dangling.pub", 66, ": no such file"
    yield "nothing there", directory / "absent.pub", 66, ": no such file"
    yield "no name", Path(), 65, " is not a regular file"
    yield "below a file", directory / "good.pub" / "x.pub", 65, ": not a directory"
    yield "a long name", directory / ("x" * 300), 65, ": file name too long"


def test_bad_keys(authority: Authority, tmp_path: Path) -> None:
    for name, path, code, ending in bad_keys(tmp_path):
        status, words = refused(authority, "sign", path, *JOE)
        assert (status, words.endswith(ending)) == (code, True), (name, words)
        assert refused(authority, "sign-host", path, "--hostname", "web1") == (status, words), name
        assert not list(tmp_path.glob("*-cert.pub")), name


def test_a_certificate_is_not_signed_again(authority: Authority, key: Path) -> None:
    authority.ok("sign", key, *JOE)
    status, words = refused(authority, "sign", beside(key), *JOE, nearby=key.parent)
    assert (status, words) == (65, f"{beside(key)} is a certificate, already signed")


def test_bad_keys_on_standard_input(authority: Authority, key: Path, tmp_path: Path) -> None:
    def given(data: bytes) -> Callable[..., Said]:
        return lambda *words: authority.process(*words, given=data)

    for data, says in (
        (b"", "standard input holds no public key"),
        (b"x" * 10_000_000, "standard input has more than 16 KiB"),
        (key.read_bytes() * 2, "standard input has 2 lines"),
    ):
        assert refused(authority, "sign", "-", *JOE, by=given(data)) == (65, says)

    def closed(*words: str | Path) -> Said:
        command = ["sh", "-c", 'exec "$@" <&-', "sh", SSHREC_CA, *authority.words(words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
        return Said(done.returncode, done.stdout, done.stderr)

    assert refused(authority, "sign", "-", *JOE, by=closed) == (65, "-: bad file descriptor")


def bad_outputs(directory: Path) -> Iterator[tuple[Path, str]]:
    """Where no certificate is written, and what the complaint says of it."""
    precious = directory / "precious"
    precious.write_text("do not touch\n")
    link, dangling = directory / "link", directory / "dangling"
    link.symlink_to(precious)
    dangling.symlink_to(directory / "made")
    (directory / "directory").mkdir()
    os.mkfifo(directory / "fifo")
    private = make_key(directory / "id")
    nothing_through = "and nothing is written through it"
    yield precious, "is there and is no certificate"
    yield private, "is there and is no certificate"
    yield directory / "id", "is there and is no certificate"
    yield link, f"is a symbolic link, {nothing_through}"
    yield dangling, f"is a symbolic link, {nothing_through}"
    yield directory / "directory", f"is no regular file, {nothing_through}"
    yield directory / "fifo", f"is no regular file, {nothing_through}"
    yield Path("/dev/null"), f"is no regular file, {nothing_through}"
    yield directory / "absent" / "cert", f"{directory}/absent is no directory"
    yield precious / "cert", "not a directory"
    yield directory / ("x" * 300), "file name too long"


def test_bad_outputs(authority: Authority, key: Path, tmp_path: Path) -> None:
    place = tmp_path / "outputs"
    place.mkdir()
    for path, says in bad_outputs(place):
        for command in (("sign", *JOE), ("sign-host", "--hostname", "web1")):
            status, words = refused(authority, *command, key, "-o", path, nearby=place)
            assert (status, words.endswith(says)) == (64, True), words


def test_bad_outputs_beside_the_key(authority: Authority, key: Path) -> None:
    precious = key.with_name("precious")
    precious.write_text("do not touch\n")
    beside(key).symlink_to(precious)
    status, words = refused(authority, "sign", key, *JOE, nearby=key.parent)
    assert (status, words) == (64, f"{beside(key)} is a symbolic link, and nothing is written through it")


def test_several_keys_of_which_one_cannot_be_signed(authority: Authority, key: Path) -> None:
    other = make_key(key.with_name("other"))

    def piped(*words: str | Path) -> Said:
        return authority.process(*words, given=key.read_bytes())

    assert refused(authority, "sign", key, key, *JOE, nearby=key.parent) == (
        64,
        f"two keys would go to {beside(key)}",
    )
    for words in ((key, other, "-o", key.with_name("cert")), (key, other, "-o", "-"), (key, "-")):
        status, complaint = refused(authority, "sign", *words, *JOE, nearby=key.parent, by=piped)
        assert (status, complaint) == (64, "several keys at once go beside their files")
    beside(other).mkdir()
    status, complaint = refused(authority, "sign", key, other, *JOE, nearby=key.parent)
    assert (status, complaint.startswith(f"{beside(other)} is no regular file")) == (64, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("sign --user joe --principals root", "missing argument 'KEY.pub...'"),
        ("sign x.pub --principals root", "missing option '--user'"),
        ("sign x.pub --user joe", "missing option '--principals'"),
        ("sign-host x.pub", "missing option '--hostname'"),
        ("rotate", "missing argument '[user|host|gateway]'"),
        ("nonsense", "no such command 'nonsense'"),
    ],
)
def test_a_command_line_that_says_too_little_or_nonsense(authority: Authority, words: str, says: str) -> None:
    said = authority(*words.split())
    assert (said.status, said.out) == (64, "")
    assert said.err.startswith(f"sshrec-ca: error: {says}")
    assert "Traceback" not in said.err


# ---- the ledger ---------------------------------------------------------------------------------------------


def shown(text: str) -> dict[str, str]:
    """What is said of a certificate, but the time that is left, which may be a second less by now."""
    facts = {line[:14].strip(): line[15:] for line in text.splitlines()[1:]}
    return {label: re.sub(r" \(\w+ left\)$", "", value) for label, value in facts.items()}


def test_ls_and_show(own: Authority, key: Path) -> None:
    assert own("ls") == Said(0, "", "no certificates that are good now; --all lists the others\n")
    own.ok("sign", key, *JOE)
    serial = read_certificate(beside(key).read_bytes(), "cert").serial
    headings, row = own.ok("ls").splitlines()
    assert headings.split() == ["SERIAL", "KIND", "KEY", "ID", "STATUS", "UNTIL", "MADE", "BY", "PRINCIPALS"]
    assert row.split()[:3] == [str(serial), "user", "joe"]
    assert row.split()[3:5] in (["12h", "left"], ["11h59m", "left"])
    assert own("ls", "--kind", "host").out == ""
    (listed_,) = json.loads(own.ok("ls", "--json", "--key-id", "joe"))["certificates"]
    assert (listed_["serial"], listed_["withdrawn"], listed_["revoked"]) == (serial, None, None)
    of_file = own.ok("show", beside(key))
    assert of_file.startswith("user certificate, signed by our user CA\n  key id       joe\n")
    of_ledger = own.ok("show", str(serial))
    given = own.process("show", "-", given=beside(key).read_bytes())
    assert (given.status, shown(given.out)) == (0, shown(of_file))
    key_line = shown(of_file)["key"]
    assert {**shown(of_ledger), "key": key_line} == shown(of_file)
    assert key_line == f"{shown(of_ledger)['key']} ssh-ed25519 joe@laptop"
    document = json.loads(own.ok("show", beside(key), "--json"))
    assert (document["ledger"]["serial"], document["certificate"]["key_id"]) == (serial, "joe")


def foreign(authority: Authority, key: Path, key_id: str, serial: int, *options: str) -> Path:
    """A certificate of somebody else's CA."""
    ca = key.with_name("foreign_ca")
    if not ca.exists():
        make_key(ca)
    ssh_keygen(
        "-q", "-s", ca, "-I", key_id, "-n", "joe\x1b[2J", "-V", "always:forever", "-z", str(serial), *options, key
    )
    return beside(key)


def test_show_a_hostile_certificate(authority: Authority, key: Path) -> None:
    cert = foreign(authority, key, "joe\x1b]0;x\x07\n\u202e", 1, "-O", "critical:evil@x=\x1b[31m")
    said = authority.ok("show", cert)
    assert said.startswith("user certificate, signed by a CA that is not ours\n")
    assert all(line.isprintable() for line in said.splitlines())
    assert "endless" in said
    assert "ledger       does not have it" in said
    assert json.loads(authority.ok("show", cert, "--json"))["certificate"]["valid_before"] is None


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("123456", 66, "no certificate with serial 123456 in the ledger"),
        ("0", 66, "0: no such file"),
        ("99999999999999999999", 66, "99999999999999999999: no such file"),
        ("", 66, ": no such file"),
        ("\udcff", 66, r"\udcff: no such file"),
        ("/dev/null", 65, "/dev/null is not a regular file"),
        ("/etc/passwd", 65, ""),
    ],
)
def test_show_what_is_not_there(authority: Authority, what: str, code: int, says: str) -> None:
    status, words = refused(authority, "show", what)
    assert status == code
    assert words == says or not says


def revoked(authority: Authority, path: Path) -> bool:
    """What ssh-keygen says of a certificate and the published list."""
    done = subprocess.run(
        ["ssh-keygen", "-Q", "-f", authority.public / "krl", path], capture_output=True, text=True
    )
    assert (done.returncode, ": REVOKED" in done.stdout) in ((0, False), (1, True)), done
    return done.returncode == 1


def test_revoke_by_serial_file_and_key_id(own: Authority, key: Path) -> None:
    paths = []
    for number in range(4):
        path = key.with_name(f"cert{number}.pub")
        own.ok("sign", key, "--user", "alice" if number == 3 else "joe", "--principals", "root", "-o", path)
        paths.append(path)
    serials = [read_certificate(path.read_bytes(), "cert").serial for path in paths]
    assert [revoked(own, path) for path in paths] == [False] * 4
    assert own.ok("revoke", str(serials[0]), "--reason", "lost") == f"revoked {serials[0]}, of joe\n"
    assert [revoked(own, path) for path in paths] == [True, False, False, False]
    assert own.ok("revoke", paths[1]) == f"revoked {serials[1]}, of joe\n"
    assert [revoked(own, path) for path in paths] == [True, True, False, False]
    assert (
        own.ok("revoke", "joe", "--reason", "gone")
        == "revoked joe: 1 certificates that were good, and all to come\n"
    )
    assert [revoked(own, path) for path in paths] == [True, True, True, False]
    status, words = refused(own, "sign", key, *JOE, nearby=key.parent)
    assert status == 77
    assert re.fullmatch(r"user key id 'joe' was revoked by \S+ on [-0-9]+ [0-9:]+ UTC: gone", words)
    assert own.ok("revoke", "--undo", "joe") == "joe can have certificates again\n"
    own.ok("sign", key, *JOE)
    assert not revoked(own, beside(key))
    assert [revoked(own, path) for path in paths] == [True, True, True, False]
    states = {row.split()[0]: row.split()[3] == "revoked" for row in own.ok("ls").splitlines()[1:]}
    assert [states[str(serial)] for serial in serials] == [True, True, True, False]
    assert re.search(r"revoked +[-0-9T:.Z]+ by \S+: lost\n", own.ok("show", str(serials[0])))


def test_a_file_in_the_directory_is_not_taken_for_a_key_id(
    own: Authority, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or whoever is to be revoked could put an old certificate there, and keep the new ones."""
    own.ok("sign", key, *JOE, "-o", key.with_name("joe"))
    own.ok("sign", key, *JOE)
    monkeypatch.chdir(key.parent)
    assert own.ok("revoke", "joe").startswith("revoked joe: 2 certificates ")
    assert revoked(own, beside(key))


def test_the_list_names_more_than_the_ledger_has(own: Authority, key: Path) -> None:
    """A key id cuts off what somebody signed by hand with the CA's key, too."""
    ssh_keygen("-q", "-s", own.keys / "user_ca", "-I", "mallory", "-n", "root", key)
    said = own("revoke", "mallory")
    assert (said.status, said.err) == (0, "the ledger has no user certificate of mallory: a slip?\n")
    assert revoked(own, beside(key))


def test_revoke_what_cannot_be(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE)
    serial = read_certificate(beside(key).read_bytes(), "cert").serial
    shutil.copy(beside(key), key.with_name("ours"))
    theirs = foreign(own, key, "joe", serial)
    before = own.rows("SELECT * FROM certificates"), own.rows("SELECT * FROM revoked_key_ids")
    for words, code, says in (
        ((theirs,), 66, f"the ledger does not have {theirs}"),
        (("123456",), 66, "no certificate with serial 123456 in the ledger"),
        ((key,), 65, f"{key} is no certificate"),
        (("absent.pub",), 66, "absent.pub: no such file"),
        (("joe", "--reason", "a\nb"), 64, r"reason: 'a\nb' has control characters"),
        (("joe", "--reason", "\x1b[2J"), 64, r"reason: '\x1b[2J' has control characters"),
        (("joe", "--reason", "\udcff"), 64, r"reason: '\udcff' has control characters"),
        (("a\x1bb",), 64, r"'a\x1bb' is no name: it has unprintable characters, or more than 1000"),
        (("\udcff",), 64, r"'\udcff' is no name: it has unprintable characters, or more than 1000"),
        (("--undo", "\udcff"), 64, r"'\udcff' is no name: it has unprintable characters, or more than 1000"),
        (("--undo", "alice"), 66, "user key id 'alice' is not revoked"),
        (("--undo", str(serial)), 64, "only a key id can have certificates again"),
        (("--undo", theirs), 64, "only a key id can have certificates again"),
    ):
        assert refused(own, "revoke", *words, nearby=key.parent) == (code, says)
    assert (own.rows("SELECT * FROM certificates"), own.rows("SELECT * FROM revoked_key_ids")) == before


@pytest.mark.parametrize("key_id", ["a#b", "#", " joe", "joe ", ""])
def test_a_key_id_that_no_list_can_name(own: Authority, key: Path, key_id: str) -> None:
    """In the ledger, it would spoil every list to come."""
    status, words = refused(own, "revoke", key_id, nearby=key.parent)
    assert (status, words) == (64, f"'{key_id}' cannot be revoked by its key id")
    assert own.rows("SELECT * FROM revoked_key_ids") == []
    own.ok("sign", key, *JOE)
    own.ok("revoke", "joe")
    assert revoked(own, beside(key))


@pytest.mark.parametrize(
    "option", [("--key-id", "\udcff"), ("--ca", "\udcff"), ("--key-id", "\x1b"), ("--kind", "x")]
)
def test_ls_of_what_cannot_be(authority: Authority, option: tuple[str, str]) -> None:
    assert refused(authority, "ls", *option)[0] == 64


def test_krl(own: Authority, key: Path, tmp_path: Path) -> None:
    assert own.ok("krl") == f"{own.public}/krl\n"
    elsewhere = tmp_path / "list"
    elsewhere.touch()
    assert own.ok("krl", "-o", elsewhere) == ""
    assert "KRL version" in ssh_keygen("-Q", "-l", "-f", elsewhere)
    own.ok("sign", key, *JOE)
    own.ok("revoke", "joe")
    own.ok("krl", "-o", elsewhere)
    assert elsewhere.stat().st_mode & 0o777 == 0o644
    done = subprocess.run(["ssh-keygen", "-Q", "-f", elsewhere, beside(key)], capture_output=True)
    assert done.returncode == 1
    (own.public / "krl").unlink()
    own.ok("krl")
    assert revoked(own, beside(key))


def test_bad_outputs_of_krl(authority: Authority, tmp_path: Path) -> None:
    for path, says in bad_outputs(tmp_path):
        status, words = refused(authority, "krl", "-o", path, nearby=tmp_path)
        assert (status, words.endswith(says.replace("certificate", "list of revoked certificates"))) == (64, True)


# ---- rotation -----------------------------------------------------------------------------------------------


def phases(authority: Authority, kind: str = "user") -> list[str]:
    document = json.loads(authority.ok("status", "--json"))["authorities"]
    return [row["phase"] for row in document if row["kind"] == kind]


def exported(authority: Authority, kind: str = "user") -> list[str]:
    """The CAs that are published, by their keys."""
    lines = authority.ok("export", "--type", kind, "--format", "openssh").splitlines()
    if kind == "user":
        assert (authority.public / "user_ca.pub").read_text().splitlines() == lines
    return [line.split()[1] for line in lines]


def signing_ca(path: Path) -> str:
    return read_certificate(path.read_bytes(), "cert").ca.blob


def test_rotate_step_by_step(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE, "--ttl", "3h")
    (old,) = exported(own)
    said = own("rotate", "user")
    assert re.fullmatch(rf"the next user CA is {FINGERPRINT}\n", said.out)
    assert said.err.startswith("next: give both CAs to targets ")
    assert (phases(own), exported(own)[0]) == (["current", "next"], old)
    new = exported(own)[1]
    own.ok("sign", key, *JOE, "--ttl", "1h")
    assert signing_ca(beside(key)) == old
    said = own("rotate", "user")
    assert re.fullmatch(rf"{FINGERPRINT} signs now; the old one is trusted until .*\n", said.out)
    assert phases(own) == ["current", "old"]
    assert exported(own) == [new, old]
    assert "is retired by itself in 3h" in said.err or "is retired by itself in 2h59m" in said.err
    own.ok("sign", key, *JOE)
    assert signing_ca(beside(key)) == new
    said = own("rotate", "user", "--retire")
    assert re.fullmatch(rf"retired the user CA {FINGERPRINT}: nothing that it signed counts any more\n", said.out)
    assert said.err == "the rotation of the user CA is over\n"
    assert (phases(own), exported(own)) == (["current", "retired"], [new])
    assert sorted(path.name for path in own.keys.glob("user*")) == ["user_ca.2", "user_ca.2.pub"]
    own.ok("sign", key, *JOE)


def test_rotate_now_and_back(own: Authority, key: Path) -> None:
    (old,) = exported(own, "host")
    assert own("rotate", "host", "--now", "--grace", "1h").status == 0
    new = exported(own, "host")[0]
    assert exported(own, "host") == [new, old]
    said = own("rotate", "host", "--rollback")
    assert said.out.startswith("the host CA that signs is SHA256:")
    assert (phases(own, "host"), exported(own, "host")) == (["current", "next"], [old, new])
    own.ok("sign-host", key, "--hostname", "web1")
    assert signing_ca(beside(key)) == old
    assert own("rotate", "host", "--rollback").status == 0
    assert (phases(own, "host"), exported(own, "host")) == (["current", "retired"], [old])
    assert sorted(path.name for path in own.keys.glob("host*")) == ["host_ca", "host_ca.pub"]
    assert refused(own, "rotate", "host", "--rollback") == (77, "there is no host CA to go back to")


def test_a_grace_that_is_over(own: Authority, key: Path) -> None:
    own("rotate", "user", "--now", "--grace", "1h")
    own.rows("UPDATE authorities SET retires_at = retires_at - 3601 WHERE phase = 'old'")
    assert phases(own) == ["current", "retired"]
    assert len((own.public / "user_ca.pub").read_text().splitlines()) == 1
    assert len(list(own.keys.glob("user*"))) == 2


def test_rotate_what_cannot_be(own: Authority) -> None:
    for words, code, says in (
        (("--retire",), 77, "there is no old user CA"),
        (("--rollback",), 77, "there is no user CA to go back to"),
        (("--grace", "1h"), 64, "--grace is for the step that has the new CA sign"),
        (("--now", "--retire"), 64, "--now, --retire and --rollback are three things"),
        (("--retire", "--grace", "1h"), 64, "--retire and --rollback take neither --grace nor --passphrase"),
        (("--now", "--grace", "2d"), 64, "2d is longer than any certificate of the user CA is good for, 1d"),
        (
            ("--now", "--grace", "0s"),
            64,
            "invalid value for '--grace': '0s' is no duration such as 30m, 12h, 7d or 1y",
        ),
    ):
        assert refused(own, "rotate", "user", *words) == (code, says)
    own("rotate", "user")
    for words, code, says in (
        (("--now",), 77, "there is a next user CA already"),
        (("--passphrase",), 64, "--passphrase is for the step that makes a new CA"),
        (("--retire",), 77, "there is no old user CA"),
    ):
        assert refused(own, "rotate", "user", *words) == (code, says)


# ---- the CA's keys ------------------------------------------------------------------------------------------


def _chmod(path: Path, mode: int) -> Callable[[Authority], None]:
    return lambda authority: (authority.home / path).chmod(mode)


def _replace(content: str) -> Callable[[Authority], None]:
    def change(authority: Authority) -> None:
        (authority.keys / "user_ca").write_text(content)

    return change


def _link(authority: Authority) -> None:
    (authority.keys / "user_ca").rename(authority.directory / "user_ca")
    (authority.keys / "user_ca").symlink_to(authority.directory / "user_ca")


def _directory(authority: Authority) -> None:
    (authority.keys / "user_ca").unlink()
    (authority.keys / "user_ca").mkdir(0o700)


def _fifo(authority: Authority) -> None:
    (authority.keys / "user_ca").unlink()
    os.mkfifo(authority.keys / "user_ca", 0o600)


def _another(authority: Authority) -> None:
    shutil.copy(authority.keys / "host_ca", authority.keys / "user_ca")


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (_chmod(Path("keys/user_ca"), 0o644), 78, "others than its owner may use {key}"),
        (_chmod(Path("keys/user_ca"), 0o640), 78, "others than its owner may use {key}"),
        (_chmod(Path("keys"), 0o777), 78, "{keys} can be changed by others than root and the caller"),
        (_chmod(Path("keys"), 0o770), 78, "{keys} can be changed by others than root and the caller"),
        (_chmod(Path(), 0o777), 78, "{home} can be changed by others than root and the caller"),
        (lambda own: (own.keys / "user_ca").unlink(), 66, "{key}: no such private key"),
        (_link, 78, "{key} is a symbolic link"),
        (_directory, 78, "{key} is not a regular file"),
        (_fifo, 78, "{key} is not a regular file"),
        (_replace("garbage\n"), 65, "{key} is no private key: "),
        (_replace(""), 65, "{key} is no private key: "),
        (_another, 78, "{key} is not the private key of SHA256:"),
    ],
    ids=[
        "0644",
        "0640",
        "keys-0777",
        "keys-0770",
        "home-0777",
        "missing",
        "link",
        "directory",
        "FIFO",
        "garbage",
        "empty",
        "another",
    ],
)
def test_an_unsafe_ca_key_signs_nothing(
    own: Authority, key: Path, spoil: Callable[[Authority], None], code: int, says: str
) -> None:
    spoil(own)
    status, words = refused(own, "sign", key, *JOE, nearby=key.parent)
    says = says.format(key=own.keys / "user_ca", keys=own.keys, home=own.home)
    assert (status, words[: len(says)]) == (code, says)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_ca_key_that_cannot_be_read(own: Authority, key: Path) -> None:
    (own.keys / "user_ca").chmod(0)
    assert refused(own, "sign", key, *JOE, nearby=key.parent)[0] == 78


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_ca_key_of_somebody_else(own: Authority, key: Path) -> None:
    os.chown(own.keys / "user_ca", 65534, 65534)
    status, words = refused(own, "sign", key, *JOE, nearby=key.parent)
    assert (status, words) == (78, f"{own.keys}/user_ca belongs to uid 65534, not to 0")


@pytest.fixture
def encrypted(own: Authority) -> Authority:
    ssh_keygen("-p", "-q", "-P", "", "-N", "open sesame", "-f", own.keys / "user_ca")
    return own


def test_a_passphrase_is_asked_for_once(encrypted: Authority, key: Path) -> None:
    other = make_key(key.with_name("other"))
    prompt = f"passphrase for {encrypted.keys}/user_ca: "
    said = encrypted.typing(prompt, "open sesame")("sign", key, other, *JOE)
    assert said.status == 0
    assert "passphrase" not in said.err
    assert "sesame" not in said.err
    assert said.err.endswith("\nsigned 2 keys for joe\n")
    assert not revoked(encrypted, beside(other))


@pytest.mark.parametrize("typed", ["wrong", "", "open sesame\x16\x1b"])
def test_a_wrong_passphrase(encrypted: Authority, key: Path, typed: str) -> None:
    by = encrypted.typing(f"passphrase for {encrypted.keys}/user_ca: ", typed)
    status, words = refused(encrypted, "sign", key, *JOE, nearby=key.parent, by=by)
    assert (status, words) == (77, f"wrong passphrase for {encrypted.keys}/user_ca")


def test_ctrl_c_at_the_passphrase(encrypted: Authority, key: Path) -> None:
    before = encrypted.ledger()
    child = encrypted.at_a_terminal("sign", key, *JOE)
    child.expect_exact("user_ca: ")
    child.sendintr()
    said = ended(child)
    assert said.status == 130
    assert "Traceback" not in said.err
    assert encrypted.ledger() == before
    assert not beside(key).exists()


def test_no_terminal_to_ask_for_a_passphrase(encrypted: Authority, key: Path) -> None:
    status, words = refused(encrypted, "sign", key, *JOE, nearby=key.parent, by=encrypted.process)
    assert status == 77
    assert words == f"passphrase for {encrypted.keys}/user_ca: there is no terminal to ask for it at"


def test_init_with_a_passphrase(tmp_path: Path, key: Path) -> None:
    directory = tmp_path / "new"
    directory.mkdir()
    authority = Authority(directory)
    assert refused(authority, "init", "--passphrase", by=authority.process)[0] == 77
    prompts = ("passphrase for the new keys: ", "the same once more: ")
    for answers, says in (
        (["a", "b"], "the passphrases are not the same"),
        ([""], "an empty passphrase protects"),
    ):
        child = authority.at_a_terminal("init", "--passphrase")
        for answer, prompt in zip(answers, prompts, strict=False):
            child.expect_exact(prompt)
            child.sendline(answer)
        said = ended(child)
        assert (said.status, says in said.err) == (64, True)
        assert not authority.home.exists()
    child = authority.at_a_terminal("init", "--passphrase")
    for prompt in prompts:
        child.expect_exact(prompt)
        child.sendline("ö pen sesame")
    assert ended(child).status == 0
    for kind in ("user", "host", "gateway"):
        command = ["ssh-keygen", "-y", "-P", "", "-f", str(authority.keys / f"{kind}_ca")]
        assert b"incorrect passphrase" in subprocess.run(command, capture_output=True).stderr
    assert authority.typing("user_ca: ", "ö pen sesame")("sign", key, *JOE).status == 0
    assert beside(key).exists()


# ---- keys that others hold ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agent:
    socket: Path
    process: subprocess.Popen[bytes]

    def add(self, *words: str | Path) -> None:
        env = {"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": str(self.socket)}
        subprocess.run(["ssh-add", "-q", *words], env=env, check=True, capture_output=True)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    path = Path(os.path.relpath(tmp_path)) / "a" if len(str(tmp_path)) > 90 else tmp_path / "a"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        wait(path.is_socket, "ssh-agent")
        yield Agent(path.absolute(), process)
    finally:
        process.kill()
        process.wait()


def test_a_ca_in_an_agent(agent: Agent, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    public = make_key(tmp_path / "ca")
    held: dict[str, Any] = {"public_key": str(public), "signer": "agent", "agent": str(agent.socket)}
    directory = tmp_path / "authority"
    directory.mkdir()
    authority = Authority(directory, {"user": held})
    assert re.search(rf"user CA +{FINGERPRINT}  held elsewhere\n", authority.ok("init"))
    assert sorted(path.name for path in authority.keys.iterdir() if path.suffix != ".pub") == [
        "allowed_signers",
        "audit",
        "gateway_ca",
        "host_ca",
    ]
    assert exported(authority) == [public.read_text().split()[1]]
    status, words = refused(authority, "sign", key, *JOE, nearby=key.parent)
    fingerprint = ssh_keygen("-lf", public).split()[1]
    assert (status, words) == (78, f"the agent at {agent.socket} does not hold the key {fingerprint}")
    agent.add(public.with_suffix(""))
    public.with_suffix("").unlink()
    authority.ok("sign", key, *JOE)
    assert signing_ca(beside(key)) == exported(authority)[0]
    authority.ok("sign-host", key, "--hostname", "web1")

    callers = Authority(directory, {"user": {name: held[name] for name in ("public_key", "signer")}})
    monkeypatch.setenv("SSH_AUTH_SOCK", str(agent.socket))
    callers.ok("sign", key, *JOE)
    monkeypatch.delenv("SSH_AUTH_SOCK")
    assert refused(callers, "sign", key, *JOE, nearby=key.parent) == (78, "no agent to ask for the user CA")
    bare = Authority(directory)
    assert refused(bare, "sign", key, *JOE) == (78, f"no agent and no token holds the user CA {fingerprint}")
    agent.process.kill()
    agent.process.wait()
    status, words = refused(Authority(directory, {"user": held}), "sign", key, *JOE, nearby=key.parent)
    assert (status, words.startswith(f"the agent at {agent.socket} does not answer")) == (69, True)


def test_rotate_a_ca_in_an_agent(agent: Agent, key: Path, tmp_path: Path) -> None:
    first, second = make_key(tmp_path / "ca1"), make_key(tmp_path / "ca2")
    agent.add(tmp_path / "ca1", tmp_path / "ca2")
    directory = tmp_path / "authority"
    directory.mkdir()

    def held(public: Path) -> Authority:
        return Authority(
            directory, {"user": {"public_key": str(public), "signer": "agent", "agent": str(agent.socket)}}
        )

    held(first).ok("init")
    assert refused(held(first), "rotate", "user") == (78, f"{first} is no new key")
    authority = held(second)
    for ca in (first, second):
        assert authority("rotate", "user").status == 0
        authority.ok("sign", key, *JOE)
        assert signing_ca(beside(key)) == ca.read_text().split()[1]


def test_a_ca_on_a_token(key: Path, tmp_path: Path) -> None:
    if not SOFTHSM.exists():
        pytest.skip("needs softhsm2")
    (tmp_path / "tokens").mkdir()
    conf = tmp_path / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {tmp_path}/tokens\nobjectstore.backend = file\n")
    public = make_key(tmp_path / "ca", "-t", "rsa", "-b", "3072", "-m", "PKCS8")
    env = {"PATH": os.environ["PATH"], "SOFTHSM2_CONF": str(conf)}
    token = ["softhsm2-util", "--label", "ca", "--pin", "4321"]
    for words in (
        ["--init-token", "--free", "--so-pin", "123456"],
        ["--token", "ca", "--id", "01", "--import", f"{tmp_path}/ca"],
    ):
        subprocess.run([*token, *words], env=env, check=True, capture_output=True)
    (tmp_path / "ca").unlink()
    directory = tmp_path / "authority"
    directory.mkdir()
    held = {"public_key": str(public), "signer": "pkcs11", "provider": str(SOFTHSM)}
    authority = Authority(directory, {"user": held})
    authority.ok("init")

    conf_of = {"SOFTHSM2_CONF": str(conf)}
    prompt = f"PIN for the token of {SOFTHSM}: "
    other = make_key(key.with_name("other"))
    said = authority.typing(prompt, "4321", **conf_of)("sign", key, other, *JOE)
    assert said.status == 0
    assert said.err.endswith("\nsigned 2 keys for joe\n")
    assert signing_ca(beside(other)) == public.read_text().split()[1]
    beside(key).unlink()

    by = authority.typing(prompt, "9999", **conf_of)
    status, complaint = refused(authority, "sign", key, *JOE, nearby=key.parent, by=by)
    assert (status, complaint) == (77, f"wrong PIN for the token of {SOFTHSM}")
    assert authority.rows("SELECT withdrawn FROM certificates WHERE withdrawn IS NOT NULL") == [(complaint,)]

    def without_a_terminal(*words: str | Path) -> Said:
        return authority.process(*words, env={**os.environ, **conf_of})

    status, complaint = refused(authority, "sign", key, *JOE, nearby=key.parent, by=without_a_terminal)
    assert (status, complaint) == (77, f"{prompt.removesuffix(': ')}: there is no terminal to ask for it at")


# ---- the database -------------------------------------------------------------------------------------------


def test_a_database_that_is_locked(own: Authority, key: Path) -> None:
    with contextlib.closing(sqlite3.connect(own.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        status, words = refused(own, "sign", key, *JOE, nearby=key.parent)
        assert (status, words) == (
            75,
            f"database {own.database} is locked: another process has been writing for 5 s",
        )
        assert own("ls").status == 0
    own.ok("sign", key, *JOE)


def _garbage(own: Authority) -> None:
    own.database.write_bytes(b"this is no database\n" * 500)


def _newer(own: Authority) -> None:
    own.rows("UPDATE alembic_version SET version_num = '9999'")


def _empty(own: Authority) -> None:
    own.database.write_bytes(b"")


def _no_file(own: Authority) -> None:
    own.database.unlink()
    own.database.mkdir()


def _foreign(own: Authority) -> None:
    own.database.unlink()
    own.rows("CREATE TABLE songs (name TEXT)")


@pytest.mark.parametrize(
    ("spoil", "code", "says"),
    [
        (lambda own: own.database.unlink(), 66, "database {} does not exist"),
        (_garbage, 74, "database {} is not an SQLite database"),
        (_newer, 78, "database {} has schema '9999'; this sshrec knows none after "),
        (_empty, 66, "database {} is empty"),
        (_no_file, 74, "database {} is not a file"),
        (_foreign, 78, "database {} holds another program's tables"),
    ],
    ids=["missing", "garbage", "newer", "empty", "directory", "another-program's"],
)
def test_a_database_that_is_none(
    own: Authority, key: Path, spoil: Callable[[Authority], None], code: int, says: str
) -> None:
    for path in own.home.glob("sshrec.db-*"):
        path.unlink()
    spoil(own)
    before = own.database.read_bytes() if own.database.is_file() else b""
    done = own("sign", key, *JOE)
    complaint = REFUSAL.fullmatch(done.err)
    assert complaint, done
    says = says.format(own.database)
    assert (done.status, done.out, complaint[1][: len(says)]) == (code, "", says)
    assert not beside(key).exists()
    assert (own.database.read_bytes() if own.database.is_file() else b"") == before


# ---- several at once, and what dies half-way ----------------------------------------------------------------


def start(authority: Authority, *words: str | Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [SSHREC_CA, *authority.words(words)],
        env={**os.environ, "TMPDIR": str(authority.directory)},  # what is killed leaves its files there
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def copies(key: Path, count: int, name: str) -> list[Path]:
    directory = key.with_name(name)
    directory.mkdir()
    return [Path(shutil.copy(key, directory / f"{number}.pub")) for number in range(count)]


def test_several_at_once_share_no_serial(own: Authority, key: Path) -> None:
    sets = [copies(key, 20, f"set{number}") for number in range(4)]
    started = [start(own, "sign", *paths, *JOE, "--jobs", "2") for paths in sets]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
    serials = [read_certificate(beside(path).read_bytes(), "cert").serial for paths in sets for path in paths]
    assert len(set(serials)) == 80
    assert set(serials) == set(own.ledger())


@pytest.mark.parametrize("moment", ["rows", "a certificate", "ten certificates"])
def test_killed_half_way(own: Authority, key: Path, moment: str) -> None:
    """Whatever left is in the ledger, nothing is torn, and the next one works."""
    paths = copies(key, 40, "many")
    process = start(own, "sign", *paths, *JOE, "--jobs", "1")
    directory = paths[0].parent
    wanted = {"rows": lambda: len(own.ledger()) > 0}.get(
        moment, lambda: len(list(directory.glob("*-cert.pub"))) >= (1 if moment == "a certificate" else 10)
    )
    wait(wanted, moment)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    left = list(directory.glob("*-cert.pub"))
    certificates = [read_certificate(path.read_bytes(), path.name) for path in left]
    assert {certificate.serial for certificate in certificates} <= set(own.ledger())
    assert len(own.ledger()) == 40
    own.ok("sign", key, *JOE)
    assert not revoked(own, beside(key))


def test_a_place_that_vanishes_while_a_passphrase_is_typed(encrypted: Authority, key: Path) -> None:
    """What was checked first is no longer so when there is something to write."""
    paths = [copies(key, 1, name)[0] for name in ("first", "second", "third")]
    child = encrypted.at_a_terminal("sign", *paths, *JOE)
    child.expect_exact("user_ca: ")
    shutil.rmtree(paths[1].parent)
    child.sendline("open sesame")
    said = ended(child)
    assert said.status == 70
    assert f"error: signed, and cannot write {beside(paths[1])}: " in said.err
    first = read_certificate(beside(paths[0]).read_bytes(), "cert").serial
    (second,) = re.findall(r"hint: nobody has it; sshrec-ca revoke (\d+) makes sure", said.err)
    assert not beside(paths[2]).exists()
    assert set(encrypted.ledger()) == {first, int(second)}
    encrypted.ok("revoke", second)


def test_a_link_that_is_put_there_while_a_passphrase_is_typed(encrypted: Authority, key: Path) -> None:
    precious = key.with_name("precious")
    precious.write_text("do not touch\n")
    child = encrypted.at_a_terminal("sign", key, *JOE)
    child.expect_exact("user_ca: ")
    beside(key).symlink_to(precious)
    child.sendline("open sesame")
    said = ended(child)
    assert said.status == 70
    assert "is a symbolic link, and nothing is written through it" in said.err
    assert precious.read_text() == "do not touch\n"
    assert beside(key).is_symlink()


def test_several_revocations_at_once_are_all_in_the_list(own: Authority, key: Path) -> None:
    paths = copies(key, 8, "many")
    own.ok("sign", *paths, *JOE)
    serials = [read_certificate(beside(path).read_bytes(), "cert").serial for path in paths]
    started = [start(own, "revoke", str(serial)) for serial in serials]
    for process in started:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
    assert [revoked(own, beside(path)) for path in paths] == [True] * 8


# ---- what a killed command, a full disk or somebody's rm leaves unpublished ---------------------------------


def test_a_revocation_whose_list_was_not_written_is_in_the_list_of_the_next_command(
    own: Authority, key: Path
) -> None:
    own.ok("sign", key, *JOE)
    before = (own.public / "krl").read_bytes()
    own.ok("revoke", "joe")
    (own.public / "krl").write_bytes(before)  # as if revoke had been killed behind the ledger
    assert not revoked(own, beside(key))
    own.ok("ls")
    assert revoked(own, beside(key))


def test_a_retirement_that_was_not_published_is_by_the_next_command(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE)
    before = files(own.public)
    assert own("rotate", "user", "--now").status == own("rotate", "user", "--retire").status == 0
    after = files(own.public)
    for path, (_, content) in before.items():
        Path(path).write_bytes(content if isinstance(content, bytes) else b"")
    own.ok("show", beside(key))
    assert revoked(own, beside(key))
    krl = str(own.public / "krl")
    assert {**files(own.public), krl: after[krl]} == after


PUBLIC = ["public", "public/krl", "public/user_ca.pub", "public/known_hosts", "public/allowed_signers"]


@pytest.mark.parametrize("what", PUBLIC)
def test_what_was_removed_is_published_again(own: Authority, what: str) -> None:
    path = own.home / what
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert own("status").status == 0
    published = {path.name: path.stat().st_mode & 0o777 for path in own.public.iterdir()}
    assert published == dict.fromkeys(
        ["allowed_signers", "gateway_known_hosts", "known_hosts", "krl", "user_ca.pub"], 0o644
    )


def test_what_sshd_could_not_read_is_published_again(own: Authority) -> None:
    own.public.chmod(0o700)
    (own.public / "known_hosts").chmod(0o600)
    own.ok("ls", "--json")
    assert [path.stat().st_mode & 0o777 for path in (own.public, own.public / "known_hosts")] == [0o755, 0o644]


def test_a_list_from_a_time_to_come_is_written_again(own: Authority, key: Path) -> None:
    """While the clock was wrong, what it left out for having expired had not."""
    krl = own.public / "krl"
    data = bytearray(krl.read_bytes())
    data[20:28] = (int(time.time()) + 90 * 86400).to_bytes(8)  # PROTOCOL.krl: generated_date
    krl.write_bytes(data)
    own.ok("ls", "--json")
    assert int.from_bytes(krl.read_bytes()[20:28]) <= time.time()
    written = krl.stat().st_mtime_ns
    own.ok("ls", "--json")
    assert krl.stat().st_mtime_ns == written


def test_what_cannot_be_published_stops_nobody_from_looking(own: Authority, key: Path) -> None:
    own.ok("sign", key, *JOE)
    shutil.rmtree(own.public)
    own.public.write_text("in the way\n")
    said = own("ls")
    assert (said.status, len(said.out.splitlines())) == (0, 2)
    assert said.err == (
        f"sshrec-ca: warning: what sshd trusts is out of date: cannot write {own.public}: file exists\n"
    )
    said = own("revoke", "joe")
    assert said.status != 0
    assert said.err.splitlines()[-1] == "hint: the ledger has it; sshrec-ca krl writes the list again"


# ---- what a killed init, rotate or audit-key leaves ---------------------------------------------------------


def test_an_init_that_did_not_come_to_the_audit_log_s_key(own: Authority) -> None:
    before = own.ok("export", "--type", "user")
    for path in own.keys.glob("audit*"):
        path.unlink()
    shutil.rmtree(own.public)
    own.ok("init")
    assert own.ok("export", "--type", "user") == before
    assert own.ok("audit-key").split()[-1] in (own.keys / "audit.pub").read_text()
    assert (own.public / "krl").exists()
    assert refused(own, "init") == (77, f"{own.home} has its CAs already")


def test_a_retired_key_that_was_not_removed(own: Authority) -> None:
    private = (own.keys / "user_ca").read_bytes()
    assert own("rotate", "user", "--now").status == own("rotate", "user", "--retire").status == 0
    (own.keys / "user_ca").write_bytes(private)  # as if rotate had been killed behind the ledger
    (own.keys / ".sshrec-abc").mkdir(0o700)  # as if it had been while it made the new one
    (own.keys / ".sshrec-abc" / "key").write_bytes(private)
    assert own("status").status == 0
    assert sorted(path.name for path in own.keys.iterdir() if "gateway" not in path.name) == [
        *("allowed_signers", "audit", "audit.pub", "host_ca", "host_ca.pub", "user_ca.2", "user_ca.2.pub")
    ]


def audit_key(authority: Authority) -> tuple[str, ...]:
    """The key that signs the audit log by its private key, by its public one and by what auditors have."""
    private = ssh_keygen("-y", "-f", authority.keys / "audit").split()[1]
    public = (authority.keys / "audit.pub").read_text().split()[1]
    return private, public, (authority.public / "allowed_signers").read_text().split()[-1]


@pytest.mark.parametrize(
    "moved", [(), ("audit",)], ids=["before the key is replaced", "between key and public key"]
)
def test_a_renewal_of_the_audit_log_s_key_that_was_killed(own: Authority, moved: tuple[str, ...]) -> None:
    names = ("audit", "audit.pub")
    before = {name: (own.keys / name).read_bytes() for name in names}
    assert own("audit-key", "--renew").status == 0
    wanted = audit_key(own)
    for name in set(names) - set(moved):
        following = own.keys / name.replace("audit", "audit.new")
        (own.keys / name).rename(following)
        (own.keys / name).write_bytes(before[name])
        (own.keys / name).chmod(0o600)
    own.ok("ls", "--json")
    assert audit_key(own) == wanted
    assert len(set(wanted)) == 1
    assert not list(own.keys.glob("audit.new*"))


def test_a_renewal_of_the_audit_log_s_key_that_auditors_never_heard_of(own: Authority) -> None:
    wanted = audit_key(own)
    make_key(own.keys / "audit.new")
    own.ok("ls", "--json")
    assert (audit_key(own), list(own.keys.glob("audit.new*"))) == (wanted, [])


def test_renew_the_audit_log_s_key(own: Authority) -> None:
    first = audit_key(own)
    said = own("audit-key", "--renew")
    assert (said.status, said.err[:50]) == (0, f"SHA256:{said.err[7:50]}")
    second = audit_key(own)
    assert (len(set(second)), second == first) == (1, False)
    old, new = said.out.splitlines()
    assert re.search(r',valid-before="(\d+Z)" ', old)[1] == re.search(r' valid-after="(\d+Z)",', new)[1]  # type: ignore[index]
    copies = [directory / "allowed_signers" for directory in (own.keys, own.public)]
    later = said.out.replace('valid-after="20', 'valid-after="30')
    copies[1].write_text(later)
    restored = own("audit-key")
    assert (restored.status, restored.out, copies[1].read_text()) == (0, said.out, said.out)
    assert restored.err == "sshrec-ca: warning: public/allowed_signers was not what was kept: restored\n"
    copies[0].write_text(later)
    own("status")
    status, words = refused(own, "audit-key", "--renew")
    assert (status, words[:29]) == (77, "the key that signs is good fr")
    for copy in copies:
        copy.unlink()
    assert refused(own, "audit-key") == (66, f"{copies[1]} does not exist")


def test_a_certificate_of_the_audit_log_s_key(own: Authority, tmp_path: Path) -> None:
    def certified(identity: str) -> Path:
        public = Path(shutil.copy(own.keys / "audit.pub", tmp_path / f"{identity}.pub"))
        ssh_keygen("-q", "-s", tmp_path / "auditor", "-I", "x", "-n", identity, "-V", "-5m:+1d", public)
        return beside(public)

    make_key(tmp_path / "auditor")
    good = certified(f"audit@{socket.gethostname().lower()}")
    fingerprint = ssh_keygen("-l", "-f", own.keys / "audit.pub").split()[1]
    assert refused(own, "audit-key", "--certificate", certified("audit@elsewhere"))[0] == 65
    assert refused(own, "audit-key", "--certificate", own.keys / "audit.pub") == (
        65,
        f"{own.keys}/audit.pub is no certificate",
    )
    said = own("audit-key", "--certificate", good)
    assert said.status == 0
    assert (own.keys / "audit-cert.pub").read_text() == good.read_text()
    assert own("audit-key", "--renew").status == 0
    assert not (own.keys / "audit-cert.pub").exists()
    assert refused(own, "audit-key", "--certificate", good)[1].startswith("that is no certificate of SHA256:")
    assert fingerprint not in own("audit-key", "--certificate", good).err


def test_an_output_that_becomes_a_fifo_while_it_is_looked_at_is_not_waited_for(tmp_path: Path) -> None:
    path, fifo, regular = (tmp_path / name for name in ("key-cert.pub", "fifo", "regular"))
    os.mkfifo(fifo)
    regular.write_text("somebody's\n")
    done = threading.Event()

    def swap() -> None:
        while not done.is_set():
            for one in (regular, fifo):
                os.link(one, tmp_path / "next")
                os.rename(tmp_path / "next", path)

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for _ in range(3000):
            with contextlib.suppress(UsageError):
                check_output(path)
    finally:
        done.set()
        swapper.join()


@pytest.mark.root
def test_a_directory_that_its_owner_could_turn_elsewhere(authority: Authority, key: Path, tmp_path: Path) -> None:
    """Root signs a person's key where it is; the person has a link there to a directory of root's."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".ssh").symlink_to(key.parent)
    for path in (home, home / ".ssh"):
        os.chown(path, 64999, 64999, follow_symlinks=False)
    assert refused(authority, "sign", home / ".ssh" / "key.pub", *JOE, nearby=tmp_path) == (
        64,
        f"cannot write in {home}/.ssh: a link on the way there is somebody else's",
    )


# ---- an end that nobody asked the command about -------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_at_the_passphrase_leaves_nothing(
    encrypted: Authority, key: Path, number: signal.Signals
) -> None:
    with tempfile.TemporaryDirectory() as temporary:  # short, for the agent's socket is in it
        child = encrypted.at_a_terminal("sign", key, *JOE, TMPDIR=temporary)
        child.expect_exact("user_ca: ")
        assert re.search(r"(?m)^Max core file size +0 +0 ", Path(f"/proc/{child.pid}/limits").read_text())
        child.kill(number)
        assert ended(child).status == 128 + number
        assert os.listdir(temporary) == []
    assert encrypted.ledger() == {}


def test_standard_output_that_takes_nothing(own: Authority, key: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [SSHREC_CA, *own.words(("sign", key, *JOE, "-o", "-"))], stdout=full, stderr=subprocess.PIPE, text=True
        )
    (serial,) = own.ledger()
    assert done.returncode not in (0, 1)
    assert done.stderr.splitlines()[:2] == [
        "sshrec-ca: error: signed, and cannot write to standard output: no space left on device",
        f"hint: nobody has it; sshrec-ca revoke {serial} makes sure",
    ]


def test_ctrl_c_while_it_is_signed(own: Authority, key: Path) -> None:
    """The agent that holds the CA does not answer; nobody gets a certificate, and the ledger says so."""
    public = Path(shutil.copy(own.keys / "user_ca.pub", own.directory / "user_ca.pub"))
    path = own.directory / "agent"
    held = {"public_key": str(public), "signer": "agent", "agent": str(path)}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        silent = Authority(own.directory, {"user": held})
        own.rows("UPDATE authorities SET file = NULL WHERE kind = 'user'")
        process = start(silent, "sign", key, *JOE)
        asked = [listener.accept()[0]]
        blob = b64decode(public.read_text().split()[1])
        entry = wire_string(blob) + wire_string(b"")
        asked[0].recv(4096)  # which keys it has
        asked[0].sendall(wire_string(b"\x0c" + (1).to_bytes(4) + entry))
        while not own.ledger():
            asked.append(listener.accept()[0])
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert own.ledger() == {}
    assert not beside(key).exists()


def test_the_hint_for_a_revoked_host_is_one_that_helps(own: Authority, key: Path) -> None:
    own.ok("sign-host", key, "--hostname", "web1")
    own.ok("revoke", "web1", "--kind", "host")
    said = own("sign-host", key, "--hostname", "web1")
    hint = re.search(r" UTC\nhint: to lift it: sshrec-ca (.*)", said.err)
    assert hint, said
    own.ok(*hint[1].split())
    own.ok("sign-host", key, "--hostname", "web1")


def test_without_its_key_a_ca_is_replaced(own: Authority, key: Path) -> None:
    (own.keys / "user_ca").unlink()
    status, words = refused(own, "sign", key, *JOE, nearby=key.parent)
    assert (status, words) == (66, f"{own.keys}/user_ca: no such private key")
    assert own("rotate", "user", "--now").status == 0
    own.ok("sign", key, *JOE)
