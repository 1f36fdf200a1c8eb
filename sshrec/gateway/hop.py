"""The hop: the onward ssh, a child of the worker, under a PTY of the worker's or between three pipes."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import resource
import signal
import subprocess
import termios
from typing import Any

import ptyprocess

from sshrec.session import Winsize

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_PIPE_BYTES = 256 * 1024

_prctl = ctypes.CDLL(None).prctl


class Hop:
    """A running ssh.

    `stdin`: to write to; `stdout` and `stderr`: to read from, -1 where both outputs come through `stdout`;
    `tty`: to read what ssh asks its terminal, -1 where it has none. `pidfd`: readable once it has ended.
    """

    def __init__(self, pid: int, stdin: int, stdout: int, stderr: int, tty: int, output: int = -1) -> None:
        self.pid, self.stdin, self.stdout, self.stderr, self.tty = pid, stdin, stdout, stderr, tty
        self._output = output  # the end of the pipe `stdout` that ssh writes to
        self.pidfd = os.pidfd_open(pid)
        self.status: int | None = None
        self._open = {stdin, stdout, stderr, tty, output, self.pidfd} - {-1}

    def reap(self) -> int:
        """Its exit status (negative: minus the signal that ended it); waits for it."""
        if self.status is None:
            _, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def block_output(self) -> None:
        """Have ssh wait when we do not read, as it does for a terminal; once it has its session.

        It makes an output that is no terminal non-blocking, and then buffers what we have not read, in ever
        larger copies, for two to three times its CPU. The flag belongs to the pipe's end, which we share.
        """
        if self._output in self._open:
            os.set_blocking(self._output, True)
            self.let_go(self._output)

    def let_go(self, fd: int) -> None:
        """Close one of the descriptors, once."""
        if fd in self._open:
            self._open.remove(fd)
            os.close(fd)

    def close(self) -> None:
        """Close them all."""
        for fd in list(self._open):
            self.let_go(fd)

    def send_signal(self, number: int) -> None:
        """Signal it, if it still runs."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, number)


def under_pty(
    argv: list[bytes], env: dict[str, str], modes: list[Any], size: Winsize, *, quiet: bool, master: bool = False
) -> Hop:
    """With a terminal: stdin is a PTY with the person's modes and size, both outputs are one pipe.

    `quiet`: without ssh's own word at the end, that the connection is closed. `master`: it goes by one, which
    has the descriptors then, for many sessions, and must never wait for us.

    A pipe, for it gives larger reads at half the CPU of a second PTY; ssh takes size and modes from stdin.
    """
    read, write = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()

    def prepare() -> None:
        termios.tcsetattr(0, termios.TCSANOW, modes)
        os.dup2(write, 1)
        if quiet:  # what a target shows comes by stdout: a terminal has one output
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 2)
            os.close(null)
        else:
            os.dup2(write, 2)
        os.close(write)
        confine(parent)

    try:
        child = ptyprocess.PtyProcess.spawn(
            argv, env=env, preexec_fn=prepare, dimensions=(size.rows, size.columns), pass_fds=(write,)
        )
    except BaseException:
        os.close(read)
        os.close(write)
        raise
    # ptyprocess sleeps 0.1 s in close, and closes in __del__: keep the PTY's master and leave the object shut.
    stdin, tty = os.dup(child.fd), os.dup(child.fd)
    child.fileobj.close()
    child.closed = True
    if master:
        os.close(write)
        write = -1
    return Hop(child.pid, stdin, read, -1, tty, write)


def with_pipes(argv: list[bytes], env: dict[str, str]) -> Hop:
    """Without a terminal: three pipes, and no controlling terminal that could be asked anything."""
    parent = os.getpid()
    child = subprocess.Popen(
        argv,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: confine(parent),
    )
    assert child.stdin and child.stdout and child.stderr
    stdin, stdout, stderr = (os.dup(end.fileno()) for end in (child.stdin, child.stdout, child.stderr))
    for end in (child.stdin, child.stdout, child.stderr):
        end.close()
    for fd in (stdin, stdout):
        with contextlib.suppress(OSError):  # past the user's share of pipe memory the default must do
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    child.returncode = 0  # Hop reaps it, not its __del__
    return Hop(child.pid, stdin, stdout, stderr, -1)


def without_streams(argv: list[bytes], env: dict[str, str]) -> Hop:
    """With nothing to say and nothing to hear: a master."""
    parent, null = os.getpid(), subprocess.DEVNULL
    child = subprocess.Popen(
        argv,
        stdin=null,
        stdout=null,
        stderr=null,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: confine(parent),
    )
    child.returncode = 0  # Hop reaps it, not its __del__
    return Hop(child.pid, -1, -1, -1, -1)


def confine(parent: int) -> None:
    """In a child: it dies with its parent, which is the worker, gains no privilege and leaves no core."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(255)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_DFL)
