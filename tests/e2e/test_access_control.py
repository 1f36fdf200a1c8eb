"""Roles, codes for a session, and locks: through stock ssh, with the auth service that decides."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pexpect
import pytest

from sshrec.access.protocol import CheckFactor, FactorNeeded, Failed, Forbidden
from tests.e2e.guarded import GIVEN, Guarded, errors, question, source, sqlite
from tests.e2e.recorded import Recorded, last, packed
from tests.e2e.transparent import Through
from tests.lab import PROMPT, Lab
from tests.lab.processes import children
from tests.tokens import token

Child = Any  # pexpect.spawn[bytes]


@pytest.fixture(scope="module")
def whole(several_uids: bool) -> Iterator[Guarded]:
    with Lab(several_uids=several_uids) as lab:
        bastion = Guarded(lab)
        yield bastion
        bastion.close()


@pytest.fixture
def bastion(whole: Guarded) -> Iterator[Guarded]:
    """Nobody is there, nothing is locked, and joe has new codes."""
    whole.person("joe").register()
    yield whole
    whole.unlock_all()
    whole.lab.end_sessions()
    whole.lab.expect_nothing_left()


@pytest.fixture
def lab(bastion: Guarded) -> Lab:
    return bastion.lab


def shell(lab: Lab, target: str = "root@web1", user: str = "joe") -> Child:
    child: Child = lab.spawn("-tA", "bastion", target, user=user)
    child.expect(PROMPT)
    return child


def asked(lab: Lab, target: str, *options: str) -> Child:
    """At the prompt for a code."""
    child: Child = lab.spawn("-tA", *options, "bastion", target)
    child.expect_exact(f"Code for {target}: ")
    return child


def shown(child: Child) -> str:
    """What a client still showed until its end."""
    child.expect(pexpect.EOF)
    child.wait()
    return re.sub(r"\r+\n", "\n", child.before.decode(errors="replace"))


def of(bastion: Guarded, session: str, name: str) -> dict[str, Any]:
    """The session's event of that kind, empty where there is none yet."""
    return next((event for event in bastion.events(name) if event.get("sid") == session), {})


def ended_by(recorded: Recorded) -> tuple[str, str]:
    return recorded.end["reason"], recorded.end.get("detail", "")


# ---- roles ------------------------------------------------------------------------------------------------


def test_the_logins_that_were_given(bastion: Guarded, lab: Lab) -> None:
    assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"
    assert last(lab).facts["rule"] == 'role "staff"'
    bastion.admin("users", "update", "joe", "deploy")
    try:
        bastion.renew("joe")  # the update has revoked what had root in it
        refused = lab.ssh("-A", "bastion", "root@web1", "echo in")
        assert errors(refused.stderr) == "sshrec: error: login root is not among deploy\n"
    finally:
        bastion.admin("users", "update", "joe", "root")
        bastion.renew("joe")
    assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"


@pytest.mark.parametrize(
    ("target", "said", "rule"),
    [
        ("alice@web1", "the key that opened the bastion is not held by a FIDO security key", "hardware"),
        ("alice@web2", r"\w{3} \d\d:\d\d is not within \w{3} 03:00-04:00", "night"),
        ("joe@web2", "the address 127.0.0.1 is not among 127.0.9.0/24", "office"),
        ("nobody@web1", "login nobody is not among .*", ""),
        ("root@quiet", "login root is not among deploy", "codes"),
    ],
)
def test_what_a_role_wants(bastion: Guarded, lab: Lab, target: str, said: str, rule: str) -> None:
    """The person is told what is not met; the audit log and sshrecd's own say by which rule."""
    before = len(lab.recordings())
    done = lab.ssh("-A", "bastion", target, "echo in")
    assert (done.returncode, done.stdout) == (255, b"")
    assert re.fullmatch(f"sshrec: error: {said}\n", errors(done.stderr)), done.stderr
    event = bastion.rejected(errors(done.stderr)[15:-1])
    assert (event["user"], event["target"]) == ("joe", target)
    assert event["rule"] == (f'role "{rule}"' if rule else event["rule"])
    assert len(lab.recordings()) == before


def test_a_security_key(lab: Lab) -> None:
    with token(lab, "joe", "alice") as (_, env):
        assert lab.ssh("-A", "bastion", "alice@web1", "echo in", env=env).stdout == b"in\n"
    assert last(lab).facts["rule"] == 'role "hardware"'


def test_a_security_key_that_verifies_its_holder(bastion: Guarded, lab: Lab) -> None:
    words = ["-A", "bastion", "deploy@web1", "echo in"]
    with token(lab, "alice", "deploy") as (_, env):
        refused = lab.ssh(*words, user="alice", env=env)
        said = "the certificate that opened the bastion is not one with verify-required"
        assert errors(refused.stderr) == f"sshrec: error: {said}\n"
        assert bastion.rejected(said)["rule"] == 'role "verified"'
    with token(lab, "alice", "deploy", "--verify-required") as (held, env):
        assert lab.ssh(*words, user="alice", env=env).stdout == b"in\n"
        assert last(lab).facts["rule"] == 'role "verified"'
        held.verifies = False
        assert b"Permission denied (publickey)" in lab.ssh(*words, user="alice", env=env).stderr


def test_sources(lab: Lab) -> None:
    assert lab.ssh("-A", "-b", "127.0.9.7", "bastion", "joe@web2", "echo in").stdout == b"in\n"
    assert last(lab).facts["rule"] == 'role "office"'


def test_number_of_sessions(bastion: Guarded, lab: Lab) -> None:
    child = shell(lab, "joe@web1")
    refused = lab.ssh("-A", "bastion", "joe@web1", "echo in")
    assert errors(refused.stderr) == "sshrec: error: joe has 1 session already\n"
    assert bastion.rejected("already")["rule"] == 'role "few"'
    assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"  # which another role allows
    child.sendline("exit")
    shown(child)
    lab.wait(lambda: lab.ssh("-A", "bastion", "joe@web1", "echo in").stdout == b"in\n", "the first to be over")


def test_number_of_sessions_of_one_connection(bastion: Guarded, lab: Lab) -> None:
    """Those that start at the same time; and one after the other, without a break."""
    through = Through(lab)
    options = ["-o", f"ControlPath={lab.directory}/cm", "-o", "ControlMaster=auto", "-o", "ControlPersist=yes"]
    through.run("ssh", *options, "joe@web1", "true").check_returncode()
    try:
        for number in range(5):
            assert through.run("ssh", *options, "joe@web1", f"echo {number}").stdout == b"%d\n" % number
        many = [through.popen(*options, "joe@web1", "echo in; read line") for _ in range(5)]
        lab.wait(lambda: sum(one.poll() is None for one in many) == 1, "all but one to be refused")
        ended = [one.communicate(b"\n", timeout=30) for one in many]
        assert sorted(out for out, _ in ended) == [b"", b"", b"", b"", b"in\n"]
        assert all(re.search("joe has [1-4] sessions? already", errors(err)) for out, err in ended if not out)
    finally:
        through.run("ssh", *options, "-O", "exit", "joe@web1")


@pytest.mark.root
def test_kinds_and_networks(lab: Lab) -> None:
    refused = lab.ssh("-A", "bastion", "root@web1", "id", user="alice")
    assert errors(refused.stderr) == "sshrec: error: requests for a command are not served\n"
    child = shell(lab, "root@web1", user="alice")
    child.sendline("exit")
    shown(child)
    assert last(lab).facts["rule"] == 'role "copies"'


def test_accounts_are_required(bastion: Guarded, lab: Lab) -> None:
    lab.stop_sshrecd()
    bastion.start({"accounts": "required", "roles": [{"name": "all", "logins": ["*"]}]})
    try:
        assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"
        sqlite(bastion, "DELETE FROM users WHERE name = 'joe'")  # `users rm` would revoke certificates, too
        refused = lab.ssh("-A", "bastion", "root@web1", "echo in")
        assert errors(refused.stderr) == (
            "sshrec: error: joe has no account in sshrec\nhint: an administrator can make one: sshrec users add\n"
        )
        assert bastion.rejected("no account")["rule"] == "accounts"
    finally:
        bastion.admin("users", "add", "joe", "root", "--no-unix-account")
        bastion.restart()


# ---- codes ------------------------------------------------------------------------------------------------


def test_a_code_for_each_session(bastion: Guarded, lab: Lab) -> None:
    joe = bastion.person("joe")
    code = joe.code()
    child = asked(lab, "deploy@web1")
    child.send(f"{code}\r")
    child.expect(PROMPT)
    child.sendline("exit")
    assert code not in shown(child)
    recorded = last(lab)
    assert recorded.facts["rule"] == 'role "codes"'
    assert not any(code.encode() in line for line in recorded.lines)
    event = lab.wait(lambda: of(bastion, recorded.session, "mfa_auth_challenge.validate"), "the code in the log")
    assert (event["success"], event["mfa_device_type"]) == (True, "totp")
    assert code not in str(event)
    # The same once more is no code any more; a recovery code is one.
    child = asked(lab, "deploy@web1")
    child.send(f"{code}\r")
    child.expect_exact("Wrong code.\r\nCode for deploy@web1: ")
    child.send(f"{joe.recovery_code()}\r")
    child.expect(PROMPT)
    child.sendline("exit")
    shown(child)


def test_wrong_codes(bastion: Guarded, lab: Lab) -> None:
    before, here = len(lab.recordings()), source()
    child = asked(lab, "deploy@web1", "-b", here)
    for _ in range(3):
        child.send("000000\r")
        child.expect_exact("Wrong code.\r\n")
    wanted = 'role "codes" wants a code for each session'
    assert errors(shown(child).encode()) == f"sshrec: error: {wanted}, and none was right\n"
    assert child.exitstatus == 255
    assert bastion.rejected(wanted)["rule"] == 'role "codes"'
    child = asked(lab, "deploy@web1", "-b", here)
    for _ in range(2):
        child.send("000000\r")
        child.expect_exact("Wrong code.\r\n")
    child.send(f"{bastion.person('joe').recovery_code()}\r")
    child.expect(r"Too many failures: try again in [^\r]*\.")
    assert errors(shown(child).encode()) == f"sshrec: error: {wanted}, and none was right\n"
    assert len(lab.recordings()) == before


@pytest.mark.parametrize("keys", ["\x03", "\x04"])
def test_cancelled_at_the_code(bastion: Guarded, lab: Lab, keys: str) -> None:
    before = len(lab.recordings())
    child = asked(lab, "deploy@web1")
    child.send(keys)
    assert errors(shown(child).encode()) == ""
    assert child.exitstatus == 255
    assert len(lab.recordings()) == before


def test_hung_up_at_the_code(lab: Lab) -> None:
    asked(lab, "deploy@web1").close(force=True)
    lab.expect_nothing_left()


def test_no_terminal_to_ask_at(bastion: Guarded, lab: Lab) -> None:
    refused = lab.ssh("-A", "bastion", "deploy@web1", "echo in")
    assert refused.returncode == 255
    assert errors(refused.stderr) == (
        'sshrec: error: role "codes" wants a code for each session, and there is no terminal to ask for it\n'
        "hint: show one first: ssh -tA bastion sshrec login\n"
    )
    assert bastion.rejected("no terminal")["rule"] == 'role "codes"'


def test_grace(bastion: Guarded, lab: Lab) -> None:
    """A code counts for a while, from where it was shown; not for the role that wants one each time."""
    here, there = source(), source()
    child = asked(lab, "deploy@web2", "-b", here)
    child.send(f"{bastion.person('joe').recovery_code()}\r")
    child.expect(PROMPT)
    assert lab.ssh("-A", "-b", here, "bastion", "deploy@web2", "echo in").stdout == b"in\n"
    elsewhere = lab.ssh("-A", "-b", there, "bastion", "deploy@web2", "echo in")
    assert b"there is no terminal to ask for it" in elsewhere.stderr
    assert b"there is no terminal" in lab.ssh("-A", "-b", here, "bastion", "deploy@web1", "echo in").stderr
    asked(lab, "deploy@web2", "-b", there).send("\x03")


@pytest.mark.root
def test_nothing_that_makes_codes(bastion: Guarded, lab: Lab) -> None:
    refused = lab.ssh("-A", "bastion", "deploy@web2", "id", user="alice")
    assert errors(refused.stderr) == (
        'sshrec: error: role "grace" wants a code for each session, and alice has nothing that makes one\n'
        "hint: an administrator can invite you to register: sshrec users\n"
    )


def test_two_show_the_same_code(bastion: Guarded, lab: Lab) -> None:
    both = [asked(lab, "deploy@web1"), asked(lab, "deploy@web1")]
    code = bastion.person("joe").code()
    for child in both:
        child.send(f"{code}\r")
    won = [child.expect([PROMPT, "Wrong code"]) for child in both]
    assert sorted(won) == [0, 1]


def test_the_same_code_at_the_same_moment(bastion: Guarded, lab: Lab) -> None:
    """Twenty connections, one code, one winner. The others have failed, and wait after five."""
    code, answers = bastion.person("joe").code(), []

    def show(number: int) -> None:
        with bastion.service(30) as service:
            asked = question(lab, "deploy", session=f"01KARVVVZ0B9GPPM3T5V7PZ{number:03}")
            assert isinstance(service.authorise(asked), FactorNeeded)
            answers.append(check(service, asked.session, code))

    threads = [threading.Thread(target=show, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert answers.count(None) <= 1
    assert all(isinstance(one, Failed) for one in answers if one is not None)


def check(service: Any, session: str, code: str) -> Failed | None:
    answer: Failed | None = service.check_factor(CheckFactor(session, "joe", code, source()))
    return answer


# ---- locks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "who"),
    [
        ("login", "root", "root"),
        ("node", "web1", "web1"),
        ("node", "web?", "web1"),
        ("node", "env=prod", "web1"),
        ("node", "127.0.0.0/24", "web1"),
        ("node", "127.0.0.1", "web1"),
    ],
)
def test_a_lock_ends_what_lives_and_refuses_what_comes(
    bastion: Guarded, lab: Lab, kind: str, name: str, who: str
) -> None:
    child = shell(lab)
    command = lab.popen("-A", "bastion", "root@web1", "echo begun; exec sleep 1000")
    assert command.stdout is not None and command.stdout.readline() == b"begun\n"
    bastion.admin("lock", kind, name, "--reason", "seized")
    said = f"{kind} {who} is locked: seized"
    line = f"sshrec: error: this session was ended by a lock: {said}\n"
    assert line in shown(child)
    _, error = command.communicate(timeout=20)
    assert line in error.decode()
    assert (child.exitstatus, command.returncode) == (255, 255)
    for path in packed(lab, 2):
        assert ended_by(Recorded(path)) == ("killed", f"ended by a lock: {said}")
    refused = lab.ssh("-A", "bastion", "root@web1", "echo in")
    assert errors(refused.stderr) == f"sshrec: error: {said}\n"
    assert bastion.rejected(said)["rule"] == "lock"
    bastion.admin("unlock", kind, name)
    assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"


@pytest.mark.root
def test_other_peoples_sessions_stay(bastion: Guarded, lab: Lab) -> None:
    child, other = shell(lab), shell(lab, "alice@web2", "alice")
    session = next(one["session"] for one in bastion.statuses() if one["user"] == "joe")
    bastion.admin("lock", "session", session, "--reason", "enough")
    assert "session" in shown(child)
    again = shell(lab)  # only that one is locked
    bastion.admin("lock", "node", "web1")
    assert "node web1 is locked\n" in shown(again)
    other.sendline("echo sti''ll; exit")
    assert "still\n" in shown(other)


def test_a_lock_on_a_user(bastion: Guarded, lab: Lab) -> None:
    """Their certificates are revoked: sshd itself refuses, and where its list is old, the auth service does."""
    krl = lab.authority_dir / "public" / "krl"
    old = krl.with_name("krl.old")
    child = shell(lab)
    shutil.copy2(krl, old)
    try:
        locked = bastion.admin("lock", "user", "joe", "--reason", "laptop stolen")
        assert re.search(r"; [1-9]\d* certificates? revoked\n", locked)
        said = "user joe is locked: laptop stolen"
        assert f"sshrec: error: this session was ended by a lock: {said}\n" in shown(child)
        assert b"Permission denied" in lab.ssh("-A", "bastion", "root@web1", "id").stderr
        krl.write_bytes(old.read_bytes())
        assert errors(lab.ssh("-A", "bastion", "root@web1", "id").stderr) == f"sshrec: error: {said}\n"
        bastion.admin("unlock", "user", "joe")
        krl.write_bytes(old.read_bytes())
        again = lab.ssh("-A", "bastion", "root@web1", "id").stderr
        assert errors(again) == (
            "sshrec: error: this certificate is revoked: locked: laptop stolen\n"
            "hint: log in again, for a new one\n"
        )
        assert bastion.rejected("this certificate is revoked")["rule"] == "revocation"
    finally:
        old.unlink()
        bastion.unlock_all()
        bastion.admin("krl", program="sshrec-ca")
        bastion.renew("joe")
    assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"


def test_a_revoked_certificate_is_refused_at_once(bastion: Guarded, lab: Lab) -> None:
    krl = lab.authority_dir / "public" / "krl"
    old = krl.read_bytes()
    bastion.admin("revoke", str(lab.laptops["joe"].serial), "--reason", "slip", program="sshrec-ca")
    krl.write_bytes(old)
    refused = lab.ssh("-A", "bastion", "root@web1", "id")
    assert "sshrec: error: this certificate is revoked: slip\n" in refused.stderr.decode()
    bastion.admin("krl", program="sshrec-ca")
    bastion.renew("joe")


@pytest.mark.root
def test_a_login_that_is_taken_away(bastion: Guarded, lab: Lab) -> None:
    """The person's sessions as it end, and nobody else's."""
    child, other = shell(lab), shell(lab, "alice@web1", "alice")
    try:
        assert "1 session ended" in bastion.admin("users", "update", "joe", "joe")
        assert "this session was ended by root" in shown(child)
        other.sendline("echo still-$((1+1))")
        other.expect_exact("still-2")
    finally:
        bastion.admin("users", "update", "joe", GIVEN["joe"])
        bastion.renew("joe")


def test_a_key_id_that_is_revoked_has_no_live_session(bastion: Guarded, lab: Lab) -> None:
    child = shell(lab)
    try:
        bastion.admin("revoke", "joe", "--reason", "gone", program="sshrec-ca")
        assert "this session was ended by a lock: user joe is locked: gone" in shown(child)
    finally:
        bastion.admin("revoke", "--undo", "joe", program="sshrec-ca")
        bastion.renew("joe")


def test_a_lock_with_an_end(bastion: Guarded, lab: Lab) -> None:
    bastion.admin("lock", "login", "root", "--ttl", "8s", "--reason", "a drill")
    refused = errors(lab.ssh("-A", "bastion", "root@web1", "id").stderr)
    assert re.fullmatch(r"sshrec: error: login root is locked until 2\S+ \S+ UTC: a drill\n", refused)
    lab.wait(lambda: lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n", "the lock to expire")
    child = shell(lab)
    child.sendline("exit")
    shown(child)


def test_locked_at_the_code(bastion: Guarded, lab: Lab) -> None:
    """Before there is a session: nothing is recorded, and the log says so."""
    before = len(lab.recordings())
    child = asked(lab, "deploy@web1")
    bastion.admin("lock", "login", "deploy", "--reason", "no more")
    assert "sshrec: error: login deploy is locked: no more\n" in shown(child)
    assert bastion.rejected("login deploy is locked")["rule"] == "lock"
    assert len(lab.recordings()) == before


def test_locked_while_the_target_thinks(bastion: Guarded, lab: Lab) -> None:
    child = asked(lab, "deploy@quiet")
    child.send(f"{bastion.person('joe').recovery_code()}\r")
    session = bastion.wait_for(host="quiet", state="live")["session"]
    bastion.admin("lock", "node", "127.0.0.2")
    assert "ended by a lock: node quiet is locked\n" in shown(child)
    recorded = last(lab)
    assert recorded.session == session
    assert ended_by(recorded) == ("killed", "ended by a lock: node quiet is locked")


def test_locked_while_sshrecd_is_away(bastion: Guarded, lab: Lab) -> None:
    child = shell(lab)
    lab.stop_sshrecd(signal.SIGKILL)
    bastion.admin("lock", "node", "web1", "--reason", "meanwhile")
    child.sendline("echo still $((40+2))")
    child.expect_exact("still 42")
    bastion.start()
    assert "ended by a lock: node web1 is locked: meanwhile\n" in shown(child)


def test_a_warden_that_dies(bastion: Guarded, lab: Lab) -> None:
    child = shell(lab)
    (warden,) = children(lab.sshrecd_pid, "sshrec-warden")
    os.kill(warden, signal.SIGKILL)
    bastion.admin("lock", "node", "web1")
    assert "ended by a lock: node web1 is locked\n" in shown(child)
    (another,) = children(lab.sshrecd_pid, "sshrec-warden")
    assert another != warden
    lab.stop_sshrecd()  # whose descriptors the lab knows
    bastion.start()


def test_a_stuck_session_does_not_keep_the_others(bastion: Guarded, lab: Lab) -> None:
    stuck, child = shell(lab), shell(lab)
    pid = min(one["pid"] for one in bastion.statuses())
    os.kill(pid, signal.SIGSTOP)
    bastion.admin("lock", "node", "web1")

    def over(one: Child) -> bool:
        return bool(one.expect([pexpect.TIMEOUT, pexpect.EOF], timeout=0.1))

    ready = lab.wait(lambda: [one for one in (stuck, child) if over(one)], "one of them to end")
    assert len(ready) == 1
    os.kill(pid, signal.SIGCONT)  # it is still there
    for one in {stuck, child} - set(ready):
        shown(one)


def test_a_lock_that_is_no_pattern_is_nobody_elses(bastion: Guarded, lab: Lab) -> None:
    """As one of another version might be. It stops what is called so, and no more can be made."""
    sqlite(
        bastion,
        "INSERT INTO locks (kind, name, reason, made_ms, made_by) VALUES ('node', '[web', '', 1, 'x'), "
        "('user', 'dom\\joe', '', 1, 'x')",
    )
    try:
        assert lab.ssh("-A", "bastion", "root@web1", "echo in").stdout == b"in\n"
        child = shell(lab)
        with bastion.service() as service:
            locked = service.authorise(question(lab, user="dom\\joe"))
        assert isinstance(locked, Forbidden)
        assert locked.reason == "user dom\\joe is locked"
        bastion.admin("lock", "login", "root")
        assert "login root is locked" in shown(child)
    finally:
        sqlite(bastion, "DELETE FROM locks WHERE made_by = 'x'")
