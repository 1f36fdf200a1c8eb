"""The configuration: every setting once, with its comment, and the one reader of sshrec.yaml.

Strict: an unknown or doubled key is an error, and so is a file that somebody else could have written.
The sample file and sshrec.yaml(5) are made from the comments here (`make man`).
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
import types
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec
import yaml

from sshrec.duration import Duration
from sshrec.errors import ConfigError, describe
from sshrec.session import HOST, never_a_target
from sshrec.size import Size
from sshrec.trust import check_trust

DEFAULT_PATH = Path("/etc/sshrec/sshrec.yaml")

_SOCKET_PATH_MAX = 107  # sun_path, less the zero byte: unix(7)
_RUN_NAME_MAX = len("/") + 26 + len(".new/control")


_HALF_A_DAY, _DAY, _YEAR, _FIVE_YEARS = map(Duration.parse, ("12h", "1d", "1y", "5y"))
_TEN_MINUTES = Duration.parse("10m")

T = TypeVar("T")

# Metadata of a field that load() fills, and no key of the file does.
NOT_A_SETTING = {"setting": False}


def _doc(text: str, **constraints: Any) -> msgspec.Meta:
    return msgspec.Meta(description=text, **constraints)


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A target host that the inventory knows."""

    name: Annotated[
        str,
        _doc("What people type, and what the host's certificate or known_hosts line is looked up by."),
    ]
    address: Annotated[
        str | None,
        _doc(
            "IP address or DNS name to dial; the name itself where there is none. An IP address written "
            "here may be any, loopback too."
        ),
    ] = None
    port: Annotated[int, _doc("The one port of this node that is dialled.", ge=1, le=65535)] = 22
    labels: Annotated[Mapping[str, str], _doc("Anything, for people and for roles to come.")] = field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The file of the nodes that were enrolled: written by a program, in the form of sshrec.yaml."""

    nodes: Annotated[tuple[Node, ...], _doc("The nodes.")] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """How the onward ssh speaks to a target."""

    kex_algorithms: Annotated[
        str | None,
        _doc(
            "ssh's KexAlgorithms towards targets. An empty string leaves OpenSSH's order. With OpenSSH before 9.9 "
            "its first choice, sntrup761, costs 74 ms of CPU a session; ^curve25519-sha256 starts faster and "
            "is not post-quantum."
        ),
    ] = None
    ciphers: Annotated[
        str | None,
        _doc(
            "ssh's Ciphers towards targets. The default puts AES-GCM first, which processors with AES "
            "instructions run at twice the speed of chacha20-poly1305. An empty string leaves OpenSSH's order."
        ),
    ] = "^aes128-gcm@openssh.com,aes256-gcm@openssh.com"
    obscure_keystroke_timing: Annotated[
        bool,
        _doc(
            "Hide the rhythm of typing between bastion and target (OpenSSH 9.5 and later). Costs 17 ms a "
            "keystroke; what arrives here from a client of 9.5 or later is hidden already."
        ),
    ] = False
    connect_timeout: Annotated[
        int, _doc("Seconds that dialling a target may take, all its addresses together.", ge=1, le=300)
    ] = 15
    alive_interval: Annotated[
        int,
        _doc(
            "Seconds between the questions whether a silent target is still there; three unanswered ones "
            "end the session. 0: never ask.",
            ge=0,
        ),
    ] = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much there may be of what."""

    sessions: Annotated[int, _doc("Sessions at once on this bastion.", ge=1)] = 1000
    sessions_per_user: Annotated[int, _doc("Sessions at once of one user.", ge=1)] = 250
    stream_bytes: Annotated[
        int,
        _doc(
            "Bytes kept of each output stream of a command without a terminal. Beyond them a stream is "
            "counted and hashed only.",
            ge=0,
        ),
    ] = 16 * 1024 * 1024
    disk_floor: Annotated[
        int,
        _doc(
            "Percent of the file system of the recordings that must be free for a session to begin. 0: none.",
            ge=0,
            le=50,
        ),
    ] = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What sshrec prune removes."""

    age: Annotated[
        Duration | None,
        _doc("Recordings of sessions that began longer ago are removed. None: none is removed for its age."),
    ] = None
    size: Annotated[
        Size | None,
        _doc(
            "What all recordings together may take on disk, such as 100GiB: the oldest are removed until they "
            "do. None: as much as there is."
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldKey:
    """A CA's key that an agent or a token holds, instead of a file of the authority's."""

    public_key: Annotated[
        Path, _doc("The file of the CA's public key. Taken up by sshrec-ca init, a new one by sshrec-ca rotate.")
    ]
    signer: Annotated[
        Literal["agent", "pkcs11"], _doc("Who holds the private key: an ssh-agent, or a PKCS#11 token.")
    ]
    agent: Annotated[
        Path | None,
        _doc(
            "The agent's socket. It must be the authority's account's own. Default: SSH_AUTH_SOCK of the caller."
        ),
    ] = None
    provider: Annotated[
        Path | None, _doc("The token's PKCS#11 library. Its PIN is asked for, once a command.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The certificate authority (sshrec-ca)."""

    directory: Annotated[
        Path | None,
        _doc(
            "Where it keeps keys/, the database and public/. Not below data_dir, whose owner could replace it. "
            "Default: beside data_dir, with -auth added (/var/lib/sshrec-auth)."
        ),
    ] = None
    account: Annotated[
        str, _doc("The account that owns them. sshrec-ca, run as root, becomes the owner of the directory.")
    ] = "sshrec-auth"
    user: Annotated[HeldKey | None, _doc("Who holds the user CA. None: a file in keys/.")] = None
    host: Annotated[HeldKey | None, _doc("Who holds the host CA. None: a file in keys/.")] = None
    gateway: Annotated[
        HeldKey | None, _doc("Who holds the CA of the gateway's own host certificates. None: a file in keys/.")
    ] = None
    user_ttl: Annotated[Duration, _doc("How long user certificates are good for.")] = _HALF_A_DAY
    user_ttl_limit: Annotated[Duration, _doc("The longest that --ttl may ask for a user.")] = _DAY
    host_ttl: Annotated[Duration, _doc("How long host certificates are good for.")] = _YEAR
    host_ttl_limit: Annotated[Duration, _doc("The longest that --ttl may ask for a host.")] = _FIVE_YEARS
    hosts: Annotated[
        str,
        _doc(
            "The names that host certificates vouch for, as a known_hosts pattern (sshd(8)): what stands in "
            "the @cert-authority line."
        ),
    ] = "*"
    bastions: Annotated[
        tuple[str, ...],
        _doc(
            "Addresses and networks from which targets take user certificates: the bastion's, as targets see it. "
            "None: enroll-node takes the one it comes from."
        ),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """Where the audit log goes besides its own files."""

    name: Annotated[str, _doc("What it is called, in messages and in the file that says what it has got.")]
    type: Annotated[
        Literal["syslog", "http", "stdout"],
        _doc(
            "syslog: RFC 5424, the event's JSON as its message. http: POST of JSON lines, kept if the answer is "
            "from 200 to 299. stdout: JSON lines on sshrecd's standard output, for systemd's journal."
        ),
    ]
    address: Annotated[
        str | None,
        _doc(
            "Of syslog: the path of a Unix socket (default: /dev/log), tcp://HOST[:PORT] or tls://HOST[:PORT]. Of "
            "http: the URL. stdout has none."
        ),
    ] = None
    required: Annotated[
        bool, _doc("Refuse new sessions while this sink is behind for longer than max_lag. no: warn only.")
    ] = False
    max_lag: Annotated[Duration, _doc("How old the oldest line may be that a required sink has not got yet.")] = (
        _TEN_MINUTES
    )
    ca_file: Annotated[
        Path | None,
        _doc("The CAs, in PEM, that vouch for a tls:// or https:// receiver. Default: the system's."),
    ] = None
    token_file: Annotated[
        Path | None,
        _doc("A file with the token that http sends as Authorization: Bearer. sshrecd's user must read it."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Audit:
    """The audit log."""

    identity: Annotated[
        str | None,
        _doc(
            "Whose signatures on the log are, as an auditor's allowed_signers names them. Default: audit@HOSTNAME."
        ),
    ] = None
    key: Annotated[HeldKey | None, _doc("Which agent holds the key that signs. None: a file in keys/.")] = None
    checkpoint_interval: Annotated[
        int, _doc("Seconds after which what the log has grown by is signed.", ge=1, le=3600)
    ] = 5
    sinks: Annotated[
        tuple[Sink, ...],
        _doc(
            "Where every line goes besides the log's own files, and an anchor of each checkpoint: in order, at "
            "least once. What is off this host cannot be changed or rolled back on it."
        ),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole of sshrec.yaml."""

    data_dir: Annotated[Path, _doc("Where everything that lasts is kept.")] = Path("/var/lib/sshrec")
    run_dir: Annotated[
        Path, _doc("Sockets and the private directories of live sessions. A tmpfs is right, a long path is not.")
    ] = Path("/run/sshrec")
    recordings: Annotated[
        Path | None, _doc("The directory of the recordings. Default: recordings/ in data_dir.")
    ] = None
    session_recording: Annotated[
        Literal["proxy", "proxy-sync"],
        _doc(
            "proxy: output is shown once the kernel has it for the recording, which is made durable each "
            "second. proxy-sync: output is shown only once it is on disk."
        ),
    ] = "proxy"
    proxy_checks_host_keys: Annotated[
        bool,
        _doc(
            "yes: a target must prove itself by known_hosts. no: any host key is accepted, and the one that "
            "was seen is written into the recording."
        ),
    ] = True
    known_hosts: Annotated[
        tuple[Path, ...],
        _doc("Files of known_hosts lines, @cert-authority lines among them, that say which host keys are real."),
    ] = (Path("/etc/sshrec/known_hosts"),)
    nodes: Annotated[
        tuple[Node, ...],
        _doc(
            "The hosts that may be reached. None: any but loopback, link-local, metadata and this host's own "
            "addresses. Some: these alone."
        ),
    ] = ()
    inventory: Annotated[
        Path | None,
        _doc(
            "The file of nodes that sshrec-ca enroll-node adds to. They are reached besides those of nodes, and "
            "restrict nothing where nodes is empty. Default: nodes.yaml beside this file."
        ),
    ] = None
    kinds: Annotated[tuple[Literal["shell", "exec"], ...], _doc("The kinds of request that are served.")] = (
        "shell",
        "exec",
    )
    record_input: Annotated[
        bool, _doc("Keep what people type and send, not only what targets show. Passwords are among it.")
    ] = False
    limits: Annotated[Limits, _doc("How much there may be of what.")] = Limits()
    retention: Annotated[
        Retention,
        _doc("What sshrec prune removes of the recordings. Without any of these, nothing is ever removed."),
    ] = Retention()
    hop: Annotated[Hop, _doc("How the onward ssh speaks to a target.")] = Hop()
    database: Annotated[
        str | None,
        _doc(
            "The database of the authority, as an SQLAlchemy URL (postgresql+psycopg:///sshrec). Default: the "
            "SQLite file sshrec.db in the authority's directory."
        ),
    ] = None
    authority: Annotated[Authority, _doc("The certificate authority (sshrec-ca).")] = Authority()
    audit: Annotated[Audit, _doc("The audit log.")] = Audit()
    enrolled: tuple[Node, ...] = field(default=(), metadata=NOT_A_SETTING)  # what the inventory holds

    @property
    def recordings_dir(self) -> Path:
        """Where recordings are."""
        return self.recordings or self.data_dir / "recordings"

    @property
    def socket(self) -> Path:
        """Where sshrecd listens for gateways."""
        return self.run_dir / "sshrecd.sock"

    @property
    def authority_dir(self) -> Path:
        """Where the authority keeps its keys."""
        return self.authority.directory or self.data_dir.with_name(f"{self.data_dir.name}-auth")

    @property
    def auth_socket(self) -> Path:
        """Where the auth service listens."""
        return self.run_dir.with_name(f"{self.run_dir.name}-auth") / "auth.sock"

    @property
    def audit_dir(self) -> Path:
        """Where the audit log is."""
        return self.data_dir / "audit"

    @property
    def cursors_dir(self) -> Path:
        """Where it is kept what the audit log's sinks have got."""
        return self.data_dir / "audit-cursors"

    @property
    def audit_socket(self) -> Path:
        """Where the audit log's writer takes events."""
        return self.run_dir / "audit.sock"

    @property
    def database_url(self) -> str:
        """Where the authority keeps its ledger."""
        return self.database or f"sqlite:///{self.authority_dir}/sshrec.db"

    @property
    def public_dir(self) -> Path:
        """What the authority lets everybody read: the CAs' public keys, known_hosts lines, the KRL."""
        return self.authority_dir / "public"

    @property
    def krl(self) -> Path:
        """The authority's list of revoked certificates."""
        return self.public_dir / "krl"

    @property
    def known_hosts_files(self) -> tuple[Path, ...]:
        """Whatever says which host keys are real: the administrator's files, and the authority's host CA."""
        return (*self.known_hosts, self.public_dir / "known_hosts")

    @property
    def node_names(self) -> tuple[str, ...]:
        """What the inventory's nodes are called, each once."""
        return tuple(dict.fromkeys(node.name for node in (*self.nodes, *self.enrolled)))

    def node(self, name: str) -> Node | None:
        """The inventory's node of that name; what sshrec.yaml says comes first."""
        return next((node for node in (*self.nodes, *self.enrolled) if node.name == name), None)


def load(path: Path | None = None) -> Config:
    """Read and check a configuration file; ConfigError says what is wrong and where.

    `path`: default /etc/sshrec/sshrec.yaml, which need not exist.
    """
    if path is None:
        path = DEFAULT_PATH
        if not path.exists():
            return with_inventory(Config(inventory=path.with_name("nodes.yaml")))
    path = path.absolute()
    config = parse(_trusted_text(path), str(path))
    if config.inventory is None:
        config = replace(config, inventory=path.with_name("nodes.yaml"))
    return with_inventory(config)


def parse(text: str, name: str = "configuration") -> Config:
    """A Config from YAML text; `name` is what errors call it."""
    config = _convert(text, Config, name)
    _check(config, name)
    return config


def with_inventory(config: Config) -> Config:
    """The configuration with the nodes that its inventory file holds now; without the file, none."""
    path = config.inventory
    if path is None or not path.exists():
        return replace(config, enrolled=())
    nodes = _convert(_trusted_text(path), Inventory, str(path)).nodes
    _check_nodes(nodes, str(path))
    return replace(config, enrolled=nodes)


def _trusted_text(path: Path) -> str:
    """What is in a file that nobody but root and the caller can have written."""
    check_trust(path)
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = describe(error) if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(f"{path}: {reason}") from error


def _convert(text: str, kind: type[T], name: str) -> T:
    try:
        raw = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of the safe loader
    except yaml.YAMLError as error:
        message = " ".join(str(error).replace('in "<unicode string>", ', "").split())
        raise ConfigError(f"{name}: {message}") from error
    if raw is None:
        raw = {}
    try:
        return msgspec.convert(_normalise(raw, kind, name, ""), kind, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{name}: {error}") from error


class _Loader(yaml.CSafeLoader):
    """The safe loader, but a key that stands twice is an error (PyYAML lets the last one win)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _normalise(raw: Any, kind: Any, name: str, where: str) -> Any:
    """Refuse unknown keys by their names, and take YAML's booleans back where words are meant."""
    kind = _plain(kind)
    if is_dataclass(kind):
        if not isinstance(raw, dict):
            raise ConfigError(f"{name}: {where or 'the file'} must be a mapping of settings")
        hints = get_type_hints(kind, include_extras=True)
        known = [setting.name for setting in fields(kind) if setting.metadata != NOT_A_SETTING]
        for key in raw:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, 1, 0.5)
                hint = f"did you mean {near[0]}?" if near else "known here: " + ", ".join(known)
                raise ConfigError(f"{name}: unknown setting {f'{where}.{key}'.lstrip('.')!r}", hint=hint)
        given = {
            key: _normalise(value, hints[key], name, f"{where}.{key}".lstrip("."))
            for key, value in raw.items()
            if value is not None
        }
        # A heading with nothing below it: as if it were not there.
        return {key: value for key, value in given.items() if value != {}}
    if get_origin(kind) is tuple and isinstance(raw, list):
        return [_normalise(value, get_args(kind)[0], name, f"{where}[{n}]") for n, value in enumerate(raw)]
    if get_origin(kind) is Literal and isinstance(raw, bool):
        raw = "on" if raw else "off"
    if kind is Path and not (isinstance(raw, str) and raw.startswith("/")):
        raise ConfigError(f"{name}: {where} must be an absolute path, not {raw!r}")
    if get_origin(kind) is tuple and not isinstance(raw, list):
        raise ConfigError(f"{name}: {where} must be a list, not {raw!r}")
    if get_origin(kind) is Literal and raw not in get_args(kind):
        raise ConfigError(f"{name}: {where} must be one of {', '.join(get_args(kind))}, not {str(raw)!r}")
    return raw


def _plain(kind: Any) -> Any:
    """A type without its annotations and without `| None`."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) in (typing.Union, types.UnionType):
        kind = next(part for part in get_args(kind) if part is not type(None))
        return _plain(kind)
    return kind


def _decode(kind: type, raw: Any) -> Any:
    if kind is Path and isinstance(raw, str):
        return Path(raw)
    if kind is Duration and isinstance(raw, str):
        return Duration.parse(raw)
    if kind is Size and isinstance(raw, str):
        return Size.parse(raw)
    raise msgspec.ValidationError(f"Expected {kind.__name__}, got {type(raw).__name__}")


def _check_nodes(nodes: Sequence[Node], name: str) -> None:
    for node_name, count in Counter(node.name for node in nodes).items():
        if count > 1:
            raise ConfigError(f"{name}: two nodes are called {node_name!r}")
        if not HOST.fullmatch(node_name) or never_a_target(node_name):
            raise ConfigError(f"{name}: {node_name!r} cannot be the name of a node")


def _check_sinks(sinks: Sequence[Sink], name: str) -> None:
    for sink_name, count in Counter(sink.name for sink in sinks).items():
        if count > 1:
            raise ConfigError(f"{name}: two sinks of audit.sinks are called {sink_name!r}")
        if not _SINK.fullmatch(sink_name):
            raise ConfigError(f"{name}: {sink_name!r} cannot be the name of a sink: letters, digits, _ and - only")
    for sink in sinks:
        where, address = f"{name}: audit sink {sink.name}", sink.address or ""
        try:
            url = urlsplit(address)
            schemes = {"syslog": ("tcp", "tls"), "http": ("http", "https"), "stdout": ()}[sink.type]
            usable = url.scheme in schemes and bool(url.hostname) and url.port != 0 and "@" not in url.netloc
            usable = usable and address.isascii() and address.isprintable() and " " not in address
        except ValueError:
            usable = False
        if sink.type == "syslog":
            if address.startswith("udp:"):
                raise ConfigError(
                    f"{where}: UDP loses lines, and nobody can tell", hint="use tcp://HOST:PORT or tls://HOST:PORT"
                )
            plain = usable and not url.path and not url.query and not url.fragment
            if address and not plain and not (address.startswith("/") and address.isprintable()):
                raise ConfigError(f"{where}: {address!r} is no path, tcp://HOST:PORT or tls://HOST:PORT")
        elif sink.type == "http" and not usable:
            raise ConfigError(f"{where}: {address!r} is no URL such as https://HOST/PATH")
        elif sink.type == "stdout" and address:
            raise ConfigError(f"{where}: standard output has no address")
        if sink.token_file and sink.type != "http":
            raise ConfigError(f"{where}: only http sends a token")
        if sink.token_file and url.scheme == "http" and url.hostname not in _LOOPBACK:
            raise ConfigError(f"{where}: the token would cross the network in the clear", hint="use https://")
        if sink.ca_file and url.scheme not in ("tls", "https"):
            raise ConfigError(f"{where}: ca_file is for tls:// and https:// only")


def _check(config: Config, name: str) -> None:
    _check_nodes(config.nodes, name)
    authority = config.authority
    for kind in ("user", "host"):
        ttl, limit = getattr(authority, f"{kind}_ttl"), getattr(authority, f"{kind}_ttl_limit")
        if ttl > limit:
            raise ConfigError(
                f"{name}: authority.{kind}_ttl, {ttl}, is longer than authority.{kind}_ttl_limit, {limit}"
            )
    for kind, held in (("user", authority.user), ("host", authority.host), ("gateway", authority.gateway)):
        if held and held.signer == "pkcs11" and held.provider is None:
            raise ConfigError(f"{name}: authority.{kind}: a PKCS#11 token needs its provider, a library")
    if config.authority_dir.is_relative_to(config.data_dir):
        raise ConfigError(
            f"{name}: authority.directory is below data_dir, whose owner could put another in its place"
        )
    for bastion in authority.bastions:
        try:
            ipaddress.ip_network(bastion)
        except ValueError:
            raise ConfigError(f"{name}: authority.bastions: {bastion!r} is no address and no network") from None
    if config.audit.identity is not None and not _IDENTITY.fullmatch(config.audit.identity):
        raise ConfigError(f"{name}: audit.identity: {config.audit.identity!r} is no name such as audit@bastion")
    _check_sinks(config.audit.sinks, name)
    if not _HOST_PATTERNS.fullmatch(authority.hosts):
        raise ConfigError(f"{name}: authority.hosts: {authority.hosts!r} is no pattern of known_hosts")
    room = _SOCKET_PATH_MAX - _RUN_NAME_MAX
    if len(os.fsencode(config.run_dir)) > room:
        raise ConfigError(f"{name}: run_dir is longer than {room} bytes, and sockets must fit below it")
    for path in (config.run_dir, config.authority_dir, *config.known_hosts):
        if not set(str(path)) <= _PATH_CHARACTERS:
            raise ConfigError(
                f"{name}: {path} may have letters, digits and ._/+- only", hint="ssh expands the rest"
            )


_SINK = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_IDENTITY = re.compile(r"[A-Za-z0-9@._+-]{1,100}")
_HOST_PATTERNS = re.compile(r"!?[A-Za-z0-9.:*?_-]+(?:,!?[A-Za-z0-9.:*?_-]+)*")
_PATH_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/+-")
