"""The benchmarks' drivers and raw clients: what they send, and how they read answers that come in parts."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import drivers

    return drivers


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[str]:
    """A server that answers each command with its last word, byte by byte; the address of its unix socket."""
    path = str(tmp_path / "s")
    ended = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        threads = []

        def serve(sock: socket.socket) -> None:
            reader = hiredis.Reader()
            with sock:
                while data := sock.recv(65536):
                    reader.feed(data)
                    while command := reader.gets():
                        for byte in b"$%d\r\n%b\r\n" % (len(command[-1]), command[-1]):
                            sock.send(bytes([byte]))

        def accept() -> None:
            listener.settimeout(0.05)
            while not ended.is_set():
                try:
                    sock, _ = listener.accept()
                except TimeoutError:
                    continue
                sock.settimeout(10)
                threads.append(threading.Thread(target=serve, args=(sock,)))
                threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield f"unix://{path}"
        ended.set()
        acceptor.join()
        for thread in threads:
            thread.join()


def test_prepare_puts_the_number_where_it_belongs(drivers: Any) -> None:
    prepared = drivers.prepare(lambda n: [["LPUSH", b"k" + drivers.NUMBER, n], ["BLPOP", b"k" + drivers.NUMBER, 10]], 3)
    assert (len(prepared.parts), prepared.replies) == (3, 2)
    reader = hiredis.Reader()
    reader.feed(b"00000042".join(prepared.parts[2]))
    assert [reader.gets(), reader.gets()] == [[b"LPUSH", b"k00000042", b"2"], [b"BLPOP", b"k00000042", b"10"]]


def test_one_by_one(drivers: Any, echo: str) -> None:
    prepared = drivers.prepare(lambda n: [["A", "first"], ["B", f"input {n} ".encode() + drivers.NUMBER]], 2)
    caller = drivers.RedisCaller(echo, prepared, blocking=True)
    with drivers.closing([caller]):
        seconds, answers = drivers.latencies(caller.call, 3, 7)
    assert answers == [(7, b"input 1 00000007"), (8, b"input 0 00000008"), (9, b"input 1 00000009")]
    assert len(seconds) == 3


@pytest.mark.parametrize("how", ["saturate", "offer"])
def test_many(drivers: Any, echo: str, how: str) -> None:
    prepared = drivers.prepare(lambda _: [["A", "first"], ["B", drivers.NUMBER]], 1)
    callers = [drivers.RedisCaller(echo, prepared) for _ in range(4)]
    with drivers.closing(callers):
        load = drivers.saturate(callers, 0.1, 100) if how == "saturate" else drivers.offer(callers, 200, 0.2, start=100)
    numbers = sorted(number for number, _ in load.answers)
    assert numbers == list(range(100, 100 + len(numbers)))
    assert len(numbers) == len(load.seconds) >= 4
    assert all(answer == b"%08d" % number for number, answer in load.answers)


def test_http_answers_of_any_length_and_in_parts(drivers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from peers import base

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(base, "_connect", lambda _: ours)
    http = base._Http(type("Peer", (), {"name": "a peer", "port": 0})())

    def answer(body: bytes, status: str = "200 OK") -> bytes:
        head = f"HTTP/1.1 {status}\r\nInference-Header-Content-Length: 1\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    with ours, theirs:
        for body in (b"12345678", b"12345678", b"1234", b"x" * 1000, b"12345678"):
            theirs.send(answer(body))
            assert http.wait() == body
        whole = answer(b"12345678")
        for part in (whole[:10], whole[10:-3], whole[-3:]):
            assert http._data == whole[: whole.index(part)]
            theirs.send(part)
            found = http.ready()
        assert found == b"12345678"
        theirs.send(answer(b"12345678", "500 No"))
        with pytest.raises(base.Absent, match="500 No"):
            http.wait()
