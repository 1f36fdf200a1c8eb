"""Who is at the other end of a Unix socket, by the kernel's word: unix(7), SO_PEERCRED."""

from __future__ import annotations

import socket
import struct

_CREDENTIALS = struct.Struct("3i")


def peer(sock: socket.socket) -> tuple[int, int]:
    """Process id and uid of whoever connected, as they were then. OSError as it comes."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid
