"""The plan of an enrolment: facts in, files and a certificate request out. No target is there."""

from __future__ import annotations

import dataclasses
from base64 import b64encode

import pytest

from sshrec.authority.enrolment import Plan, describe, judge, plan
from sshrec.errors import ConfigError, DataError, UsageError
from sshrec.openssh.public_key import PublicKey, wire_string
from sshrec.openssh.target import Facts, HostKey, SshCommand, View


def ed25519(letter: str) -> PublicKey:
    wire = wire_string(b"ssh-ed25519") + wire_string(letter.encode() * 32)
    return PublicKey("ssh-ed25519", b64encode(wire).decode(), letter)


def ecdsa() -> PublicKey:
    wire = wire_string(b"ecdsa-sha2-nistp256") + wire_string(b"nistp256") + wire_string(b"\4" + b"p" * 64)
    return PublicKey("ecdsa-sha2-nistp256", b64encode(wire).decode())


CA, OLD_CA = ed25519("C"), ed25519("O")
KRL = b"SSHKRL\n\0rest"
ED25519 = HostKey("/etc/ssh/ssh_host_ed25519_key", ed25519("h"))
ECDSA = HostKey("/etc/ssh/ssh_host_ecdsa_key", ecdsa())
FACTS = Facts(
    destination="root@web1",
    sshd_config="/etc/ssh/sshd_config",
    uid=0,
    owner=0,
    client="192.0.2.9",
    version="OpenSSH_9.2p1",
    config="# a comment\nInclude /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n",
    settings={"trustedusercakeys": ("none",), "revokedkeys": ("none",), "pidfile": ("/run/sshd.pid",)},
    host_keys=(ECDSA, ED25519),
    trusted=b"",
    krl=False,
)


def planned(facts: Facts = FACTS, krl: bytes | None = KRL, bastions: tuple[str, ...] = ("10.0.0.5",)) -> Plan:
    return plan(facts, ["web1", "10.0.0.7"], bastions, [CA.line], krl)


def contents(made: Plan) -> dict[str, str]:
    return {file.path: file.content.decode() for file in made.files}


def altered(**changes: object) -> Facts:
    return dataclasses.replace(FACTS, **changes)  # type: ignore[arg-type]


def test_what_is_written_and_what_is_signed() -> None:
    made = planned(bastions=("10.0.0.5", "10.1.0.0/16", "2001:DB8::5/128", "10.0.0.5"))
    assert made.certificate_request.key == ED25519.key
    assert made.certificate_request.names == ("web1", "10.0.0.7")
    assert made.certificate_path == "/etc/ssh/ssh_host_ed25519_key-cert.pub"
    files = contents(made)
    assert files["/etc/ssh/sshrec_user_ca.pub"] == f"{CA.line}\n"
    assert files["/etc/ssh/sshrec_krl"] == KRL.decode()
    directives = [line for line in files["/etc/ssh/sshd_config.d/00-sshrec.conf"].splitlines() if "#" not in line]
    assert directives == [
        "HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub",
        "Match Address 10.0.0.5,10.1.0.0/16,2001:db8::5",
        "    TrustedUserCAKeys /etc/ssh/sshrec_user_ca.pub",
        "    RevokedKeys /etc/ssh/sshrec_krl",
    ]


def test_where_sshd_has_penalties_the_bastion_is_exempt() -> None:
    def line(listed: str) -> str:
        made = planned(altered(settings={**FACTS.settings, "persourcepenaltyexemptlist": (listed,)}))
        text = contents(made)["/etc/ssh/sshd_config.d/00-sshrec.conf"]
        return next(line for line in text.splitlines() if line.startswith("PerSource"))

    assert line("none") == "PerSourcePenaltyExemptList 10.0.0.5"
    assert line("10.0.0.5") == "PerSourcePenaltyExemptList 10.0.0.5"  # ours, of the time before
    assert line("192.0.2.0/24,::1") == "PerSourcePenaltyExemptList 10.0.0.5,192.0.2.0/24,::1"
    assert line('::1," x') == "PerSourcePenaltyExemptList 10.0.0.5,::1"


def test_without_a_krl_sshd_is_told_of_none() -> None:
    made = planned(krl=None)
    assert set(contents(made)) == {"/etc/ssh/sshrec_user_ca.pub", "/etc/ssh/sshd_config.d/00-sshrec.conf"}
    assert "RevokedKeys" not in contents(made)["/etc/ssh/sshd_config.d/00-sshrec.conf"]


def test_a_krl_that_is_in_place_stays_heeded() -> None:
    made = planned(altered(krl=True), krl=None)
    assert "RevokedKeys /etc/ssh/sshrec_krl" in contents(made)["/etc/ssh/sshd_config.d/00-sshrec.conf"]
    assert "/etc/ssh/sshrec_krl" not in contents(made)


def test_while_the_ca_is_rotated_both_keys_are_trusted() -> None:
    made = plan(FACTS, ["web1"], ["10.0.0.5"], [CA.line, OLD_CA.line])
    assert contents(made)["/etc/ssh/sshrec_user_ca.pub"] == f"{CA.line}\n{OLD_CA.line}\n"


def test_the_best_host_key_is_signed() -> None:
    assert planned(altered(host_keys=(ECDSA,))).host_key == ECDSA
    with pytest.raises(DataError, match=r"root@web1 has no host key that can be signed"):
        planned(altered(host_keys=()))


@pytest.mark.parametrize(
    ("config", "directory"),
    [
        ("Include /etc/ssh/sshd_config.d/*.conf", "/etc/ssh/sshd_config.d"),
        ("include=/srv/*", "/srv"),
        ('Include "/srv/a dir/*.conf" /srv/b/*.conf # both', "/srv/a dir"),
        ("Include sshd_config.d/*.conf", "/etc/ssh/sshd_config.d"),
        ("Include /etc/ssh/one.conf\nInclude /srv/d/*.conf", "/srv/d"),
    ],
)
def test_the_directory_is_what_include_names(config: str, directory: str) -> None:
    assert f"{directory}/00-sshrec.conf" in contents(planned(altered(config=config)))


@pytest.mark.parametrize(
    "config",
    [
        "",
        "#Include /etc/ssh/sshd_config.d/*.conf",
        "Match User joe\nInclude /etc/ssh/sshd_config.d/*.conf",
        "Include /etc/ssh/sshd_config.d/99-*.conf",
        "Include /etc/*/*.conf",
        'Include "/etc/ssh',
    ],
)
def test_without_such_a_directory_there_is_no_plan(config: str) -> None:
    with pytest.raises(DataError, match=r"sshd_config includes no directory for 00-sshrec\.conf") as raised:
        planned(altered(config=config))
    assert raised.value.hint and "Include /etc/ssh/sshd_config.d/*.conf" in raised.value.hint


@pytest.mark.parametrize(
    "bastion", ["", "bastion", "10.0.0.5/24", "0.0.0.0/0", "::/0", "10.0.0.5,*", "fe80::1%eth0"]
)
def test_a_bastion_is_an_address_or_a_network(bastion: str) -> None:
    with pytest.raises(ConfigError, match="bastion"):
        planned(bastions=(bastion,))


def test_an_ipv4_address_in_ipv6_is_never_what_sshd_sees() -> None:
    with pytest.raises(ConfigError, match=r"sshd sees 10\.0\.0\.5"):
        planned(bastions=("::ffff:10.0.0.5",))


def test_no_bastion_is_no_plan() -> None:
    with pytest.raises(ConfigError, match="no bastion's address is known"):
        planned(bastions=())


@pytest.mark.parametrize("name", ["", "*", "web1,web2", "web 1", "web1\n", "-web1", "10.0.0.0/8", "1.2.3"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a host and no address"):
        plan(FACTS, [name], ["10.0.0.5"], [CA.line])


def test_names_come_in_one_form_and_once() -> None:
    made = plan(FACTS, ["Web1", "web1", "2001:DB8::0:7"], ["10.0.0.5"], [CA.line])
    assert made.certificate_request.names == ("web1", "2001:db8::7")


@pytest.mark.parametrize("line", ["", "garbage", f"cert-authority {CA.line}", f"{CA.line}\n{OLD_CA.line}"])
def test_the_user_ca_is_bare_lines(line: str) -> None:
    with pytest.raises(DataError, match="the user CA"):
        plan(FACTS, ["web1"], ["10.0.0.5"], [line])


def test_a_krl_is_one() -> None:
    with pytest.raises(DataError, match="KRL"):
        planned(krl=b"ssh-ed25519 AAAA")


def test_a_ca_that_is_trusted_from_everywhere_is_found_before_anything_is_done() -> None:
    settings = {**FACTS.settings, "trustedusercakeys": ("/etc/ssh/ca.pub",)}
    with pytest.raises(DataError, match=r"trusts the user CA from everywhere: TrustedUserCAKeys /etc/ssh/ca\.pub"):
        planned(altered(settings=settings, trusted=f"# ours\n{CA.algorithm} {CA.blob} other\n".encode()))


def test_another_ca_may_stay_and_is_mentioned() -> None:
    settings = {**FACTS.settings, "trustedusercakeys": ("/etc/ssh/ca.pub",)}
    made = planned(altered(settings=settings, trusted=OLD_CA.line.encode()))
    assert "note: from the bastion, TrustedUserCAKeys /etc/ssh/ca.pub no longer counts" in describe(made)


def test_a_list_of_revoked_keys_is_never_put_out_of_force() -> None:
    facts = altered(settings={**FACTS.settings, "revokedkeys": ("/etc/ssh/revoked",)})
    with pytest.raises(DataError, match=r"a list of revoked keys of its own, /etc/ssh/revoked"):
        planned(facts)
    assert planned(facts, krl=None)


def test_a_bastions_own_file_of_that_name_is_never_replaced() -> None:
    path = "/etc/ssh/sshd_config.d/00-sshrec.conf"
    own = contents(planned())[path].encode()
    assert planned(altered(present={path: own, "/elsewhere/00-sshrec.conf": b"x"}))
    for text in (b"# sshrec: everybody in the group sshrec-users gets the recording gateway", b"", b"\n" + own):
        with pytest.raises(
            DataError, match=r"has a /etc/ssh/sshd_config\.d/00-sshrec\.conf that no enrolment wrote"
        ):
            planned(altered(present={path: text}))


def test_the_description_has_the_configuration_file_line_by_line() -> None:
    made = planned()
    lines = describe(made)
    text = contents(made)["/etc/ssh/sshd_config.d/00-sshrec.conf"]
    at = lines.index("write /etc/ssh/sshd_config.d/00-sshrec.conf")
    assert lines[at + 1 : at + 1 + text.count("\n")] == [f"  | {line}" for line in text.splitlines()]
    assert f"sign {ED25519.path} (ssh-ed25519, {ED25519.key.fingerprint})" in lines
    assert "  for web1, 10.0.0.7" in lines
    assert all(line.isprintable() for line in lines)


def views(made: Plan) -> dict[str, View]:
    """What sshd says when all is well."""
    inside = {
        "trustedusercakeys": (made.user_ca_path,),
        "revokedkeys": (made.krl or "none",),
        "hostcertificate": (made.certificate_path,),
    }
    outside = {"trustedusercakeys": ("none",), "revokedkeys": ("none",)}
    seen = {address: View(address, inside, CA.line.encode()) for address in made.addresses}
    return seen | {address: View(address, outside, b"") for address in made.elsewhere}


def test_sshd_is_judged_from_each_bastion_and_from_elsewhere() -> None:
    made = planned(bastions=("10.0.0.5", "192.0.2.0/24"))
    assert made.addresses == ("10.0.0.5", "192.0.2.0")
    assert "192.0.2.1" not in made.elsewhere
    assert len(made.elsewhere) > 2
    judge(made, views(made).values())


@pytest.mark.parametrize("keyword", ["trustedusercakeys", "revokedkeys", "hostcertificate"])
def test_a_setting_that_does_not_get_through_is_named(keyword: str) -> None:
    made = planned()
    seen = views(made)
    settings = {**seen["10.0.0.5"].settings, keyword: ("/other",)}
    with pytest.raises(DataError, match=rf"root@web1: sshd takes {keyword} /other for a login from 10\.0\.0\.5"):
        judge(made, (seen | {"10.0.0.5": View("10.0.0.5", settings, b"")}).values())


def test_a_ca_seen_from_elsewhere_is_refused_under_any_name() -> None:
    made = planned()
    for path, trusted in ((made.user_ca_path, b""), ("/other", CA.line.encode())):
        leak = View("203.0.113.77", {"trustedusercakeys": (path,)}, trusted)
        with pytest.raises(DataError, match=r"would trust the user CA from 203\.0\.113\.77"):
            judge(made, (views(made) | {"203.0.113.77": leak}).values())


def test_a_target_that_leaves_a_view_out_is_refused() -> None:
    made = planned()
    seen = views(made)
    for address in seen:
        with pytest.raises(DataError, match="does not tell how a login from"):
            judge(made, [view for view in seen.values() if view.address != address])


@pytest.mark.parametrize("destination", ["", "-oProxyCommand=id", "root@web1 id", "web1\n", "wéb"])
def test_a_destination_is_never_an_option(destination: str) -> None:
    with pytest.raises(UsageError, match="no destination"):
        SshCommand(destination)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["web2"], "'web2' is no option"),
        (["-p", "22", "web2"], "'web2' is no option"),
        (["-"], "'-' is no option"),
        (["--"], "option -- does not go"),
        (["-N"], "option -N does not go"),
        (["-vf"], "option -f does not go"),
        (["-p"], "option -p wants a value"),
        (["-L", "1:a:1", "-W", "a:1"], "option -W does not go"),
    ],
)
def test_options_that_are_none_are_refused(options: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SshCommand("web1", options)


def test_the_persons_options_stand_before_the_destination() -> None:
    options = ["-p2222", "-vi", "key", "-o", "User=root", "-4"]
    argv = SshCommand("web1", options, sudo=True).argv("true", ["mark"])
    at = argv.index("-p2222")
    assert argv[at : at + len(options)] == options
    assert argv[-3:-1] == ["--", "web1"]
    assert argv[-1].startswith("exec /bin/sh -c 'exec sudo -n -- /bin/sh -c ")
    assert argv[-1].count("'") == 2


@pytest.mark.parametrize("path", ["sshd_config", "/etc/ssh/a b", "/etc/ssh/$(id)", "/etc/../x", "/a'b"])
def test_the_path_of_sshd_config_is_plain(path: str) -> None:
    with pytest.raises(UsageError, match="no absolute path"):
        SshCommand("web1", sshd_config=path)
