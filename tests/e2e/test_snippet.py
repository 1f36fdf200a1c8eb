"""contrib/sshd_config.snippet beside Debian's stock sshd_config, judged by the real sshd.

Values only; what they are good for, the lab's bastion shows, which is made of the same snippet.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.accounts import Account, check_wrapper, wrapped
from tests.lab.parts import PATH, program, run
from tests.lab.sshd import PrivsepDirectory

SNIPPET = Path(__file__).parents[2] / "contrib/sshd_config.snippet"
STOCK = Path("/usr/share/openssh/sshd_config")

pytestmark = pytest.mark.skipif(not STOCK.exists(), reason=f"no {STOCK}, Debian's pristine copy")

RECORDED = {
    "forcecommand": "exec /usr/lib/sshrec/sshrec-gateway",
    "exposeauthinfo": "yes",
    "pubkeyauthentication": "yes",
    "authenticationmethods": "publickey",
    "passwordauthentication": "no",
    "kbdinteractiveauthentication": "no",
    "trustedusercakeys": "/var/lib/sshrec-auth/public/user_ca.pub",
    "authorizedprincipalsfile": "none",
    "authorizedprincipalscommand": "/usr/bin/echo sshrec:%u",
    "authorizedprincipalscommanduser": "nobody",
    "authorizedkeysfile": "none",
    "authorizedkeyscommand": "none",
    "revokedkeys": "/var/lib/sshrec-auth/public/krl",
    "allowtcpforwarding": "no",
    "allowstreamlocalforwarding": "no",
    "permitopen": "none",
    "permitlisten": "none",
    "gatewayports": "no",
    "x11forwarding": "no",
    "permittunnel": "no",
    "permituserrc": "no",
    "disableforwarding": "no",
    "allowagentforwarding": "yes",
    "permittty": "yes",
    "maxsessions": "1",
    "unusedconnectiontimeout": "30",
    "clientaliveinterval": "60",
    "clientalivecountmax": "10",
    "loglevel": "VERBOSE",
    "banner": "none",
}

# Of the account in which people log in: what is not as for those who are recorded.
DOOR = {
    "authenticationmethods": "none",
    "passwordauthentication": "yes",
    "permitemptypasswords": "yes",
    "pubkeyauthentication": "no",
    "exposeauthinfo": "no",
    "unusedconnectiontimeout": "10",
    "clientaliveinterval": "15",
    "clientalivecountmax": "3",
}
# Who gets in with a key is no matter where no key does.
KEYS = {
    "trustedusercakeys",
    "revokedkeys",
    "authorizedprincipalsfile",
    "authorizedprincipalscommand",
    "authorizedprincipalscommanduser",
    "authorizedkeysfile",
    "authorizedkeyscommand",
}

# sshd_config(5) of 9.2: what may stand in a Match block.
MATCH_KEYWORDS_9_2 = """
    acceptenv allowagentforwarding allowgroups allowstreamlocalforwarding allowtcpforwarding allowusers
    authenticationmethods authorizedkeyscommand authorizedkeyscommanduser authorizedkeysfile
    authorizedprincipalscommand authorizedprincipalscommanduser authorizedprincipalsfile banner
    casignaturealgorithms channeltimeout chrootdirectory clientalivecountmax clientaliveinterval denygroups
    denyusers disableforwarding exposeauthinfo forcecommand gatewayports gssapiauthentication
    hostbasedacceptedalgorithms hostbasedauthentication hostbasedusesnamefrompacketonly ignorerhosts include
    ipqos kbdinteractiveauthentication kerberosauthentication loglevel maxauthtries maxsessions
    passwordauthentication permitemptypasswords permitlisten permitopen permitrootlogin permittty permittunnel
    permituserrc pubkeyacceptedalgorithms pubkeyauthentication pubkeyauthoptions rekeylimit revokedkeys setenv
    streamlocalbindmask streamlocalbindunlink trustedusercakeys unusedconnectiontimeout x11displayoffset
    x11forwarding x11uselocalhost
"""

# alice is recorded; adam is an administrator; carol is neither.
GROUPS = {"alice": "sshrec-users", "adam": "sudo", "carol": "users"}


class Bastion:
    """A directory with Debian's sshd_config, whose Include leads to `drop_ins`, and a host key."""

    def __init__(self, directory: Path) -> None:
        self.drop_ins = directory / "sshd_config.d"
        self.drop_ins.mkdir()
        self._config = directory / "sshd_config"
        stock = STOCK.read_text()
        included = stock.replace("/etc/ssh/sshd_config.d/", f"{self.drop_ins}/")
        assert included != stock, "Debian's sshd_config has no Include any more"
        self._config.write_text(included)
        check_wrapper()
        people = [Account(name, uid, uid, Path("/nonexistent")) for uid, name in enumerate(GROUPS, 7001)]
        if os.geteuid() != 0:
            people.append(Account("caller", os.geteuid(), os.getegid(), directory))  # ssh-keygen asks for it
        self._env = {"PATH": PATH, **wrapped(directory, people)}
        group = re.sub(f"(?m)^({'|'.join(GROUPS.values())}):.*\n", "", (directory / "group").read_text())
        members = (f"{group}:x:{gid}:{name}\n" for gid, (name, group) in enumerate(GROUPS.items(), 7101))
        (directory / "group").write_text("".join(members) + group)
        self._key = directory / "host_key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], self._env)

    def sshd(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [program("sshd"), *arguments, "-f", str(self._config), "-h", str(self._key)]
        return subprocess.run(argv, env=self._env, capture_output=True, text=True, timeout=30)

    def check(self) -> None:
        """`sshd -t`, without a complaint or a warning."""
        result = self.sshd("-t")
        assert (result.returncode, result.stderr) == (0, "")

    def settings(self, user: str) -> str:
        """`sshd -T -C user=…`: what sshd would do with a connection of that user's."""
        result = self.sshd("-T", "-C", f"user={user},host=laptop.example,addr=192.0.2.7")
        assert result.returncode == 0, result.stderr
        return result.stdout

    def values(self, user: str) -> dict[str, str]:
        return dict(line.split(" ", 1) for line in self.settings(user).splitlines() if " " in line)


@pytest.fixture
def bastion(tmp_path: Path) -> Iterator[Bastion]:
    privsep = PrivsepDirectory()
    if os.geteuid() == 0:
        privsep.open()
    try:
        yield Bastion(tmp_path)
    finally:
        privsep.close()


def install(bastion: Bastion, text: str, name: str = "00-sshrec.conf") -> None:
    (bastion.drop_ins / name).write_text(text)


def uncommented(keyword: str) -> str:
    """The snippet with the one commented directive of that keyword made real."""
    text, count = re.subn(rf"(?m)^( *)#({keyword} )", r"\1\2", SNIPPET.read_text())
    assert count == 1, f"{keyword} is an option {count} times"
    return text


def directives(text: str) -> list[str]:
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def test_a_recorded_user_gets_the_gateway_and_nothing_else(bastion: Bastion) -> None:
    install(bastion, SNIPPET.read_text())
    bastion.check()
    values = bastion.values("alice")
    assert {keyword: values.get(keyword) for keyword in RECORDED} == RECORDED


def test_the_login_account_gets_the_gateway_and_nothing_else(bastion: Bastion) -> None:
    """Without a key, and without a password."""
    install(bastion, SNIPPET.read_text())
    bastion.check()
    values = bastion.values("login")
    wanted = {keyword: value for keyword, value in RECORDED.items() if keyword not in KEYS} | DOOR
    assert {keyword: values.get(keyword) for keyword in wanted} == wanted


@pytest.mark.parametrize("user", ["adam", "carol", "root"])
def test_everybody_else_keeps_what_they_had(bastion: Bastion, user: str) -> None:
    without = bastion.settings(user)
    install(bastion, SNIPPET.read_text())
    assert bastion.settings(user) == without


def test_every_directive_of_the_snippet_is_looked_at_here() -> None:
    written = {line.split()[0].lower() for line in directives(SNIPPET.read_text())} - {"match"}
    assert written <= set(RECORDED) | set(DOOR)


def test_what_is_read_after_the_snippet_is_not_captured(bastion: Bastion) -> None:
    install(bastion, SNIPPET.read_text())
    install(bastion, "LoginGraceTime 77\nX11UseLocalhost no\n", "50-cloud-init.conf")
    bastion.check()
    for user in ("alice", "adam", "root"):
        values = bastion.values(user)
        assert (values["logingracetime"], values["x11uselocalhost"]) == ("77", "no")


def test_hardening_elsewhere_does_not_take_the_agent_away_nor_open_a_door(bastion: Bastion) -> None:
    install(bastion, SNIPPET.read_text())
    install(
        bastion,
        "DisableForwarding yes\nAllowAgentForwarding no\nPubkeyAuthentication no\n"
        "AuthorizedKeysFile /etc/keys/%u\n"
        "AuthorizedKeysCommand /usr/bin/sss_ssh_authorizedkeys\nAuthorizedKeysCommandUser nobody\n"
        "AuthorizedPrincipalsFile /etc/principals/%u\nPasswordAuthentication yes\n"
        "Match Group sshrec-users\nAllowTcpForwarding yes\nForceCommand /bin/sh\n",
        "50-hardening.conf",
    )
    bastion.check()
    values = bastion.values("alice")
    assert {keyword: values.get(keyword) for keyword in RECORDED} == RECORDED


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("AuthorizedKeysFile", ".ssh/authorized_keys"),
        ("Banner", "/etc/sshrec/banner"),
    ],
)
def test_an_option_changes_what_it_says_and_nothing_else(bastion: Bastion, keyword: str, value: str) -> None:
    install(bastion, uncommented(keyword))
    bastion.check()
    values = bastion.values("alice")
    assert {name: values.get(name) for name in RECORDED} == RECORDED | {keyword.lower(): value}


def test_the_stricter_block_spares_administrators_root_and_the_recorded(bastion: Bastion) -> None:
    without = {user: bastion.settings(user) for user in ("adam", "root")}
    head, match, rest = SNIPPET.read_text().partition("#Match Group")
    block, gap, tail = (match + rest).partition("\n\n")
    install(bastion, head + re.sub("(?m)^#", "", block) + gap + tail)
    bastion.check()
    assert {user: bastion.settings(user) for user in without} == without
    values = bastion.values("alice")
    assert {keyword: values.get(keyword) for keyword in RECORDED} == RECORDED
    shut = bastion.values("carol")
    assert shut["forcecommand"] == "/usr/sbin/nologin"
    assert shut["disableforwarding"] == "yes"
    doors = ("allowtcpforwarding", "allowstreamlocalforwarding", "allowagentforwarding", "x11forwarding")
    assert {shut[door] for door in (*doors, "permittunnel", "permituserrc")} == {"no"}


def test_no_option_is_forgotten_here() -> None:
    options = set(re.findall(r"(?m)^ *#([A-Z][A-Za-z]+) ", SNIPPET.read_text().partition("#Match Group")[0]))
    assert options == {"AuthorizedKeysFile", "Banner"}


def test_no_comment_trails_a_directive() -> None:
    assert [line for line in directives(SNIPPET.read_text()) if "#" in line] == []


def test_openssh_9_2_takes_every_keyword_in_a_match_block() -> None:
    everything = re.sub(r"(?m)^( *)#([A-Z][A-Za-z]+ | {4}[A-Z])", r"\1\2", SNIPPET.read_text())
    keywords = {line.split()[0].lower() for line in directives(everything)} - {"match"}
    assert len(keywords) > 25
    assert keywords <= set(MATCH_KEYWORDS_9_2.split())


def test_the_snippet_is_two_match_blocks() -> None:
    lines = directives(SNIPPET.read_text())
    assert lines[0] == "Match Group sshrec-users"
    others = [line for line in lines[1:] if re.match("match|include|subsystem", line, re.IGNORECASE)]
    assert others == ["Match User login"]
