"""Talking to a target's sshd over the system's ssh: look at it, change its files, take the change back.

One connection each. What the target should look like is not known here: files and commands are the caller's,
and what a target says is hostile until it is judged. Nothing is installed there; /bin/sh and coreutils do.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import selectors
import subprocess
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from sshrec.errors import DataError, Denied, SshrecError, Unreachable, UsageError
from sshrec.openssh.public_key import PublicKey
from sshrec.openssh.public_key import parse as parse_key
from sshrec.session import printable

_SCRIPTS = Path(__file__).parent / "on_target"

STANDARD_CONFIG = "/etc/ssh/sshd_config"

# What a path on a target may look like: it goes into a configuration file and through a shell.
PATH = re.compile(r"/[A-Za-z0-9._@+-]+(?:/[A-Za-z0-9._@+-]+)*")

_LOGIN_LIMIT = 300.0  # seconds; a person types a password, or looks at a fingerprint
_STEP_LIMIT = 60.0
_SAID_LIMIT = 4 << 20  # bytes of a target's answers, all together
_STDERR_LIMIT = 16 << 10  # bytes kept of ssh's messages, the last
_DESTINATION = re.compile(r"(?!-)[!-~]+")
_LOGIN = re.compile(r"[A-Za-z0-9._@\\-]{1,64}")
_FLAGS, _WITH_VALUE = set("46ACKXYagkqvxy"), set("BDEFIJLPRSbceilmop")


@dataclass(frozen=True, slots=True)
class SshCommand:
    """How to get onto a target: `ssh [options] destination`, as the person would type it.

    `options`: ssh's own, checked to be such; `env`: the environment that ssh gets, all of it; `sudo`: the
    login is not root's, but may `sudo -n`; `sshd_config`: of the sshd that is meant.
    """

    destination: str
    options: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    sudo: bool = False
    sshd_config: str = STANDARD_CONFIG
    program: str = "/usr/bin/ssh"

    def __post_init__(self) -> None:
        if not _DESTINATION.fullmatch(self.destination):
            raise UsageError(f"{printable(self.destination)!r} is no destination for ssh: [login@]host")
        if not PATH.fullmatch(self.sshd_config) or ".." in self.sshd_config.split("/"):
            raise UsageError(f"{printable(self.sshd_config)!r} is no absolute path of plain characters")
        _check_options(self.options)

    def argv(self, script: str, words: Sequence[str]) -> list[str]:
        """The command line that runs `script` as root there; `words`: its arguments from the third on.

        The script travels in base64, on one line without quotes: every login shell, csh and fish too,
        passes that on as it is. What sudo would take away is read before it: the first two arguments.
        """
        packed = b64encode(script.encode()).decode()
        inner = f'/bin/sh -c "$(printf %s {packed} | base64 -d)" sshrec "$SSH_CONNECTION" "$(id -un)"'
        remote = f"exec {'sudo -n -- ' if self.sudo else ''}{inner} {' '.join(words)}"
        # ssh takes the first value that it meets, so what must be comes before the person's options.
        ours = ["-T", "-a", *("-o", "RemoteCommand=none"), *("-o", "SessionType=default")]
        ours += ["-o", "StdinNull=no", "-o", "ForkAfterAuthentication=no", "-o", "ClearAllForwardings=yes"]
        alive = ["-o", "ServerAliveInterval=15"]
        return [self.program, *ours, *self.options, *alive, "--", self.destination, f"exec /bin/sh -c '{remote}'"]


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command line's words as ssh's options, which come first, and the destinations behind them.

    UsageError for an option that leaves no session to talk in, and where there is no destination.
    """
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] != "--":
        at += _option_words(words[at:])
    destinations = list(words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:])
    if not destinations:
        raise UsageError("no target is named", hint="options first, targets last: [login@]host")
    return list(words[:at]), destinations


def config_option(options: Sequence[str]) -> list[str]:
    """Of ssh's options, the one that names its configuration (-F), as words; none where there is none."""
    found: list[str] = []
    at = 0
    while at < len(options):
        count = _option_words(options[at:])
        if options[at].startswith("-F"):
            found = list(options[at : at + count])
        at += count
    return found


def _check_options(options: Sequence[str]) -> None:
    """UsageError for a word that ssh would take for the destination, and for what leaves no session to talk in."""
    at = 0
    while at < len(options):
        at += _option_words(options[at:])


def _option_words(words: Sequence[str]) -> int:
    """How many words the first option is: 2 where its value stands apart."""
    letters = words[0][1:] if words[0].startswith("-") else ""
    if not letters:
        raise UsageError(f"{printable(words[0])!r} is no option of ssh's", hint="options first, one target last")
    for at, letter in enumerate(letters):
        if letter in _WITH_VALUE:
            apart = at == len(letters) - 1
            if apart and len(words) < 2:
                raise UsageError(f"ssh's option -{letter} wants a value")
            return 1 + apart
        if letter not in _FLAGS:
            raise UsageError(f"ssh's option -{printable(letter)} does not go with enrolling a target")
    return 1


@dataclass(frozen=True, slots=True)
class HostKey:
    """A host key of the target's sshd: the private key's path there, the public key."""

    path: str
    key: PublicKey


@dataclass(frozen=True, slots=True)
class Facts:
    """What a target's sshd is like.

    `uid`: ours there; `owner`: uid that owns sshd_config; `client`: the address that the target sees us come
    from, or None; `config`: sshd_config itself; `settings`: the global part by `sshd -T`, keywords in lower
    case, each with its values; `host_keys`: those strong enough to be signed; `trusted`: what the file of
    `trustedusercakeys` holds; `krl`: whether the KRL of an earlier enrolment is in place;
    `present`: what is in files of the drop-in's name, by path.
    """

    destination: str
    sshd_config: str
    uid: int
    owner: int
    client: str | None
    version: str
    config: str
    settings: Mapping[str, tuple[str, ...]]
    host_keys: tuple[HostKey, ...]
    trusted: bytes
    krl: bool
    present: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class File:
    """What is to be in a file of the target, mode 0644, owned by root."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class View:
    """How the target's sshd would treat a login from `address`, by `sshd -T -C`.

    `settings`: trustedusercakeys, revokedkeys and hostcertificate; `trusted`: what the first one's file holds.
    """

    address: str
    settings: Mapping[str, tuple[str, ...]]
    trusted: bytes


def _script(name: str) -> str:
    """One of the scripts in on_target/, with what is common to them, and without its comments."""
    text = "".join((_SCRIPTS / f"{part}.sh").read_text() for part in ("common", name))
    return re.sub(r"(?m)^ *#.*\n", "", text)


class _Dialogue:
    """One ssh with a script at its other end: lines to it, marked lines from it, nothing without a limit."""

    def __init__(self, ssh: SshCommand, script: str, *words: str) -> None:
        self.name = printable(ssh.destination)
        self._mark = f"sshrec-{secrets.token_hex(8)}"
        argv = ssh.argv(script, [self._mark, ssh.sshd_config, *words])
        try:
            self._process = subprocess.Popen(
                argv,
                env=dict(ssh.env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
            )
        except OSError as error:
            raise Unreachable(f"cannot run {ssh.program}: {error.strerror}") from error
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._stdin, self._stdout, self._stderr = (
            pipe.fileno() for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        self._selector = selectors.DefaultSelector()
        for pipe, events in ((self._stdout, selectors.EVENT_READ), (self._stderr, selectors.EVENT_READ)):
            self._selector.register(pipe, events)
        os.set_blocking(self._stdin, False)
        self._unsent = b""
        self._lines: deque[bytes] = deque()
        self._rest = self._complaints = b""
        self._said = 0
        self._greeted = False
        self._over: Unreachable | Denied | None = None

    def greet(self) -> None:
        """Wait for the script; Denied or Unreachable with ssh's own words."""
        while self.read(_LOGIN_LIMIT)[0] != "hello":
            pass
        self._greeted = True

    def send(self, line: bytes) -> None:
        """Hand over one line; it goes out while answers are read."""
        if not self._unsent:
            self._selector.register(self._stdin, selectors.EVENT_WRITE)
        self._unsent += line + b"\n"

    def read(self, limit: float = _STEP_LIMIT) -> list[str]:
        """The words of the next line of ours; what start-up files print before the first is passed by.

        DataError where the target says something else; Unreachable where it falls silent.
        """
        deadline = time.monotonic() + limit
        while True:
            while self._lines:
                line = self._lines.popleft()
                head, _, rest = line.rstrip(b"\r").partition(b" ")
                if head == self._mark.encode():
                    return rest.decode("ascii", "backslashreplace").split(" ")
                if self._greeted:
                    self.garbage(line)
            self._turn(deadline)

    def garbage(self, said: bytes | str) -> NoReturn:
        """DataError: that was no answer."""
        raise DataError(f"{self.name} says what is no answer to sshrec: {printable(said, 60)!r}")

    def _turn(self, deadline: float) -> None:
        if self._over:
            raise self._over
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        if not ready and time.monotonic() >= deadline:
            raise Unreachable(f"{self.name} does not answer")
        for key, _ in ready:
            if key.fd == self._stdin:
                self._write()
            elif data := os.read(key.fd, 65536):
                self._take(key.fd, data)
            else:
                self._selector.unregister(key.fd)
                if key.fd == self._stdout:
                    self._over = self._why_it_ended()
                    raise self._over

    def _write(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin, self._unsent) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._unsent = b""  # why, the other streams will tell
        if not self._unsent:
            self._selector.unregister(self._stdin)

    def _take(self, fd: int, data: bytes) -> None:
        if fd == self._stderr:
            self._complaints = (self._complaints + data)[-_STDERR_LIMIT:]
            return
        self._said += len(data)
        if self._said > _SAID_LIMIT:
            raise DataError(f"{self.name} says more than an sshd could have to say ({_SAID_LIMIT >> 20} MiB)")
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._lines += lines

    def _why_it_ended(self) -> Unreachable | Denied:
        """The script is over, though it should not be."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        deadline = time.monotonic() + 1
        while self._stderr in self._selector.get_map() and self._selector.select(deadline - time.monotonic()):
            if data := os.read(self._stderr, 65536):
                self._take(self._stderr, data)
            else:
                break
        lines = self._complaints.decode("utf-8", "backslashreplace").splitlines()
        lines = [line.strip() for line in lines if line.strip() and not line.startswith("debug")]
        said = printable(lines[-1]) if lines else None
        if said and said.startswith("sudo: "):
            return Denied(
                f"{self.name} does not let the login become root: {said}",
                hint="log in as root, or give the login NOPASSWD in sudoers",
            )
        if self._greeted:
            return Unreachable(f"the connection to {self.name} was lost" + (f": {said}" if said else ""))
        if self._process.returncode == 255:
            return Unreachable(f"ssh does not get into {self.name}: {said or 'without a word'}")
        return Unreachable(
            f"{self.name} does not run a shell for us: {said or printable(self._rest) or 'no answer'}"
        )

    def close(self) -> None:
        """End the connection, by force if it does not end."""
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._selector.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _unpack(dialogue: _Dialogue, word: str) -> bytes:
    try:
        return b64decode(word, validate=True)
    except ValueError:
        dialogue.garbage(word)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "backslashreplace").strip("\n")


def _settings(shown: bytes) -> dict[str, tuple[str, ...]]:
    """`sshd -T` as a mapping; a keyword may come several times."""
    found: dict[str, tuple[str, ...]] = {}
    for line in _text(shown).splitlines():
        keyword, _, value = line.partition(" ")
        found[keyword] = (*found.get(keyword, ()), value)
    return found


def probe(ssh: SshCommand, drop_in: str = "00-sshrec.conf") -> Facts:
    """Look at a target; nothing is changed there. `drop_in`: a name that `Facts.present` is to tell about.

    Unreachable with ssh's words where nobody can log in; Denied where the login is not root's; DataError
    where its sshd_config is broken already, and for answers that are none.
    """
    dialogue = _Dialogue(ssh, _script("probe"), drop_in)
    said: dict[str, bytes] = {}
    keys: list[tuple[bytes, bytes]] = []
    present: dict[str, bytes] = {}
    try:
        dialogue.greet()
        while (words := dialogue.read())[0] != "end":
            values = [_unpack(dialogue, word) for word in words[1:]]
            if words[0] == "hostkey" and len(values) == 2:
                keys.append((values[0], values[1]))
            elif words[0] == "present" and len(values) == 2:
                present[_text(values[0])] = values[1]
            else:
                said[words[0]] = b"".join(values)
    finally:
        dialogue.close()
    name = dialogue.name
    try:
        uid, owner = int(said["uid"]), int(said["owner"] or b"-1")
        config, settings = _text(said["config"]), _settings(said["settings"])
        connection, version, trusted = _text(said["connection"]), said["version"], said["trusted"]
    except (KeyError, ValueError):
        raise DataError(f"{name} leaves out what it was asked") from None
    if owner < 0:
        raise DataError(f"{name} has no {ssh.sshd_config}", hint="is OpenSSH's sshd installed there?")
    if uid not in (0, owner):  # an sshd without root is its owner's
        raise Denied(f"the login on {name} is not root", hint="log in as root, or use sudo")
    if "broken" in said:
        raise _refused(name, "sshd -t fails already", said["broken"])
    release = re.search(rb"OpenSSH_[0-9a-zA-Z.]+", version)
    fields = connection.split()
    return Facts(
        destination=ssh.destination,
        sshd_config=ssh.sshd_config,
        uid=uid,
        owner=owner,
        client=fields[0] if len(fields) == 4 else None,
        version=release[0].decode() if release else "sshd",
        config=config,
        settings=settings,
        host_keys=tuple(_host_keys(keys)),
        trusted=trusted,
        krl="krl" in said,
        present=present,
    )


def _host_keys(found: Sequence[tuple[bytes, bytes]]) -> Iterator[HostKey]:
    for path, line in found:
        with contextlib.suppress(DataError):  # too weak a key, or one that we cannot put into a line
            key = parse_key(line, _text(path))
            if PATH.fullmatch(_text(path)):
                yield HostKey(_text(path), key)


def _refused(name: str, what: str, output: bytes) -> DataError:
    """What sshd complains about: its first line is the message, more is a hint."""
    lines = [printable(line) for line in _text(output).splitlines() if line.strip()] or ["without a word"]
    return DataError(f"{name}: {what}: {lines[0]}", hint="; ".join(lines[1:4]) or None)


class Transaction:
    """A change that is in place on a target and not yet settled: `reload`, look at it, `commit`.

    `changed` and `same`: the paths; `views`: what sshd would do now, one for each address asked for.
    """

    def __init__(self, dialogue: _Dialogue) -> None:
        self._dialogue = dialogue
        self.changed: list[str] = []
        self.same: list[str] = []
        self.views: list[View] = []
        self.settled = False

    def put(self, files: Sequence[File]) -> None:
        """Install files and have sshd judge them."""
        for file in files:
            self._dialogue.send(f"put {file.path} ".encode() + b64encode(file.content))
        self._dialogue.send(b"check")
        while (words := self._answer())[0] != "checked":
            if words[0] in ("changed", "same") and len(words) == 2:
                (self.changed if words[0] == "changed" else self.same).append(words[1])
            elif words[0] == "view" and len(words) == 4:
                shown, trusted = (_unpack(self._dialogue, word) for word in words[2:])
                self.views.append(View(words[1], _settings(shown), trusted))
            else:
                self._dialogue.garbage(" ".join(words))

    def reload(self) -> str:
        """Have sshd read its configuration: how (a systemd unit, SIGHUP), or "none" where none runs."""
        self._dialogue.send(b"reload")
        return printable(self._expect("reloaded"))

    def commit(self) -> None:
        """Keep the change. Unreachable where the target does not confirm it."""
        self._dialogue.send(b"commit")
        self._expect("done")
        self.settled = True

    def _expect(self, word: str) -> str:
        words = self._answer()
        if words[0] != word:
            self._dialogue.garbage(" ".join(words))
        return " ".join(words[1:])

    def _answer(self) -> list[str]:
        words = self._dialogue.read()
        if words[0] == "restored":
            self.settled = True
            raise Unreachable(f"{self._dialogue.name} waited too long, and is as it was before")
        if words[0] != "failed" or len(words) != 3:
            return words
        said, name = _unpack(self._dialogue, words[2]), self._dialogue.name
        if words[1] == "write":
            raise SshrecError(f"{name}: cannot write {printable(_text(said).partition(chr(10))[0])}")
        if words[1] == "reload":
            raise Unreachable(f"{name}: sshd did not come back from its reload")
        raise _refused(name, "sshd -t fails", said)

    def take_back(self, why: BaseException | None = None) -> None:
        """Have everything put back, and see that it is. SshrecError, with `why` in it, where that is not seen."""
        name, words = self._dialogue.name, [""]
        try:
            self._dialogue.send(b"undo")  # any word but the one that is waited for
            while words[0] not in ("restored", "stale", "broken", "done"):
                words = self._dialogue.read()
        except (SshrecError, OSError) as error:
            reason = why if isinstance(why, SshrecError) else error
            raise Unreachable(
                f"{reason}; whether {name} is as it was before cannot be seen",
                hint="without word from us it puts everything back by itself within minutes",
            ) from error
        self.settled = True
        first = f"{why}; " if isinstance(why, SshrecError) else ""
        if words[0] == "stale":
            raise Unreachable(
                f"{first}{name} has its files as they were, and an sshd that did not come back from its reload",
                hint="do not close the last login there before sshd runs again",
            ) from why
        if words[0] == "broken":
            where = printable(_text(_unpack(self._dialogue, words[-1])))
            raise SshrecError(
                f"{first}{name} could not put everything back", hint=f"what it was is in {where} there"
            ) from why


@contextlib.contextmanager
def change(
    ssh: SshCommand, facts: Facts, files: Sequence[File], addresses: Sequence[str], limit: int = 120
) -> Iterator[Transaction]:
    """Put files in place; unless the block commits, everything is put back, byte for byte, when it ends.

    `addresses`: where logins may come from that `Transaction.views` is to tell about. `limit`: seconds from
    login to commit; then the target puts everything back by itself, as it does when the connection is lost.
    """
    pidfile = next((path for path in facts.settings.get("pidfile", ()) if path != "none"), "/nonexistent")
    for path in (*(file.path for file in files), pidfile):
        if not PATH.fullmatch(path):
            raise DataError(f"{printable(facts.destination)}: {printable(path)!r} is no path of plain characters")
    dialogue = _Dialogue(ssh, _script("change"), str(limit), pidfile, ",".join(addresses))
    transaction = Transaction(dialogue)
    try:
        dialogue.greet()
        try:
            transaction.put(files)
            yield transaction
        except BaseException as error:
            if not transaction.settled:
                transaction.take_back(error)
            raise
        if not transaction.settled:
            transaction.take_back()
    finally:
        dialogue.close()
