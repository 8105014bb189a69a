"""Addresses of one server, of several nodes of a cluster, or of sentinels."""

from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

from keyside.tensorstore.errors import BadArg

__all__ = ["Address", "parse_address"]

_PORTS = {"redis": 6379, "rediss": 6379, "redis+sentinel": 26379, "rediss+sentinel": 26379}


class Address(NamedTuple):
    """What a URL says.

    Attributes:
        url: of the first server, as redis-py takes it.
        hosts: all that it names, with their ports; none for a unix socket.
        service: what the sentinels at `hosts` call the server; empty where these are servers.
    """

    url: str
    hosts: tuple[tuple[str, int], ...]
    service: str


def parse_address(url: str) -> Address:
    """Read `redis://[user:pass@]host:port[,host:port...][/db]` or `redis+sentinel://...host:port[,...]/service[/db]`.

    Raises:
        BadArg: it names no host or no service, or a port is no number.
    """
    scheme = url.partition("://")[0].lower()
    if scheme not in _PORTS or ("," not in url and "+" not in scheme):
        return Address(url, (), "")
    # Without the hosts: some versions of Python refuse brackets that do not come first.
    rest = url.partition("://")[2]
    ends = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    login, at, hosts = rest[:ends].rpartition("@")
    parts = urlsplit(f"{scheme}://h{rest[ends:]}")
    found = tuple(_host(item, _PORTS[scheme]) for item in hosts.split(",") if item)
    if not found:
        raise BadArg("the address names no host")
    service, path = "", parts.path
    if "+" in scheme:
        service, _, db = path.strip("/").partition("/")
        path = f"/{db}"
        if not service:
            raise BadArg("the address of sentinels ends in the name of a service: redis+sentinel://host:26379/mymaster")
    host, port = found[0]
    netloc = f"{login}{at}[{host}]:{port}" if ":" in host else f"{login}{at}{host}:{port}"
    one = urlunsplit((scheme.partition("+")[0], netloc, path if path != "/" else "", parts.query, ""))
    return Address(one, found, service)


def _host(item: str, port: int) -> tuple[str, int]:
    if item.startswith("["):
        host, _, rest = item[1:].partition("]")
        number = rest.removeprefix(":")
    else:
        host, _, number = item.partition(":")
    if not host or (number and not number.isascii()) or (number and not number.isdigit()):
        raise BadArg(f"{item!r} is not host:port")
    return host, int(number) if number else port
