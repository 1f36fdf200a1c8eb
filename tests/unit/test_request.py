"""The grammar of requests: what is a target, what is refused and in which words; and ssh as the second judge."""

from __future__ import annotations

import contextlib
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sshrec.config import Config
from sshrec.errors import UsageError
from sshrec.gateway.request import LIMIT, check_recordable, parse
from sshrec.openssh import client
from sshrec.session import HOST, LOGIN, Request, Target, never_a_target


def asked(words: bytes | str) -> Request:
    return parse(words.encode() if isinstance(words, str) else words, terminal=False, login="joe")


@pytest.mark.parametrize(
    ("words", "target", "command"),
    [
        ("web1", Target("joe", "web1"), None),
        ("root@web1", Target("root", "web1"), None),
        ("root@web1:2222", Target("root", "web1", 2222), None),
        ("root@WEB1.Example.COM id", Target("root", "web1.example.com"), b"id"),
        ("root@10.0.0.5 id", Target("root", "10.0.0.5"), b"id"),
        ("root@[2001:db8::1]:22 id", Target("root", "2001:db8::1", 22), b"id"),
        ("root@[2001:DB8:0::1]", Target("root", "2001:db8::1"), None),
        ("ec2-user@a.b id", Target("ec2-user", "a.b"), b"id"),
        ("root@web1  id  -x ", Target("root", "web1"), b"id  -x "),
        ("root@web1 ", Target("root", "web1"), None),
        ("root@web1 -oProxyCommand=x", Target("root", "web1"), b"-oProxyCommand=x"),
        (
            "root@web1 id; whoami && echo \"a  b\" 'c' \\",
            Target("root", "web1"),
            b"id; whoami && echo \"a  b\" 'c' \\",
        ),
        (b"root@web1 \xff\xfe\n\t", Target("root", "web1"), b"\xff\xfe\n\t"),
        ("0day", Target("joe", "0day"), None),
    ],
)
def test_accepted(words: bytes | str, target: Target, command: bytes | None) -> None:
    request = asked(words)
    assert (request.target, request.command) == (target, command)
    assert request.kind == ("shell" if command is None else "exec")


@pytest.mark.parametrize(
    "words",
    [
        # options, shells, expansions
        "-oProxyCommand=touch${IFS}/tmp/x", "root@-oProxyCommand=id", "-lroot", "--", "-", "-F/etc/passwd",
        "$(id)@web1", "`id`@web1", "root;id@web1", "root@web1;id", "root@web1|id", "root@web1&", "root@web1>x",
        "%h@web1", "%%", "root@%h", "${HOME}@web1", "root@$HOME", "~root@web1", "ssh://root@web1:22", "ssh://web1",
        "*", "!web1", "web?", "web1,web2", "|1|abc", "#web1", "@cert-authority",
        # control and foreign characters
        "root@web1\nid", "root@web1\rid", "root@web1\tid", "root@web1\vid", "\x1b[31m@web1", "root@web1\x07",
        "root@web1\x7f", "root@web\x9b1", b"root@web1\x9b", b"root@web1\xc2\x9b", "rööt@web1", "root@wéb1",
        "ｗeb1",
        "w\u0435b1", "web\u200b1", "web\u202e1", "we\u0301b1",
        # the parts
        "a@b@web1", "@web1", "root@", " ", " web1", "root@we_b", "root@web1.", "root@.web1", "root@-web1",
        "root@web1-", "root@" + "a" * 64, "root@" + "a." * 127 + "a", "R@web1", "a" * 33 + "@web1", "0root@web1",
        # numbers that resolvers take for addresses
        "0x7f000001", "2130706433", "127.1", "0177.0.0.1", "1.2.3.4.5", "256.1.1.1", "web.0x10", "[fe80::1%eth0]",
        "[::1", "::1", "[web1]", "[]", "root@[1.2.3.4]",
        # ports
        "web1:0", "web1:65536", "web1:022", "web1:+22", "web1:-1", "web1:22/tcp", "web1:٢٢", "web1:2_2", "web1:",
        "web1:22:22", "[::1]:", "web1: 22",
    ],
)  # fmt: skip
def test_refused(words: bytes | str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(words)
    said = f"{caught.value} {caught.value.hint}"
    assert said.isprintable()
    assert len(said) < 400


@pytest.mark.parametrize(
    "words",
    [
        "sshrec", "sshrec login", "sshrec-proxy root web1 22", "scp -t /tmp", "sftp", "rsync --server . x",
        "git-upload-pack 'x'",
        "mosh-server new", "internal-sftp", "/usr/lib/openssh/sftp-server", "./x", "a/b", "root@host/x", "/bin/sh",
    ],
)  # fmt: skip
def test_never_a_target(words: str) -> None:
    with pytest.raises(UsageError, match="is not a target, and nothing runs on the bastion itself"):
        asked(words)


def test_the_longest_request() -> None:
    longest = b"root@web1 " + b"x" * (LIMIT - 10)
    assert asked(longest).command == longest[10:]
    with pytest.raises(UsageError, match=f"{LIMIT + 1} bytes"):
        asked(longest + b"x")


def test_an_account_that_is_no_login() -> None:
    with pytest.raises(UsageError, match="name one"):
        parse(b"web1", terminal=False, login="Joe Doe")


# Strings around the grammar's edges, where plain random text would hardly ever come.
_pieces = st.sampled_from(
    [
        "root",
        "web1",
        "@",
        ":",
        "22",
        ".",
        "-",
        " ",
        "[",
        "]",
        "::1",
        "%",
        "/",
        "\x1b",
        "ä",
        "0x",
        "A",
        "_",
        "$",
        "x" * 40,
    ]
)
_near = st.lists(_pieces, min_size=1, max_size=8).map("".join).map(str.encode)


@settings(max_examples=2000)
@given(st.one_of(st.binary(min_size=1, max_size=60), _near))
@example(b"\xff@\xff")
def test_everything_is_a_request_or_refused(words: bytes) -> None:
    """Whatever is accepted has nothing in its target that ssh, a shell or a terminal would take up."""
    try:
        request = asked(words)
    except UsageError as error:
        assert f"{error}{error.hint}".isprintable()
        return
    target = request.target
    assert LOGIN.fullmatch(target.login)
    assert HOST.fullmatch(target.host) or re.fullmatch(r"[0-9.]+|[0-9a-f:.]+", target.host)
    assert target.port is None or 1 <= target.port <= 65535
    assert not [c for c in str(target) if unicodedata.category(c)[0] in "CZ" or c in "$`;|&<>%~*?!#'\"\\(){}/"]
    assert words.endswith(request.command or b"")


_logins = st.from_regex(LOGIN, fullmatch=True)
# Not from HOST itself: its look-aheads make hypothesis throw most of what it tries away.
_labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
_hosts = st.lists(_labels, min_size=1, max_size=5).map(".".join)


@settings(max_examples=60, deadline=None)
@given(login=_logins, host=_hosts, port=st.none() | st.integers(1, 65535))
def test_ssh_reads_what_we_meant(login: str, host: str, port: int | None) -> None:
    """`ssh -G` on the hop's own configuration: user, host and port are these, and nothing else crept in."""
    try:
        request = asked(f"{login}@{host}" + (f":{port}" if port else "") + " -oProxyCommand=x")
    except UsageError:
        assert not HOST.fullmatch(host) or never_a_target(host) or never_a_target(f"{login}@{host}")
        return
    run = client.Run(Path("/run/sshrec/01HF7YAT3VZZZZZZZZZZZZZZZZ"))
    text = client.configuration(
        Config(),
        run,
        login=request.target.login,
        name=host,
        port=request.target.port or 22,
        terminal=True,
        lang=b"C",
    )
    argv = client.arguments(run, request.target.host, request.command)
    config = argv.index(b"-F") + 1
    argv[config] = b"/dev/stdin"
    log = argv.index(b"-E")
    done = subprocess.run(
        [argv[0], b"-G", *argv[1:log], *argv[log + 2 :]], input=text.encode(), capture_output=True, check=True
    )
    seen = dict(line.split(" ", 1) for line in done.stdout.decode().splitlines() if " " in line)
    assert seen["user"] == login
    assert seen["host"] == host.lower()
    assert seen["hostkeyalias"] == host
    assert seen["port"] == str(port or 22)
    assert seen["proxycommand"] == f"{client.LIBEXEC}/sshrec-dial {run.dial}"
    assert "localcommand" not in seen
    assert seen["permitlocalcommand"] == "no"
    assert seen["identitiesonly"] == "yes"
    assert seen["stricthostkeychecking"] in ("yes", "true")
    assert seen["forwardagent"] == "no"
    assert seen["batchmode"] == "yes"
    assert seen["userknownhostsfile"] == "none"


@pytest.mark.parametrize(
    ("command", "recordable"),
    [
        ("mosh-server 'new' '-c' '8' '-s'", False),
        ("sh -c '[ -n \"$SSH_CONNECTION\" ] && printf 1' ; mosh-server 'new' '-s'", False),
        ("/opt/mosh/bin/mosh-server new -p 60001", False),
        ("mosh-server --version", True),
        ("grep 'mosh-server new' log", True),
    ],
)
def test_mosh(command: str, recordable: bool) -> None:
    wanted = asked(f"root@web1 {command}")
    with contextlib.nullcontext() if recordable else pytest.raises(UsageError, match="mosh cannot be recorded"):
        check_recordable(wanted)
