"""The manual: well-formed, complete, and what the programs do."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import click
import pytest

from sshrec.cli.auth import sshrec_authd
from sshrec.cli.ca import sshrec_ca
from sshrec.cli.daemon import sshrecd
from sshrec.cli.main import sshrec
from sshrec.config import Config, parse
from sshrec.recording import asciicast, events
from sshrec.recording.recorder import Recorder
from sshrec.recording.seal import Outcome
from sshrec.strict import NOT_A_SETTING

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "man").glob("man?/*.?"))
ID = "01KARVVVZ0B9GPPM3T5V7PZW0Q"

need_mandoc = pytest.mark.skipif(shutil.which("mandoc") is None, reason="no mandoc: apt-get install mandoc")


def run(*command: str | Path, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def page(name: str) -> str:
    section = name.rpartition(".")[2]
    return (ROOT / f"man/man{section}" / name).read_text()


@need_mandoc
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_mandoc_has_nothing_to_say(path: Path) -> None:
    result = run("mandoc", "-Tlint", "-Wstyle", path)
    said = [line for line in result.stdout.splitlines() if "referenced manual not found" not in line]
    assert said == []


def test_every_page_of_ours_that_is_referred_to_exists() -> None:
    names = {path.name for path in PAGES}
    for path in PAGES:
        referred = {
            f"{name}.{section}" for name, section in re.findall(r"\.Xr (sshrec\S*) (\d)", path.read_text())
        }
        assert referred <= names - {path.name}, path.name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_page_is_called_what_it_is_about(path: Path) -> None:
    name, _, section = path.name.rpartition(".")
    text = path.read_text()
    assert f".Dt {name.upper()} {section}\n" in text
    assert f".Nm {name}\n" in text
    assert path.parent.name == f"man{section}"


def commands() -> dict[str, click.Command]:
    """Each command that has a page, by the page's name."""
    assert isinstance(sshrec, click.Group)
    found: dict[str, click.Command] = {"sshrec.1": sshrec, "sshrecd.8": sshrecd, "sshrec-authd.8": sshrec_authd}
    context = click.Context(sshrec, **sshrec.context_settings)
    for name in sshrec.list_commands(context):
        command = sshrec.get_command(context, name)
        assert command is not None
        if not command.hidden:
            found[f"sshrec-{name}.1"] = command
    return found


def options(command: click.Command) -> set[str]:
    """Of a command, and of those below it where they share its page."""
    below: set[str] = set()
    if isinstance(command, click.Group) and command not in (sshrec, sshrec_ca):
        context = click.Context(command)
        found = [command.get_command(context, name) for name in command.list_commands(context)]
        below = set().union(*(options(one) for one in found if one is not None))
    context = click.Context(command, **(command.context_settings or sshrec.context_settings))
    shown = [parameter for parameter in command.get_params(context) if isinstance(parameter, click.Option)]
    own = {name for option in shown if not option.hidden for name in (*option.opts, *option.secondary_opts)}
    return own | below


def documented(text: str) -> set[str]:
    """The options that a page has an entry for."""
    entries = re.findall(r"(?m)^\.It Fl (.*)$", text)
    return {f"-{name}" for entry in entries for name in re.findall(r"(?:^|Fl )(-?[\w-]+)", entry)}


@pytest.mark.parametrize("name", commands())
def test_every_option_of_a_command_is_on_its_page_and_no_other(name: str) -> None:
    assert documented(page(name)) == options(commands()[name])


def test_every_command_is_listed_in_sshrec_1() -> None:
    listed = {f"{name}.1" for name in re.findall(r"(?m)^\.It Xr (sshrec-\S+) 1$", page("sshrec.1"))}
    assert set(commands()) - {"sshrec.1", "sshrecd.8", "sshrec-authd.8"} <= listed


def authority() -> dict[str, click.Command]:
    """The commands of sshrec-ca, which share one page."""
    assert isinstance(sshrec_ca, click.Group)
    context = click.Context(sshrec_ca, **sshrec_ca.context_settings)
    found = {name: sshrec_ca.get_command(context, name) for name in sshrec_ca.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None and not command.hidden}


# Of every command, and on the page once.
SHARED = {"--config", "-h", "--help"}


def test_the_commands_of_sshrec_ca_are_listed_and_each_has_a_section() -> None:
    head, _, body = page("sshrec-ca.1").partition(".Sh COMMANDS\n")
    commands = body.partition("\n.Sh ")[0]
    assert documented(head) == options(sshrec_ca) >= SHARED
    assert sorted(re.findall(r"(?m)^\.It Cm (\S+)$", head)) == sorted(authority())
    assert sorted(re.findall(r"(?m)^\.Ss (\S+)$", commands)) == sorted(authority())


@pytest.mark.parametrize("name", authority())
def test_every_option_of_a_command_of_sshrec_ca_is_in_its_section_and_no_other(name: str) -> None:
    section = page("sshrec-ca.1").partition(f"\n.Ss {name}\n")[2]
    section = re.split(r"(?m)^\.S[hs] ", section)[0]
    assert section.startswith(f".Nm Cm {name}\n")
    assert documented(section) == options(authority()[name]) - SHARED


def test_every_option_of_the_gateway_is_on_its_page() -> None:
    program = (ROOT / "sshrec/libexec/sshrec_gateway.py").read_text()
    known = set(re.findall(r'"(--?[a-z]+)"', program)) - {"-I", "-m"}
    assert {"--socket", "--embedded", "-c"} <= known
    assert documented(page("sshrec-gateway.8")) == known


def test_generated_files_are_up_to_date() -> None:
    result = run(sys.executable, ROOT / "man/generate.py", "--check")
    assert (result.returncode, result.stderr) == (0, "")


def keys(kind: type) -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        if field.metadata == NOT_A_SETTING:
            continue
        yield field.name
        hint = hints[field.name]
        for part in (hint, *get_args(hint)):
            if isinstance(part, type) and is_dataclass(part):
                yield from keys(part)


def test_every_setting_is_in_sshrec_yaml_5() -> None:
    entries = re.findall(r"(?m)^\.It Ic (\S+) :", page("sshrec.yaml.5"))
    assert entries and sorted(entries) == sorted(keys(Config))


def uncommented(sample: str) -> str:
    return re.sub(r"(?m)^( *)#(?! )", r"\1", sample)


def test_the_sample_changes_nothing_as_it_is_nor_with_every_setting_made_real() -> None:
    sample = (ROOT / "contrib/sshrec.yaml.sample").read_text()
    assert parse(sample) == Config()
    real = uncommented(sample)
    assert "\nhop:\n" in real and "\n  connect_timeout: 15\n" in real
    assert parse(real) == Config()


def test_the_settings_in_sshrec_yaml_5s_examples_are_settings() -> None:
    examples = page("sshrec.yaml.5").partition(".Sh EXAMPLES")[2]
    blocks = re.findall(r"(?s)\.Bd -literal -offset indent\n(.*?)\.Ed", examples)
    nodes = parse(blocks[0]).nodes
    assert [node.port for node in nodes] == [22, 2222]
    assert str(parse(blocks[1]).run_dir) == "/home/alice/sshrec/run"
    authority = parse(blocks[2]).authority
    assert authority.user is not None and authority.user.signer == "agent"
    assert authority.bastions == ("10.0.0.5", "10.0.1.0/28")


def test_every_code_and_every_word_of_an_outcome_is_in_sshrec_recording_5() -> None:
    text = page("sshrec-recording.5")
    codes = {value for name, value in vars(events).items() if name.isupper() and isinstance(value, str)}
    assert set(re.findall(r"(?m)^\.It Cm (\w)$", text.partition(".Ss Seals")[0])) == codes
    end = text.partition(".It Cm end")[2].partition(".El")[0]
    assert set(re.findall(r"(?m)^\.Cm (\w+)", end)) >= {field.name for field in fields(Outcome)}


class Memory:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.text = b""

    def write(self, data: bytes, /) -> None:
        self.text += data

    def sync(self) -> None:
        pass


def recording(chunks: int) -> bytes:
    facts: dict[str, Any] = {"session": ID}
    header = asciicast.header_line(width=80, height=24, timestamp=0, title="t", command=None, env={}, facts=facts)
    sink = Memory()
    recorder = Recorder(sink, ID, header, wall_ms=0, terminal=True, stream_limit=0)
    for n in range(chunks):
        recorder.output(n * 6_000_000, b"line %d\r\n" % n)
        recorder.tick(n * 6_000_000 + 5_500_000, n * 6000 + 5500)
    recorder.close(chunks * 6_000_000, chunks * 6000, Outcome("exit", status=0))
    return sink.text


def stranger(directory: Path, text: bytes) -> list[str]:
    """What the check on the page says, run by a shell with coreutils and grep."""
    (directory / f"{ID}.cast").write_bytes(text)
    example = page("sshrec-recording.5").partition("# check\n")[2].partition(".Ed")[0].replace(r"\e", "\\")
    result = run("sh", "-euc", f"id={ID}\n{example}", cwd=directory)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def changed(lines: Sequence[bytes], at: int) -> bytes:
    """The recording with another digit in that line's text."""
    return b"".join([*lines[:at], lines[at].replace(b"line ", b"Line "), *lines[at + 1 :]])


def test_a_stranger_can_check_the_chain_with_the_lines_on_the_page(tmp_path: Path) -> None:
    text = recording(chunks=12)
    lines = text.splitlines(keepends=True)
    seals = [n for n, line in enumerate(lines) if b',"S",' in line]
    assert len(seals) == 13
    for name, altered, said in (
        ("whole", text, []),
        ("changed", changed(lines, seals[4] + 1), ["chunk-000005 is not what was sealed"]),
        ("cut", b"".join(lines[: seals[7] + 1]), ["the end is missing"]),
        (
            "left out",
            b"".join(lines[: seals[2] + 1] + lines[seals[3] + 1 :]),
            ["chunk-000003 is not what was sealed"],
        ),
    ):
        directory = tmp_path / name
        directory.mkdir()
        assert stranger(directory, altered) == said
