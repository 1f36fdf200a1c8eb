"""sshrec-ca enroll-node, from the command line to a recorded session on what it enrolled."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.e2e.test_audit import told
from tests.e2e.test_enrolment import Surroundings, Target
from tests.lab import Lab
from tests.lab.parts import program


class Enrolled:
    """A stock target, web3 to people, that nobody has told of anything; and the lab's authority."""

    def __init__(self, lab: Lab, around: Surroundings) -> None:
        self.lab = lab
        self.target = Target(around)
        self.inventory = lab.directory / "nodes.yaml"
        admin, known = around.admin, around.directory / "by_key"
        self.options = self.target.options(admin, known)

    def enroll(self, *options: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        config = ("--sshd-config", str(self.target.config), "--name", "web3")
        return self.lab.sshrec_ca("enroll-node", *config, *options, *self.options, "root@127.0.0.1", check=check)

    def state(self) -> dict[str, bytes]:
        """Every file that enrolling might touch."""
        files = [path for path in self.target.directory.rglob("*") if path.is_file() and path.suffix != ".log"]
        shown = {str(path): path.read_bytes() for path in files if path.name != "sshd.pid"}
        if self.inventory.exists():
            shown["inventory"] = self.inventory.read_bytes()
        return shown

    def trusts(self, address: str) -> str:
        argv = [program("sshd"), "-T", "-f", str(self.target.config), "-C", f"user=root,host=x,addr={address}"]
        shown = subprocess.run(argv, env=self.target.around.env, capture_output=True, text=True, check=True).stdout
        return next(line.split(" ", 1)[1] for line in shown.splitlines() if line.startswith("trustedusercakeys "))


@pytest.fixture
def web3(lab: Lab, tmp_path: Path) -> Iterator[Enrolled]:
    around = Surroundings(tmp_path)
    try:
        yield Enrolled(lab, around)
    finally:
        around.close()
        (lab.directory / "nodes.yaml").unlink(missing_ok=True)


def test_a_target_is_enrolled_and_people_are_recorded_on_it(web3: Enrolled) -> None:
    lab = web3.lab
    refused = lab.ssh("-A", "bastion", "root@web3", "true")
    assert b"there is no node web3" in refused.stderr
    done = web3.enroll()
    assert done.stdout.decode().splitlines() == [
        f"enrolled web3, 127.0.0.1 port {web3.target.sshd.port}: its certificate has 1y left",
        "  people's certificates open it from 127.0.0.1 alone; a login was tried",
    ]
    assert yaml.safe_load(web3.inventory.read_text()) == {
        "nodes": [{"name": "web3", "address": "127.0.0.1", "port": web3.target.sshd.port}]
    }
    assert web3.trusts("127.0.0.1") == str(web3.target.directory / "sshrec_user_ca.pub")
    assert web3.trusts("192.0.2.1") == "none"
    event = told(lab, "node.enroll", server_hostname="web3")
    assert event["server_addr"] == f"127.0.0.1:{web3.target.sshd.port}"
    assert event["serial"] == told(lab, "cert.create", cert_type="host", key_id="web3")["serial"]
    assert event["bastions"] == ["127.0.0.1"]
    # Without a restart of anything: sshrecd takes the node up, and the hop believes the certificate.
    hopped = lab.ssh("-A", "bastion", "root@web3", "echo recorded")
    assert (hopped.returncode, hopped.stdout, hopped.stderr) == (0, b"recorded\n", b"")
    assert json.loads(lab.sshrec("ls", "--json").stdout)["recordings"][0]["target"] == "root@web3"


def test_a_certificate_that_was_revoked_opens_it_no_more(web3: Enrolled) -> None:
    lab = web3.lab
    laptop = lab.open_laptop("joe", name="lost")
    try:
        web3.enroll()
        assert lab.ssh("-A", "bastion", "root@web3", "true", user=laptop).returncode == 0
        lab.sshrec_ca("revoke", str(laptop.serial), "--reason", "lost")
        web3.enroll()  # carries the list along
        port = ("-p", str(web3.target.sshd.port), "-o", "HostKeyAlias=web3", "-l", "root")
        direct = lab.ssh(*port, "127.0.0.1", "true", user=laptop)
        assert direct.returncode == 255
        assert "revoked" in web3.target.sshd.log_text()
        assert lab.ssh(*port, "127.0.0.1", "true", user="joe").returncode == 0
    finally:
        lab.close_laptop(laptop)


def test_a_dry_run_tells_all_and_changes_nothing(web3: Enrolled) -> None:
    before = web3.state()
    listed = web3.lab.sshrec_ca("ls", "--all", "--json").stdout
    said = web3.enroll("--dry-run").stdout.decode()
    assert f"TrustedUserCAKeys {web3.target.directory}/sshrec_user_ca.pub" in said
    assert "Match Address 127.0.0.1" in said
    assert web3.state() == before
    assert web3.lab.sshrec_ca("ls", "--all", "--json").stdout == listed


def test_a_login_that_fails_leaves_all_as_it_was(web3: Enrolled) -> None:
    # The target will trust certificates from somewhere else than where the login is tried from.
    before = web3.state()
    done = web3.enroll("--bastion", "192.0.2.7", check=False)
    assert b"web3 sees us at 127.0.0.1, which is no bastion" in done.stderr
    assert web3.state() == before
    # This one gets as far as the login: root may not log in there by certificate.
    web3.target.config.write_text("PermitRootLogin forced-commands-only\n" + web3.target.config.read_text())
    before = web3.state()
    done = web3.enroll("--through", "nobody@nowhere.invalid", check=False)
    assert done.returncode != 0
    assert done.stderr.count(b"error:") == 1
    assert b"is as it was before" in done.stderr
    assert web3.state() == before


def test_through_the_bastion(web3: Enrolled, tmp_path: Path) -> None:
    lab, port = web3.lab, web3.target.sshd.port
    config = tmp_path / "ssh_config"
    around = web3.target.around
    config.write_text(
        f"Host web3\n HostName 127.0.0.1\n Port {port}\n User root\n IdentityFile {around.admin}\n"
        f" HostKeyAlias web1\n UserKnownHostsFile {around.directory / 'by_key'}\n\n"
        + lab.laptop("joe").ssh_config.read_text()
    )
    own = ("--sshd-config", str(web3.target.config), "--through", "joe@bastion", "--json")
    done = lab.sshrec_ca("enroll-node", *own, "-F", str(config), "root@web3")
    (enrolled,) = json.loads(done.stdout)["enrolled"]
    assert (enrolled["node"], enrolled["port"], enrolled["bastions"]) == ("web3", port, ["127.0.0.1"])
    newest = json.loads(lab.sshrec("ls", "--json").stdout)["recordings"][0]
    assert (newest["target"], newest["user"], newest["status"]) == ("root@web3", "joe", 0)


def test_many_at_once_and_one_that_is_not_there(web3: Enrolled, tmp_path: Path) -> None:
    config = tmp_path / "ssh_config"
    around = web3.target.around
    config.write_text(
        f"Host web3\n HostName 127.0.0.1\n Port {web3.target.sshd.port}\n User root\n"
        f" IdentityFile {around.admin}\n HostKeyAlias web1\n UserKnownHostsFile {around.directory / 'by_key'}\n"
        "Host gone\n HostName 127.0.0.1\n Port 1\n"
    )
    own = ("--sshd-config", str(web3.target.config), "--jobs", "2")
    done = web3.lab.sshrec_ca("enroll-node", *own, "-F", str(config), "root@web3", "root@gone", check=False)
    assert done.stdout.decode().startswith("enrolled web3, 127.0.0.1 port ")
    gone, last = done.stderr.decode().splitlines()
    assert gone.startswith("root@gone: ")
    assert last == "sshrec-ca: error: 1 targets were not enrolled"
    assert done.returncode != 0
