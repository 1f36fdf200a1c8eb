"""`sshrec`: finds the command, runs it, and prints what went wrong. Knows the commands' names, not their work."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from sshrec import __version__
from sshrec.errors import SshrecError, describe
from sshrec.session import printable

if TYPE_CHECKING:
    from sshrec.config import Config

_COMMANDS = {
    "access": ("sshrec.cli.access:command", "Tell what the roles would allow, and why."),
    "config": ("sshrec.cli.login:config", "Print the block for ~/.ssh/config."),
    "export": ("sshrec.cli.export:command", "Write a recording as text, bytes, JSON or asciicast."),
    "hold": ("sshrec.cli.hold:command", "Keep recordings from being removed."),
    "kill": ("sshrec.cli.who:kill", "End a live session."),
    "lock": ("sshrec.cli.lock:lock", "Shut out a user, a login, a node or a session."),
    "locks": ("sshrec.cli.lock:locks", "List what is locked."),
    "login": ("sshrec.cli.login:login", "Get a certificate that expires by itself."),
    "logout": ("sshrec.cli.login:logout", "Take your certificate out of the agent."),
    "ls": ("sshrec.cli.ls:command", "List recordings."),
    "play": ("sshrec.cli.play:command", "Play a recording in the terminal."),
    "prune": ("sshrec.cli.prune:command", "Remove old recordings."),
    "recipients": ("sshrec.cli.recipients:command", "Show to whom recordings are encrypted, and prove it."),
    "ssh": ("sshrec.cli.login:ssh", "Go to a node through the bastion."),
    "status": ("sshrec.cli.login:status", "Show who you are, and for how long."),
    "unlock": ("sshrec.cli.lock:unlock", "Lift a lock."),
    "users": ("sshrec.cli.users:command", "People: who there is, and which logins they may use."),
    "verify": ("sshrec.cli.verify:command", "Prove that recordings are what was sealed."),
    "who": ("sshrec.cli.who:who", "List the sessions that live."),
}

INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Settings:
    """What the options of all commands say: the configuration, read when it is first asked for."""

    def __init__(self) -> None:
        self.file: Path | None = None

    @functools.cached_property
    def config(self) -> Config:
        """The configuration; ConfigError where it is wrong."""
        from sshrec.config import load  # half of what --help would take
        from sshrec.recipients import too_few

        config = load(self.file)
        if (few := too_few(config.encrypts_to)) is not None:
            print(f"sshrec: warning: {few}", file=sys.stderr)
        return config


def _remember(ctx: click.Context, _parameter: click.Parameter, value: Path | None) -> None:
    if value is not None:
        ctx.ensure_object(Settings).file = value


def config_option() -> click.Option:
    """--config, which every command takes, before its name or behind it."""
    return click.Option(
        ["--config"],
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        expose_value=False,
        callback=_remember,
        help="Read this configuration instead of /etc/sshrec/sshrec.yaml.",
    )


class Commands(click.Group):
    """A group whose commands are imported when they are called, so that the rest stays quick.

    `table`: name → where the command is, as module:attribute, and what --help says of it.
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        if not any(parameter.name == "config" for parameter in command.params):
            command.params.append(config_option())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._table[name][1]) for name in self.list_commands(ctx)])


@click.command(
    cls=Commands,
    table=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[config_option()],
    invoke_without_command=True,
)
@click.version_option(__version__, prog_name="sshrec", message="%(prog)s %(version)s")
@click.pass_context
def sshrec(ctx: click.Context) -> None:
    """Recordings of SSH sessions: find them, watch them."""
    ctx.ensure_object(Settings)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def colour(stream: TextIO) -> bool:
    """Whether to colour what goes there (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def run(command: click.Command, name: str, arguments: list[str] | None = None) -> int:
    """Run a command line and return the status to exit with; whatever goes wrong is printed here."""
    try:
        status: Any = command.main(arguments, prog_name=name, standalone_mode=False)
        if sys.stdout is not None:  # closed by whoever started us
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except SshrecError as error:
        return _complain(name, str(error), error.hint, error.exit_code)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else name
        message = error.format_message().rstrip(".")
        return _complain(name, message[:1].lower() + message[1:], f"see: {path} --help", os.EX_USAGE)
    except click.ClickException as error:
        return _complain(name, error.format_message(), None, os.EX_SOFTWARE)
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has gone; leave nothing for the interpreter to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{printable(str(error.filename))}: " if error.filename else ""
        return _complain(name, f"{where}{describe(error)}", None, os.EX_OSERR)
    except Exception as error:
        hint = "this is a mistake in sshrec; please report it with what you did"
        return _complain(name, f"{type(error).__name__}: {error}", hint, os.EX_SOFTWARE)


def _complain(name: str, message: str, hint: str | None, status: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        red, plain = ("\x1b[31m", "\x1b[0m") if colour(sys.stderr) else ("", "")
        print(f"{name}: {red}error:{plain} {message}", file=sys.stderr)
        if hint:
            print(f"hint: {hint}", file=sys.stderr)
    return status


def main() -> None:
    """The program `sshrec`."""
    sys.exit(run(sshrec, "sshrec"))
