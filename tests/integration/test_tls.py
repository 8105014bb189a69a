"""TLS with certificates of both sides: whoever fits works, whoever does not is told at once what is wrong."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests import models
from tests.executors import Executor
from tests.servers import Server, free_port

import keyside
from keyside import errors
from keyside.clients.cli.root import cli

X = np.arange(8, dtype=np.float32).reshape(2, 4)
LARGE = np.zeros((200_000, 4), np.float32)


@dataclass(frozen=True)
class Place:
    """A server that speaks TLS alone on its port, and certificates by two authorities, of which it knows `ca`."""

    server: Server
    folder: Path
    port: int

    def url(self, ca: str = "ca", certificate: str = "client") -> str:
        """Its address, with the CA that is trusted and the certificate that is shown; empty: none."""
        settings = [f"ssl_ca_certs={self.folder}/{ca}.crt"] if ca else []
        if certificate:
            settings += [
                f"ssl_certfile={self.folder}/{certificate}.crt",
                f"ssl_keyfile={self.folder}/{certificate}.key",
            ]
        return f"rediss://127.0.0.1:{self.port}?{'&'.join(settings)}"


def _openssl(folder: Path, *args: str) -> None:
    subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True, timeout=30)


_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _authority(folder: Path, name: str) -> None:
    usage = ("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign")
    subject = ("-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.crt")
    _openssl(folder, "req", "-x509", *_KEY, "-days", "2", *subject, *usage)


def _certificate(folder: Path, name: str, by: str) -> None:
    (folder / f"{name}.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    _openssl(folder, "req", *_KEY, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
    signed = ("-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext")
    _openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    # Redis: the Valkey of the tests was built without TLS.
    folder = tmp_path_factory.mktemp("tls")
    for name in ("ca", "stranger-ca"):
        _authority(folder, name)
    for name, by in (("server", "ca"), ("client", "ca"), ("stranger", "stranger-ca")):
        _certificate(folder, name, by)
    port = free_port()
    settings: dict[str, Any] = {
        "tls_port": port,
        "tls_cert_file": str(folder / "server.crt"),
        "tls_key_file": str(folder / "server.key"),
        "tls_ca_cert_file": str(folder / "ca.crt"),
        "tls_auth_clients": "yes",
    }
    with Server("redis", **settings) as server:
        server.load_library()
        yield Place(server, folder, port)


@pytest.fixture(scope="module")
def served(place: Place, lasting: set[int]) -> Iterator[Executor]:
    executor = Executor(place.server)
    executor.url = place.url()
    with executor:
        lasting.add(executor.pid)
        yield executor
        lasting.discard(executor.pid)


def test_a_blocking_client(place: Place, served: Executor) -> None:
    with keyside.Client(place.url(), timeout=10) as client:
        client.store("m", models.affine())
        assert client.predict("m", X).tolist() == (X * 2 + 1).tolist()
        client.set("x", LARGE)
        client.execute("m", inputs=["x"], outputs=["y"])
        assert client.get("y").shape == LARGE.shape
        assert client.predict("m", LARGE).shape == LARGE.shape


def test_settings_beside_the_url(place: Place, served: Executor) -> None:
    settings: dict[str, Any] = {
        "ssl_ca_certs": str(place.folder / "ca.crt"),
        "ssl_certfile": str(place.folder / "client.crt"),
        "ssl_keyfile": str(place.folder / "client.key"),
    }
    with keyside.Client(f"rediss://localhost:{place.port}", **settings) as client:
        assert client.ping() > 0


async def test_an_asyncio_client(place: Place, served: Executor) -> None:
    async with keyside.AsyncClient(place.url(), timeout=10) as client:
        await client.store("m", models.affine())
        found = await asyncio.gather(*(client.predict("m", X + n) for n in range(20)))
        assert [one[0, 0] for one in found] == [2 * n + 1 for n in range(20)]
        assert (await client.predict("m", LARGE)).shape == LARGE.shape


def test_the_command_line(place: Place, served: Executor) -> None:
    for args in (["tensor", "set", "x", "1", "2"], ["tensor", "show", "x"], ["info"], ["install"], ["doctor"]):
        result = CliRunner().invoke(cli, ["--url", place.url(), *args], prog_name="keyside")
        assert result.exit_code == 0, result.output


WRONG = [
    (
        {"ca": "stranger-ca"},
        "the server's certificate is not trusted: name the CA that has signed it with ssl_ca_certs",
    ),
    ({"ca": ""}, "the server's certificate is not trusted"),
    ({"ca": "nowhere"}, "a file that ssl_ca_certs, ssl_certfile or ssl_keyfile names cannot be read"),
    ({"certificate": ""}, "the server wants a certificate of the client: give ssl_certfile and ssl_keyfile"),
    (
        {"certificate": "stranger"},
        "the server does not accept the client's certificate: its own CA has to have signed it",
    ),
]
wrong = pytest.mark.parametrize(("given", "says"), WRONG, ids=[str(given) for given, _ in WRONG])


def _ping(url: str) -> None:
    with keyside.Client(url, timeout=10) as client:
        client.ping()


def _ping_async(url: str) -> None:
    async def ping() -> None:
        async with keyside.AsyncClient(url, timeout=10) as client:
            await client.ping()

    asyncio.run(ping())


@wrong
@pytest.mark.parametrize("ping", [_ping, _ping_async], ids=["blocking", "asyncio"])
def test_who_does_not_fit_is_told_at_once(
    place: Place, ping: Callable[[str], None], given: dict[str, str], says: str
) -> None:
    started = time.monotonic()
    with pytest.raises(errors.Unreachable, match=r"cannot connect to 127\.0\.0\.1") as caught:
        ping(place.url(**given))
    assert says in str(caught.value)
    assert time.monotonic() - started < 5


@wrong
def test_an_executor_that_does_not_fit_ends_at_once(place: Place, given: dict[str, str], says: str) -> None:
    if given.get("certificate") == "stranger":
        pytest.skip(
            "it may find the connection closed before it has read why, and then waits: the server may be starting"
        )
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "keyside.executor"],
        env={**os.environ, "KEYSIDE_URL": place.url(**given)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert says in done.stdout + done.stderr
    assert time.monotonic() - started < 20, "half of that is the imports"


@wrong
def test_the_command_line_says_it(place: Place, given: dict[str, str], says: str) -> None:
    result = CliRunner().invoke(cli, ["--url", place.url(**given), "info"], prog_name="keyside")
    assert result.exit_code == 1
    assert f"cannot reach the server: {says}" in result.stderr


def test_a_port_without_tls(place: Place) -> None:
    with pytest.raises(errors.KeysideError, match=r"cannot connect|reset"):
        _ping(f"redis://127.0.0.1:{place.port}")
