"""Keys, certificates and revocation lists, with ssh-keygen as the judge of all of them."""

from __future__ import annotations

import stat
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sshrec.errors import SshrecError, UsageError
from sshrec.openssh import signer
from sshrec.openssh.certificate import Certificate, Terms
from sshrec.openssh.keygen import KrlSection, make_key, make_krl, sign, sign_many
from sshrec.openssh.public_key import PublicKey, read
from sshrec.openssh.signer import KeyFile, Ready, unlocked

NOW = int(time.time())
TERMS = Terms("user", "joe", ("joe", "sshrec:joe"), NOW - 300, NOW + 3600, 7, {}, ("permit-pty",))


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary directories are made; after each test none is left."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    yield directory
    assert not list(directory.iterdir())


@pytest.fixture
def ready(tmp_path: Path) -> Iterator[Ready]:
    (tmp_path / "ca").mkdir(mode=0o700)
    public = make_key(tmp_path / "ca" / "ca", "the CA")
    with unlocked(KeyFile(tmp_path / "ca" / "ca", public), never) as ready:
        yield ready


@pytest.fixture
def key(tmp_path: Path) -> PublicKey:
    return make_key(tmp_path / "key", "joe@laptop")


def never(prompt: str) -> str:
    raise AssertionError(f"asked for {prompt}")


def keygen(*arguments: str | Path, status: int = 0, data: str | None = None) -> str:
    done = subprocess.run(["ssh-keygen", *arguments], input=data, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    return done.stdout


# Keys.


def test_a_key_is_ours_alone(tmp_path: Path) -> None:
    key = make_key(tmp_path / "key", "my key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "key.pub").stat().st_mode) == 0o644
    assert (tmp_path / "key.pub").read_text() == f"{key.line}\n"
    assert keygen("-y", "-P", "", "-f", tmp_path / "key") == f"{key.line}\n"
    assert key.comment == "my key"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "key.pub", "temporary"]


def test_a_passphrase_is_typed(tmp_path: Path) -> None:
    secret = "correct horse 'batter' ü $(id)"
    key = make_key(tmp_path / "key", "my key", secret)
    assert keygen("-y", "-P", secret, "-f", tmp_path / "key") == f"{key.line}\n"
    keygen("-y", "-P", "", "-f", tmp_path / "key", status=255)


@pytest.mark.parametrize("secret", ["", "a\nb", "a\x03b", "x" * 1000])
def test_passphrases_that_no_terminal_takes(secret: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a passphrase is 1 to 999 bytes without control characters"):
        make_key(tmp_path / "key", "", secret)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_nothing_is_overwritten(taken: str, tmp_path: Path) -> None:
    (tmp_path / taken).symlink_to("elsewhere")
    with pytest.raises(SshrecError, match=f"{taken} is there already$"):
        make_key(tmp_path / "key", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [taken, "temporary"]


def test_where_no_key_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(SshrecError, match=r"cannot make .*/none/key: no such file or directory"):
        make_key(tmp_path / "none" / "key", "")
    with pytest.raises(UsageError, match="control characters"):
        make_key(tmp_path / "key", "a\nb")


# Certificates.


def test_a_user_certificate(ready: Ready, key: PublicKey) -> None:
    options = {
        "source-address": "10.0.0.0/8,::1/128",
        "force-command": "echo 'a b' -O clear",
        "verify-required": "",
    }
    terms = replace(TERMS, critical_options=options, extensions=("permit-pty", "permit-agent-forwarding"))
    certificate = sign(ready, key, terms)
    assert certificate.line.endswith(" joe@laptop")
    shown = keygen("-L", "-f", "-", data=certificate.line)
    for words in (
        "user certificate",
        f"Public key: ED25519-CERT {key.fingerprint}",
        f"Signing CA: ED25519 {ready.public.fingerprint} (using ssh-ed25519)",
        'Key ID: "joe"',
        "Serial: 7",
        "joe\n                sshrec:joe\n        Critical",
        "force-command echo 'a b' -O clear\n",
        "source-address 10.0.0.0/8,::1/128\n",
        "verify-required\n",
        "Extensions: \n                permit-agent-forwarding\n                permit-pty\n",
    ):
        assert words in shown


def test_a_host_certificate_says_nothing_else(ready: Ready, key: PublicKey) -> None:
    terms = replace(TERMS, kind="host", principals=("web1", "web1.example.com", "10.0.0.5", "::1"), extensions=())
    shown = keygen("-L", "-f", "-", data=sign(ready, key, terms).line)
    assert "host certificate" in shown
    assert "Critical Options: (none)\n        Extensions: (none)\n" in shown


@pytest.mark.parametrize(
    ("after", "before"), [(0, 1), (1_000_000_000, 253402300799), (1_711_846_800 - 1, 1_711_846_800 + 3601)]
)
def test_validity_is_exact_in_any_time_zone(
    after: int, before: int, ready: Ready, key: PublicKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Europe/Berlin")  # whose clocks change within the last
    certificate = sign(ready, key, replace(TERMS, valid_after=after, valid_before=before))
    assert (certificate.valid_after, certificate.valid_before) == (after, before)


def test_options_of_others(ready: Ready, key: PublicKey) -> None:
    terms = replace(TERMS, critical_options={"a@example.com": "=x=", "b@c": ""}, extensions=("z@example.com",))
    certificate = sign(ready, key, terms)
    assert certificate.critical_options == {"a@example.com": "=x=", "b@c": ""}
    assert certificate.extensions == ("z@example.com",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "root"}, "a user's or a host's, not root"),
        ({"key_id": ""}, "cannot be a key id"),
        ({"key_id": "-h"}, "cannot be a key id"),
        ({"key_id": "a\x1b[0m"}, r"'a\x1b[0m' cannot be a key id"),
        ({"key_id": "a\n"}, "cannot be a key id"),
        ({"key_id": "x" * 70_000}, "cannot be a key id"),
        ({"principals": ()}, "1 to 256 principals, not 0"),
        ({"principals": tuple(f"p{n}" for n in range(257))}, "1 to 256 principals, not 257"),
        ({"principals": ("",)}, "'' cannot be a principal"),
        ({"principals": ("a,root",)}, "'a,root' cannot be a principal"),
        ({"principals": ("a root",)}, "cannot be a principal"),
        ({"principals": ("root\n",)}, "cannot be a principal"),
        ({"principals": ("*",)}, "cannot be a principal"),
        ({"principals": ("-O",)}, "cannot be a principal"),
        ({"principals": ("jö",)}, "cannot be a principal"),
        ({"principals": ("a", "a")}, "a principal is there twice"),
        ({"serial": 0}, "serial 0 is not within"),
        ({"serial": 1 << 64}, "is not within"),
        ({"valid_after": -1}, "the validity is not within the years"),
        ({"valid_before": (1 << 64) - 1}, "the validity is not within the years"),
        ({"valid_before": NOW - 300}, "the validity ends before it starts"),
        ({"extensions": ("permit-pty", "permit-pty")}, "an extension is there twice"),
        ({"extensions": ("clear=",)}, "cannot be an option"),
        ({"extensions": ("",)}, "cannot be an option"),
        ({"critical_options": {"a b": ""}}, "cannot be an option"),
        ({"critical_options": {"force-command": "id\nfoo"}}, "the value of force-command has control characters"),
        ({"critical_options": {"force-command": ""}}, "force-command has no value"),
        ({"critical_options": {"source-address": "x" * 5000}}, "or more than 4096"),
    ],
)
def test_terms_that_are_not_signed(change: dict[str, object], words: str, ready: Ready, key: PublicKey) -> None:
    with pytest.raises(UsageError) as caught:
        sign(ready, key, replace(TERMS, **change))  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_what_ssh_keygen_refuses_is_one_line(ready: Ready, key: PublicKey) -> None:
    with pytest.raises(SshrecError) as caught:
        sign(ready, key, replace(TERMS, critical_options={"source-address": "10.0.0.1/8"}))
    assert str(caught.value) == (
        'ssh-keygen did not sign: Inconsistent mask length for network "10.0.0.1/8"; Invalid source-address list'
    )


def test_a_point_off_its_curve_is_ssh_keygens_to_refuse(ready: Ready) -> None:
    fields = [b"ecdsa-sha2-nistp256", b"nistp256", b"\4" + b"\1" * 64]
    blob = b"".join(len(field).to_bytes(4) + field for field in fields)
    off = PublicKey("ecdsa-sha2-nistp256", b64encode(blob).decode(), "")
    with pytest.raises(SshrecError, match="ssh-keygen did not sign"):
        sign(ready, off, TERMS)


def test_a_planted_link_is_not_written_through(ready: Ready, key: PublicKey, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "key-cert.pub").symlink_to("precious")
    assert sign(ready, read(tmp_path / "key.pub"), TERMS).serial == 7
    assert (tmp_path / "precious").read_text() == "precious"


def test_many_at_once_come_in_order(ready: Ready, key: PublicKey) -> None:
    requests = [(key, replace(TERMS, serial=serial)) for serial in range(1, 41)]
    assert [certificate.serial for certificate in sign_many(ready, requests, 4)] == list(range(1, 41))


def test_many_end_at_the_first_that_fails(ready: Ready, key: PublicKey) -> None:
    done: list[Certificate] = []
    with pytest.raises(UsageError, match="serial 0"):
        done.extend(sign_many(ready, [(key, replace(TERMS, serial=serial)) for serial in (1, 2, 0, 3)], 2))
    assert [certificate.serial for certificate in done] == [1, 2]


def test_a_full_or_missing_disk(
    ready: Ready, key: PublicKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(SshrecError, match="cannot write temporary files: no such file or directory"):
        sign(ready, key, TERMS)


def test_no_ssh_keygen(ready: Ready, key: PublicKey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signer, "KEYGEN", "/nonexistent/ssh-keygen")
    with pytest.raises(SshrecError, match="cannot run /nonexistent/ssh-keygen: no such file") as caught:
        sign(ready, key, TERMS)
    assert caught.value.hint == "it is in Debian's openssh-client"


def test_an_ssh_keygen_that_lies(
    ready: Ready, key: PublicKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that adds a principal: what it signed is compared, not trusted."""
    liar = tmp_path / "ssh-keygen"
    liar.write_text(
        "#!/usr/bin/python3\nimport os, sys\n"
        "words = [word + ',root' if word.startswith('joe,') else word for word in sys.argv]\n"
        "os.execv('/usr/bin/ssh-keygen', words)\n"
    )
    liar.chmod(0o755)
    monkeypatch.setattr(signer, "KEYGEN", str(liar))
    with pytest.raises(SshrecError, match=r"the principals of the certificate: .*'root'"):
        sign(ready, key, TERMS)


def test_an_ssh_keygen_that_hangs(tmp_path: Path) -> None:
    with pytest.raises(SshrecError, match=r"^sleep did not end within 0\.1 seconds$"):
        signer.run(["/bin/sleep", "60"], seconds=0.1)
    with pytest.raises(SshrecError, match=r"^sleep did not end within 0\.1 seconds$"):
        signer.converse(["/bin/sleep", "60"], {}, [], SshrecError("?"), seconds=0.1)


# Revocation.


def krl_lists(krl: Path, line: str) -> bool:
    """What ssh-keygen -Q says of a certificate or key."""
    file = krl.with_name("asked.pub")
    file.write_text(f"{line}\n")
    done = subprocess.run(["ssh-keygen", "-Q", "-f", krl, file], capture_output=True, timeout=20)
    assert done.returncode in (0, 1), done.stderr
    return b": REVOKED" in done.stdout


@pytest.fixture
def krl(tmp_path: Path) -> Path:
    return tmp_path / "krl"


def test_a_list_that_revokes_nothing(ready: Ready, key: PublicKey, krl: Path) -> None:
    krl.write_bytes(make_krl([], 1))
    assert not krl_lists(krl, key.line)
    assert not krl_lists(krl, sign(ready, key, TERMS).line)
    krl.write_bytes(make_krl([KrlSection(ready.public)], 9))
    assert "# KRL version 9\n" in keygen("-Q", "-l", "-f", krl)


def test_by_serial_and_by_key_id(ready: Ready, key: PublicKey, krl: Path, tmp_path: Path) -> None:
    krl.write_bytes(make_krl([KrlSection(ready.public, [7, 2**64 - 1], ["jane", "a b ü"])], 2))
    assert krl_lists(krl, sign(ready, key, TERMS).line)
    assert krl_lists(krl, sign(ready, key, replace(TERMS, serial=2**64 - 1)).line)
    assert krl_lists(krl, sign(ready, key, replace(TERMS, serial=8, key_id="jane")).line)
    assert not krl_lists(krl, sign(ready, key, replace(TERMS, serial=8)).line)
    assert not krl_lists(krl, key.line)
    other = make_key(tmp_path / "other", "another CA")
    with unlocked(KeyFile(tmp_path / "other", other), never) as another:
        assert not krl_lists(krl, sign(another, key, TERMS).line), "serials are each CA's own"
        krl.write_bytes(make_krl([KrlSection(ready.public, [8]), KrlSection(other, [7])], 3))
        assert krl_lists(krl, sign(another, key, TERMS).line)
        assert not krl_lists(krl, sign(ready, key, TERMS).line)
        assert krl_lists(krl, sign(ready, key, replace(TERMS, serial=8)).line)


def test_whole_keys(ready: Ready, key: PublicKey, krl: Path) -> None:
    krl.write_bytes(make_krl([], 1, [key]))
    assert krl_lists(krl, key.line)
    assert krl_lists(krl, sign(ready, key, TERMS).line)
    assert not krl_lists(krl, ready.public.line)
    krl.write_bytes(make_krl([], 2, [ready.public]))
    assert krl_lists(krl, sign(ready, key, TERMS).line)


@pytest.mark.parametrize(
    ("serials", "key_ids", "words"),
    [
        ([0], [], "serial 0 cannot be revoked"),
        ([1 << 64], [], "cannot be revoked"),
        ([], [""], "'' cannot be revoked by its key id"),
        ([], ["a\nserial: 1-"], "cannot be revoked by its key id"),
        ([], ["joe #1"], "cannot be revoked by its key id"),
        ([], [" joe"], "cannot be revoked by its key id"),
    ],
)
def test_what_a_list_cannot_hold(serials: list[int], key_ids: list[str], words: str, key: PublicKey) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make_krl([KrlSection(key, serials, key_ids)], 1)
    assert caught.value.hint


def test_a_list_without_a_number() -> None:
    with pytest.raises(UsageError, match="cannot have the number -1"):
        make_krl([], -1)
