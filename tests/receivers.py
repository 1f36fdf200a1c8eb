"""What listens where the audit log's sinks send: real sockets, each message kept as it came."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from sshrec.config import Sink

_SYSLOG = re.compile(
    rb'<(\d+)>1 (\S+) (\S+) sshrec - (\S+) \[sshrec@32473((?: \w+="(?:[^"\\\]]|\\.)*")*)\] (.*)', re.S
)


class Receiver:
    """Started by `start`, as often as there was a `stop`. `messages`: what came since it was made, in order."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.messages: list[bytes] = []
        self._threads: list[threading.Thread] = []
        self._stopping = False
        self.running = False

    @property
    def sink(self) -> Sink:
        raise NotImplementedError

    def _bind(self) -> socket.socket:
        raise NotImplementedError

    def start(self) -> None:
        self._stopping, self.running = False, True
        self._run(self._serve, self._bind())

    def stop(self) -> None:
        """Hang up; what a connection had sent is read to its end first, as by a receiver that is told to leave."""
        self._stopping, self.running = True, False
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()
        self._threads.clear()

    def _run(self, serve: Callable[[socket.socket], None], sock: socket.socket) -> None:
        thread = threading.Thread(target=serve, args=(sock,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, listener: socket.socket) -> None:
        listener.settimeout(0.05)
        with listener:
            while not self._stopping:
                with contextlib.suppress(TimeoutError):
                    self._run(self._connection, listener.accept()[0])

    def _connection(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def _read(self, sock: socket.socket) -> bytes | None:
        """Some bytes; b"" at the end, None where there are none yet."""
        sock.settimeout(0.05)
        try:
            return sock.recv(65536)
        except TimeoutError:
            return b"" if self._stopping else None
        except OSError:
            return b""

    def said(self) -> list[str]:
        """Each log line as its JSON, each anchor as its text."""
        return [self.body(message) for message in list(self.messages)]

    def body(self, message: bytes) -> str:
        """One of them."""
        found = _SYSLOG.fullmatch(message)
        assert found is not None, message
        return found[6].decode("ascii")


class Datagrams(Receiver):
    @property
    def sink(self) -> Sink:
        return Sink(name="datagrams", type="syslog", address=str(self.directory / "log"))

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(str(self.directory / "log"))
        (self.directory / "log").chmod(0o666)
        return sock

    def _serve(self, listener: socket.socket) -> None:
        with listener:
            while (data := self._read(listener)) != b"":
                if data is not None:
                    self.messages.append(data)
        (self.directory / "log").unlink()


class Lines(Receiver):
    @property
    def sink(self) -> Sink:
        return Sink(name="lines", type="syslog", address=str(self.directory / "log"))

    def _bind(self) -> socket.socket:
        (self.directory / "log").unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.directory / "log"))
        sock.listen()
        return sock

    def _connection(self, sock: socket.socket) -> None:
        held = b""
        with sock:
            while (data := self._read(sock)) != b"":
                *whole, held = (held + (data or b"")).split(b"\n")
                self.messages += whole


class Tcp(Receiver):
    port = 0

    @property
    def sink(self) -> Sink:
        return Sink(name="tcp", type="syslog", address=f"tcp://127.0.0.1:{self.reserve()}")

    def reserve(self) -> int:
        """Its port, now and after each `stop`."""
        if not self.port:
            with socket.create_server(("127.0.0.1", 0)) as sock:
                self.port = sock.getsockname()[1]
        return self.port

    def _bind(self) -> socket.socket:
        return socket.create_server(("127.0.0.1", self.reserve()))

    def _connection(self, sock: socket.socket) -> None:
        held = b""
        with sock:
            while (data := self._read(sock)) != b"":
                held += data or b""
                while found := re.match(rb"([1-9]\d*) ", held):
                    end = found.end() + int(found[1])
                    if len(held) < end:
                        break
                    self.messages.append(held[found.end() : end])
                    held = held[end:]


class Tls(Tcp):
    @property
    def sink(self) -> Sink:
        self.certificate()
        address = f"tls://127.0.0.1:{self.reserve()}"
        return Sink(name="tls", type="syslog", address=address, ca_file=self.directory / "ca.pem")

    def certificate(self, name: str = "127.0.0.1") -> None:
        """One for that address, signed by itself."""
        if (self.directory / "key.pem").exists():
            return
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(name))])
        made = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(names, critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        (self.directory / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        (self.directory / "key.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )

    def context(self) -> ssl.SSLContext:
        self.certificate()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.directory / "ca.pem", self.directory / "key.pem")
        return context

    def _connection(self, sock: socket.socket) -> None:
        try:
            wrapped = self.context().wrap_socket(sock, server_side=True)
        except OSError:
            sock.close()
            return
        super()._connection(wrapped)


class Http(Tcp):
    """Keeps what it was sent as the path /log; `status`: what it answers."""

    status = 200

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.requests: list[dict[str, str]] = []

    @property
    def sink(self) -> Sink:
        return Sink(name="http", type="http", address=f"http://127.0.0.1:{self.reserve()}/log?from=bastion")

    def start(self) -> None:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                data = self.rfile.read(length)
                if len(data) < length:
                    return  # its sender was killed
                receiver.requests.append({"path": self.path, **dict(self.headers)})
                if receiver.status == 200:
                    receiver.messages += data.splitlines()
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.reserve()), Handler)
        self._wrap()
        self.running = True
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _wrap(self) -> None:
        pass

    def stop(self) -> None:
        self.running = False
        self.server.shutdown()
        self._thread.join(20)
        self.server.server_close()

    def body(self, message: bytes) -> str:
        fields = json.loads(message)
        return fields["text"] if fields["event"] == "anchor" else message.decode("ascii")


class Https(Http):
    @property
    def sink(self) -> Sink:
        Tls.certificate(self)  # type: ignore[arg-type]
        address = f"https://127.0.0.1:{self.reserve()}/log?from=bastion"
        return Sink(name="https", type="http", address=address, ca_file=self.directory / "ca.pem")

    def _wrap(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        Tls.certificate(self)  # type: ignore[arg-type]
        context.load_cert_chain(self.directory / "ca.pem", self.directory / "key.pem")
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)


NETWORK: tuple[type[Receiver], ...] = (Datagrams, Lines, Tcp, Tls, Http, Https)


def wait(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
    """Until it is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)


def first_seen(said: list[str]) -> list[str]:
    """Without what came again."""
    return list(dict.fromkeys(said))
