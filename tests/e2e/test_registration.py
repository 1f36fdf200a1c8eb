"""From an invitation to a session: people register at `login@bastion`, with stock ssh in a terminal."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshrec.errors import SshrecError
from sshrec.openssh.agent import Agent
from tests.e2e.registered import (
    AGAIN,
    CHOOSE,
    CONFIRM,
    INVITATION,
    PASSWORD,
    Log,
    Person,
    admin,
    answer,
    invite,
    person,
    rest,
    says,
    screen,
    shown_seed,
)
from tests.lab import PROMPT, Lab

pytestmark = pytest.mark.root

NO_INVITATION = "That invitation is not valid, was used, or has expired; whoever invited you can make a new one.\n"


@pytest.fixture
def joe(lab: Lab) -> Iterator[Person]:
    """Somebody new, who is somebody else in each test."""
    somebody = person(lab)
    yield somebody
    lab.close_laptop(somebody.laptop)


# ---- from the first line to the last ------------------------------------------------------------------------


def test_the_article() -> None:
    role = {"name": "staff", "logins": ["joe", "root"], "nodes": ["web*"]}
    with Lab(settings={"roles": [role]}) as lab:
        joe = person(lab, "joe")
        token = invite(lab, "joe", "joe,root,deploy")

        said = joe.register(token)
        assert "Welcome, joe. You may log in to servers as joe, root, deploy.\n" in said
        assert "\nLogged in as joe until " in said
        assert "\nFrom now on: ssh -A joe@bastion joe@SERVER\n" in said
        assert joe.password not in said
        assert len(joe.recovery) == 10
        (first,) = holds(lab, joe)
        assert "sshrec:joe\n" in shown(joe)
        assert re.findall(r"(?m)^ {16}(\S+)$", shown(joe))[:4] == ["sshrec:joe", "joe", "root", "deploy"]

        for login in ("joe", "root"):
            assert joe.ssh(f"{login}@web1", "id", "-un").stdout == f"{login}\n".encode()
        for login in ("alice", "deploy"):
            refused = joe.ssh(f"{login}@web1", "id")
            assert (refused.returncode, refused.stdout) == (255, b"")
            assert refused.stderr.decode() == f"sshrec: error: login {login} is not among joe, root\n"
        steal(lab, joe, "deploy")

        joe.login()
        (second,) = holds(lab, joe)
        assert second != first
        assert joe.ssh("root@web1", "id", "-un").stdout == b"root\n"

        lab.stop_sshrecd()
        lab.start_sshrecd({"authority": {"user_ttl": "8s"}})
        joe.login()
        lab.wait(lambda: not joe.held(), "the certificate to expire")
        assert b"Permission denied" in joe.ssh("root@web1", "id").stderr

        lab.stop_sshrecd()
        lab.start_sshrecd()
        token = invite(lab, "joe", "", "reset")
        assert "Wrong name, password or code.\n" in joe.login(joe.recovery[0], leave=True)
        joe.password = "another horse entirely"
        joe.register(token)
        assert joe.ssh("root@web1", "id", "-un").stdout == b"root\n"

        assert "removed joe; " in admin(lab, "users", "rm", "joe", "--no-unix-account").stdout
        lab.wait(lambda: b"Permission denied" in joe.ssh("root@web1", "id").stderr, "the revocation")
        assert "Wrong name, password or code.\n" in joe.login(leave=True)
        lab.expect_nothing_left()


def holds(lab: Lab, joe: Person) -> list[str]:
    """The certificates in the agent, which has nothing else: what it was tried with is gone in seconds."""
    lab.wait(lambda: all("-cert-v01@" in line for line in joe.held()), "the certificate to be alone")
    assert all(line.endswith(" sshrec:joe") for line in joe.held())
    return joe.held()


def shown(joe: Person) -> str:
    """What ssh-keygen says of the certificate in the agent."""
    (line,) = joe.held()
    done = subprocess.run(["ssh-keygen", "-Lf", "-"], input=line, capture_output=True, text=True, timeout=20)
    return done.stdout


def steal(lab: Lab, joe: Person, login: str) -> None:
    """Whoever took over the bastion has the agent's socket, and the agent refuses what joe may not do himself."""
    terminal = lab.spawn("-tA", "-l", "joe", "bastion", "root@web1", user=joe.laptop)
    terminal.expect(PROMPT)
    mine = joe.held()
    (socket,) = [path for path in Path("/tmp").glob("ssh-*/agent.*") if leads_to(path, mine)]
    env = {**joe.laptop.env, "SSH_AUTH_SOCK": str(socket)}

    def thief(name: str) -> subprocess.CompletedProcess[bytes]:
        argv = lab.ssh_argv("-l", name, "web1", "id", "-un", user=joe.laptop)
        return subprocess.run(argv, env=env, capture_output=True, timeout=60)

    assert b"agent refused operation" in thief(login).stderr
    assert thief("root").stdout == b"root\n"  # what remains, and that the test can fail
    terminal.sendline("exit")
    terminal.wait()


def leads_to(path: Path, lines: list[str]) -> bool:
    try:
        return any(one.blob in line for one in Agent(path).identities() for line in lines)
    except SshrecError:  # another lab's, that ends
        return False


# ---- interrupted, and all at once -----------------------------------------------------------------------------

STEPS = ((INVITATION, ""), (CHOOSE, PASSWORD), (AGAIN, PASSWORD), (CONFIRM, "000000"))


@pytest.mark.parametrize("way", ["Ctrl-C", "Ctrl-D", "hang-up"])
def test_interrupted_anywhere(lab: Lab, joe: Person, way: str) -> None:
    token = invite(lab, joe.name, "root")
    for stop in range(len(STEPS) + 1):
        child = joe.dial()
        says(child, *[(prompt, text or token) for prompt, text in STEPS[:stop]])
        child.expect_exact((*STEPS, STEPS[-1])[stop][0])
        if way == "hang-up":
            child.kill(9)
            child.wait()
        else:
            child.send("\x03" if way == "Ctrl-C" else "\x04")
            said = rest(child)
            assert ("Nothing was changed; the invitation is still good.\n" in said) == (stop > 0)
            assert child.exitstatus == 130
        lab.expect_nothing_left()
    assert json.loads(admin(lab, "users", "show", joe.name, "--json").stdout)["user"]["status"] == "invited"
    joe.register(token)
    assert len(joe.held()) >= 1


def test_of_two_with_one_invitation_one_wins(lab: Lab, joe: Person) -> None:
    token = invite(lab, joe.name, "root")
    children, seeds = [joe.dial(), joe.dial()], []
    for child in children:
        says(child, (INVITATION, token), (CHOOSE, PASSWORD), (AGAIN, PASSWORD))
        seeds.append(shown_seed(child))
        child.expect_exact(CONFIRM)
    for child, seed in zip(children, seeds, strict=True):
        joe.seed = seed
        child.send(f"{joe.code()}\r")
    said = [rest(child) for child in children]
    assert sorted(child.exitstatus for child in children) == [0, 1]
    (lost,) = [text for text, child in zip(said, children, strict=True) if child.exitstatus]
    assert lost.endswith(f"{NO_INVITATION}Connection to 127.0.0.1 closed.\n")
    assert "still good" not in lost


def test_invitations_that_are_none_any_more(lab: Lab, joe: Person) -> None:
    token = invite(lab, joe.name, "root")
    joe.register(token)
    for used in (token, f"{token[:-1]}{'0' if token[-1] != '0' else '1'}"):
        child = joe.dial()
        answer(child, INVITATION, used)
        assert NO_INVITATION in rest(child)
        assert child.exitstatus == 1


@pytest.mark.parametrize("form", ["{}", " {} ", "{upper}", "{spaced}", "{plain}"])
def test_an_invitation_however_it_is_pasted(lab: Lab, joe: Person, form: str) -> None:
    token = invite(lab, joe.name, "root")
    plain_token = token.replace("-", "")
    pasted = form.format(token, upper=token.upper(), spaced=token.replace("-", " "), plain=plain_token.upper())
    child = joe.dial()
    answer(child, INVITATION, pasted)
    child.expect_exact(f"Welcome, {joe.name}.")
    child.close(force=True)


# ---- what is typed, and what is seen --------------------------------------------------------------------------


def test_passwords_that_are_not_taken(lab: Lab, joe: Person) -> None:
    token = invite(lab, joe.name, "root")
    child = joe.dial()
    answer(child, INVITATION, token)
    for word, why in (
        ("short", "a password has at least 10 characters"),
        (f"I am {joe.name}!", "a password may not contain the user's name"),
        ("password1234", "that password is one of the first that anybody would try"),
        ("x" * 2000, "a password has at most 1024 bytes, and no control characters"),
    ):
        answer(child, CHOOSE, word)
        child.expect_exact(f"That will not do: {why}.")
        assert word.encode() not in child.before
    child.expect_exact(CHOOSE)
    child.send(b"gr\xfc\xdfe aus der alten Welt\r")  # Latin-1
    child.expect_exact("That will not do: your terminal sends characters that are not UTF-8.")
    says(child, (CHOOSE, PASSWORD), (AGAIN, "something else"))
    child.expect_exact("That was another one.")
    # Accents, a key that moves, one that erases, and a line that is begun anew.
    joe.password = "grüße aus alter Zeit"
    says(child, (CHOOSE, "nonsense\x15grüße aus alter\x1b[D Zeitx\x7f"), (AGAIN, joe.password))
    joe.seed = shown_seed(child)
    answer(child, CONFIRM, joe.code())
    assert "Logged in as" in rest(child)
    assert "Logged in as" in joe.login()


def test_codes_that_do_not_fit(lab: Lab, joe: Person) -> None:
    token = invite(lab, joe.name, "root")
    child = joe.dial()
    says(child, (INVITATION, token), (CHOOSE, PASSWORD), (AGAIN, PASSWORD))
    for code in ("000000", "never", "1" * 200):
        answer(child, CONFIRM, code)
        child.expect_exact("The code does not fit; wait for the next one; is the phone's clock right?")
    assert "Nothing was changed; the invitation is still good.\n" in rest(child)
    joe.register(token)


def test_what_fits_a_screen(lab: Lab, joe: Person) -> None:
    """The picture, and the prompt below it; and after the code, nothing of the seed."""
    token = invite(lab, joe.name, "root")
    child, seen = joe.dial(), bytearray()
    child.logfile_read = Log(seen)
    says(child, (INVITATION, token), (CHOOSE, PASSWORD), (AGAIN, PASSWORD))
    joe.seed = shown_seed(child)
    child.expect_exact(CONFIRM)
    before = screen(bytes(seen))
    assert len(before) == 24
    assert re.fullmatch(r"(?:[A-Z2-7]{4} ?){8}", before[1])
    assert sum("▀" in line or "▄" in line for line in before) >= 19
    assert before[-1] == CONFIRM
    child.send(f"{joe.code()}\r")
    rest(child)
    after = "\n".join(screen(bytes(seen)))
    assert before[1] not in after
    assert "▀" not in after
    assert "each of these works once" in after


@pytest.mark.parametrize(
    ("rows", "columns", "term", "lang"),
    [
        (24, 20, "xterm", "C.UTF-8"),
        (24, 80, "dumb", "C.UTF-8"),
        (24, 80, "xterm", "C"),
        (10, 80, "xterm", "C.UTF-8"),
    ],
)
def test_a_terminal_that_cannot_show_it(
    lab: Lab, joe: Person, rows: int, columns: int, term: str, lang: str
) -> None:
    token = invite(lab, joe.name, "root")
    env = {"TERM": term, "LANG": lang}
    child = joe.dial("-o", "SendEnv=LANG", dimensions=(rows, columns), env=env)
    said = joe.register(token, child)
    assert "▀" not in said
    assert "small for a QR code, or cannot" in " ".join(said.split()) or columns == 20
    assert len(joe.recovery) == 10


def test_a_terminal_without_characters_but_large(lab: Lab, joe: Person) -> None:
    """Nothing but spaces, on black and white."""
    token = invite(lab, joe.name, "root")
    child = joe.dial("-o", "SendEnv=LANG", dimensions=(60, 120), env={"LANG": "de_DE.ISO-8859-1"})
    says(child, (INVITATION, token), (CHOOSE, PASSWORD), (AGAIN, PASSWORD))
    joe.seed = shown_seed(child)
    child.expect_exact(CONFIRM)
    assert child.before.count(b"\x1b[48;5;16m  ") > 300
    assert child.before.isascii()
    child.close(force=True)


def test_without_an_agent(lab: Lab, joe: Person) -> None:
    token = invite(lab, joe.name, "root")
    said = joe.register(token, agent=False)
    assert said.partition("Keep them safe:")[2].splitlines()[8:10] == [
        "No agent came with you, so there is nowhere to put a certificate.",
        "You are registered. To log in: ssh -A login@bastion",
    ]
    child = joe.dial(agent=False)
    answer(child, INVITATION, joe.name)
    assert rest(child).splitlines()[1:3] == [
        "sshrec: error: no agent came with you, so there is nowhere to put a certificate",
        "hint: start one (eval $(ssh-agent)) and come with it: ssh -A login@bastion",
    ]


def test_without_a_second_factor(lab: Lab, joe: Person) -> None:
    lab.stop_sshrecd()
    lab.start_sshrecd({"second_factor": "off"})
    child = joe.dial()
    says(child, (INVITATION, invite(lab, joe.name, "root")), (CHOOSE, PASSWORD), (AGAIN, PASSWORD))
    said = rest(child)
    assert said.splitlines()[1].startswith(f"Logged in as {joe.name} until ")
    child = joe.dial()
    says(
        child,
        (INVITATION, joe.name),
        ("Password: ", "wrong"),
        (f"Name [{joe.name}]: ", ""),
        ("Password: ", PASSWORD),
    )
    assert "Logged in as" in rest(child)
