"""Settings of sockets, the same at both ends. No I/O happens here."""

import socket
import ssl
import struct
import sys

__all__ = ["limit_receive", "limit_send", "tls_problem"]

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


def tls_problem(error: BaseException, *, tls: bool, certificate: bool) -> tuple[str, bool]:
    """Say what is wrong with the settings of a connection that could not be made.

    Args:
        error: Why; with what led to it.
        tls: Whether it was to be over TLS.
        certificate: Whether a certificate of the client was given.

    Returns:
        What to do, empty if that is not known, as when the server is not there; and whether that is sure.
    """
    if not tls:
        return "", False
    chain: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in chain:
        chain.append(found)
        found = found.__cause__ or found.__context__
    text = " ".join(map(str, chain))

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in chain)

    if has(ssl.SSLCertVerificationError):
        return "the server's certificate is not trusted: name the CA that has signed it with ssl_ca_certs", True
    if has(FileNotFoundError, PermissionError):
        return "a file that ssl_ca_certs, ssl_certfile or ssl_keyfile names cannot be read", True
    if "WRONG_VERSION_NUMBER" in text:
        return "the server speaks no TLS on this port: take redis:// instead of rediss://, or another port", True
    # Who is turned away may find the connection gone before it has read why.
    alert, gone = "_ALERT_" in text, has(ssl.SSLEOFError, ConnectionResetError, BrokenPipeError)
    if not alert and not gone:
        return "", False
    if certificate:
        return (
            "the server does not accept the client's certificate: its own CA has to have signed it (ssl_certfile)",
            alert,
        )
    return "the server wants a certificate of the client: give ssl_certfile and ssl_keyfile", True
