"""`sshrec login`, `status`, `logout`, `ssh` and `config` on a laptop; the dialogue answers as a test has it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pexpect
import pytest

from sshrec.openssh import public_key
from sshrec.openssh.agent import Agent
from tests import agents
from tests.e2e import registered
from tests.lab import PROMPT, Lab
from tests.lab.accounts import Account, wrapped
from tests.lab.people import make_key

PASSWORD, CODE = "correct horse", "123456"
_RELAY = (
    "import socket, sys\n"
    "s = socket.socket(socket.AF_UNIX)\n"
    "s.connect(sys.argv[1])\n"
    "s.sendall(sys.stdin.buffer.readline())\n"
    "sys.stdout.buffer.write(s.makefile('rb').read())\n"
)


@dataclass
class Dialogue:
    """The bastion's side, `login@bastion`: asks for PASSWORD and CODE, signs, and says what else a test wants."""

    lab: Lab
    says: dict[str, Any] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    raw: bytes | None = None
    ttl: str = "1h"

    def answer(self, line: bytes) -> bytes:
        request = json.loads(line)
        self.asked.append(request)
        if self.raw is not None:
            return self.raw
        if (request["password"], request["code"]) != (PASSWORD, CODE):
            return json.dumps({"error": "not known, or the wrong password or code", "hint": "try again"}).encode()
        path = self.lab.directory / "asked.pub"
        path.write_text(request["public_key"])
        names = ("--user", request["user"], "--principals", "root,deploy", "--ttl", self.ttl)
        signed = self.lab.sshrec_ca("sign", path, *names, "-o", "-").stdout.decode()
        answer = {
            "certificate": signed.strip(),
            "logins": ["root", "deploy"],
            "known_hosts": self.lab.known_hosts.read_text().splitlines(),
            "bastion": {"names": ["bastion"], "keys": []},
            "destinations": [["root", "web1"]],
            "valid_before": 0,
        }
        return json.dumps({**answer, **self.says}).encode()


@pytest.fixture
def dialogue(lab: Lab) -> Iterator[Dialogue]:
    directory = Path(tempfile.mkdtemp(prefix="sr-", dir="/tmp"))
    directory.chmod(0o755)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "s"))
    (directory / "s").chmod(0o777)
    listener.listen()
    found = Dialogue(lab)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as said:
                connection.sendall(found.answer(said.readline()))

    thread = threading.Thread(target=serve)
    thread.start()
    (directory / "relay.py").write_text(_RELAY)
    door = ["AuthenticationMethods none", "PasswordAuthentication yes", "PermitEmptyPasswords yes"]
    command = f"exec /usr/bin/python3 -I {directory}/relay.py {directory}/s"
    lab.start_bastion("dialogue", force_command=command, extra=door)
    home = lab.account("joe")
    wrapped(lab.directory / "dialogue", [Account("login", home.uid, home.gid, home.home)])
    (lab.directory / "dialogue" / "shadow").write_text("login::19000:0:99999:7:::\n")
    ca = lab.authority_dir / "keys" / "host_ca"
    lab.authority.by_hand(ca, lab.directory / "dialogue" / "host_key", "dialogue", ["bastion"], host=True)
    lab.sshds["dialogue"].reload()
    yield found
    listener.shutdown(socket.SHUT_RDWR)
    thread.join()
    listener.close()
    lab.stop_bastion("dialogue")
    shutil.rmtree(directory)


@dataclass
class Desk:
    """A laptop with our command, an agent that holds nothing, and a host key of the bastion's from before."""

    lab: Lab
    directory: Path
    env: dict[str, str]

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def state(self) -> Path:
        return self.directory / "state" / "sshrec"

    @property
    def agent(self) -> Agent:
        return Agent(Path(self.env["SSH_AUTH_SOCK"]))

    @property
    def argv(self) -> list[str]:
        return [str(self.lab.installation.programs / "sshrec")]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.argv, *words],
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            start_new_session=True,
        )

    def spawn(self, *words: str) -> Any:
        return pexpect.spawn(self.argv[0], list(words), env=self.env, timeout=20, encoding="utf-8")

    def login(self, *words: str, password: str = PASSWORD, code: str = CODE) -> tuple[int, str]:
        """What a person sees at a terminal after the last answer."""
        child = self.spawn("login", "--proxy", "bastion", "-F", str(self.directory / "config"), *words)
        self.answer(child, password, code, "--user" in words)
        child.expect(pexpect.EOF)
        child.wait()
        assert isinstance(child.before, str)
        return child.exitstatus, child.before.replace("\r\n", "\n")

    @staticmethod
    def answer(child: Any, password: str = PASSWORD, code: str = CODE, user_is_known: bool = False) -> None:
        if not user_is_known:
            child.expect(r"User at bastion \[[a-z]+\]: ")
            child.sendline("joe")
        child.expect("Password: ")
        child.sendline(password)
        child.expect(r"Code \(Enter for none\): ")
        child.sendline(code)


def at_desk(lab: Lab, directory: Path, agent: Path, door: str) -> Desk:
    """A laptop to which `ssh login@bastion` leads to that sshd of the lab's."""
    env = {
        **lab.laptop("joe").env,
        "NO_COLOR": "1",
        "XDG_STATE_HOME": str(directory / "state"),
        "SSH_AUTH_SOCK": str(agent),
        "COLUMNS": "80",
        "HOME": str(directory),
    }
    found = Desk(lab, directory, env)
    key = public_key.read(lab.directory / door / "host_key.pub")
    found.known_hosts.write_text(f"# mine\nbastion {key.algorithm} {key.blob}\ngithub.com {key.line}")
    found.known_hosts.chmod(0o640)
    (directory / "config").write_text(
        f"Match originalhost bastion user login\n    Port {lab.sshds[door].port}\n"
        f"Host bastion\n    HostName 127.0.0.1\n    Port {lab.sshds['bastion'].port}\n"
        "    HostKeyAlias bastion\n    ForwardAgent yes\n    RemoteCommand id\n"
        f"Host *\n    UserKnownHostsFile {found.known_hosts}\n    GlobalKnownHostsFile none\n"
        "    StrictHostKeyChecking yes\n    UpdateHostKeys no\n"
    )
    return found


@pytest.fixture
def desk(lab: Lab, tmp_path: Path) -> Iterator[Desk]:
    with agents.agent() as path:
        yield at_desk(lab, tmp_path, path, "dialogue")


def through(desk: Desk, *words: str) -> subprocess.CompletedProcess[str]:
    """Plain ssh with what is in the agent."""
    argv = ["ssh", "-F", str(desk.directory / "config"), "-o", "RemoteCommand=none", "-A", "-l", "joe", "bastion"]
    return subprocess.run([*argv, *words], env=desk.env, capture_output=True, text=True, timeout=60)


def test_from_login_to_logout(dialogue: Dialogue, desk: Desk) -> None:
    code, said = desk.login()
    assert code == 0, said
    assert "bastion  bastion\nuser     joe\nlogins   root, deploy\nvalid    until 20" in said
    assert "key      in the ssh-agent\n" in said
    assert "bound    to the bastion, and from there to 1 login on a node\n" in said
    assert [one.comment for one in desk.agent.identities()] == ["sshrec:joe"]
    assert sorted(path.name for path in (desk.state / "bastion").iterdir()) == [
        "cert.pub",
        "known_hosts",
        "profile.json",
    ]
    assert (dialogue.asked[0]["user"], dialogue.asked[0]["ttl"], dialogue.asked[0]["nodes"]) == ("joe", None, True)
    # Plain ssh, from now on.
    assert through(desk, "root@web1", "echo $USER").stdout == "root\n"
    assert "does not let you in as deploy" in through(desk, "deploy@web1", "id").stderr
    shown = desk.run("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "user     joe\n" in shown.stdout
    (login,) = json.loads(desk.run("status", "--json").stdout)["logins"]
    assert (login["bastion"], login["logins"], login["valid"]) == ("bastion", ["root", "deploy"], True)
    assert desk.run("logout").stdout == "logged out at bastion\n"
    assert desk.agent.identities() == []
    assert not (desk.state / "bastion").exists()
    gone = desk.run("status")
    assert (gone.returncode, gone.stderr) == (1, "not logged in anywhere; sshrec login --proxy BASTION\n")
    assert desk.run("logout").stderr == "sshrec: error: not logged in anywhere\n"


@pytest.mark.root
def test_the_bastion_itself(tmp_path: Path) -> None:
    """No stand-in: an account with a phone, at the bastion's own door."""
    with Lab() as lab, agents.agent() as agent:
        desk = at_desk(lab, tmp_path, agent, "bastion")
        someone = registered.Person(lab, "joe", lab.laptop("joe"), "127.0.0.1")
        someone.register(registered.invite(lab, "joe", "joe,root"))
        refused, why = desk.login(password=someone.password, code="000000")
        assert refused != 0
        assert "rong name, password or code" in why
        code, said = desk.login(password=someone.password, code=someone.code())
        assert code == 0, said
        assert "logins   joe, root\n" in said
        assert "bound    to the bastion, and from there to 4 logins on nodes\n" in said
        assert through(desk, "root@web1", "echo $USER").stdout == "root\n"
        assert "login deploy is not among joe, root" in through(desk, "deploy@web1", "id").stderr


def test_the_bastions_certificate_is_believed_for_its_own_name(dialogue: Dialogue, desk: Desk) -> None:
    before = desk.known_hosts.read_text()
    dialogue.says["known_hosts"] = ["@cert-authority * " + desk.lab.known_hosts.read_text().split(maxsplit=2)[2]]
    dialogue.says["bastion"] = {"names": ["bastion", "github.com"], "keys": []}
    for _ in range(2):
        assert desk.login("--user", "joe")[0] == 0
        lines = desk.known_hosts.read_text().splitlines()
        assert lines[:3] == before.splitlines()
        assert len(lines) == 4
        assert lines[3].startswith("@cert-authority bastion ssh-ed25519 ")
        assert lines[3].endswith(" sshrec:bastion")
        assert desk.known_hosts.stat().st_mode & 0o777 == 0o640


def test_what_the_bastion_says_no_to(dialogue: Dialogue, desk: Desk) -> None:
    code, said = desk.login(code="000000")
    assert code == os.EX_NOPERM
    assert "error: not known, or the wrong password or code\nhint: try again\n" in said.replace(
        "\x1b[31m", ""
    ).replace("\x1b[0m", "")
    assert desk.agent.identities() == []
    assert not desk.state.exists()


def test_a_failed_login_leaves_the_old_one(dialogue: Dialogue, desk: Desk) -> None:
    desk.login()
    (old,) = desk.agent.identities()
    assert desk.login(password="wrong")[0] == os.EX_NOPERM
    assert [one.blob for one in desk.agent.identities()] == [old.blob]
    assert desk.run("status").returncode == 0
    desk.login()
    (new,) = desk.agent.identities()
    assert new.blob != old.blob


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"", "no answer from bastion"),
        (b"Welcome!\n", "bastion does not answer as sshrec does: Welcome!"),
        (b'{"certificate": 5}', "bastion does not answer as sshrec does"),
        (b'{"certificate": ""}', "the certificate from bastion holds no public key"),
        (b'{"error": "no\\u001b[2Jway"}', "error: no\\x1b[2Jway"),
    ],
)
def test_a_bastion_that_answers_otherwise(dialogue: Dialogue, desk: Desk, says: bytes, told: str) -> None:
    dialogue.raw = says
    code, said = desk.login()
    assert code
    assert told in said
    assert "Traceback" not in said
    assert desk.agent.identities() == []


def test_a_certificate_for_another_key(dialogue: Dialogue, desk: Desk) -> None:
    path = desk.directory / "other"
    make_key(path, "other", desk.lab.laptop("joe").env)
    signed = desk.lab.sshrec_ca("sign", f"{path}.pub", "--user", "joe", "--principals", "root", "-o", "-")
    dialogue.says["certificate"] = signed.stdout.decode().strip()
    code, said = desk.login()
    assert code == os.EX_DATAERR
    assert "the certificate from bastion is not for the key that was sent" in said


def test_no_terminal(dialogue: Dialogue, desk: Desk) -> None:
    done = desk.run("login", "--proxy", "bastion", "--user", "joe")
    assert (done.returncode, done.stderr) == (os.EX_USAGE, "sshrec: error: a login needs a terminal to ask at\n")
    assert desk.run("login").stderr == "sshrec: error: which bastion?\nhint: sshrec login --proxy BASTION\n"
    for name in ("-oProxyCommand=id", "a/b", "..", "a b"):
        assert "cannot be a bastion's name" in desk.run("login", f"--proxy={name}").stderr


def test_ssh_logs_in_where_it_is_needed(dialogue: Dialogue, desk: Desk) -> None:
    config = str(desk.directory / "config")
    child = desk.spawn("ssh", "--proxy", "bastion", "-F", config, "root@web1")
    desk.answer(child)
    child.expect(PROMPT.decode())
    child.sendline("exit 7")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 7
    done = desk.run("ssh", "-F", config, "root@web1", "echo", "-n", "$USER")
    assert (done.stdout, done.stderr, done.returncode) == ("root", "", 0)
    port = str(desk.lab.sshds["web1"].port)
    assert desk.run("ssh", "-F", config, "--port", port, "root@web1", "exit 3").returncode == 3
    assert "is reached on port" in desk.run("ssh", "-F", config, "--port", "1", "root@web1", "id").stderr
    assert len(dialogue.asked) == 1
    # Gone from the agent: asked again, and here is nobody to ask.
    assert desk.agent.remove("sshrec:joe") == 1
    assert "needs a terminal" in desk.run("ssh", "-F", config, "root@web1", "id").stderr
    assert "key      no longer in the ssh-agent; log in again\n" in desk.run("status").stdout


def test_a_certificate_that_is_about_to_expire(dialogue: Dialogue, desk: Desk) -> None:
    dialogue.ttl = "50s"
    desk.login()
    assert desk.run("status").returncode == 1
    assert "needs a terminal" in desk.run("ssh", "-F", str(desk.directory / "config"), "root@web1", "id").stderr


def test_files_where_there_is_no_agent(dialogue: Dialogue, desk: Desk) -> None:
    del desk.env["SSH_AUTH_SOCK"]
    code, said = desk.login()
    assert code == 0
    key = desk.state / "bastion" / "key"
    assert f"key      in {key}\n" in said
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.parent.stat().st_mode & 0o777 == 0o700
    config = str(desk.directory / "config")
    assert desk.run("ssh", "-F", config, "root@web1", "echo $USER").stdout == "root\n"
    assert "does not let you in as deploy" in desk.run("ssh", "-F", config, "deploy@web1", "id").stderr
    assert desk.run("ssh", "-F", config, "root@web1", "exit 4").returncode == 4
    assert f"    IdentityFile {key}\n" in desk.run("config").stdout
    desk.run("logout")
    assert not key.exists()


def test_the_agent_alone(dialogue: Dialogue, desk: Desk) -> None:
    agent = desk.env.pop("SSH_AUTH_SOCK")
    done = desk.run("login", "--proxy", "bastion", "--agent", "only")
    assert "no ssh-agent runs: SSH_AUTH_SOCK is not set" in done.stderr
    desk.env["SSH_AUTH_SOCK"] = "/nonexistent/S.gpg-agent.ssh"
    assert "gpg-agent holds no certificates" in desk.run("login", "--proxy", "bastion", "--agent", "only").stderr
    desk.env["SSH_AUTH_SOCK"] = agent
    assert desk.login("--agent", "only")[0] == 0
    assert desk.login("--agent", "no")[0] == 0
    assert (desk.state / "bastion" / "key").exists()


@pytest.mark.parametrize(
    ("refuse", "told", "held"),
    [
        (agents.CERTIFICATE, "took the key and not its certificate; the key is kept in a file instead", 0),
        (agents.CONSTRAINED, "refuses a key with destination constraints", 1),
    ],
)
def test_an_agent_that_cannot(dialogue: Dialogue, desk: Desk, refuse: bytes, told: str, held: int) -> None:
    behind = desk.agent
    with agents.between(agents.refusing(refuse), behind.socket) as path:
        desk.env["SSH_AUTH_SOCK"] = str(path)
        code, said = desk.login()
    assert code == 0
    assert told in said
    assert len(behind.identities()) == held
    assert (desk.state / "bastion" / "key").exists() == (not held)


def test_nodes_that_cannot_be_listed(dialogue: Dialogue, desk: Desk) -> None:
    dialogue.says["destinations"] = None
    _, said = desk.login("--ttl", "30m")
    assert "bound    to nothing: the bastion cannot list the nodes that you may use\n" in said
    assert dialogue.asked[0]["ttl"] == 1800
    assert through(desk, "deploy@web2", "echo $USER").stdout == "deploy\n"


def test_nothing_secret_is_left(dialogue: Dialogue, desk: Desk) -> None:
    seen: list[str] = []

    def look(answer: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
        def looking(line: bytes) -> bytes:
            # While the bastion thinks: nothing in anybody's arguments or environment.
            for path in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        data = (path / name).read_bytes()
                    except OSError:
                        continue
                    if PASSWORD.encode() in data:
                        seen.append(f"{path}/{name}")
            return answer(line)

        return looking

    dialogue.answer = look(dialogue.answer)  # type: ignore[method-assign,assignment]
    code, said = desk.login()
    assert (code, seen) == (0, [])
    assert PASSWORD not in said
    written = [path.read_bytes() for path in desk.directory.rglob("*") if path.is_file()]
    assert not any(PASSWORD.encode() in data or b"PRIVATE KEY" in data for data in written)


def test_the_block_for_ssh_config(dialogue: Dialogue, desk: Desk) -> None:
    desk.login()
    block = desk.run("config").stdout
    config = desk.directory / "with-block"
    theirs = (desk.directory / "config").read_text().replace("    RemoteCommand id\n", "")
    config.write_text(block + theirs)
    done = subprocess.run(
        ["ssh", "-F", config, "bastion", "root@web1", "echo $USER"], env=desk.env, capture_output=True, timeout=60
    )
    assert done.stdout == b"root\n", done.stderr


def test_quick_to_start() -> None:
    """A laptop has no database."""
    code = "import sys, sshrec.cli.login; print([m for m in sys.modules if m.startswith(('sqlalchemy', 'yaml'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n"
