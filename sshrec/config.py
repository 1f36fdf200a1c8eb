"""The configuration: every setting once, with its comment, and the one reader of sshrec.yaml.

An unknown or doubled key is an error (strict.py), and so is a file that somebody else could have written.
The sample file and sshrec.yaml(5) are made from the comments here (`make man`).
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from sshrec.duration import Duration
from sshrec.errors import ConfigError, describe
from sshrec.recipients import Recipient, lines, recipients
from sshrec.role import EXAMPLE, Role, check_roles
from sshrec.session import HOST, KINDS, LOGIN, Kind, never_a_target
from sshrec.size import Size
from sshrec.strict import NOT_A_SETTING, convert
from sshrec.trust import check_trust

DEFAULT_PATH = Path("/etc/sshrec/sshrec.yaml")

_SOCKET_PATH_MAX = 107  # sun_path, less the zero byte: unix(7)
_RUN_NAME_MAX = len("/") + 26 + len(".new/control")


_HALF_A_DAY, _DAY, _YEAR, _FIVE_YEARS = map(Duration.parse, ("12h", "1d", "1y", "5y"))
_HALF_A_MINUTE, _TEN_MINUTES, _AN_HOUR = map(Duration.parse, ("30s", "10m", "1h"))


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
    labels: Annotated[Mapping[str, str], _doc("Anything, for people and for roles.")] = field(default_factory=dict)


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
class Transparent:
    """The inner connection of the transparent way in, which runs inside one to the bastion's own sshd.

    What is on the network is encrypted by that outer one alone, in its key exchange and its cipher.
    """

    kex_algorithms: Annotated[
        str,
        _doc(
            "sshd's KexAlgorithms. The default leaves out sntrup761, which costs 74 ms of CPU with OpenSSH before "
            "9.9; what protects against recording now and a quantum computer later is the outer connection's."
        ),
    ] = "-sntrup761x25519-sha512*"
    ciphers: Annotated[
        str,
        _doc(
            "sshd's Ciphers; of these the client takes what it likes best. The default leaves out "
            "chacha20-poly1305, so that clients take AES, which processors with AES instructions run at twice the "
            "speed."
        ),
    ] = "-chacha20-poly1305@openssh.com"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much there may be of what."""

    sessions: Annotated[int, _doc("Sessions at once on this bastion.", ge=1)] = 1000
    sessions_per_user: Annotated[int, _doc("Sessions at once of one user.", ge=1)] = 250
    logins: Annotated[
        int,
        _doc(
            "People at once in the login dialogue. For one more, whoever is there longest must go, of the address "
            "that has most of them; where each has one, nobody more is let in.",
            ge=1,
        ),
    ] = 50
    stream_bytes: Annotated[
        int,
        _doc(
            "Bytes kept of each output stream of a command without a terminal. Beyond them a stream is "
            "counted and hashed only.",
            ge=0,
        ),
    ] = 16 * 1024 * 1024
    file_bytes: Annotated[
        int,
        _doc(
            "Bytes kept of the content of each file that sftp or scp transfers. Beyond them it is counted and "
            "hashed only.",
            ge=0,
        ),
    ] = 0
    disk_floor: Annotated[
        int,
        _doc(
            "Percent of the file system of the recordings that must be free for a session to begin. 0: none.",
            ge=0,
            le=50,
        ),
    ] = 5
    first_session: Annotated[
        Duration,
        _doc(
            "Within which somebody who came by the transparent way must have asked for a session; ssh -N asks for "
            "none, and is sent away."
        ),
    ] = _HALF_A_MINUTE
    connection_idle: Annotated[
        Duration,
        _doc("After which a transparent connection (a ControlMaster) is ended that has no session any more."),
    ] = _AN_HOUR
    session_length: Annotated[
        Duration | None,
        _doc("After which a session is ended; the person is warned. None: never. A role may have its own."),
    ] = None
    idle: Annotated[
        Duration | None,
        _doc(
            "Nothing typed for so long (without a terminal: not a byte either way) ends a session; the person is "
            "warned. None: nothing does. A role may have its own."
        ),
    ] = None
    session_bytes: Annotated[
        Size | None,
        _doc("The size of its recording at which a session is ended. None: any. A role may have its own."),
    ] = None


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
    roles: Annotated[
        tuple[Role, ...],
        _doc(
            "Who may do what. The first role that allows all of a request decides, and its terms hold; what no "
            "role allows is denied. None: everybody whom sshd lets in has whatever the other settings allow.",
            examples=[EXAMPLE],
        ),
    ] = ()
    second_factor: Annotated[
        Literal["off", "otp", "webauthn", "on"],
        _doc(
            "What a login needs besides the password. otp: a code of an authenticator app (TOTP). on: any factor "
            "that there is, which is the same for now. off: nothing. webauthn, security keys at a web page, is to "
            "come, and refused until then."
        ),
    ] = "otp"
    bastion: Annotated[
        str | None,
        _doc("How people reach this bastion: HOST or HOST:PORT. Invitations name it. Default: the host's name."),
    ] = None
    login_account: Annotated[
        str, _doc("The account of the bastion at which people register and log in: ssh -A login@bastion.")
    ] = "login"
    kinds: Annotated[
        tuple[Kind, ...], _doc("The kinds of request that are served, where a role does not say it.")
    ] = KINDS
    record_input: Annotated[
        bool, _doc("Keep what people type and send, not only what targets show. Passwords are among it.")
    ] = False
    limits: Annotated[Limits, _doc("How much there may be of what.")] = Limits()
    host_keys: Annotated[
        tuple[Path, ...],
        _doc(
            "The public halves of this bastion's host keys, by which agents know it. None: what is called "
            "/etc/ssh/ssh_host_*_key.pub."
        ),
    ] = ()
    destinations: Annotated[
        Literal["inventory", "off"],
        _doc(
            "Where certificates are good that a login puts into agents. inventory: at this bastion, and through "
            "it for the nodes and logins that the user may use, of those that are known at the time; other hosts "
            "cannot be reached with them. The person's agent sees to that (OpenSSH 8.9 or later). off: anywhere, "
            "so whoever is root on the bastion can use them while their owner is there."
        ),
    ] = "inventory"
    accounts: Annotated[
        Literal["optional", "required"],
        _doc(
            "optional: who is let in by sshd and is no user of sshrec's (sshrec users) has what the roles say, "
            "with whatever logins the certificate or key opens. required: nobody but sshrec's users."
        ),
    ] = "optional"
    retention: Annotated[
        Retention,
        _doc("What sshrec prune removes of the recordings. Without any of these, nothing is ever removed."),
    ] = Retention()
    recipients: Annotated[
        tuple[str, ...],
        _doc(
            "To whom finished recordings are encrypted: public keys of age (X25519) and ssh-ed25519 ones. Two at "
            "least, one of them kept offline: whoever has none of their private keys reads no recording any more, "
            "this host included. None: recordings are not encrypted."
        ),
    ] = ()
    recipients_file: Annotated[
        Path | None,
        _doc(
            "A file of more of them, one a line, as age -R reads it. Whoever may not write to this file may not "
            "write to that."
        ),
    ] = None
    hop: Annotated[Hop, _doc("How the onward ssh speaks to a target.")] = Hop()
    transparent: Annotated[
        Transparent, _doc("The inner connection of the transparent way in, which runs inside one to the bastion.")
    ] = Transparent()
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
    source: Path | None = field(default=None, metadata=NOT_A_SETTING)  # the file that all this was read from
    encrypts_to: tuple[Recipient, ...] = field(default=(), metadata=NOT_A_SETTING)  # all recipients

    @property
    def bastion_host(self) -> str:
        """The host that people reach."""
        return _host_and_port(self.bastion)[0] if self.bastion is not None else os.uname().nodename

    @property
    def bastion_port(self) -> int:
        """The port that they reach it at."""
        return _host_and_port(self.bastion)[1] if self.bastion is not None else 22

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


def _host_and_port(text: str) -> tuple[str, int]:
    """HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT; ValueError where it is none."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:]+)\]|([^:\[\]]+))(?::([0-9]{1,5}))?", text, re.ASCII)
    if found is None:
        raise ValueError(text)
    port = int(found[3] or 22)
    if found[1] is not None:
        host = str(ipaddress.IPv6Address(found[1]))
    elif HOST.fullmatch(found[2]):
        host = found[2]
    else:
        host = str(ipaddress.IPv4Address(found[2]))
    if not 1 <= port <= 65535:
        raise ValueError(text)
    return host, port


def load(path: Path | None = None) -> Config:
    """Read and check a configuration file; ConfigError says what is wrong and where.

    `path`: default /etc/sshrec/sshrec.yaml, which need not exist.
    """
    if path is None:
        path = DEFAULT_PATH
        if not path.exists():
            return with_inventory(Config(inventory=path.with_name("nodes.yaml")))
    path = path.absolute()
    config = replace(parse(_trusted_text(path), str(path)), source=path)
    if config.inventory is None:
        config = replace(config, inventory=path.with_name("nodes.yaml"))
    return with_inventory(config)


def parse(text: str, name: str = "configuration") -> Config:
    """A Config from YAML text; `name` is what errors call it."""
    config = convert(text, Config, name)
    _check(config, name)
    return _with_recipients(config, name)


def _with_recipients(config: Config, name: str) -> Config:
    """The configuration with all recipients that it names, here or in their file."""
    texts = [(text, f"{name}: recipients") for text in config.recipients]
    if (path := config.recipients_file) is not None:
        named = lines(_trusted_text(path))
        if not named:
            raise ConfigError(f"{path} names no recipient")
        texts += [(text, str(path)) for text in named]
    for text, where in texts:
        try:
            recipients([text])
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    try:
        return replace(config, encrypts_to=recipients(text for text, _ in texts)) if texts else config
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error


def with_inventory(config: Config) -> Config:
    """The configuration with the nodes that its inventory file holds now; without the file, none."""
    path = config.inventory
    if path is None or not path.exists():
        return replace(config, enrolled=())
    nodes = convert(_trusted_text(path), Inventory, str(path)).nodes
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
    check_roles(config.roles, config.second_factor, name)
    if config.bastion is not None:
        try:
            _host_and_port(config.bastion)
        except ValueError:
            raise ConfigError(f"{name}: bastion: {config.bastion!r} is no HOST and no HOST:PORT") from None
    if not LOGIN.fullmatch(config.login_account):
        raise ConfigError(f"{name}: login_account: {config.login_account!r} cannot be the name of an account")
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
