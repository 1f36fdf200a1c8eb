"""People who register and log in at `login@bastion`, with stock ssh in a terminal."""

from __future__ import annotations

import base64
import itertools
import json
import re
import subprocess
import time
from dataclasses import dataclass, field
from typing import Any

import pexpect
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.hotp import HOTP

from tests.lab import Lab, Laptop, parts

Child = Any  # pexpect.spawn[bytes]

PASSWORD = "correct horse battery"
INVITATION = "Name, or invitation: "
CHOOSE, AGAIN = "Choose a password (10 characters or more): ", "The same again: "
CONFIRM = "Code that it shows now: "
NAME, WORD, CODE = INVITATION, "Password: ", "Code: "
_STEP = 30
_numbers = itertools.count(1)


def admin(lab: Lab, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`sshrec`, as root on the bastion."""
    done = subprocess.run(
        [lab.installation.programs / "sshrec", "--config", lab.config, *words],
        env={"PATH": parts.PATH, "LANG": "C.UTF-8"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def invite(lab: Lab, name: str, logins: str, verb: str = "add") -> str:
    """The token of a new invitation."""
    words = ("users", verb, name, *([logins, "--no-unix-account"] if verb == "add" else []), "--json")
    token: str = json.loads(admin(lab, *words).stdout)["invitation"]["token"]
    return token


def app_code(seed: bytes, step: int) -> str:
    """What an authenticator app shows (RFC 6238)."""
    return HOTP(seed, 6, SHA1()).generate(step).decode()  # noqa: S303


@dataclass
class Person:
    """Somebody with a laptop, whose agent holds nothing at first; `source`: the address that they come from.

    Failures are counted by address, so each has one of their own.
    """

    lab: Lab
    name: str
    laptop: Laptop
    source: str
    password: str = PASSWORD
    seed: bytes = b""
    recovery: list[str] = field(default_factory=list)
    _step: int = 0

    def dial(self, *words: str, agent: bool = True, **options: Any) -> Child:
        """`ssh login@bastion`, in a terminal."""
        return self.lab.spawn(*self._way(agent), "login@bastion", *words, user=self.laptop, **options)

    def run(self, *words: str, agent: bool = True, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """`ssh login@bastion`, without a terminal."""
        return self.lab.ssh(*self._way(agent), "login@bastion", *words, user=self.laptop, **options)

    def ssh(self, *words: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """`ssh bastion`, as who they are."""
        return self.lab.ssh(*self._way(True), "-l", self.name, "bastion", *words, user=self.laptop, **options)

    def _way(self, agent: bool) -> tuple[str, ...]:
        return ("-A" if agent else "-a", "-b", self.source)

    def code(self) -> str:
        """One that was not used yet; it stays good for a few seconds at least."""
        now = time.time()
        self._step = max(self._step + 1, int(now + 3) // _STEP - 1)
        while self._step > time.time() // _STEP + 1:  # three logins in half a minute are all that there can be
            time.sleep(0.1)
        return app_code(self.seed, self._step)

    def register(self, token: str, child: Child | None = None, **options: Any) -> str:
        """Redeem an invitation; all that the terminal got."""
        child = child or self.dial(**options)
        seen = bytearray()
        child.logfile_read = Log(seen)
        says(child, (INVITATION, token), (CHOOSE, self.password), (AGAIN, self.password))
        self.seed = shown_seed(child)
        answer(child, CONFIRM, self.code())
        rest(child)
        said = plain(bytes(seen))
        self.recovery = re.findall(r"\b(?:[0-9a-z]{4}-){3}[0-9a-z]{4}\b", said)
        return said

    def login(self, code: str | None = None, *, leave: bool = False, **options: Any) -> str:
        """Log in; what the terminal got after the code. `leave`: when asked again."""
        child = self.dial(**options)
        says(child, (NAME, self.name), (WORD, self.password), (CODE, code or self.code()))
        if not leave:
            return rest(child)
        child.expect_exact("Name [")
        said = plain(child.before)
        child.send("\x03")
        rest(child)
        return said

    def held(self) -> list[str]:
        """What `ssh-add -L` shows."""
        done = subprocess.run(["ssh-add", "-L"], env=self.laptop.env, capture_output=True, text=True, timeout=20)
        return [line for line in done.stdout.splitlines() if line.startswith("ssh-")]


def person(lab: Lab, name: str | None = None) -> Person:
    """Somebody new, or somebody with an account on the bastion."""
    number = next(_numbers)
    laptop = lab.open_laptop("joe", name=f"laptop{number}")
    subprocess.run(["ssh-add", "-q", "-D"], env=laptop.env, check=True, timeout=20)
    return Person(lab, name or f"user{number}", laptop, f"127.0.{number // 250 + 1}.{number % 250 + 1}")


class Log:
    """What pexpect read, for `child.logfile_read`."""

    def __init__(self, seen: bytearray) -> None:
        self._seen = seen

    def write(self, data: bytes) -> None:
        self._seen.extend(data)

    def flush(self) -> None:
        pass


def answer(child: Child, prompt: str, text: str) -> None:
    """Wait for a prompt, and type a line."""
    child.expect_exact(prompt)
    child.send(f"{text}\r")


def says(child: Child, *lines: tuple[str, str]) -> None:
    """The same, several times."""
    for prompt, text in lines:
        answer(child, prompt, text)


def shown_seed(child: Child) -> bytes:
    """The seed as it is spelled on the screen, for an app."""
    child.expect(r"type it in:\r\n([A-Z2-7 ]{39})\r\n|app:\r\n((?:[A-Z2-7 ]+\r\n)+)\(")
    text = b"".join(found for found in child.match.groups() if found).decode()
    return base64.b32decode("".join(text.split()))


def rest(child: Child) -> str:
    """All that comes until the end."""
    child.expect(pexpect.EOF)
    child.wait()
    return plain(child.before)


def plain(data: bytes) -> str:
    """What a terminal would show, roughly: without colours, and lines as ours."""
    return re.sub(r"\r+\n", "\n", re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", data.decode()))


def screen(data: bytes, rows: int = 24) -> list[str]:
    """What a terminal of so many lines shows after all this, as far as the dialogue's own sequences go."""
    lines, at = [""], 0
    for word in re.findall(r"\x1b\[[0-9;]*[A-Za-z]|\r\n|\r|[^\x1b\r]+", data.decode()):
        if word == "\r\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif up := re.fullmatch(r"\x1b\[([0-9]+)F", word):
            at = max(at - int(up[1]), len(lines) - rows, 0)
        elif word == "\x1b[J":
            del lines[at:]
            lines.append("")
        elif word.isprintable():
            lines[at] += word
    return lines[-rows:]
