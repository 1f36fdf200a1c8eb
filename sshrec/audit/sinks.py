"""Where the audit log goes besides its files: syslog, an HTTP endpoint, standard output. One verb: deliver.

They keep no spool and try nothing twice; who follows the log does. Only the shipper imports this.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import http.client
import os
import socket
import ssl
import struct
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from sshrec.audit.event import canonical
from sshrec.audit.follow import Anchor, Item
from sshrec.audit.rfc5424 import SEVERITIES, encode, octet_counted
from sshrec.config import Sink
from sshrec.errors import ConfigError, Denied, SshrecError, Unreachable, describe
from sshrec.session import printable

TIMEOUT = 10.0  # seconds that one step of a delivery may take
ANSWER_MAX = 64 * 1024  # bytes of an HTTP answer that are read
SYSLOG_TLS_PORT, SYSLOG_TCP_PORT = 6514, 514

_PARAMETERS = ("sid", "user", "login", "server_hostname")


class Lost(Unreachable):
    """The connection broke after it had taken something: the newest of that may not have come."""


class Destination(Protocol):
    """A sink. `name`: what errors call it."""

    name: str

    def deliver(self, items: Sequence[Item]) -> None:
        """Hand these over, in order; they have come, as far as the transport can tell, when it returns.

        SshrecError where they have not, or not all: they are to be delivered again, from the first. Nothing to
        deliver: only a look at whether what was delivered last got lost with its connection.
        """

    def close(self) -> None:
        """Let go of everything."""


def destination(sink: Sink) -> Destination:
    """The sink of that setting. Connects to nothing yet."""
    match sink.type:
        case "stdout":
            return Stdout(sink.name)
        case "http":
            return Http(sink)
        case "syslog":
            return Syslog(sink)


def body(items: Sequence[Item]) -> bytes:
    """JSON, one object a line: the log's lines as they are, anchors as objects of their own."""
    return b"".join(_json(item) for item in items)


def _json(item: Item) -> bytes:
    if not isinstance(item, Anchor):
        return item.raw
    fields = {"event": "anchor", "time": item.time, "host": item.host, "n": item.n, "sha256": item.sha256}
    return canonical({**fields, "text": item.text}) + b"\n"


def _reason(error: Exception) -> str:
    """What went wrong, in words; some of it may be the receiver's."""
    if isinstance(error, TimeoutError):
        return "takes too long"
    if isinstance(error, OSError) and error.strerror:
        return printable(describe(error))
    return printable(str(error) or type(error).__name__)


def _context(sink: Sink) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=sink.ca_file)
    except OSError as error:  # an SSLError, too
        raise ConfigError(f"audit sink {sink.name}: ca_file {sink.ca_file}: {describe(error)}") from error


# ---- standard output --------------------------------------------------------------------------------------


class Stdout:
    """Writes JSON lines, and anchors as their text, to a descriptor: sshrecd's standard output."""

    def __init__(self, name: str, fd: int = 1) -> None:
        self.name, self._fd = name, fd

    def deliver(self, items: Sequence[Item]) -> None:
        """As Destination has it: whoever reads a pipe has it then, or will."""
        data = b"".join(item.text.encode() + b"\n" if isinstance(item, Anchor) else item.raw for item in items)
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except BlockingIOError:
            raise Unreachable(f"audit sink {self.name}: nobody reads standard output") from None
        except OSError as error:
            raise Unreachable(f"audit sink {self.name}: standard output: {describe(error)}") from error

    def close(self) -> None:
        """Nothing is ours."""


# ---- HTTP -------------------------------------------------------------------------------------------------


class Http:
    """Posts JSON lines to a URL; any answer from 200 to 299 means that they are kept. Follows no redirection."""

    def __init__(self, sink: Sink) -> None:
        self.name, self._sink = sink.name, sink
        self._url = urlsplit(sink.address or "")

    def deliver(self, items: Sequence[Item]) -> None:
        """As Destination has it; one request for all."""
        if not items:
            return
        headers = {"Content-Type": "application/x-ndjson", "User-Agent": "sshrec"}
        if self._sink.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._sink.token_file, self.name)}"
        path = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        connection = self._connection()
        try:
            connection.request("POST", path, body(items), headers)
            answer = connection.getresponse()
            answer.read(ANSWER_MAX)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"audit sink {self.name}: {self._sink.address}: {_reason(error)}") from error
        finally:
            connection.close()
        if not 200 <= answer.status < 300:
            raise Unreachable(f"audit sink {self.name}: {self._sink.address} answers {answer.status}")

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._url.hostname or "", self._url.port
        if self._url.scheme == "http":
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT, context=_context(self._sink))

    def close(self) -> None:
        """Each delivery has a connection of its own."""


def _token(path: Path, name: str) -> str:
    """What is in a token's file: read each time, so that it can be changed."""
    try:
        if path.stat().st_mode & 0o007:
            raise Denied(f"audit sink {name}: token_file {path} is open to everybody", hint=f"chmod 0640 {path}")
        token = path.read_text("ascii").strip()
    except OSError as error:
        raise ConfigError(f"audit sink {name}: token_file {path}: {describe(error)}") from error
    except UnicodeDecodeError:
        token = ""
    if not token or not token.isprintable():
        raise ConfigError(f"audit sink {name}: token_file {path} has no token of one line in it")
    return token


# ---- syslog -----------------------------------------------------------------------------------------------


class Syslog:
    """RFC 5424 to a Unix socket (datagrams, or a stream of lines), over TCP or over TLS (RFC 5425)."""

    def __init__(self, sink: Sink) -> None:
        self.name, self._sink = sink.name, sink
        self._address = sink.address or "/dev/log"
        self._host = os.uname().nodename
        self._socket: socket.socket | None = None
        self._used = False  # by a delivery that seemed to come

    def deliver(self, items: Sequence[Item]) -> None:
        """As Destination has it. Come is what the receiver's kernel has (TCP), or took from its socket (Unix)."""
        try:
            if self._socket is not None and not _is_open(self._socket):
                raise ConnectionResetError(errno.ECONNRESET, "connection closed by the receiver")
            if not items:
                return
            if self._socket is None:
                self._socket = self._connect()
            packets = [self._message(item) for item in items]
            if self._socket.type == socket.SOCK_DGRAM:
                for packet in packets:
                    self._socket.send(packet)
            else:
                frame = _line if self._socket.family == socket.AF_UNIX else octet_counted
                self._socket.sendall(b"".join(map(frame, packets)))
            _wait_until_taken(self._socket)
            self._used = True
        except (OSError, UnicodeError) as error:  # the latter: a name that DNS cannot have
            kind = Lost if self._used else Unreachable
            self.close()
            raise kind(f"audit sink {self.name}: {self._address}: {_reason(error)}") from error

    def close(self) -> None:
        """Close the connection; the next delivery makes another."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket, self._used = None, False

    def _message(self, item: Item) -> bytes:
        if isinstance(item, Anchor):
            said = {"event": "anchor", "n": str(item.n)}
            return encode(
                item.text.encode(), severity=6, time=item.time, host=self._host, name="anchor", parameters=said
            )
        fields = item.fields
        said = {"event": item.event, "n": str(item.n)}
        said |= {name: value for name in _PARAMETERS if isinstance(value := fields.get(name), str) and value}
        return encode(
            item.raw[:-1],
            severity=SEVERITIES.get(fields["code"][-1:], 6),
            time=fields["time"],
            host=self._host,
            name=item.event,
            parameters=said,
        )

    def _connect(self) -> socket.socket:
        if self._address.startswith("/"):
            return _unix(self._address)
        url = urlsplit(self._address)
        port = url.port or (SYSLOG_TLS_PORT if url.scheme == "tls" else SYSLOG_TCP_PORT)
        plain = socket.create_connection((url.hostname or "", port), timeout=TIMEOUT)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if url.scheme == "tcp":
            return plain
        try:
            return _context(self._sink).wrap_socket(plain, server_hostname=url.hostname)
        except (OSError, SshrecError):
            plain.close()
            raise


def _line(message: bytes) -> bytes:
    return message + b"\n"


def _unix(path: str) -> socket.socket:
    """Datagrams where the receiver takes them, as journald and rsyslog do; a stream for those that want one."""
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        sock = socket.socket(socket.AF_UNIX, kind)
        sock.settimeout(TIMEOUT)
        try:
            sock.connect(path)
        except OSError as error:
            sock.close()
            if error.errno != errno.EPROTOTYPE or kind == socket.SOCK_STREAM:
                raise
        else:
            return sock
    raise AssertionError


def _is_open(sock: socket.socket) -> bool:
    """Whether the receiver has not hung up. What it says is thrown away: syslog has no answers."""
    if sock.type == socket.SOCK_DGRAM:
        return True  # the next send tells
    sock.setblocking(False)
    try:
        while sock.recv(4096):
            pass
    except (BlockingIOError, ssl.SSLWantReadError):
        return True
    finally:
        sock.settimeout(TIMEOUT)
    return False


def _wait_until_taken(sock: socket.socket) -> None:
    """Until nothing is under way any more (SIOCOUTQ: tcp(7), unix(7)); TimeoutError after TIMEOUT."""
    deadline, pause = time.monotonic() + TIMEOUT, 0.0005
    while struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0] > 0:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
