"""Settings of sockets, the same at both ends. No I/O happens here."""

import socket
import ssl
import struct
import sys

__all__ = ["limit_receive", "limit_send"]

# The kernel's own time limits: Python's cost a poll() before each receive and send. They are not for TLS, where one
# receive may be several, and their layout is known on 64-bit Linux.
_KERNEL = sys.platform.startswith("linux") and struct.calcsize("l") == 8


def limit_receive(sock: socket.socket, seconds: float | None) -> None:
    """Bound each receive.

    Args:
        sock: A connected socket that blocks.
        seconds: After which a receive raises TimeoutError or BlockingIOError; None: never.
    """
    _limit(sock, socket.SO_RCVTIMEO, seconds)


def limit_send(sock: socket.socket, seconds: float | None) -> None:
    """Bound each send; as `limit_receive`. Where the kernel cannot do it, the last of both calls counts for both."""
    _limit(sock, socket.SO_SNDTIMEO, seconds)


def _limit(sock: socket.socket, option: int, seconds: float | None) -> None:
    if not _KERNEL or isinstance(sock, ssl.SSLSocket):
        sock.settimeout(seconds)
        return
    if sock.gettimeout() is not None:
        sock.settimeout(None)
    whole = 0.0 if seconds is None else max(seconds, 1e-6)  # 0 would mean no limit
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(whole), int(whole % 1 * 1e6)))
