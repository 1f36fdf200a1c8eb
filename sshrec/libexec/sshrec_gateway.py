"""sshd's ForceCommand, and the login shell of bastion accounts: hands the session to sshrecd and waits.

Runs under the person's uid at every login and for as long as the session lives, so it imports C modules
only, decides nothing and keeps nothing. The messages are described in sshrec/gateway/handoff.py. The
program is the file `sshrec-gateway` beside this one, which imports it: a module is compiled once.

    sshrec-gateway [--socket PATH] [--channel CONNECTION] [-c REQUEST]
    sshrec-gateway --embedded [--config FILE] [--python PATH] [-c REQUEST]
"""

import _signal
import _socket
import posix
import select
import sys

SOCKET = "/run/sshrec/sshrecd.sock"
PATIENCE = 10  # seconds without a heartbeat
HINT_DOWN = "an administrator can start it: systemctl start sshrecd.socket; root's own login is not affected"
FORWARDED = (_signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT, _signal.SIGTERM, _signal.SIGWINCH)
IGNORED = (_signal.SIGPIPE, _signal.SIGTSTP, _signal.SIGTTIN, _signal.SIGTTOU, _signal.SIGUSR1, _signal.SIGUSR2)
INT_BYTES = 4
environ = posix.environ


def end(message, hint=None, status=255):
    """Say what is wrong, in one line and a hint, and exit as ssh does."""
    text = f"sshrec: error: {message}\n" + (f"hint: {hint}\n" if hint else "")
    say(text.encode("utf-8", "backslashreplace"))
    posix._exit(status)


def say(data):
    if posix.isatty(2):
        data = data.replace(b"\n", b"\r\n")
    try:
        while data:
            data = data[posix.write(2, data) :]
    except BlockingIOError:
        ready = select.poll()
        ready.register(2, select.POLLOUT)
        if ready.poll(2000):
            say(data)
    except OSError:
        pass  # nobody is there to read it


def arguments(argv):
    """Options are an administrator's; what comes behind -c is the person's, and never an option."""
    options = {"--socket": SOCKET, "--config": None, "--python": None, "--embedded": None, "--channel": None}
    own = argv[0]
    words = argv[1:]
    while words:
        word = words.pop(0)
        if word == "--embedded":
            options[word] = True
        elif word in ("--socket", "--config", "--python", "--channel") and words:
            options[word] = words.pop(0)
        elif word == "-c" and len(words) == 1:
            # We are the login shell. With a ForceCommand beside it, sshd runs us as `-c <that command>`.
            request = encode(words.pop(0))
            if request.removeprefix(b"exec ") in (encode(own), environ.get(b"SHELL")):
                break
            return options, request
        else:
            end(f"unknown argument {word[:40]!r}", "sshrec-gateway(8) has the options")
    return options, environ.get(b"SSH_ORIGINAL_COMMAND")


def encode(text):
    return text.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())


def facts(command, channel):
    """What sshd told us, as one message."""
    parts = [b"H"]

    def add(name, value):
        if value:
            parts.append(name + b"=" + value.replace(b"\0", b" ") + b"\0")

    add(b"command", command)
    add(b"channel", channel and encode(channel))
    for name, variable in (
        (b"connection", b"SSH_CONNECTION"),
        (b"tty", b"SSH_TTY"),
        (b"term", b"TERM"),
        (b"lang", b"LANG"),
        (b"agent", b"SSH_AUTH_SOCK"),
    ):
        add(name, environ.get(variable))
    path = environ.get(b"SSH_USER_AUTH")
    if path:
        try:
            descriptor = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
            add(b"auth", posix.read(descriptor, 65536))
            posix.close(descriptor)
        except OSError as error:
            end(f"cannot read what sshd tells of the login: {error.strerror.lower()}")
    return b"".join(parts)


def dial(path):
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    try:
        sock.connect(path)
    except OSError as error:
        end(f"sshrecd does not answer, so no session can be recorded ({error.strerror.lower()})", HINT_DOWN)
    return sock


def spawn_worker(options):
    """Embedded: a worker of our own, at the other end of a socketpair. Not in a hurry, so `os` may be had."""
    import os

    python = options["--python"] or beside(os.path, os.path.realpath(sys.argv[0]))
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    argv = [python, "-I", "-m", "sshrec.gateway.worker"] + ([options["--config"]] if options["--config"] else [])
    actions = [
        (posix.POSIX_SPAWN_DUP2, theirs.fileno(), 3),
        (posix.POSIX_SPAWN_OPEN, 0, "/dev/null", posix.O_RDWR, 0),
        (posix.POSIX_SPAWN_DUP2, 0, 1),
        (posix.POSIX_SPAWN_DUP2, 0, 2),
    ]
    environment = {b"PATH": b"/usr/bin:/bin", b"HOME": b"/", b"LANG": b"C.UTF-8"}
    try:
        posix.posix_spawn(python, argv, environment, file_actions=actions, setsid=True)
    except OSError as error:
        end(f"cannot start a worker with {python}: {error.strerror.lower()}", "--python names another interpreter")
    theirs.close()
    return ours


def beside(path, here):
    """The interpreter of the installation that this program is part of."""
    while here != "/":
        here = path.dirname(here)
        if path.exists(here + "/pyvenv.cfg"):
            return here + "/bin/python"
    return sys.executable


def forward(sock, command, channel):
    """Hand over, then pass signals and agent connections on until the worker says how it ended."""
    wake, waker = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    wake.setblocking(False)
    waker.setblocking(False)
    _signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in FORWARDED:
        _signal.signal(number, lambda *_: None)
    for number in IGNORED:
        _signal.signal(number, _signal.SIG_IGN)
    hello = facts(command, channel)
    ready = select.poll()
    ready.register(sock, select.POLLIN)
    ready.register(wake, select.POLLIN)
    silent = 0
    while True:
        events = ready.poll(1000)
        silent = 0 if events else silent + 1  # turns, not the clock: a suspended machine is not a silent one
        if silent >= PATIENCE:
            end("the recorder has not answered for 10 seconds: the session is over")
        for descriptor, _ in events:
            if descriptor == wake.fileno():
                for number in wake.recv(512):
                    send(sock, b"S" + bytes([number]))
            else:
                answer(sock, sock.recv(65536), hello)


def answer(sock, message, hello):
    kind = message[:1]
    if kind == b"R":
        # Only now: descriptors that wait in a queue keep the client waiting, even after we have given up.
        hand_over(sock, hello, (0, 1, 2))
    elif kind == b"T":
        # What the worker has is its own to close; ours must not keep a pipe open that it closes.
        null = posix.open("/dev/null", posix.O_RDWR)
        for descriptor in (0, 1):
            if not posix.isatty(descriptor):
                posix.dup2(null, descriptor)
        posix.close(null)
    elif kind == b"A":
        agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            agent.connect(environ.get(b"SSH_AUTH_SOCK", b""))
        except OSError:
            send(sock, b"A" + message[1:2])
        else:
            hand_over(sock, b"A" + message[1:2], (agent.fileno(),))
        agent.close()
    elif kind == b"X":
        if message[2:]:
            say(message[2:])
        posix._exit(message[1])
    elif kind != b"B":
        end("the recorder ended without a word: the session is over")


def hand_over(sock, message, descriptors):
    rights = b"".join(number.to_bytes(INT_BYTES, sys.byteorder) for number in descriptors)
    try:
        sock.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    except OSError as error:
        end(f"the request cannot be handed over: {error.strerror.lower()}")


def send(sock, message):
    try:  # noqa: SIM105 - contextlib is not worth its import here
        sock.send(message)
    except OSError:
        pass  # what ended the connection is in what it said last, which is read next


def main():
    if not (sys.flags.isolated and sys.flags.no_site):
        end("started without -I and -S", "run the file itself: its first line has the flags")
    options, command = arguments(sys.argv)
    sock = spawn_worker(options) if options["--embedded"] else dial(options["--socket"])
    try:
        forward(sock, command, options["--channel"])
    except OSError as error:
        end(f"the recorder is gone: {(error.strerror or str(error)).lower()}")
