"""What bin/try shows: recorded sessions through a bastion on this machine, and their replay."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pexpect

from tests.e2e import registered
from tests.e2e.transparent import Through
from tests.lab.lab import PROMPT, Lab
from tests.lab.parts import LabError

# -t: the target's name is a command to the client, and for commands ssh asks for no terminal by itself.
_SHELL = ("-t", "-A", "bastion", "root@web1")
_COMMAND = ("-A", "bastion", "root@web1", "uname -sr")
_TYPED = ("hostname", r"for n in 1 2 3; do printf '\e[3%dmline %d\e[m\n' $n $n; done", "ls /nowhere")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CONTROL = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-ln-~]|[()][0-9A-Za-z]|[=>78])|[\r\x07]")


class Screen:
    """Where it is shown; in colour only if that is a terminal and nobody said no (https://no-color.org)."""

    def __init__(self) -> None:
        self._colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")

    def _in(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[m" if self._colour else text

    def fact(self, name: str, text: str) -> None:
        """What the lab consists of."""
        print(f"  {self._in('1', name.ljust(7))}  {text}", flush=True)

    def command(self, line: str) -> None:
        """What a person types."""
        print(f"\n{self._in('36', '$')} {self._in('1', line)}", flush=True)

    def output(self, text: bytes) -> None:
        """What a program printed, set off."""
        for line in _CONTROL.sub("", text.decode(errors="replace")).splitlines():
            print(self._in("2", "│"), line if self._colour else _COLOUR.sub("", line), flush=True)

    def say(self, text: str = "") -> None:
        print(text, flush=True)


def describe(lab: Lab, screen: Screen) -> None:
    """What was set up, a line each."""
    ports = {name: server.port for name, server in lab.sshds.items()}
    screen.say(f"A bastion on loopback, in {lab.directory}; all of it goes away at the end.\n")
    screen.fact("bastion", f"sshd on port {ports['bastion']}, ForceCommand sshrec-gateway; sshrecd records")
    for name in ("web1", "web2"):
        screen.fact(name, f"stock sshd on port {ports[name]}, TrustedUserCAKeys is all it was told")
    screen.fact("joe", "an ssh-agent with a certificate for root and deploy, for one hour; stock ssh")
    screen.fact("CA", "sshrec-ca made the keys that all of them trust")


def shell(lab: Lab) -> Iterator[bytes]:
    """A person at work on web1; yields what the terminal shows, some lines at a time."""
    terminal = lab.spawn(*_SHELL)
    seen = io.BytesIO()
    terminal.logfile_read = seen
    shown = 0
    try:
        for line in (*_TYPED, "exit"):
            terminal.expect(PROMPT)
            whole = seen.getvalue().rfind(b"\n") + 1
            yield seen.getvalue()[shown:whole]
            shown = whole
            terminal.sendline(line)
        terminal.expect(pexpect.EOF)
        yield seen.getvalue()[shown:]
    except (pexpect.EOF, pexpect.TIMEOUT) as error:
        said = seen.getvalue()[shown:].decode(errors="replace").strip()
        raise LabError(
            f"ssh {' '.join(_SHELL)} should have come to a prompt, and said: {said}\n{lab.logs()}"
        ) from error


def show(lab: Lab, screen: Screen) -> None:
    """A session at a terminal, a command, the list, the replay."""
    screen.command("ssh " + " ".join(_SHELL))
    for text in shell(lab):
        screen.output(text)
    screen.command("ssh " + " ".join(_COMMAND))
    screen.output(lab.ssh(*_COMMAND, check=True).stdout)
    screen.command("sshrec ls")
    screen.output(lab.sshrec("ls").stdout)
    session = lab.recordings()[0].name.partition(".")[0]
    screen.command(f"sshrec play {session}")
    screen.output(lab.sshrec("play", session).stdout)
    screen.command("sshrec-ca ls")
    screen.output(lab.sshrec_ca("ls").stdout)
    # The ends of the sessions are signed within a second.
    lab.wait(lambda: lab.sshrec("verify", "--all", check=False).returncode == 0, "the audit log to be signed")
    screen.command("sshrec verify --all")
    proved = lab.sshrec("verify", "--all")
    screen.output(proved.stderr + proved.stdout)
    if lab.several_uids:
        show_people(lab, screen)
    else:
        screen.say("\nAs root, bin/try shows how people register and log in, too.")
    screen.say("\nA recorded shell of your own, and its replay: bin/try --shell")


def show_people(lab: Lab, screen: Screen) -> None:
    """Somebody new: invited, registered in a terminal, with a certificate; then a server, the bastion unseen."""
    screen.command("sshrec users add alice alice,root")
    token = registered.invite(lab, "alice", "alice,root")
    screen.output(f"{token}    (the invitation)".encode())
    laptop = lab.open_laptop("alice", name="new")
    subprocess.run(["ssh-add", "-q", "-D"], env=laptop.env, check=True, timeout=20)
    alice = registered.Person(lab, "alice", laptop, "127.0.0.1")
    screen.command("ssh -A login@bastion")
    screen.output(alice.register(token, dimensions=(50, 100)).encode())
    # What tried whether the agent knows of destinations is there for a second.
    lab.wait(lambda: len(alice.held()) == 1, "the certificate to be alone")
    screen.command("ssh-add -L")
    screen.output("\n".join(f"{line[:60]}… {line.rpartition(' ')[2]}" for line in alice.held()).encode())
    screen.command("ssh -A bastion deploy@web1")
    screen.output(alice.ssh("deploy@web1").stderr)
    through = Through(lab, laptop)
    screen.command("ssh root@web1 id    # with the block of: ssh -A bastion sshrec config")
    screen.output(through.run("ssh", "root@web1", "id").stdout)
    screen.command("sshrec lock user alice")
    screen.output(registered.admin(lab, "lock", "user", "alice").stdout.encode())
    screen.command("ssh root@web1 id")
    screen.output(through.run("ssh", "root@web1", "id").stderr)


def let_try(lab: Lab, screen: Screen) -> None:
    """A shell for the person at this terminal, and what became of it."""
    laptop = lab.laptop("joe")
    env = {**laptop.env, **{name: os.environ[name] for name in ("TERM", "LANG") if name in os.environ}}
    screen.command("ssh " + " ".join(_SHELL))
    subprocess.run(lab.ssh_argv(*_SHELL), env=env)
    screen.command("sshrec ls")
    screen.output(lab.sshrec("ls").stdout)
    for recording in lab.recordings()[-1:]:
        session = recording.name.partition(".")[0]
        screen.command(f"sshrec play {session}")
        programs, config = lab.installation.programs, str(lab.config)
        subprocess.run([programs / "sshrec", "--config", config, "play", session], env={**lab.sshrec_env(), **env})


def main() -> int:
    """Exit code 0 when all of it worked."""
    by_hand = sys.argv[1:] == ["--shell"]
    if by_hand and not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("bin/try --shell needs a terminal", file=sys.stderr)
        return os.EX_USAGE
    try:
        with Lab(several_uids=False if by_hand else None) as lab:
            screen = Screen()
            describe(lab, screen)
            (let_try if by_hand else show)(lab, screen)
    except LabError as error:
        print(f"bin/try: {error}", file=sys.stderr)
        return os.EX_SOFTWARE
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
