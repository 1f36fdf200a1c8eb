"""The one reader of sshrec.yaml: what it takes, and the words in which it refuses."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sshrec.config import Config, Node, load, parse
from sshrec.errors import ConfigError
from sshrec.role import EXAMPLE


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, "sshrec.yaml")
    assert "\n" not in str(caught.value)
    return f"{caught.value} | {caught.value.hint}"


def test_two_directories_are_enough() -> None:
    config = parse("data_dir: /srv/sshrec\nrun_dir: /run/user/1000/sshrec\n")
    assert config == Config(data_dir=Path("/srv/sshrec"), run_dir=Path("/run/user/1000/sshrec"))
    assert config.recordings_dir == Path("/srv/sshrec/recordings")
    assert config.socket == Path("/run/user/1000/sshrec/sshrecd.sock")


def test_a_heading_with_nothing_below_it_is_not_there() -> None:
    assert parse("nodes:\nlimits:\nhop:\n  ciphers:\n") == Config()


def test_an_empty_file_is_the_defaults() -> None:
    assert parse("") == parse("# nothing yet\n") == Config()


def test_yes_and_no_are_understood_in_every_spelling() -> None:
    for text, value in (
        ("no", False),
        ("false", False),
        ("off", False),
        ("yes", True),
        ("on", True),
        ("true", True),
    ):
        assert parse(f"proxy_checks_host_keys: {text}").proxy_checks_host_keys is value


def test_nodes() -> None:
    config = parse(
        "nodes:\n- name: web1\n  address: 10.0.0.5\n  port: 2222\n  labels: {env: prod}\n- {name: db1}\n"
    )
    assert config.node("web1") == Node(name="web1", address="10.0.0.5", port=2222, labels={"env": "prod"})
    assert config.node("db1") == Node(name="db1")
    assert config.node("db2") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data_dr: /x", "unknown setting 'data_dr' | did you mean data_dir?"),
        ("limits: {session: 3}", "unknown setting 'limits.session' | did you mean sessions?"),
        ("nodes: [{name: a, adress: b}]", "unknown setting 'nodes[0].adress' | did you mean address?"),
        ("zzz: 1", "known here: data_dir, run_dir"),
        ("run_dir: /a\nrun_dir: /b", "the key 'run_dir' stands twice"),
        ("limits: {sessions: 0}", "Expected `int` >= 1 - at `$.limits.sessions`"),
        ("limits: {sessions: many}", "Expected `int`, got `str` - at `$.limits.sessions`"),
        ("nodes: [{name: web1, port: 65536}]", "at `$.nodes[0].port`"),
        ("nodes: web1", "nodes must be a list, not 'web1'"),
        ("known_hosts: /etc/x", "known_hosts must be a list, not '/etc/x'"),
        ("data_dir: 3", "data_dir must be an absolute path, not 3"),
        ("- a", "the file must be a mapping"),
        ("hop: 3", "hop must be a mapping"),
        ("session_recording: off", "session_recording must be one of proxy, proxy-sync, not 'off'"),
        ("session_recording: node", "session_recording must be one of proxy, proxy-sync, not 'node'"),
        ("data_dir: relative", "data_dir must be an absolute path, not 'relative'"),
        ("nodes: [{name: a}, {name: a}]", "two nodes are called 'a'"),
        ("nodes: [{name: scp}]", "'scp' cannot be the name of a node"),
        ("nodes: [{name: Web1}]", "'Web1' cannot be the name of a node"),
        ("nodes: [{name: 'a b'}]", "'a b' cannot be the name of a node"),
        ("run_dir: /" + "x" * 80, "run_dir is longer than"),
        ("run_dir: /run/100%h", "may have letters, digits"),
        ("known_hosts: ['/etc/a b']", "may have letters, digits"),
        (
            "audit: {sinks: [{name: a, type: stdout}, {name: a, type: stdout}]}",
            "two sinks of audit.sinks are called",
        ),
        ("audit: {sinks: [{name: ../a, type: stdout}]}", "'../a' cannot be the name of a sink"),
        ("audit: {sinks: [{name: a}]}", "missing required field `type`"),
        ("audit: {sinks: [{name: a, type: kafka}]}", "must be one of syslog, http, stdout, not 'kafka'"),
        ("audit: {sinks: [{name: a, type: stdout, adress: x}]}", "did you mean address?"),
        ("audit: {sinks: [{name: a, type: stdout, address: x}]}", "standard output has no address"),
        ("audit: {sinks: [{name: a, type: syslog, address: 'udp://h:514'}]}", "nobody can tell | use tcp:"),
        ("audit: {sinks: [{name: a, type: syslog, address: 'tcp://'}]}", "'tcp://' is no path, tcp://HOST:PORT"),
        ("audit: {sinks: [{name: a, type: syslog, address: 'tcp://h:99999'}]}", "is no path, tcp://HOST:PORT"),
        ("audit: {sinks: [{name: a, type: http}]}", "audit sink a: '' is no URL"),
        ("audit: {sinks: [{name: a, type: http, address: 'https://u:p@h/'}]}", "is no URL"),
        (
            "audit: {sinks: [{name: a, type: http, address: 'http://h/', token_file: /t}]}",
            "in the clear | use https",
        ),
        ("audit: {sinks: [{name: a, type: syslog, token_file: /t}]}", "only http sends a token"),
        ("audit: {sinks: [{name: a, type: syslog, ca_file: /t}]}", "ca_file is for tls:// and https:// only"),
        ("a: [", "sshrec.yaml: "),
        ("a: !!python/object/apply:os.system [id]", "sshrec.yaml: "),
    ],
)
def test_refusals(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_file_that_others_can_change_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "sshrec.yaml"
    path.write_text("limits: {sessions: 3}\n")
    path.chmod(0o644)
    assert load(path).limits.sessions == 3
    path.chmod(0o664)
    with pytest.raises(ConfigError, match="can be changed by others"):
        load(path)
    path.chmod(0o644)
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path} can be changed by others")):
        load(path)
    tmp_path.chmod(0o1777)  # sticky, as /tmp is
    assert load(path).limits.sessions == 3


def test_a_file_of_somebody_else_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "sshrec.yaml"
    path.write_text("")
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(path, 12345, -1)
    with pytest.raises(ConfigError, match="can be changed by others"):
        load(path)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or directory"):
        load(tmp_path / "none.yaml")


def test_the_inventory_lies_beside_the_file_and_adds_to_its_nodes(tmp_path: Path) -> None:
    file, inventory = tmp_path / "sshrec.yaml", tmp_path / "nodes.yaml"
    file.write_text("nodes: [{name: web1, port: 2222}]\n")
    assert load(file).enrolled == ()
    inventory.write_text("nodes:\n- {name: web1}\n- {name: db1, address: 10.0.0.9}\n")
    config = load(file)
    assert config.inventory == inventory
    assert config.node("web1") == Node(name="web1", port=2222)
    assert config.node("db1") == Node(name="db1", address="10.0.0.9")


def test_the_inventory_is_no_less_strict_than_the_file(tmp_path: Path) -> None:
    file, inventory = tmp_path / "sshrec.yaml", tmp_path / "nodes.yaml"
    file.write_text("")
    for text, said in (
        ("nodes: [{name: web1}, {name: web1}]\n", "two nodes are called 'web1'"),
        ("node: [{name: web1}]\n", "unknown setting 'node'"),
        ("nodes: [{name: sshrec-proxy}]\n", "'sshrec-proxy' cannot be the name of a node"),
    ):
        inventory.write_text(text)
        with pytest.raises(ConfigError, match=re.escape(f"{inventory}: {said}")):
            load(file)
    inventory.write_text("nodes: [{name: web1}]\n")
    inventory.chmod(0o666)
    with pytest.raises(ConfigError, match="can be changed by others"):
        load(file)


def test_the_authority_lies_beside_the_data_and_not_in_it() -> None:
    assert Config().authority_dir == Path("/var/lib/sshrec-auth")
    config = parse(
        "data_dir: /srv/sshrec\nauthority: {user_ttl: 8h, user_ttl_limit: 1d12h, bastions: [10.0.0.0/24]}\n"
    )
    assert config.database_url == "sqlite:////srv/sshrec-auth/sshrec.db"
    assert (config.authority.user_ttl, config.authority.user_ttl_limit) == (28800, 129600)
    assert Path("/srv/sshrec-auth/public/known_hosts") in config.known_hosts_files


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{user_ttl: 8}", "Expected Duration, got int"),
        ("{user_ttl: 2d}", "authority.user_ttl, 2d, is longer than authority.user_ttl_limit, 1d"),
        ("{host_ttl: forever}", "'forever' is no duration"),
        ("{bastions: [bastion.example.com]}", "'bastion.example.com' is no address and no network"),
        ("{user: {signer: agent}}", "public_key"),
        ("{user: {public_key: /ca.pub, signer: pkcs11}}", "needs its provider"),
        ("{user: {public_key: /ca.pub, signer: file}}", "must be one of agent, pkcs11"),
        ("{directory: /var/lib/sshrec/auth}", "authority.directory is below data_dir"),
        ("{hosts: 'a b'}", "'a b' is no pattern of known_hosts"),
    ],
)
def test_mistakes_about_the_authority(text: str, said: str) -> None:
    assert said in refusal(f"authority: {text}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: 'a b'", "'a b' cannot be the name of a role"),
        ("name: a}, {name: a", "two roles are called 'a'"),
        ("users: [joe]", "missing required field `name`"),
        ("name: a, user: [joe]", "unknown setting 'roles[0].user' | did you mean users?"),
        ("name: a, users: joe", "roles[0].users must be a list, not 'joe'"),
        ("name: a, users: []", "length >= 1 - at `$.roles[0].users`"),
        ("name: a, users: ['!joe']", "role a: users: '!joe' is no pattern of names"),
        ("name: a, users: ['!joe']", "there is no '!'"),
        ("name: a, logins: [Root]", "role a: logins: 'Root' is no login"),
        ("name: a, logins: ['{allowed}-adm']", "'{allowed}-adm' is no login"),
        ("name: a, logins: ['{user}*']", "'{user}*' is no login"),
        ("name: a, nodes: [10.2.*]", "role a: nodes: '10.2.*' is no address and no network such as 10.2.0.0/16"),
        ("name: a, nodes: [10.2.3.4/16]", "is an address within the network 10.2.0.0/16: write one of them"),
        ("name: a, nodes: ['fe80::1%eth0/64']", "is no address and no network"),
        ("name: a, nodes: ['Web*']", "'Web*' is no pattern of names (web*), network (10.2.0.0/16) or label"),
        ("name: a, nodes: ['=prod']", "'=prod' is no pattern"),
        ("name: a, kinds: [sftp]", "roles[0].kinds[0] must be one of shell, exec, upload, download, not 'sftp'"),
        ("name: a, hours: [mon-fri 8-18]", "'mon-fri 8-18' are no hours such as mon-fri 08:00-18:00"),
        ("name: a, sources: [office]", "role a: sources: 'office' is no address and no network"),
        ("name: a, sessions: 0", "Expected `int` >= 1 - at `$.roles[0].sessions`"),
        ("name: a, mfa: always", "roles[0].mfa must be one of login, session, not 'always'"),
        ("name: a, mfa_grace: 5m", "role a: mfa_grace is for mfa: session only"),
        ("name: a, session_length: 8", "Expected Duration, got int"),
    ],
)
def test_mistakes_about_roles(text: str, said: str) -> None:
    assert said in refusal(f"roles: [{{{text}}}]\n")


def test_a_code_for_each_session_needs_a_second_factor() -> None:
    text = "roles: [{name: a, mfa: session}]\n"
    assert parse(text).second_factor == "otp"
    assert "role a: mfa: session cannot be met with second_factor: off" in refusal(f"second_factor: off\n{text}")


def test_the_example_of_roles() -> None:
    dba, contractors, staff = parse(EXAMPLE).roles
    assert (dba.mfa_grace, dba.record_input, contractors.kinds) == (900, True, ("shell",))
    assert (contractors.logins, staff.logins) == (("{allowed}",), ("{user}",))
