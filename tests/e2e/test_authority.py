"""sshrec-ca's certificates at real sshds: who gets in, and for what reason others do not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.lab import Lab
from tests.lab.people import Laptop, make_key

HOUR_AGO, IN_AN_HOUR = "-2h:-1h", "+1h:+2h"
OURS = ("sshrec:joe", "joe", "root")


@dataclass
class Guest:
    """Somebody at a laptop, whose agent holds one certificate at a time."""

    lab: Lab
    laptop: Laptop
    user: str = "joe"
    serial: int = field(default=0)

    def takes(self, **terms: Any) -> None:
        """Hold a certificate as ssh-keygen makes it of anything; what is not said is as it should be."""
        wanted: dict[str, Any] = {"ca": key_of(self.lab, "user"), "key_id": "joe", "principals": OURS, **terms}
        ca = wanted.pop("ca")
        self.serial = self.lab.authority.by_hand(ca, self.laptop.key, **wanted)
        self.load()

    def signed(self, *options: str, principals: str = "joe,root") -> None:
        """Hold a certificate that sshrec-ca signed."""
        words = ("sign", f"{self.laptop.key}.pub", "--user", self.user, "--principals", principals, *options)
        made = json.loads(self.lab.sshrec_ca(*words, "--json").stdout)
        self.serial = made["certificates"][0]["serial"]
        self.load()

    def load(self) -> None:
        """Have the agent hold the certificate, and not the key alone."""
        key = str(self.laptop.key)
        for words in (["-D"], [key], ["-d", "-k", f"{key}.pub"]):
            subprocess.run(["ssh-add", "-q", *words], env=self.laptop.env, check=True, capture_output=True)

    @property
    def certificate(self) -> Path:
        return Path(f"{self.laptop.key}-cert.pub")

    def enters(self, destination: str) -> None:
        """Get in there."""
        words = ("-A", destination, "root@web1 echo in") if destination == "bastion" else (destination, "echo in")
        done = self.lab.ssh(*words, user=self.laptop)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"in\n", b"")

    def is_refused(self, destination: str, reason: str | None) -> None:
        """Not get in, for the reason that sshd logs (None: it logs no other than that it was so)."""
        sshd = self.lab.sshds[destination.rpartition("@")[2]]
        before = len(sshd.log_text())
        done = self.lab.ssh("-A", destination, "root@web1 echo in", user=self.laptop)
        assert (done.returncode, done.stdout) == (255, b"")
        assert b"Permission denied (publickey)" in done.stderr
        failed = f"ID {self.key_id} (serial {self.serial})"
        self.lab.wait(lambda: failed in sshd.log_text()[before:], failed)
        log = sshd.log_text()[before:]
        assert f"Failed publickey for {self.account(destination)} " in log
        if reason is None:
            assert not re.search("ertificate|revoked|[Ee]rror", log), log
        else:
            assert reason in log

    @property
    def key_id(self) -> str:
        listed = subprocess.run(
            ["ssh-keygen", "-L", "-f", self.certificate], capture_output=True, text=True
        ).stdout
        return str(re.findall(r'Key ID: "(.*)"', listed)[0])

    def account(self, destination: str) -> str:
        return destination.rpartition("@")[0] or self.laptop.user


def key_of(lab: Lab, kind: str) -> Path:
    return lab.authority_dir / "keys" / f"{kind}_ca"


def fingerprint(public: Path) -> str:
    return subprocess.run(
        ["ssh-keygen", "-lf", public], capture_output=True, check=True, text=True
    ).stdout.split()[1]


@pytest.fixture
def guest(lab: Lab) -> Iterator[Guest]:
    laptop = lab.open_laptop("joe", name="guest", validity="-5m:+1h")
    yield Guest(lab, laptop)
    lab.close_laptop(laptop)


@pytest.fixture
def other_ca(tmp_path: Path) -> Path:
    make_key(tmp_path / "other_ca", "somebody's CA", {"PATH": os.environ["PATH"]})
    return tmp_path / "other_ca"


# ---- people -------------------------------------------------------------------------------------------------


def test_a_certificate_of_sshrec_ca_opens_the_bastion_and_a_target(lab: Lab, guest: Guest) -> None:
    guest.signed("--ttl", "1h", "--source-address", "127.0.0.0/8")
    guest.enters("bastion")
    guest.enters("root@web1")
    ca = fingerprint(lab.user_ca)
    for name in ("bastion", "web1"):
        assert f"ID joe (serial {guest.serial}) CA ED25519 {ca}" in lab.sshds[name].log_text()
    entry = json.loads(lab.sshrec_ca("show", str(guest.serial), "--json").stdout)["ledger"]
    assert (entry["key_id"], entry["ca_fingerprint"]) == ("joe", ca)


def test_without_anything_wrong_it_gets_in(guest: Guest) -> None:
    """What the refused ones below are told from."""
    guest.takes()
    guest.enters("bastion")
    guest.enters("root@web1")


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"validity": HOUR_AGO}, "Certificate invalid: expired"),
        ({"validity": IN_AN_HOUR}, "Certificate invalid: not yet valid"),
        ({"host": True}, "Certificate invalid: not a user certificate"),
        ({"options": ["source-address=10.0.0.0/8"]}, "not from a permitted source address (127.0.0.1)"),
        (
            {"options": ["critical:unknown@example.com=1"]},
            'critical option "unknown@example.com" is not supported',
        ),
    ],
    ids=["expired", "not yet valid", "a host's", "another address", "an unknown option"],
)
def test_refused(guest: Guest, terms: dict[str, Any], reason: str) -> None:
    guest.takes(**terms)
    guest.is_refused("bastion", reason)
    guest.is_refused("root@web1", reason)


@pytest.mark.parametrize(
    "principals", [["alice"], ["sshrec:alice", "alice"], ["sshrec:joe2", "sshrec", "roo", "*"]]
)
def test_refused_for_principals_of_others(guest: Guest, principals: list[str]) -> None:
    guest.takes(principals=principals)
    guest.is_refused("bastion", "Certificate does not contain an authorized principal")
    guest.is_refused("root@web1", "Certificate invalid: name is not a listed principal")


def test_a_principal_opens_what_it_names_and_no_more(guest: Guest) -> None:
    guest.takes(principals=["sshrec:joe"])
    guest.is_refused("root@web1", "Certificate invalid: name is not a listed principal")
    guest.takes(principals=["joe", "root"])
    guest.is_refused("bastion", "Certificate does not contain an authorized principal")
    guest.enters("root@web1")


@pytest.mark.parametrize("ca", ["other", "host", "gateway"])
def test_refused_for_its_ca(lab: Lab, guest: Guest, other_ca: Path, ca: str) -> None:
    """sshd gives no reason for this one but whose it is; all else is as in the one that gets in."""
    path = other_ca if ca == "other" else key_of(lab, ca)
    guest.takes(ca=path)
    for destination, name in (("bastion", "bastion"), ("root@web1", "web1")):
        guest.is_refused(destination, None)
        assert f"(serial {guest.serial}) CA ED25519 {fingerprint(path)}" in lab.sshds[name].log_text()
    guest.takes()
    guest.enters("bastion")


def test_a_certificate_ends_by_itself(lab: Lab, guest: Guest) -> None:
    guest.signed("--ttl", "1s")
    lab.wait(
        lambda: lab.ssh("root@web1", "true", user=guest.laptop).returncode == 255, "the certificate to expire"
    )
    guest.is_refused("bastion", "Certificate invalid: expired")
    guest.is_refused("root@web1", "Certificate invalid: expired")


def test_a_forced_command_of_sshrec_ca(lab: Lab, guest: Guest) -> None:
    guest.signed("--force-command", "echo only this")
    assert lab.ssh("root@web1", "id", user=guest.laptop, check=True).stdout == b"only this\n"
    assert lab.ssh("-A", "bastion", "root@web1 id", user=guest.laptop).stdout == b"only this\n"


@pytest.mark.root
def test_a_certificate_opens_no_account_of_somebody_elses(lab: Lab) -> None:
    """Joe may be alice on a target; at the bastion he is Joe."""
    laptop = lab.open_laptop("joe", name="guest", principals=["sshrec:joe", "alice"])
    try:
        guest = Guest(lab, laptop)
        guest.serial = laptop.serial
        assert lab.ssh("alice@web1", "id -un", user=laptop, check=True).stdout == b"alice\n"
        assert lab.ssh("-A", "bastion", "alice@web1 id -un", user=laptop, check=True).stdout == b"alice\n"
        guest.is_refused("alice@bastion", "Certificate does not contain an authorized principal")
    finally:
        lab.close_laptop(laptop)


# ---- revocation ---------------------------------------------------------------------------------------------


@pytest.fixture
def puller(lab: Lab, tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A target that heeds a copy of the list of revoked certificates, and how it fetches a new one."""
    directory = lab.directory / "pulled"
    directory.mkdir(mode=0o755)
    krl = directory / "krl"

    def pull() -> None:
        lab.sshrec_ca("krl", "-o", krl)

    pull()
    extra = ["AuthorizedPrincipalsCommand none", f"RevokedKeys {krl}"]
    lab.start_bastion("puller", force_command="", extra=extra)
    yield "joe@puller", pull
    lab.stop_bastion("puller")
    shutil.rmtree(directory)


def revoked(krl: Path, certificate: Path) -> bool:
    done = subprocess.run(["ssh-keygen", "-Q", "-f", krl, certificate], capture_output=True, text=True)
    assert (done.returncode, "REVOKED" in done.stdout) in ((0, False), (1, True))
    return done.returncode == 1


@pytest.mark.parametrize("how", ["serial", "file"])
def test_a_revocation_counts_at_the_next_login(
    lab: Lab, guest: Guest, puller: tuple[str, Callable[[], None]], how: str
) -> None:
    target, pull = puller
    bastion = lab.sshds["bastion"].pid
    guest.signed()
    guest.enters("bastion")
    guest.enters(target)
    lab.sshrec_ca("revoke", str(guest.serial) if how == "serial" else guest.certificate, "--reason", "a test")
    guest.is_refused("bastion", f"revoked by file {lab.authority_dir}/public/krl")
    guest.enters(target)  # it has not heard of it
    pull()
    guest.is_refused(target, f"revoked by file {lab.directory}/pulled/krl")
    assert revoked(lab.authority_dir / "public" / "krl", guest.certificate)
    assert lab.sshds["bastion"].pid == bastion
    guest.signed()  # the person, not the key, has another chance
    assert not revoked(lab.authority_dir / "public" / "krl", guest.certificate)
    guest.enters("bastion")
    guest.enters(target)


def test_a_revoked_key_id(lab: Lab, guest: Guest, puller: tuple[str, Callable[[], None]]) -> None:
    """It covers what was signed by hand, too."""
    target, pull = puller
    guest.takes(key_id="mallory")
    guest.enters(target)
    lab.sshrec_ca("revoke", "mallory", "--reason", "a test")
    try:
        pull()
        guest.is_refused("bastion", f"revoked by file {lab.authority_dir}/public/krl")
        guest.is_refused(target, f"revoked by file {lab.directory}/pulled/krl")
        assert revoked(lab.authority_dir / "public" / "krl", guest.certificate)
        guest.takes()
        guest.enters("bastion")
    finally:
        lab.sshrec_ca("revoke", "--undo", "mallory")
    guest.takes(key_id="mallory")
    assert not revoked(lab.authority_dir / "public" / "krl", guest.certificate)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda krl: krl.unlink(), "No such file or directory"),
        (lambda krl: krl.write_bytes(b"garbage\n"), "invalid format"),
        (lambda krl: krl.write_bytes(krl.read_bytes()[:30]), "incomplete message"),
        (lambda krl: krl.write_bytes(b"SSHKRL\n\0" + b"\xff" * 100), "revoked keys file"),
    ],
    ids=["missing", "garbage", "cut short", "broken"],
)
def test_without_a_list_of_revoked_certificates_nobody_gets_in(
    lab: Lab, guest: Guest, spoil: Callable[[Path], None], reason: str
) -> None:
    krl = lab.authority_dir / "public" / "krl"
    before = krl.read_bytes()
    guest.takes()
    try:
        spoil(krl)
        guest.is_refused("bastion", reason)
        guest.enters("root@web1")
        lab.sshrec_ca("krl")  # as the manual says
        guest.enters("bastion")
    finally:
        krl.write_bytes(before)


# ---- hosts --------------------------------------------------------------------------------------------------


@pytest.fixture
def web1(lab: Lab) -> Iterator[Path]:
    """The host key of a target, whose certificate sshd reads at each connection."""
    key = lab.directory / "web1" / "host_key"
    certificate = Path(f"{key}-cert.pub")
    before = certificate.read_bytes()
    yield key
    certificate.write_bytes(before)


def through(lab: Lab) -> str:
    """What somebody is told who comes through the bastion to web1 and is not let go on."""
    done = lab.ssh("-A", "bastion", "root@web1 echo in")
    assert (done.returncode, done.stdout) == (255, b"")
    said: str = done.stderr.decode()
    return said


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        ({"validity": HOUR_AGO}, "expired"),
        ({"validity": IN_AN_HOUR}, "not yet valid"),
        ({"host": False}, "not a host certificate"),
        ({"principals": ["web2"]}, "name is not a listed principal"),
        ({"principals": ["web*"]}, "name is not a listed principal"),
    ],
    ids=["expired", "not yet valid", "a user's", "another name", "a wildcard"],
)
def test_a_host_certificate_that_does_not_count(lab: Lab, web1: Path, terms: dict[str, Any], reason: str) -> None:
    words: dict[str, Any] = {"key_id": "web1", "principals": ["web1"], "host": True}
    lab.authority.by_hand(key_of(lab, "host"), web1, **{**words, **terms})
    assert through(lab) == (
        "sshrec: error: the host certificate of web1 is not valid for it\n"
        f"hint: Certificate invalid: {reason}; an administrator gives it a new one: "
        "sshrec-ca enroll-node root@web1\n"
    )
    direct = lab.ssh("root@web1", "true")
    assert direct.returncode == 255
    assert f"Certificate invalid: {reason}" in direct.stderr.decode()
    lab.authority.by_hand(key_of(lab, "host"), web1, **words)
    assert lab.ssh("-A", "bastion", "root@web1 echo in", check=True).stdout == b"in\n"


@pytest.mark.parametrize("ca", ["other", "user", "gateway", "none"])
def test_a_host_that_nobody_vouches_for(lab: Lab, web1: Path, other_ca: Path, ca: str) -> None:
    kind = "ssh-ed25519-cert-v01@openssh.com"
    if ca == "none":
        Path(f"{web1}-cert.pub").unlink()
        kind = "ssh-ed25519"
    else:
        path = other_ca if ca == "other" else key_of(lab, ca)
        lab.authority.by_hand(path, web1, "web1", ["web1"], host=True)
    key = fingerprint(web1.with_suffix(".pub"))
    assert through(lab).startswith(
        f"sshrec: error: the host key of web1 is not known: {kind} {key}\n"
        "hint: an administrator enrols the host (sshrec-ca enroll-node root@web1), or checks its key "
    )
    assert b"Host key verification failed" in lab.ssh("root@web1", "true").stderr


def test_a_host_certificate_of_sshrec_ca(lab: Lab, web1: Path) -> None:
    lab.sshrec_ca("sign-host", f"{web1}.pub", "--hostname", "web1,web1.example.com,127.0.0.1")
    assert lab.ssh("-A", "bastion", "root@web1 echo in", check=True).stdout == b"in\n"
    for name, code in (("web1", 0), ("web1.example.com", 0), ("127.0.0.1", 0), ("web2", 255)):
        assert lab.ssh("-o", f"HostKeyAlias={name}", "root@web1", "true").returncode == code


def test_a_revoked_host_certificate(lab: Lab, web1: Path) -> None:
    """The gateway heeds it at once; whoever connects by other ways needs RevokedHostKeys."""
    lab.sshrec_ca("sign-host", f"{web1}.pub", "--hostname", "web1", "--ttl", "1h")
    assert lab.ssh("-A", "bastion", "root@web1 echo in", check=True).stdout == b"in\n"
    lab.sshrec_ca("revoke", f"{web1}-cert.pub", "--reason", "a test")
    assert "sshrec: error: the host key of web1 is revoked: " in through(lab)
    krl = lab.authority_dir / "public" / "krl"
    assert lab.ssh("root@web1", "true").returncode == 0
    assert b"revoked" in lab.ssh("-o", f"RevokedHostKeys={krl}", "root@web1", "true").stderr
    lab.sshrec_ca("sign-host", f"{web1}.pub", "--hostname", "web1", "--ttl", "1h")
    assert lab.ssh("-A", "bastion", "root@web1 echo in", check=True).stdout == b"in\n"


# ---- what is exported ---------------------------------------------------------------------------------------


def test_what_is_exported_is_taken_by_sshd(lab: Lab, guest: Guest) -> None:
    guest.signed()
    trusted = lab.directory / "exported_user_ca.pub"
    trusted.write_bytes(lab.sshrec_ca("export", "--type", "user").stdout)
    account = lab.account("joe")
    authorized = account.home / ".ssh" / "authorized_keys"
    authorized.write_bytes(lab.sshrec_ca("export", "--type", "user", "--format", "authorized_keys").stdout)
    if os.geteuid() == 0:
        os.chown(authorized, account.uid, account.gid)
    nobody = ["AuthorizedPrincipalsCommand none"]
    lab.start_bastion("bare", force_command="", extra=[*nobody, f"TrustedUserCAKeys {trusted}"])
    lab.start_bastion("lines", force_command="", extra=[*nobody, "TrustedUserCAKeys none"], authorized_keys=True)
    lab.start_bastion("neither", force_command="", extra=[*nobody, "TrustedUserCAKeys none"])
    try:
        guest.enters("joe@bare")
        guest.enters("joe@lines")
        guest.is_refused("joe@neither", None)
    finally:
        authorized.unlink()
        for name in ("bare", "lines", "neither"):
            lab.stop_bastion(name)


def test_what_is_exported_is_taken_by_ssh(lab: Lab, tmp_path: Path) -> None:
    known_hosts = tmp_path / "known_hosts"
    for hosts, code in (((), 0), (("--hosts", "web*,!web2"), 0), (("--hosts", "*.example.com"), 255)):
        known_hosts.write_bytes(lab.sshrec_ca("export", "--type", "host", *hosts).stdout)
        done = lab.ssh("-o", f"UserKnownHostsFile={known_hosts}", "root@web1", "true")
        assert (done.returncode, b"No ED25519 host key is known" in done.stderr) == (code, code == 255)


# ---- rotation -----------------------------------------------------------------------------------------------


@pytest.fixture
def rotating(several_uids: bool) -> Iterator[Lab]:
    """A lab of its own: when it is over, nothing of before counts."""
    with Lab(several_uids=several_uids) as lab:
        yield lab
        lab.expect_nothing_left()


def published(path: Path) -> list[str]:
    """Fingerprints of the CAs in a file."""
    lines = [line.split("@cert-authority * ")[-1] for line in path.read_text().splitlines()]
    listed = subprocess.run(["ssh-keygen", "-lf", "-"], input="\n".join(lines), capture_output=True, text=True)
    return [line.split()[1] for line in listed.stdout.splitlines()]


def rotate(lab: Lab, *words: str) -> None:
    lab.sshrec_ca("rotate", *words)


def enter_everywhere(*guests: Guest) -> None:
    for guest in guests:
        guest.enters("bastion")  # and by it the target, with the same certificate


def refused_everywhere(guest: Guest) -> None:
    """By the list, where sshd looks at it; by the CA, where it does not."""
    guest.is_refused("bastion", f"revoked by file {guest.lab.authority_dir}/public/krl")
    guest.is_refused("root@web1", None)


def test_the_user_ca_rotates_under_live_sshds(rotating: Lab) -> None:
    lab = rotating
    before, after, early = (
        Guest(lab, lab.open_laptop("joe", name=name, validity="-5m:+1h")) for name in ("before", "after", "early")
    )
    pids = {name: sshd.pid for name, sshd in lab.sshds.items()}
    (old,) = published(lab.user_ca)

    def ca(guest: Guest) -> str:
        listed = subprocess.run(["ssh-keygen", "-Lf", guest.certificate], capture_output=True, text=True).stdout
        return str(re.findall(r"Signing CA: ED25519 (\S+)", listed)[0])

    before.signed()
    # A step forward and back: what the one that never signed would have signed is worth nothing any more.
    rotate(lab, "user")
    dropped = published(lab.user_ca)[1]
    copy = lab.directory / "dropped_ca"
    shutil.copy(key_of(lab, "user").with_name("user_ca.2"), copy)
    early.takes(ca=copy)
    enter_everywhere(before, early)
    rotate(lab, "user", "--rollback")
    assert published(lab.user_ca) == [old]
    refused_everywhere(early)
    enter_everywhere(before)

    # Introduced: both are published, the old one signs.
    rotate(lab, "user")
    assert published(lab.user_ca)[0] == old
    new = published(lab.user_ca)[1]
    assert new not in (old, dropped)
    after.signed()
    assert ca(after) == old
    enter_everywhere(before, after)

    # The new one signs; what the old one signed is still good.
    rotate(lab, "user")
    assert published(lab.user_ca) == [new, old]
    after.signed()
    assert ca(after) == new
    enter_everywhere(before, after)

    # Back: the old one signs again, and what the new one signed is still good.
    rotate(lab, "user", "--rollback")
    assert published(lab.user_ca) == [old, new]
    early.signed()
    assert ca(early) == old
    enter_everywhere(before, after, early)

    # And on: the old one is retired.
    rotate(lab, "user")
    rotate(lab, "user", "--retire")
    assert published(lab.user_ca) == [new]
    refused_everywhere(before)
    refused_everywhere(early)
    enter_everywhere(after)
    assert lab.sshrec_ca("rotate", "user", "--rollback", check=False).returncode == 77
    early.signed()
    enter_everywhere(early)
    assert {name: sshd.pid for name, sshd in lab.sshds.items()} == pids


def test_the_host_ca_rotates_under_live_clients(rotating: Lab) -> None:
    lab = rotating
    keys = {name: lab.directory / name / "host_key" for name in ("bastion", "web1", "web2")}

    def sign(*names: str) -> None:
        for name in names:
            lab.sshrec_ca("sign-host", f"{keys[name]}.pub", "--hostname", name)

    def reached(*targets: str) -> None:
        """Directly, and by the gateway."""
        for target in ("web1", "web2"):
            direct = lab.ssh(f"root@{target}", "echo in")
            gateway = lab.ssh("-A", "bastion", f"root@{target} echo in")
            assert (direct.stdout, gateway.stdout) == ((b"in\n", b"in\n") if target in targets else (b"", b""))
            if target not in targets:
                assert f"No ED25519 host key is known for {target} " in direct.stderr.decode()
                assert f"the host key of {target} is revoked" in gateway.stderr.decode()
                assert f"sshrec-ca enroll-node root@{target}" in gateway.stderr.decode()

    (old,) = published(lab.known_hosts)
    rotate(lab, "host")
    assert published(lab.known_hosts)[0] == old
    new = published(lab.known_hosts)[1]
    sign("bastion")
    reached("web1", "web2")
    rotate(lab, "host")
    assert published(lab.known_hosts) == [new, old]
    sign("bastion", "web1")
    reached("web1", "web2")
    rotate(lab, "host", "--rollback")
    assert published(lab.known_hosts) == [old, new]
    reached("web1", "web2")
    rotate(lab, "host")
    rotate(lab, "host", "--retire")
    assert published(lab.known_hosts) == [new]
    reached("web1")
    sign("web2")
    reached("web1", "web2")


# ---- whose rights -------------------------------------------------------------------------------------------


@pytest.mark.root
def test_root_becomes_the_authority_s_account(lab: Lab, tmp_path: Path) -> None:
    owner = lab.account("sshrec-auth")
    for path in (lab.authority_dir, *lab.authority_dir.rglob("*")):
        assert (path.stat().st_uid, path.stat().st_gid) == (owner.uid, owner.gid), path
    directory = tmp_path / "root"
    directory.mkdir(mode=0o700)
    many = []
    for number in range(50):
        many.append(directory / f"{number}.pub")
        shutil.copy(f"{lab.laptop('joe').key}.pub", many[-1])
    argv: list[str | Path] = [lab.installation.programs / "sshrec-ca", "--config", lab.config, "sign", *many]
    seen: set[tuple[str, ...]] = set()
    with subprocess.Popen([*argv, "--user", "joe", "--principals", "root", "--jobs", "1"]) as process:
        while process.poll() is None:
            seen |= set(ids_of_children(process.pid))
        assert process.returncode == 0
    assert seen == {(str(owner.uid),) * 4}
    made = sorted(directory.glob("*-cert.pub"))
    assert len(made) == 50
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in made} == {(0, 0o644)}


def ids_of_children(pid: int) -> Iterator[tuple[str, ...]]:
    """Real, effective, saved and filesystem uid of each ssh-keygen that a process runs now."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
                status = Path(f"/proc/{child}/status").read_text()
            except OSError:
                continue
            if words[0] == b"/usr/bin/ssh-keygen":
                yield tuple(re.findall(r"(?m)^Uid:(.*)$", status)[0].split())


@pytest.mark.root
@pytest.mark.parametrize("words", [["status"], ["init"], ["ls"], ["revoke", "joe"], ["krl"]], ids=" ".join)
def test_somebody_else_is_told_so(lab: Lab, words: list[str]) -> None:
    joe = lab.account("joe")
    done = subprocess.run(
        [str(lab.installation.programs / "sshrec-ca"), "--config", str(lab.config), *words],
        user=joe.uid,
        group=joe.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (77, "")
    assert done.stderr == (
        f"sshrec-ca: error: {lab.authority_dir} is not yours\nhint: run it as root, who becomes its owner\n"
    )


@pytest.mark.root
def test_the_account_itself_needs_no_root(lab: Lab) -> None:
    owner = lab.account("sshrec-auth")
    directory = owner.home
    shutil.copy(f"{lab.laptop('joe').key}.pub", directory / "key.pub")
    command = [str(lab.installation.programs / "sshrec-ca"), "--config", str(lab.config)]
    done = subprocess.run(
        [*command, "sign", str(directory / "key.pub"), "--user", "joe", "--principals", "root"],
        user=owner.uid,
        group=owner.gid,
        extra_groups=[],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / "key-cert.pub").stat().st_uid == owner.uid


@pytest.mark.root
def test_a_database_that_cannot_be_written(lab: Lab, tmp_path: Path) -> None:
    owner, database = lab.account("sshrec-auth"), lab.authority_dir / "sshrec.db"
    shutil.copy(f"{lab.laptop('joe').key}.pub", tmp_path / "key.pub")
    try:
        os.chown(database, 0, 0)
        database.chmod(0o644)
        words = ("sign", tmp_path / "key.pub", "--user", "joe", "--principals", "root")
        done = lab.sshrec_ca(*words, check=False)
    finally:
        os.chown(database, owner.uid, owner.gid)
        database.chmod(0o600)
    assert (done.returncode, done.stdout) == (74, b"")
    assert done.stderr.decode().startswith(f"sshrec-ca: error: database {database} cannot be written\n")
    assert not (tmp_path / "key-cert.pub").exists()
    lab.sshrec_ca(*words)


@pytest.mark.root
def test_what_root_alone_can_read_is_read_as_root(lab: Lab, tmp_path: Path) -> None:
    """The auditor's certificate for the audit log's key, in root's own directory."""
    private = tmp_path / "root"
    private.mkdir(mode=0o700)
    public = Path(shutil.copy(lab.authority_dir / "keys" / "audit.pub", private / "audit.pub"))
    identity = (lab.authority_dir / "public" / "allowed_signers").read_text().split()[0]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", private / "ca"], check=True)
    words = ("-I", "x", "-n", identity, "-V", "-5m:+1h", public)
    subprocess.run(["ssh-keygen", "-q", "-s", private / "ca", *words], check=True)
    kept = lab.authority_dir / "keys" / "audit-cert.pub"
    try:
        lab.sshrec_ca("audit-key", "--certificate", private / "audit-cert.pub")
        assert kept.read_bytes() == (private / "audit-cert.pub").read_bytes()
    finally:
        kept.unlink(missing_ok=True)
