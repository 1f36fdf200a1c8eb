"""`sshrec users`, `lock`, `unlock` and `locks`, as one types them; and root's part, on a copy of /etc."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sshrec.config import parse
from sshrec.errors import ConfigError

PROGRAMS = Path(sys.executable).parent
TOKEN = re.compile(r"[0-9a-hjkmnp-tv-z]{5}(?:-[0-9a-hjkmnp-tv-z]{5}){5}")


@dataclass
class Authority:
    """A new one, in a directory of its own."""

    directory: Path

    def run(self, *words: str, program: str = "sshrec") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / program, "--config", self.directory / "sshrec.yaml", *words],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.defpath, "TZ": "UTC", "LANG": "C.UTF-8"},
        )

    def says(self, *words: str, program: str = "sshrec") -> str:
        done = self.run(*words, program=program)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refuses(self, *words: str) -> str:
        """The error and the hint."""
        done = self.run(*words)
        assert done.returncode not in (0, os.EX_SOFTWARE), done.stdout
        assert done.stdout == ""
        return done.stderr

    def json(self, *words: str) -> Any:
        return json.loads(self.says(*words, "--json"))

    def add(self, *words: str) -> str:
        return self.says("users", "add", *words, "--no-unix-account")


@contextlib.contextmanager
def _authority() -> Iterator[Authority]:
    """Where an owner that is not root can get to: pytest's directories are root's alone."""
    with tempfile.TemporaryDirectory(prefix="sshrec-users-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        settings = f"data_dir: {name}/data\nrun_dir: {name}/run\nbastion: bastion.example.com:2222\n"
        (directory / "sshrec.yaml").write_text(settings)
        made = Authority(directory)
        made.says("init", program="sshrec-ca")
        yield made


@pytest.fixture
def authority() -> Iterator[Authority]:
    with _authority() as made:
        yield made


@pytest.fixture(scope="module")
def unchanged() -> Iterator[Authority]:
    """One that nothing may happen to."""
    with _authority() as made:
        yield made
        assert made.json("users", "ls")["users"] == []
        assert made.json("locks")["locks"] == []


# ---- users -------------------------------------------------------------------------------------------------


def test_an_invitation_is_two_lines_to_hand_on(authority: Authority) -> None:
    said = authority.add("joe", "joe,root,ec2-user").splitlines()
    assert re.fullmatch(r"joe is invited, until \d{4}-\d\d-\d\d \d\d:\d\d\. .*", said[0])
    assert said[2] == "    ssh -A -p 2222 login@bastion.example.com"
    assert TOKEN.fullmatch(said[3].strip())
    (joe,) = authority.json("users", "ls")["users"]
    assert (joe["user"], joe["logins"], joe["status"]) == ("joe", ["joe", "root", "ec2-user"], "invited")
    assert "joe   invited, " in authority.says("users", "ls")


def test_logins_are_the_name_itself_unless_said_otherwise(authority: Authority) -> None:
    authority.add("joe")
    assert authority.json("users", "show", "joe")["user"]["logins"] == ["joe"]
    assert authority.says("users", "update", "joe", "joe,root") == "joe may log in as joe, root\n"
    assert authority.json("users", "show", "joe")["user"]["logins"] == ["joe", "root"]


def test_a_reset_invites_anew(authority: Authority) -> None:
    first = TOKEN.search(authority.add("joe"))
    made = authority.json("users", "reset", "joe", "--ttl", "48h")["invitation"]
    assert made["ssh"] == "ssh -A -p 2222 login@bastion.example.com"
    assert first
    assert made["token"] != first[0]
    assert made["purpose"] == "reset"


def test_who_is_removed_is_gone_and_in_the_list_of_revoked(authority: Authority, tmp_path: Path) -> None:
    authority.add("joe")
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    authority.says("sign", f"{key}.pub", "--user", "joe", "--principals", "joe", program="sshrec-ca")
    krl = authority.directory / "data-auth/public/krl"
    query: list[str | Path] = ["ssh-keygen", "-Q", "-f", krl, f"{key}-cert.pub"]
    assert subprocess.run(query, capture_output=True).returncode == 0
    assert authority.says("users", "rm", "joe") == "removed joe; 1 certificate revoked\n"
    assert subprocess.run(query, capture_output=True).returncode == 1
    assert authority.json("users", "ls")["users"] == []
    assert "error: there is no user joe\n" in authority.refuses("users", "rm", "joe")
    assert "error: there is no user joe\n" in authority.refuses("users", "show", "joe")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["add", "root"], "'root' cannot be a user: the account is the system's"),
        (["add", "login"], "'login' cannot be a user: the account is the system's"),
        (["add", "joe\x1b[2J"], r"'joe\x1b[2J' cannot be a user"),
        (["add", "jоe"], "'jоe' cannot be a user"),
        (["add", "x" * 10_000], "cannot be a user"),
        (["add", "joe", "joe,,root"], "'' cannot be a login"),
        (["add", "joe", "joe root"], "'joe root' cannot be a login"),
        (["add", "joe", "--ttl", "49h"], "2d1h is longer than an invitation may be good for, 2d"),
        (["add", "joe", "--ttl", "soon"], "no duration"),
        (["update", "joe", "joe"], "there is no user joe"),
        (["reset", "joe"], "there is no user joe"),
        (["show", "\x1b[2J"], r"there is no user \x1b[2J"),
    ],
)
def test_what_cannot_be_is_said(unchanged: Authority, words: list[str], said: str) -> None:
    error = unchanged.refuses("users", *words, *(["--no-unix-account"] if words[0] == "add" else []))
    assert said in error
    assert len(error) < 400


def test_a_bastion_of_another_name() -> None:
    for text, host, port in (
        ("bastion", "bastion", 22),
        ("bastion.example.com:2222", "bastion.example.com", 2222),
        ("10.0.0.7:22", "10.0.0.7", 22),
        ("[2001:db8::7]:2222", "2001:db8::7", 2222),
        ("[2001:DB8::7]", "2001:db8::7", 22),
    ):
        config = parse(f'bastion: "{text}"')
        assert (config.bastion_host, config.bastion_port) == (host, port)
    assert parse("").bastion_host == os.uname().nodename
    for text in (
        "",
        "a b",
        "-oProxyCommand=x",
        "bastion:0",
        "bastion:65536",
        "2001:db8::7",
        "joe@bastion",
        "b\x1b",
    ):
        with pytest.raises(ConfigError, match="bastion"):
            parse(json.dumps({"bastion": text}))
    with pytest.raises(ConfigError, match="login_account"):
        parse('login_account: "-l"')


# ---- locks -------------------------------------------------------------------------------------------------


def test_locked_and_unlocked(authority: Authority) -> None:
    authority.add("joe")
    assert authority.says("lock", "user", "joe", "--ttl", "1h", "--reason", "stolen").startswith(
        "locked user joe until 2"
    )
    assert authority.says("lock", "node", "web1") == "locked node web1\n"
    assert [(one["kind"], one["name"], one["reason"]) for one in authority.json("locks")["locks"]] == [
        ("user", "joe", "stolen"),
        ("node", "web1", ""),
    ]
    assert "joe   locked" in authority.says("users", "ls")
    assert "is locked until" in authority.says("users", "show", "joe")
    assert authority.says("unlock", "user", "joe") == "unlocked user joe\n"
    assert "user 'joe' is not locked" in authority.refuses("unlock", "user", "joe")
    assert [one["name"] for one in authority.json("locks")["locks"]] == ["web1"]
    slip = authority.run("lock", "user", "jow")
    assert (slip.returncode, slip.stderr) == (0, "there is no user jow: a slip?\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["user", "Joe"], "'Joe' cannot be the name of a user"),
        (["login", "r\x1boot"], r"'r\x1boot' cannot be the name of a login"),
        (["node", "web_1"], "a node cannot be locked by that name: 'web_1' is no pattern of names"),
        (["session", "01K"], "'01K' cannot be the name of a session"),
        (["everything", "joe"], "'everything' is not one of"),
        (["user", "joe", "--reason", "a\nb"], "is not one line"),
        (["user", "joe", "--reason", "x" * 501], "is not one line"),
    ],
)
def test_what_cannot_be_locked(unchanged: Authority, words: list[str], said: str) -> None:
    assert said in unchanged.refuses("lock", *words)


# ---- root on a bastion -------------------------------------------------------------------------------------

# In a mount namespace of its own, /etc and /home are copies, and the gateway's place is made.
_BASTION = """
set -e
cd "$1"
mkdir -p etc home lib
cp -a /etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/login.defs /etc/nsswitch.conf /etc/pam.d etc/
[ ! -e /etc/default/useradd ] || { mkdir -p etc/default; cp /etc/default/useradd etc/default/; }
mkdir -p /usr/lib/sshrec 2>/dev/null || true
mount --bind etc /etc; mount --bind home /home; mount --bind lib /usr/lib/sshrec
ln -sf /bin/true /usr/lib/sshrec/sshrec-gateway
groupadd -f -r sshrec-users
echo "sshrec-auth:x:64999:64999::/:/usr/sbin/nologin" >>/etc/passwd
exec bash -c "$2"
"""


@pytest.fixture
def bastion(authority: Authority) -> Iterator[Path]:
    """A directory for _BASTION, where the authority is somebody else's than root's."""
    if (
        shutil.which("useradd") is None
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("no useradd, or no mount namespaces")
    if not Path("/usr/lib/sshrec").is_dir():
        Path("/usr/lib/sshrec").mkdir()
        made = True
    else:
        made = False
    (authority.directory / "bastion").mkdir()
    for path in (authority.directory / "data-auth", *(authority.directory / "data-auth").rglob("*")):
        os.chown(path, 64999, 64999)
    yield authority.directory
    if made:
        Path("/usr/lib/sshrec").rmdir()


def _on(bastion: Path, script: str) -> str:
    """What a script prints; $sshrec is the command, with its configuration."""
    sshrec = f'sshrec="{PROGRAMS}/sshrec --config {bastion}/sshrec.yaml"\n'
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", _BASTION, "bash", bastion / "bastion", sshrec + script],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TZ": "UTC", "LANG": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.root
def test_root_makes_and_removes_the_unix_account(bastion: Path) -> None:
    said = _on(
        bastion,
        """
        umask 077
        $sshrec users add joe joe,root >/dev/null
        getent passwd joe; id -gn joe; getent shadow joe
        find /home -printf '%p %M %u\\n'
        stat -c '%u' /etc/passwd
        $sshrec users rm joe
        getent passwd joe || echo gone
        find /home
        $sshrec users add joe >/dev/null && id -gn joe
        """,
    )
    assert "joe:x:" in said
    assert ":sshrec user:/home/joe:/usr/lib/sshrec/sshrec-gateway\nsshrec-users\njoe:*:" in said
    assert "/home/joe drwxr-xr-x root\n" in said
    assert "/home/joe/.ssh drwxr-xr-x root\n" in said
    assert "/home/joe/.ssh/agent drwx------ joe\n" in said
    assert "removed joe\ngone\n/home\nsshrec-users\n" in said
    # The database stays its owner's.
    assert {path.stat().st_uid for path in (bastion / "data-auth").iterdir()} == {64999}


@pytest.mark.root
@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("useradd -M -s /bin/bash joe", "the Unix account joe is not ours"),
        ("useradd -M -s /bin/bash -g sshrec-users joe", "the Unix account joe is not ours"),
        ("mkdir -p /home/joe && echo evil >/home/joe/.pam_environment", "/home/joe exists"),
        ("ln -s /root /home/joe", "/home/joe exists"),
        ("groupdel sshrec-users", "there is no group sshrec-users"),
        ("rm /usr/lib/sshrec/sshrec-gateway", "/usr/lib/sshrec/sshrec-gateway does not exist"),
        ("touch /etc/passwd.lock; rm /etc/shadow", "useradd: "),
        ("mount -t tmpfs -o size=4k,nr_inodes=2 none /home", "cannot make the Unix account joe: /home/joe"),
    ],
)
def test_where_no_account_can_be_made_there_is_no_user(bastion: Path, before: str, said: str) -> None:
    shown = _on(
        bastion,
        f"""
        {before}
        before="$(cat /etc/passwd; find /home)"
        $sshrec users add joe && exit 1
        [ "$before" = "$(cat /etc/passwd; find /home)" ] && echo as before
        $sshrec users ls
        $sshrec users add joe --no-unix-account >/dev/null && echo added
        """,
    )
    assert f"sshrec: error: {said}" in shown
    assert "as before\nadded\n" in shown
    assert "no users\n" in shown


@pytest.mark.root
def test_where_no_user_can_be_made_there_is_no_account(bastion: Path) -> None:
    shown = _on(
        bastion,
        """
        $sshrec users add joe r,, && exit 1
        getent passwd joe || echo none
        find /home
        $sshrec users add joe --no-unix-account >/dev/null
        useradd -M -s /bin/bash joe
        $sshrec users rm joe
        $sshrec users ls
        getent passwd joe
        """,
    )
    assert "none\n/home\n" in shown
    assert "it stays: the Unix account joe is not ours" in shown
    assert "removed joe\n" in shown
    assert "/home/joe:/bin/bash" in shown


@pytest.mark.root
def test_an_account_of_ours_is_taken_up_and_what_a_killed_command_left_is_removed(bastion: Path) -> None:
    shown = _on(
        bastion,
        """
        useradd -M -N -G sshrec-users -s /usr/lib/sshrec/sshrec-gateway joe
        $sshrec users add joe >/dev/null && echo added
        $sshrec users rm joe --no-unix-account
        $sshrec users rm joe
        getent passwd joe || echo gone
        """,
    )
    assert "added\nremoved joe\nremoved the Unix account joe; there was no such user\ngone\n" in shown
