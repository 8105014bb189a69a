"""The benchmarks' RedisAI: its commands and replies, as RedisAI documents them. No module is needed."""

from pathlib import Path
from typing import Any

import hiredis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def redisai(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from peers import redisai_peer

    return redisai_peer


def test_tensor_set(redisai: Any) -> None:
    array = np.array([[1.0, 2.0]], np.float32)
    assert redisai.tensor_set("x", array) == ["AI.TENSORSET", "x", "FLOAT", 1, 2, "BLOB", b"\0\0\x80?\0\0\0@"]


def test_model_store_names_no_inputs_which_it_refuses_for_onnx(redisai: Any) -> None:
    assert redisai.model_store("m", b"onnx") == ["AI.MODELSTORE", "m", "ONNX", "CPU", "BLOB", b"onnx"]


def test_model_store_cuts_large_models(redisai: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redisai, "CHUNK", 3)
    assert redisai.model_store("m", b"abcdefg")[-4:] == ["BLOB", b"abc", b"def", b"g"]


def test_a_request_is_one_dag(redisai: Any) -> None:
    command = redisai.dag(np.zeros((1, 30), np.float32), "referenceTensor:7")
    starts = [n for n, word in enumerate(command) if isinstance(word, str) and word == "|>"]
    parts = [command[a:b] for a, b in zip([0, *(n + 1 for n in starts)], [*starts, len(command)], strict=True)]
    assert parts == [
        ["AI.DAGEXECUTE_RO", "LOAD", 1, "referenceTensor:7"],
        ["AI.TENSORSET", "transaction", "FLOAT", 1, 30, "BLOB", bytes(120)],
        ["AI.MODELEXECUTE", "fraud", "INPUTS", 2, "transaction", "referenceTensor:7", "OUTPUTS", 1, "probabilities"],
        ["AI.TENSORGET", "probabilities", "BLOB"],
    ]


def test_a_request_is_encoded_once(redisai: Any) -> None:
    from drivers import prepare

    transaction = np.ones((1, 30), np.float32)
    prepared = prepare(lambda n: [redisai.dag(transaction, f"referenceTensor:{n}")], 2)
    assert prepared.replies == 1
    reader = hiredis.Reader()
    reader.feed(b"".join(prepared.parts[1]))
    words = reader.gets()
    assert words[:4] == [b"AI.DAGEXECUTE_RO", b"LOAD", b"1", b"referenceTensor:1"]
    assert words[words.index(b"BLOB") + 1] == transaction.tobytes()


def reply(wire: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(wire)
    return reader.gets()


def test_reply(redisai: Any) -> None:
    blob = np.array([0.25, 0.75], np.float32).tobytes()
    assert redisai.probabilities(reply(b"*3\r\n+OK\r\n+OK\r\n$8\r\n%b\r\n" % blob)).tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (b"-ERR tensor key is empty or in a different shard\r\n", "tensor key is empty"),
        (b"*3\r\n+OK\r\n-ERR Invalid rank for input\r\n+NA\r\n", "Invalid rank for input"),
        (b"*2\r\n+OK\r\n+OK\r\n", "not the reply to a DAG"),
        (b"*3\r\n+OK\r\n+OK\r\n:1\r\n", "not the reply to a DAG"),
        (b"+TIMEDOUT\r\n", "not the reply to a DAG"),
    ],
)
def test_a_reply_without_an_answer_says_why(redisai: Any, wire: bytes, reason: str) -> None:
    with pytest.raises(AssertionError, match=reason):
        redisai.probabilities(reply(wire))


def test_version(redisai: Any) -> None:
    modules = [[b"name", b"other", b"ver", 1], [b"name", b"ai", b"ver", 10207, b"path", b"/x", b"args", []]]
    assert redisai.version(modules) == "1.2.7"
    assert redisai.version([]) == "of unknown version"


def test_without_a_module_it_is_absent(redisai: Any) -> None:
    with pytest.raises(redisai.Absent, match="KEYSIDE_REDISAI_MODULE"):
        redisai.RedisAIServer(None).start(None)


def test_a_wrong_path_is_named(redisai: Any, tmp_path: Path) -> None:
    with pytest.raises(redisai.Absent, match=r"no file .*redisai\.so"):
        redisai.RedisAIServer(tmp_path / "redisai.so").start(None)
