"""A CA's key in a file, an agent, a token: unlocked once, refused where it is not safe or not the one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sshrec.errors import SshrecError
from sshrec.openssh.certificate import Terms
from sshrec.openssh.keygen import make_key, sign, sign_many
from sshrec.openssh.public_key import PublicKey, read
from sshrec.openssh.signer import AgentKey, KeyFile, Signer, TokenKey, unlocked

NOW = int(time.time())
TERMS = Terms("user", "joe", ("joe",), NOW - 300, NOW + 3600, 7)
SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
SECRET = "s3cret ü 'x'"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary directories are made where the test can see that none is left."""
    with tempfile.TemporaryDirectory(prefix="sshrec-test-") as directory:  # short enough for a socket's path
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield
        assert not list(Path(directory).iterdir())


@pytest.fixture
def key(tmp_path: Path) -> PublicKey:
    return make_key(tmp_path / "key", "joe@laptop")


@pytest.fixture
def ca(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "ca", make_key(tmp_path / "ca", "the CA"))


@pytest.fixture
def encrypted(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "encrypted", make_key(tmp_path / "encrypted", "the CA", SECRET))


class Asked:
    """A person who answers every question the same, and counts them."""

    def __init__(self, answer: str) -> None:
        self.answer, self.prompts = answer, list[str]()

    def __call__(self, prompt: str) -> str:
        self.prompts.append(prompt)
        return self.answer


def never(prompt: str) -> str:
    raise AssertionError(f"asked for {prompt}")


def signs(signer: Signer, key: PublicKey, ask: Callable[[str], str] = never) -> None:
    with unlocked(signer, ask) as ready:
        assert sign(ready, key, TERMS).ca == signer.public


def refusal(signer: Signer, key: PublicKey, ask: Callable[[str], str] = never) -> str:
    with pytest.raises(SshrecError) as caught:
        signs(signer, key, ask)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# A file.


def test_a_key_file(ca: KeyFile, key: PublicKey) -> None:
    signs(ca, key)


def test_a_passphrase_is_asked_for_once(encrypted: KeyFile, key: PublicKey) -> None:
    asked = Asked(SECRET)
    with unlocked(encrypted, asked) as ready:
        assert len(list(sign_many(ready, [(key, TERMS)] * 6, 3))) == 6
    assert asked.prompts == [f"passphrase for {encrypted.path}: "]


@pytest.mark.parametrize("secret", ["wrong", "", "a\nb", "a\x03", "x" * 5000])
def test_a_wrong_passphrase(secret: str, encrypted: KeyFile, key: PublicKey) -> None:
    asked = Asked(secret)
    assert refusal(encrypted, key, asked) == f"wrong passphrase for {encrypted.path}"
    assert len(asked.prompts) == 1


def test_the_passphrase_is_in_no_argument_and_no_environment(
    encrypted: KeyFile, key: PublicKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every program is run through one that notes what it was given."""
    for name in ("KEYGEN", "SSH_ADD", "SSH_AGENT"):
        program = {"KEYGEN": "ssh-keygen", "SSH_ADD": "ssh-add", "SSH_AGENT": "ssh-agent"}[name]
        spy = tmp_path / program
        spy.write_text(f'#!/bin/sh\n(env; echo "$0 $@") >>{tmp_path}/seen\nexec /usr/bin/{program} "$@"\n')
        spy.chmod(0o755)
        monkeypatch.setattr(f"sshrec.openssh.signer.{name}", str(spy))
    monkeypatch.setenv("LD_PRELOAD_X", "/evil")
    signs(encrypted, key, Asked(SECRET))
    seen = (tmp_path / "seen").read_text()
    assert {"ssh-keygen", "ssh-add", "ssh-agent"} <= {line.split()[0].split("/")[-1] for line in seen.splitlines()}
    assert "s3cret" not in seen
    assert "LD_PRELOAD_X" not in seen


def test_the_agent_of_an_encrypted_key_dies_with_us(encrypted: KeyFile) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from sshrec.openssh import public_key, signer\n"
        "path = Path(sys.argv[1])\n"
        "file = signer.KeyFile(path, public_key.read(f'{path}.pub'))\n"
        "with signer.unlocked(file, lambda prompt: sys.argv[2]) as ready:\n"
        "    print(ready._environment['SSH_AUTH_SOCK'], flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    command = [sys.executable, "-c", code, str(encrypted.path), SECRET]
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # short enough for a socket's path
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": directory})
        path = done.stdout.strip()
        assert path, done.stderr
        deadline = time.monotonic() + 20
        while answers(path):
            assert time.monotonic() < deadline, "the agent still answers"
            time.sleep(0.01)


def answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(path) == 0


def test_errors_of_the_caller_are_its_own(encrypted: KeyFile) -> None:
    with pytest.raises(FileNotFoundError, match="mine"), unlocked(encrypted, Asked(SECRET)):
        raise FileNotFoundError("mine")


def test_files_that_are_not_safe(ca: KeyFile, key: PublicKey, tmp_path: Path) -> None:
    for mode in (0o644, 0o640, 0o604):
        ca.path.chmod(mode)
        assert refusal(ca, key) == f"others than its owner may use {ca.path}"
    ca.path.chmod(0o600)
    (tmp_path / "link").symlink_to(ca.path)
    assert refusal(KeyFile(tmp_path / "link", ca.public), key) == f"{tmp_path}/link is a symbolic link"
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", tmp_path):
        assert refusal(KeyFile(path, ca.public), key) == f"{path} is not a regular file"
    assert refusal(KeyFile(tmp_path / "no", ca.public), key) == f"{tmp_path}/no: no such private key"
    tmp_path.chmod(0o777)
    assert refusal(ca, key) == f"{tmp_path} can be changed by others than root and the caller"


@pytest.mark.root
def test_files_of_others(ca: KeyFile, key: PublicKey) -> None:
    os.chown(ca.path, 65534, 65534)
    assert refusal(ca, key) == f"{ca.path} belongs to uid 65534, not to 0"


def test_files_that_are_not_the_key(ca: KeyFile, encrypted: KeyFile, key: PublicKey, tmp_path: Path) -> None:
    assert refusal(KeyFile(ca.path, key), key) == f"{ca.path} is not the private key of {key.fingerprint}"
    words = f"{encrypted.path} is not the private key of {key.fingerprint}"
    assert refusal(KeyFile(encrypted.path, key), key, Asked(SECRET)) == words
    (tmp_path / "junk").write_text("junk")
    (tmp_path / "junk").chmod(0o600)
    assert refusal(KeyFile(tmp_path / "junk", key), key).startswith(f"{tmp_path}/junk is no private key: ")


# An agent.


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:  # short enough for a socket's path
        path = Path(directory, "agent")
        with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            yield path
            process.kill()


def add(agent: Path, *arguments: str | Path) -> None:
    env = {**os.environ, "SSH_AUTH_SOCK": str(agent)}
    subprocess.run(["ssh-add", "-q", *arguments], env=env, check=True)


@pytest.mark.parametrize(("kind", "bits"), [("ed25519", 256), ("rsa", 3072), ("ecdsa", 384)])
def test_an_agent(kind: str, bits: int, agent: Path, key: PublicKey, tmp_path: Path) -> None:
    made = ["ssh-keygen", "-q", "-t", kind, "-b", str(bits), "-N", "", "-f", str(tmp_path / "theirs")]
    subprocess.run(made, check=True)
    add(agent, tmp_path / "theirs")
    signs(AgentKey(read(tmp_path / "theirs.pub"), agent), key)


def test_agents_without_the_key(agent: Path, ca: KeyFile, key: PublicKey, tmp_path: Path) -> None:
    words = f"the agent at {agent} does not hold the key {ca.public.fingerprint}"
    assert refusal(AgentKey(ca.public, agent), key) == words
    add(agent, tmp_path / "key")
    assert refusal(AgentKey(ca.public, agent), key) == words
    assert refusal(AgentKey(ca.public, tmp_path / "no"), key).startswith(
        f"the agent at {tmp_path}/no does not answer"
    )


def test_an_agent_that_loses_the_key(agent: Path, ca: KeyFile, key: PublicKey) -> None:
    add(agent, ca.path)
    with unlocked(AgentKey(ca.public, agent), never) as ready:
        add(agent, "-D")
        with pytest.raises(SshrecError, match="no longer has the key"):
            sign(ready, key, TERMS)


def test_an_agent_that_refuses(agent: Path, ca: KeyFile, key: PublicKey) -> None:
    add(agent, "-c", ca.path)  # to be confirmed, and there is nobody who could
    assert refusal(AgentKey(ca.public, agent), key) == f"the agent at {agent} refuses to sign"


# A token.


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a SoftHSM with one token, PIN 4321, that holds an RSA key."""
    if not SOFTHSM.exists():
        pytest.skip("needs softhsm2")
    directory = tmp_path_factory.mktemp("token")
    (directory / "tokens").mkdir()
    conf = directory / "softhsm2.conf"
    conf.write_text(f"directories.tokendir = {directory}/tokens\nobjectstore.backend = file\n")
    env = {**os.environ, "SOFTHSM2_CONF": str(conf)}
    make = ["ssh-keygen", "-q", "-t", "rsa", "-b", "3072", "-m", "PKCS8", "-N", "", "-f", str(directory / "key")]
    for command in (
        make,
        ["softhsm2-util", "--init-token", "--free", "--label", "ca", "--so-pin", "123456", "--pin", "4321"],
        [
            "softhsm2-util",
            "--import",
            f"{directory}/key",
            "--token",
            "ca",
            "--label",
            "ca",
            "--id",
            "01",
            "--pin",
            "4321",
        ],
    ):
        subprocess.run(command, env=env, check=True, capture_output=True)
    return conf


@pytest.fixture
def on_token(token: Path, monkeypatch: pytest.MonkeyPatch) -> TokenKey:
    monkeypatch.setenv("SOFTHSM2_CONF", str(token))
    return TokenKey(read(token.parent / "key.pub"), SOFTHSM)


def test_a_pin_is_asked_for_once(on_token: TokenKey, key: PublicKey) -> None:
    asked = Asked("4321")
    with unlocked(on_token, asked) as ready:
        assert [certificate.ca for certificate in sign_many(ready, [(key, TERMS)] * 3)] == [on_token.public] * 3
        assert "4321" not in repr(ready)
    assert asked.prompts == [f"PIN for the token of {SOFTHSM}: "]


def test_a_wrong_pin_is_tried_once(on_token: TokenKey, key: PublicKey, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token counts the wrong ones and locks itself."""
    with unlocked(on_token, Asked("9999")) as ready:
        for program in ("/usr/bin/ssh-keygen", "/nonexistent"):
            monkeypatch.setattr("sshrec.openssh.signer.KEYGEN", program)
            with pytest.raises(SshrecError, match=f"^wrong PIN for the token of {SOFTHSM}$"):
                sign(ready, key, TERMS)


def test_tokens_that_are_not_there(on_token: TokenKey, key: PublicKey, monkeypatch: pytest.MonkeyPatch) -> None:
    words = f"the token of {SOFTHSM} does not hold the key {key.fingerprint}"
    assert refusal(TokenKey(key, SOFTHSM), key) == words
    assert refusal(TokenKey(key, Path("/nonexistent.so")), key) == "/nonexistent.so: no such PKCS#11 library"
    no_library = "/usr/lib/x86_64-linux-gnu/libc.so.6"
    assert "is not a PKCS11 library" in refusal(TokenKey(key, Path(no_library)), key)
    monkeypatch.setenv("SOFTHSM2_CONF", "/nonexistent")
    assert refusal(on_token, key).startswith(f"the token of {SOFTHSM} does not hold the key")
