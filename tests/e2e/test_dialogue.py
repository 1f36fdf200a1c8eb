"""`login@bastion` against those who guess and agents that cheat, and what the bastion answers itself."""

from __future__ import annotations

import base64
import concurrent.futures
import json
import re
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests import agents
from tests.e2e.registered import (
    CODE,
    NAME,
    PASSWORD,
    WORD,
    Person,
    answer,
    invite,
    person,
    plain,
    rest,
    says,
)
from tests.lab import Lab

pytestmark = pytest.mark.root

WRONG = "wrong name, password or code"
Newcomer = Callable[..., Person]


@pytest.fixture
def newcomer(lab: Lab) -> Iterator[Newcomer]:
    """People who have registered; each is somebody else in each test."""
    came: list[Person] = []

    def come(name: str | None = None, *, registered: bool = True) -> Person:
        one = person(lab, name)
        came.append(one)
        if registered:
            one.register(invite(lab, one.name, "root,deploy"))
        return one

    yield come
    for one in came:
        lab.close_laptop(one.laptop)


@pytest.fixture
def joe(newcomer: Newcomer) -> Person:
    return newcomer()


def ask(joe: Person, code: str | None = None, **fields: Any) -> dict[str, Any]:
    """`sshrec-login`, as `sshrec login` on a laptop asks: one line of JSON in, and one out."""
    request = {"user": joe.name, "password": joe.password, "public_key": public_key(joe)} | fields
    return said(joe, json.dumps(request | {"code": joe.code() if code is None else code}).encode() + b"\n")


def said(joe: Person, line: bytes) -> dict[str, Any]:
    done = joe.run("sshrec-login", agent=False, input=line)
    assert done.stderr == b""
    (only,) = done.stdout.splitlines(True)
    assert only.endswith(b"\n")
    answered: dict[str, Any] = json.loads(only)
    assert done.returncode == (1 if answered["error"] else 0)
    return answered


def public_key(joe: Person) -> str:
    return joe.laptop.key.with_suffix(".pub").read_text()


def events(lab: Lab, user: str) -> list[dict[str, Any]]:
    """What the audit log has of somebody's logins."""
    lines = [line for path in sorted((lab.data_dir / "audit").glob("*.jsonl")) for line in path.open()]
    found = [json.loads(line) for line in lines]
    return [event for event in found if event.get("event") == "user.login" and event.get("user") == user]


# ---- those who guess ------------------------------------------------------------------------------------------


def test_the_same_words_whatever_was_wrong(lab: Lab, joe: Person) -> None:
    for name, word, code in (
        (joe.name, "something else", joe.code()),
        ("nobody-there", PASSWORD, joe.code()),
        (joe.name, PASSWORD, "000000"),
    ):
        child = joe.dial()
        says(child, (NAME, name), (WORD, word), (CODE, code))
        child.expect_exact(f"Name [{name}]: ")
        assert plain(child.before).splitlines()[1:] == [f"{WRONG[:1].upper()}{WRONG[1:]}."]
        child.send("\x03")
        rest(child)
        assert child.exitstatus == 130


def test_three_tries_and_the_name_may_be_mended(lab: Lab, joe: Person) -> None:
    child = joe.dial()
    says(child, (NAME, "jo"), (WORD, joe.password), (CODE, "000000"))
    says(child, ("Name [jo]: ", joe.name), (WORD, "mistyped"), (CODE, "000000"))
    says(child, (f"Name [{joe.name}]: ", ""), (WORD, joe.password), (CODE, joe.code()))
    assert "Logged in as" in rest(child)
    child = joe.dial()
    says(child, (NAME, "jo"), (WORD, "x"), (CODE, "0"), ("Name [jo]: ", ""), (WORD, "x"), (CODE, "0"))
    says(child, ("Name [jo]: ", ""), (WORD, "x"), (CODE, "0"))
    assert rest(child).splitlines()[1:2] == [f"{WRONG[:1].upper()}{WRONG[1:]}."]
    assert child.exitstatus == 1


def test_each_code_once(joe: Person) -> None:
    code = joe.code()
    assert ask(joe, code)["error"] is None
    assert ask(joe, code)["error"].lower() == f"{WRONG}."
    child = joe.dial()
    says(child, (NAME, joe.name), (WORD, joe.password), (CODE, joe.recovery[3].upper().replace("-", " ")))
    assert "\nThat recovery code is used up; 9 are left.\nLogged in as " in rest(child)
    assert "Wrong name, password or code.\n" in joe.login(joe.recovery[3], leave=True)


def test_five_failures_and_a_restart(lab: Lab, joe: Person) -> None:
    for _ in range(5):
        assert ask(joe, "000000")["error"].lower() == f"{WRONG}."
    lab.stop_authd()
    lab.start_authd()
    code = joe.code()
    refused = ask(joe, code)["error"]
    assert re.fullmatch(r"Too many failures: try again in 1[45]m([0-9]+s)?\.", refused)
    child = joe.dial()
    says(child, (NAME, joe.name), (WORD, joe.password), (CODE, code))
    assert re.search(r"\nToo many failures: try again in 1[45]m([0-9]+s)?\.\n", rest(child))
    assert child.exitstatus == 1


def test_parallel_tries_do_not_win(joe: Person) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        said = [one["error"] for one in pool.map(lambda number: ask(joe, f"{number:06}"), range(12))]
    assert sum(one.lower() == f"{WRONG}." for one in said) <= 5
    assert sum(one.startswith("Too many failures: ") for one in said) >= 7


def test_one_code_in_parallel(joe: Person) -> None:
    code = joe.code()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        said = [one["error"] for one in pool.map(lambda _: ask(joe, code), range(4))]
    assert said.count(None) == 1


def test_a_source_that_tries_one_name_after_the_other(newcomer: Newcomer) -> None:
    joe, other = newcomer(), newcomer()
    for number in range(5):
        assert ask(joe, "000000", user=f"name{number}")["error"].lower() == f"{WRONG}."
    assert ask(joe)["error"].startswith("Too many failures: ")
    assert ask(other)["error"] is None


# ---- agents ---------------------------------------------------------------------------------------------------


def through(joe: Person, agent: Path, **options: Any) -> Any:
    """In the dialogue with another agent, at its first question."""
    child = joe.dial(env={"SSH_AUTH_SOCK": str(agent)}, **options)
    answer(child, NAME, joe.name)
    return child


def own(joe: Person) -> Path:
    return Path(joe.laptop.env["SSH_AUTH_SOCK"])


def test_a_locked_agent(joe: Person) -> None:
    locking = pexpect.spawn("ssh-add", ["-x"], env=dict(joe.laptop.env), timeout=20)
    for prompt in ("Enter lock password: ", "Again: "):
        locking.expect(prompt)
        locking.sendline("secret")
    locking.expect(pexpect.EOF)
    child = through(joe, own(joe))  # before a code is spent
    assert plain(rest(child).encode()).splitlines()[1:3] == [
        "sshrec: error: your agent refuses",
        "hint: is it locked (ssh-add -X), or does it take no keys?",
    ]


def test_an_agent_that_hangs(joe: Person) -> None:
    """The person may leave at any time."""
    asked, over = threading.Event(), threading.Event()

    def hanging(message: bytes) -> bytes | None:
        if message[4] == 11:  # SSH2_AGENTC_REQUEST_IDENTITIES: of ssh itself
            return None
        if message[4] == 27:  # SSH_AGENTC_EXTENSION: so is session-bind
            return None
        asked.set()
        over.wait(60)
        return b""

    with agents.between(hanging, own(joe)) as path:
        try:
            child = through(joe, path)
            assert asked.wait(20)
            child.send("\x03")
            rest(child)
            assert child.exitstatus == 255
            child = through(joe, path)
            assert "sshrec: error: your agent did not answer within 10 seconds\n" in rest(child)
        finally:
            over.set()


def test_an_agent_that_refuses_constraints(joe: Person) -> None:
    with agents.between(agents.refusing(agents.CONSTRAINED), own(joe)) as path:
        child = through(joe, path)
        says(child, (WORD, joe.password), (CODE, joe.code()))
        told = " ".join(rest(child).split())
    assert "It is good from any host that you forward your agent to: your agent refuses a key with dest" in told
    assert child.exitstatus == 0
    assert any("-cert-v01@" in line for line in joe.held())


def test_an_agent_that_refuses_certificates(joe: Person) -> None:
    before = joe.held()
    with agents.between(agents.refusing(agents.CERTIFICATE), own(joe)) as path:
        child = through(joe, path)
        says(child, (WORD, joe.password), (CODE, joe.code()))
        told = rest(child)
    assert "sshrec: error: your agent took the key and not its certificate\n" in told
    assert "hint: OpenSSH's ssh-agent can: eval $(ssh-agent), and again\n" in told
    assert [line for line in joe.held() if "-cert-" in line] == [line for line in before if "-cert-" in line]


@pytest.mark.parametrize("lie", [b"", b"\xff\xff\xff\xff", b"\0\0\0\5\x0c\0\0\0\7"])
def test_an_agent_that_lies(joe: Person, lie: bytes) -> None:
    with agents.between(lambda _: lie) as path:
        told = rest(through(joe, path))
    assert re.search(r"sshrec: error: your agent (hung up|refuses|does not answer)", told)
    assert "Traceback" not in told


def test_an_agent_that_goes_in_the_middle(joe: Person) -> None:
    gone = threading.Event()
    with agents.between(lambda _: b"" if gone.is_set() else None, own(joe)) as path:
        child = through(joe, path)
        answer(child, WORD, joe.password)
        child.expect_exact(CODE)
        gone.set()
        child.send(f"{joe.code()}\r")
        told = rest(child)
    assert "sshrec: error: your agent hung up\n" in told
    assert child.exitstatus != 0


def test_registered_with_an_agent_that_is_of_no_use(lab: Lab, newcomer: Newcomer) -> None:
    joe = newcomer(registered=False)
    with agents.between(lambda _: agents.FAILURE) as path:
        told = joe.register(invite(lab, joe.name, "root"), env={"SSH_AUTH_SOCK": str(path)})
    assert "\nYou are registered. To log in: ssh -A login@bastion\nsshrec: error: your agent refuses\n" in told
    assert "Logged in as" in joe.login()


# ---- nothing else is there ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["id"], ["root@web1"], ["root@web1", "id"], ["sshrec", "status"], ["scp -t /tmp/x"], ["sshrec-login x"]],
)
def test_no_command_and_no_hop(lab: Lab, newcomer: Newcomer, words: list[str]) -> None:
    nobody, before = newcomer(registered=False), len(lab.recordings())
    done = nobody.run(*words)
    assert (done.returncode, done.stdout) == (255, b"")
    assert done.stderr == (b"sshrec: error: nothing but the login dialogue is here\nhint: ssh -A login@bastion\n")
    assert len(lab.recordings()) == before


def test_no_forwarding_and_no_subsystem(lab: Lab, newcomer: Newcomer, tmp_path: Path) -> None:
    nobody = newcomer(registered=False)
    port = lab.sshds["web1"].port
    for args in (
        ["-W", f"127.0.0.1:{port}", "login@bastion"],
        ["-J", "login@bastion", "web1"],
        ["-N", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:22", "login@bastion"],
        ["-s", "login@bastion", "sftp"],
    ):
        done = lab.ssh(*args, user=nobody.laptop, input=b"")
        assert done.returncode, args
        assert b"SSH-2.0" not in done.stdout
    file = tmp_path / "file"
    file.write_text("x")
    config = ["-F", str(nobody.laptop.ssh_config)]
    for argv in (
        ["sftp", "-b", "/dev/null", *config, "login@bastion"],
        ["scp", *config, str(file), "login@bastion:/tmp"],
    ):
        done = subprocess.run(argv, env=nobody.laptop.env, capture_output=True, timeout=30)
        assert done.returncode, argv


def test_a_local_port_leads_nowhere(lab: Lab, newcomer: Newcomer) -> None:
    nobody = newcomer(registered=False)
    with socket.create_server(("127.0.0.1", 0)) as free:
        local = free.getsockname()[1]
    child = nobody.dial("-L", f"{local}:127.0.0.1:{lab.sshds['web1'].port}")
    child.expect_exact(NAME)
    with socket.create_connection(("127.0.0.1", local), 10) as through_it:
        assert through_it.recv(100) == b""
    child.send("\x03")
    rest(child)


def test_no_second_channel_and_nothing_that_just_stays(lab: Lab, newcomer: Newcomer) -> None:
    nobody = newcomer(registered=False)
    control = str(nobody.laptop.directory / "mux")
    child = nobody.dial("-M", "-S", control)
    child.expect_exact(NAME)
    second = nobody.run("-S", control, "-o", "ControlMaster=no", "id")
    assert b"nothing but the login dialogue is here" in second.stderr  # by a connection of its own
    child.send("\x03")
    rest(child)
    idle = nobody.run("-N")  # UnusedConnectionTimeout, which is 10 s
    assert idle.returncode == 255


def test_the_environment_changes_nothing(lab: Lab, newcomer: Newcomer) -> None:
    nobody = newcomer(registered=False)
    env = {
        "LD_PRELOAD": "/nonexistent.so",
        "PYTHONPATH": "/tmp",
        "BASH_ENV": "/nonexistent",
        "TERM": "\x1b]0;x\x07",
        "LANG": "x" * 5000,
    }
    lab.start_bastion("open", extra=["AcceptEnv *"])
    try:
        words = [f"-oSendEnv={name}" for name in env if name != "LD_PRELOAD"]
        child = lab.spawn("-A", *words, "-l", "login", "open", user=nobody.laptop, env=env | {"LD_PRELOAD": ""})
        child.expect_exact(NAME)
        assert b"\x1b" not in (child.before or b"")
        child.send("\x03")
        rest(child)
    finally:
        lab.stop_bastion("open")


# ---- what may be typed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk",
    [
        b"x" * 10_000,
        bytes(set(range(256)) - {3, 4, 10, 13}),
        "jое".encode(),  # Cyrillic
        "ｊｏｅ".encode(),
        b"../../etc/passwd",
        b"joe\x1b[2J\x1b]0;x\x07",
        b"-oProxyCommand=id",
        b"'; DROP TABLE users; --",
        b"\xff\xfe\xfd",
    ],
)
def test_names_that_are_none(newcomer: Newcomer, junk: bytes) -> None:
    nobody = newcomer(registered=False)
    child = nobody.dial()
    child.expect_exact(NAME)
    child.send(junk + b"x\r")
    says(child, (WORD, PASSWORD), (CODE, "000000"))
    child.expect_exact("Wrong name, password or code.")
    shown = child.before.replace(b"\r\n", b"").replace(b"\a", b"").replace(b"\b \b", b"")
    assert shown.decode().isprintable()
    child.send("\x03")
    rest(child)


def test_a_registered_name_with_look_alikes_is_not_it(joe: Person) -> None:
    for name in (joe.name.replace("u", "ｕ"), joe.name.upper(), f"{joe.name}\0", f" {joe.name}", f"{joe.name}\n"):
        assert ask(joe, "000000", user=name)["error"].lower() in {f"{WRONG}."}


def test_typed_ahead_and_not_shown(joe: Person) -> None:
    """All at once, as somebody pastes it: each line is an answer, and the password is not seen."""
    child = joe.dial()
    child.expect_exact(NAME)
    child.send(f"{joe.name}\r{joe.password}\r{joe.code()}\r")
    said = rest(child)
    assert "Logged in as" in said
    assert joe.password not in said


def test_nobody_is_asked_in_vain(joe: Person) -> None:
    """Enter alone is no answer, and no failure."""
    child = joe.dial()
    says(child, (NAME, ""), (NAME, joe.name), (WORD, ""), (WORD, joe.password), (CODE, ""), (CODE, joe.code()))
    assert "Logged in as" in rest(child)


# ---- sshrec login, on a laptop ----------------------------------------------------------------------------------


def test_a_certificate_for_a_laptop(joe: Person) -> None:
    got = ask(joe, ttl=600)
    assert (got["error"], got["logins"]) == (None, ["root", "deploy"])
    every = {(login, node) for login in ("root", "deploy") for node in ("web1", "web2")}
    assert {tuple(pair) for pair in got["destinations"]} == every
    shown = subprocess.run(
        ["ssh-keygen", "-Lf", "-"], input=got["certificate"], capture_output=True, text=True, timeout=20
    ).stdout
    assert f'Key ID: "{joe.name}"' in shown
    assert ask(joe, joe.recovery[0], nodes=False)["destinations"] is None


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"", "no line of a login came"),
        (b"x" * 70_000, "no line of a login came"),
        (b"x" * 70_000 + b"\n", "no line of a login came"),
        (b"hello\n", "what came is no login of this version"),
        (b"{}\n", "what came is no login of this version"),
        (b"[1]\n", "what came is no login of this version"),
        (b"\xff\xfe\n", "what came is no login of this version"),
        (
            b'{"user": "joe", "password": "x", "public_key": "", "shiny": 1}\n',
            "what came is no login of this version",
        ),
        (
            b'{"user": "joe", "password": "x", "public_key": "", "ttl": "1h"}\n',
            "what came is no login of this version",
        ),
    ],
)
def test_what_is_no_login(newcomer: Newcomer, line: bytes, told: str) -> None:
    assert said(newcomer(registered=False), line)["error"] == told


def test_certificates_that_are_not_given(joe: Person) -> None:
    codes = iter(joe.recovery)
    for fields, told in (
        ({"ttl": 10**6}, "is longer than a user's certificate may be good for, 1d"),
        ({"ttl": 0}, "the auth service refuses: "),
        ({"ttl": -5}, "the auth service refuses: "),
        ({"public_key": "ssh-rsa AAAA x"}, "the public key"),
        ({"public_key": ""}, "the public key"),
        ({"public_key": f"{public_key(joe).strip()}\n{public_key(joe)}"}, "the public key"),
    ):
        error = ask(joe, next(codes), **fields)["error"]
        assert told in error, (fields, error)
        assert "Traceback" not in error


# ---- for those who are in ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def article() -> Iterator[tuple[Lab, Person]]:
    """Joe, who has an account on the bastion, and is logged in."""
    with Lab() as lab:
        joe = person(lab, "joe")
        joe.register(invite(lab, "joe", "root,deploy"))
        yield lab, joe


def test_status_help_and_logout(article: tuple[Lab, Person]) -> None:
    _, joe = article
    status = joe.ssh("sshrec", "status")
    assert (status.returncode, status.stderr) == (0, b"")
    user, logins, valid, serial = status.stdout.decode().splitlines()
    assert (user, logins) == ("user     joe", "logins   root, deploy")
    assert re.fullmatch(r"valid    until \w+ [0-9]+ \w+ [0-9:]+ \w+ \(1[12]h([0-9]+m)? left\)", valid)
    assert re.fullmatch(r"serial   [0-9]+", serial)
    helped = joe.ssh("sshrec", "help").stdout.decode()
    assert "ssh -tA joe@bastion sshrec login\n" in helped
    assert max(map(len, helped.splitlines())) < 80
    assert joe.ssh("sshrec").stdout.decode() == helped
    for words in (["sshrec", "users", "ls"], ["sshrec", "ls", "--user", "alice"], ["sshrec", "play", "x; id"]):
        done = joe.ssh(*words)
        assert (done.returncode, done.stdout) == (255, b"")
        assert (
            b"sshrec: error: the bastion answers: sshrec login, logout, status, ls, config, help\n" in done.stderr
        )
    without = joe.lab.ssh("-a", "-l", "joe", "bastion", "sshrec", "status", user=joe.laptop)
    assert without.stderr == (
        b"sshrec: error: no agent came with you\nhint: connect with -A: ssh -A joe@bastion\n"
    )
    # Again, by those who are in: the name is known.
    child = joe.lab.spawn("-tA", "-l", "joe", "bastion", "sshrec", "login", user=joe.laptop)
    says(child, (WORD, joe.password), (CODE, joe.code()))
    assert "Logged in as joe until" in rest(child)
    done = joe.ssh("sshrec", "login")
    assert b"needs a terminal\nhint: ssh -tA joe@bastion sshrec login\n" in done.stderr
    assert joe.ssh("sshrec", "logout").stdout == b"logged out\n"
    assert not [line for line in joe.held() if "-cert-" in line]
    assert b"Permission denied" in joe.ssh("sshrec", "status").stderr
    joe.login(joe.recovery[0])


def test_ls_shows_ones_own(article: tuple[Lab, Person]) -> None:
    lab, joe = article
    assert joe.ssh("sshrec", "ls").stderr == b"no recordings of joe yet\n"
    joe.ssh("root@web1", "echo", "joe was here", check=True)
    lab.ssh("-A", "bastion", "root@web1", "echo alice was here", user="alice", check=True)
    done = joe.ssh("sshrec", "ls")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"joe was here" in done.stdout
    assert b"alice" not in done.stdout
    assert len(done.stdout.splitlines()) == 2
    assert len(lab.recordings()) == 2  # what the bastion answers itself is no session


# ---- nothing is left, and nothing secret is anywhere ------------------------------------------------------------


def test_no_secret_anywhere(lab: Lab, newcomer: Newcomer) -> None:
    joe = newcomer(registered=False)
    token, seen, over = invite(lab, joe.name, "root"), set[bytes](), threading.Event()

    def watch() -> None:
        while not over.is_set():
            for path in Path("/proc").glob("[0-9]*"):
                for name in ("cmdline", "environ"):
                    try:
                        seen.add((path / name).read_bytes())
                    except OSError:
                        continue

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        joe.register(token)
        joe.login()
        used = joe.recovery[0]
        joe.login(used)
        ask(joe, joe.recovery[1])
    finally:
        over.set()
        watcher.join()
    seed32 = base64.b32encode(joe.seed)
    secrets = [token.encode(), token.replace("-", "").encode(), joe.password.encode(), joe.seed, seed32]
    secrets += [joe.seed.hex().encode(), *(code.encode() for code in joe.recovery)]
    assert any(b"ssh-add" in words for words in seen)  # or we were not looking
    assert not [words for words in seen for secret in secrets if secret in words]
    written = [path for path in lab.directory.rglob("*") if path.is_file()]
    assert {"sshrec.db", "authd.log", "sshrecd.log"} <= {path.name for path in written}
    for path in written:
        data = path.read_bytes()
        assert not [secret for secret in secrets if secret in data], path
        assert b"PRIVATE KEY" not in data or path.name in {"key", "host_key"} or path.parent.name == "keys", path
    lab.wait(lambda: [event["success"] for event in events(lab, joe.name)] == [True] * 3, "the log to have it")


# ---- many at once ---------------------------------------------------------------------------------------------


def test_the_dialogue_has_room_for_so_many(lab: Lab, newcomer: Newcomer) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"limits": {"logins": 2}})
    first, second, third = (newcomer(registered=False) for _ in range(3))
    one, two = first.dial(), second.dial()
    for child in (one, two):
        child.expect_exact(NAME)
    refused = third.run()
    assert refused.returncode == 255
    assert (
        b"2 people are logging in, and no more are allowed at once\nhint: try again in a minute" in refused.stderr
    )
    two.send("\x03")
    rest(two)
    lab.wait(lambda: len(lab.processes()) <= 6, "the second to be gone")
    # Who has more of them makes room for the others.
    again = first.dial()
    again.expect_exact(NAME)
    last = third.dial()
    last.expect_exact(NAME)
    assert "this session was ended" in rest(one)
    for child in (again, last):
        child.send("\x03")
        rest(child)
