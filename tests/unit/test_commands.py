"""The builders of commands: against the headers of the Lua functions, and as bytes."""

from collections.abc import Callable
from typing import Any

import hiredis
import numpy as np
import pytest

from keyside.tensorstore import commands, commands_graphs, errors, keys, library, npy, plain, resp
from keyside.tensorstore import commands_scripts as scripts
from keyside.tensorstore.command import Command, Value, encode, text, to_bytes
from keyside.tensorstore.commands import InputSpec, ListedModel, Submit
from keyside.tensorstore.commands_graphs import GetTensor, RunModel, SetTensor
from keyside.tensorstore.records import encode_reply

VALUE = InputSpec(b"VALUE", npy.to_bytes(np.zeros(1)))
KEY = InputSpec(b"KEY", b"x")
SUBMIT = Submit(1000, b"ks:{0}:t", b"7", b"a", 9)

EXAMPLES: dict[str, list[Command[Any]]] = {
    "AI_TENSORSET": [
        commands.ai_tensorset("x", "FLOAT", (2,), [1.5, 2]),
        commands.ai_tensorset("x", "FLOAT", (), []),
    ],
    "AI_LIMITGET": [commands.ai_limitget("m"), commands.ai_limitget(None)],
    "AI_LIMITSET": [commands.ai_limitset("m", jobs=5), commands.ai_limitset(None, rate=(5, 1.0))],
    "AI_TENSORGET": [commands.ai_tensorget("x")],
    "AI_MODELSTORE": [
        commands.ai_modelstore("m", "ONNX", "CPU", blob=[b"abc"]),
        commands.ai_modelstore("m", "ONNX", "CPU", upload=("id", 1, 3, "00" * 32), tag="t", batchsize=2),
    ],
    "AI_MODELGET": [commands.ai_modelget("m"), commands.ai_modelget("m", 2)],
    "AI_MODELDEL": [commands.ai_modeldel("m"), commands.ai_modeldel("m", 2)],
    "AI_MODELSCAN": [commands.ai_modelscan(0)],
    "AI_MODELEXECUTE": [commands.ai_modelexecute("m", [KEY], ["y"], SUBMIT)],
    "AI_PREDICT": [commands.ai_predict("m", [VALUE], SUBMIT), commands.ai_predict("m", [KEY], SUBMIT, outputs=["y"])],
    "AI_DAGEXECUTE": [
        commands_graphs.ai_dagexecute([GetTensor("x")], SUBMIT, load=["x"], persist=["x"]),
        commands_graphs.ai_dagexecute([SetTensor("x", VALUE), RunModel("m", ["x"], ["y"])], SUBMIT),
    ],
    "AI_DAGEXECUTE_RO": [commands_graphs.ai_dagexecute_ro([SetTensor("x", KEY), GetTensor("x")], SUBMIT)],
    "AI_CANCEL": [commands.ai_cancel("ks:{0}:ticket:CPU/1-0"), commands.ai_cancel("ks:{0}:mb:a", b"CPU/1-0")],
    "AI_INFO": [commands.ai_info("m"), commands.ai_info_reset("m", 2)],
    "AI_SCRIPTSTORE": [
        scripts.ai_scriptstore("s", "CPU", ["f", "g"], source="def f", tag="t", run_limit_ms=5),
        scripts.ai_scriptstore("s", "CPU", ["f"]),
    ],
    "AI_SCRIPTGET": [scripts.ai_scriptget("s"), scripts.ai_scriptget("s", 2)],
    "AI_SCRIPTDEL": [scripts.ai_scriptdel("s"), scripts.ai_scriptdel("s", 2)],
    "AI_SCRIPTSCAN": [scripts.ai_scriptscan(0)],
    "AI_SCRIPTEXECUTE": [
        scripts.ai_scriptexecute("s", "f", [KEY, VALUE], SUBMIT, keys=["k"], args=["a"], outputs=["y"]),
        scripts.ai_scriptexecute("s", "f", [], SUBMIT),
    ],
    "KS_VERSION": [commands.ks_version()],
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_builder_sends_what_the_function_takes(name: str) -> None:
    spec = library.functions()[name]
    for command in EXAMPLES[name]:
        word, called, count, *rest = command.args
        assert called == name
        assert word == (b"FCALL_RO" if spec.readonly else b"FCALL")
        given = len(rest) - count
        if spec.keys and spec.keys[-1].variadic:
            assert count >= len(spec.keys) - 1
        else:
            assert count == len(spec.keys)
        optional = {"AI_CANCEL": 1}.get(name, 0)
        needed = sum(not parameter.variadic for parameter in spec.argv) - optional
        assert given >= needed
        if not (spec.argv and spec.argv[-1].variadic):
            assert given <= len(spec.argv)


def test_what_is_sent_twice_does_no_harm_the_second_time() -> None:
    for name, examples in EXAMPLES.items():
        for command in examples:
            if command.repeatable:
                assert name not in (
                    "AI_PREDICT", "AI_MODELEXECUTE", "AI_MODELSTORE", "AI_MODELDEL",
                    "AI_SCRIPTSTORE", "AI_SCRIPTDEL", "AI_SCRIPTEXECUTE",
                    "AI_DAGEXECUTE",
                )  # fmt: skip
            else:
                assert not library.functions()[name].readonly


def words(command: Command[Any]) -> list[str]:
    return [
        arg if isinstance(arg, str) else arg.decode() if isinstance(arg, bytes) else str(arg) for arg in command.args
    ]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            commands.ai_modelexecute("m", [KEY, InputSpec(b"REF", b"x"), InputSpec(b"OWN", b"z")], ["y"], SUBMIT),
            "FCALL AI_MODELEXECUTE 3 x z y m INPUTS 3 x REF x OWN z OUTPUTS 1 y TIMEOUT 1000 TICKET ks:{0}:t 7 ID a 9",
        ),
        (
            commands.ai_predict("m", [KEY, InputSpec(b"VALUE", b"v")], Submit(5), names=["a", "b"], outputs=["o"]),
            "FCALL AI_PREDICT 2 x o m INPUTS 2 KEY x VALUE v NAMES 2 a b OUTPUTS 1 o TIMEOUT 5",
        ),
        (
            commands.ai_predict("m", [InputSpec(b"VALUE", b"v")], Submit(5, b"ks:{0}:t")),
            "FCALL AI_PREDICT 0 m INPUTS 1 VALUE v TIMEOUT 5 TICKET ks:{0}:t",
        ),
        (
            commands.ai_modelstore(
                "m", "TORCH", "GPU:1", upload=("u", 2, 5, "ab"), tag="t", inputs=["a"], outputs=["b", "c"]
            ),
            "FCALL AI_MODELSTORE 1 m TORCH GPU:1 TAG t INPUTS 1 a OUTPUTS 2 b c REPLY VERSION UPLOAD u 2 5 DIGEST ab",
        ),
        (
            commands.ai_modelstore("m", "ONNX", "CPU", blob=[b"x"], batchsize=8, minbatchsize=2, minbatchtimeout=3),
            "FCALL AI_MODELSTORE 1 m ONNX CPU BATCHSIZE 8 MINBATCHSIZE 2 MINBATCHTIMEOUT 3 REPLY VERSION BLOB x",
        ),
        (commands.ai_tensorset("x", "INT64", (2, 1), [1, -2]), "FCALL AI_TENSORSET 1 x INT64 2 1 VALUES 1 -2"),
        (plain.copy("a", "b", replace=True), "COPY a b REPLACE"),
        (plain.pexpire("a", None), "PERSIST a"),
        (plain.blpop(b"t", 0), "BLPOP t 0.001"),
        (plain.blmpop(b"t", 1.5), "BLMPOP 1.500 1 t LEFT COUNT 100"),
        (plain.scan_strings(0, "a*[b"), r"SCAN 0 MATCH a\*\[b* COUNT 500 TYPE string"),
    ],
)  # fmt: skip
def test_the_words_of_a_command(command: Command[Any], expected: str) -> None:
    assert " ".join(words(command)) == expected


def test_a_large_value_is_sent_as_it_lies() -> None:
    array = np.arange(100_000, dtype=np.float64)
    header, data = npy.encode(array)
    batch: list[Command[Any]] = [plain.exists("a"), plain.set_value("x", header, data, 5), plain.exists("b")]
    pieces = encode(batch)
    assert any(
        np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in pieces if len(piece) == array.nbytes
    )
    whole = [("EXISTS", "a"), ("SET", "x", npy.to_bytes(array), "PX", 5), ("EXISTS", "b")]
    assert b"".join(pieces) == b"".join(resp.encode_many(whole))


@pytest.mark.parametrize("px", [None, 1, 60_000])
def test_what_stands_around_a_value_that_is_set(px: int | None) -> None:
    header, data = npy.encode(np.arange(100_000, dtype=np.float64))
    head, tail = plain.set_around(b"k%s\r\n", header, data, px)
    assert b"".join((head, data, tail)) == b"".join(encode([plain.set_value(b"k%s\r\n", header, data, px)]))


def test_a_value_between_long_words() -> None:
    long = "k" * 70_000
    command: Command[None] = Command((long, Value(b"head", memoryview(b"tail")), 7, 1.5), lambda _: None)
    assert b"".join(encode([command])) == b"".join(resp.encode((long, "headtail", 7, 1.5)))


def test_names_that_are_no_text_survive() -> None:
    for name in (b"\xff\x00", "déjà".encode(), b""):
        assert to_bytes(text(name)) == name
    assert to_bytes("déjà") == "déjà".encode()
    assert text("déjà") == "déjà"


def test_an_error_reply_is_raised_as_its_class() -> None:
    command = plain.exists("x")
    assert command.result(1) is True
    with pytest.raises(errors.NoPerm):
        command.result(hiredis.ReplyError("NOPERM no"))
    with pytest.raises(errors.Unreachable):
        command.result(errors.Unreachable("gone"))


def test_replies_on_a_ticket() -> None:
    assert commands.read_reply(b"OK") is None
    found = commands.read_reply(encode_reply("m@1", [("y", b"npy"), ("z", "key")]))
    assert found is not None
    assert found.outputs == {"y": b"npy", "z": "key"}
    with pytest.raises(errors.RunFailed, match="it failed"):
        commands.read_reply(b"RUNFAILED it failed")
    with pytest.raises(errors.ServerError):
        commands.read_reply(b"")
    with pytest.raises(errors.BadArg):
        commands.read_reply(b"\x80")


@pytest.mark.parametrize(
    ("command", "reply", "expected"),
    [
        (commands.ks_version(), [7, b"abc"], 7),
        (
            commands.ai_modelscan(0),
            [b"5", [[b"m", b"t"], [b"n", b""]]],
            (5, [ListedModel("m", "t"), ListedModel("n", "")]),
        ),
        (plain.blpop(b"t", 1), [b"t", b"OK"], b"OK"),
        (plain.blpop(b"t", 1), None, None),
        (plain.blmpop(b"t", 1), None, []),
        (plain.blmpop(b"t", 1), [b"t", [b"1 OK"]], [b"1 OK"]),
        (plain.executor_infos(b"0", ["a"]), [None, b"junk", b"[1]", b'{"a": 1}'], [{"a": 1}]),
        (plain.executor_names(b"0"), [b"a"], ["a"]),
    ],
)
def test_what_is_made_of_a_reply(command: Command[Any], reply: object, expected: object) -> None:
    assert command.result(reply) == expected


def test_counters_of_a_model() -> None:
    reply = [b"key", b"m", b"type", b"MODEL", b"backend", b"ONNX", b"device", b"CPU", b"tag", b"", b"duration", 5]
    stats = commands.ai_info("m").result([*reply, b"samples", 4, b"calls", 3, b"errors", 2])
    assert stats == commands.ModelStats("m", "ONNX", "CPU", "", 5, 4, 3, 2)


def test_the_catalog() -> None:
    command = plain.catalog_record(b"0", "m")
    assert command.args[1] == keys.NodeKeys(b"0").catalog
    record = command.result(
        b'{"key":"m","uid":"u","version":1,"state":"ready","device":"CPU","reason":"",'
        b'"signature":{"inputs":[{"name":"x","dtype":"FLOAT","shape":[-1]}],"outputs":null}}'
    )
    assert record.signature is not None
    assert record.signature.inputs[0].dtype == "FLOAT"
    with pytest.raises(errors.NoModel):
        command.result(None)
    with pytest.raises(errors.BadArg):
        command.result(b"{}")


@pytest.mark.parametrize(
    ("read", "error"),
    [
        (lambda: plain.read_meta("x", b"", 0), errors.NoTensor),
        (lambda: plain.read_meta("x", b"text", 4), errors.WrongType),
        (lambda: plain.read_meta("x", npy.MAGIC, 8), errors.BadNpy),
        (lambda: plain.get_value("x").result(None), errors.NoTensor),
        (lambda: plain.get_value("x").result(b"text"), errors.WrongType),
        (lambda: plain.get_value("x").result(npy.MAGIC), errors.BadNpy),
    ],
)
def test_what_is_no_tensor(read: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        read()


def test_names_of_a_clients_own_keys() -> None:
    assert keys.client_ticket(b"0", "abc", 5) == b"ks:{0}:t:abc:5"
    assert keys.mailbox(b"0", b"abc") == b"ks:{0}:mb:abc"
    assert keys.temporary(keys.tag("a}b{"), "abc", 5, 1).startswith(b"ks:{")
    assert keys.slot(keys.temporary(keys.tag("a}b{"), "abc", 5, 1)) == keys.slot("a}b{")


def test_terms_of_a_submit() -> None:
    assert commands.terms() == ()
    assert commands.terms("high") == (b"PRIORITY", b"HIGH")
    assert commands.terms("low", "ann") == (b"PRIORITY", b"LOW", b"USER", "ann")
    with pytest.raises(errors.BadArg, match="priority is"):
        commands.terms("urgent")
    submit = commands.Submit(5, client=b"c", seq=1, more=commands.terms("low"))
    assert submit.args() == (b"TIMEOUT", 5, b"ID", b"c", 1, b"PRIORITY", b"LOW")


def test_limits() -> None:
    def words(name: str | None, **given: Any) -> tuple[Any, ...]:
        return commands.ai_limitset(name, **given).args[3:]

    assert words("m", jobs=5, rate=(2, 0.5)) == (b"m", b"JOBS", 5, b"RATE", 2, b"PER", 500)
    assert words(None, nbytes=7, user_rate=(1, 60)) == (b"NODE", b"BYTES", 7, b"USERRATE", 1, b"PER", 60000)
    assert words("m") == (b"m", b"RATE", 0), "nothing is bounded any more"
    reply = [b"jobs", 5, b"bytes", 0, b"rate", [2, 500], b"userrate", [0, 0], b"queued", 3, b"held", 9]
    assert commands.ai_limitget("m").result(reply) == commands.Limits(5, 0, (2, 0.5), None, 3, 9)
    assert commands.ai_limitget(None).args[3:] == (b"NODE",)
