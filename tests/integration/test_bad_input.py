"""Bad input, each with an error that says what is wrong: the executor lives, nothing is lost, nothing left behind."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from tests import models, more_models
from tests.executors import Executor
from tests.raw import (
    add,
    answer,
    at_once,
    call,
    execute,
    get,
    modelstore,
    paused,
    predict,
    private_keys,
    put,
    refused,
    run,
    state,
    store,
)
from tests.servers import Server, wait_until

from keyside.tensorstore.errors import InputLost, KeysideError, RunFailed

JOBS = "ks:{0}:jobs:CPU"
ONE = np.ones((1, 4), np.float32)


@pytest.fixture
def serves(executor: Executor, db: Any) -> Iterator[Any]:
    """The server, with a model `m` of FLOAT [-1, 4] that serves before and after the test; nothing is left behind."""
    store(db, "m", models.affine())
    run(db, predict("m", ONE))
    yield db
    np.testing.assert_array_equal(run(db, predict("m@1", ONE)).outputs["y"], 2 * ONE + 1)
    wait_until(lambda: db.xlen(JOBS) == 0, "all jobs and loads have ended")
    assert private_keys(db) == set()


# --- npy files


def file(header: str, data: bytes = b"", *, magic: bytes = b"\x93NUMPY\x01\x00") -> bytes:
    text = header.encode("latin-1")
    return magic + struct.pack("<H", len(text)) + text + data


def described(descr: str = "'<f4'", fortran: str = "False", shape: str = "(1, 4)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"


DATA = ONE.tobytes()
HOSTILE = {
    "no npy at all": b"something else",
    "another magic": file(described(), DATA, magic=b"\x93NUMPZ\x01\x00"),
    "another version": file(described(), DATA, magic=b"\x93NUMPY\x02\x00"),
    "cut off in the magic": b"\x93NUMP",
    "cut off in the header": file(described(), DATA)[:40],
    "cut off in the data": file(described(), DATA[:-1]),
    "more data than elements": file(described(), DATA + b"\0"),
    "a header longer than the file": b"\x93NUMPY\x01\x00\xff\xff" + described().encode(),
    "a header of brackets": file("(" * 30_000),
    "a header that calls": file(described(shape="(__import__('os').system('true'), 4)"), DATA),
    "a header without a shape": file("{'descr': '<f4', 'fortran_order': False}\n", DATA),
    "a header with a key too many": file(described()[:-2] + "'x': 1}\n", DATA),
    "dims whose product overflows": file(described(shape="(4611686018427387904, 4)"), DATA),
    "dims whose product wraps to the right length": file(described(shape="(4611686018427387905, 4)"), DATA),
    "a dim of many digits": file(described(shape=f"({'9' * 5000}, 4)"), DATA),
    "a negative dim": file(described(shape="(-1, -4)"), DATA),
    "a shape that is a number": file(described(shape="4"), DATA),
    "33 dims": file(described(shape=f"({'1, ' * 32}4)"), DATA),
    "pickled objects": file(described("'|O'"), b"\x80\x04K\x01." * 4),
    "Fortran order": file(described(fortran="True"), DATA),
    "big-endian numbers": file(described("'>f4'"), DATA),
    "complex numbers": file(described("'<c8'", shape="(1, 2)"), DATA),
    "times": file(described("'<M8[ns]'", shape="(1, 2)"), DATA),
    "UTF-32 strings": file(described("'<U1'"), DATA),
    "records": file(described("[('a', '<f4')]"), DATA),
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_npy_is_refused_at_submit(db: Any, catalog: None, value: bytes) -> None:
    refused("BADNPY", db, *predict("m", value))
    db.set("x", value)
    for mode in ("KEY", "OWN", "REF"):
        error = refused("NOTENSOR", db, *predict("m", (mode, "x")))
        assert "'x'" in error.text
    refused("NOTENSOR", db, *execute("m", ["x"], ["y"]))
    assert db.get("x") == value
    assert db.xlen(JOBS) == 1  # the load of m
    assert not db.exists("y")


@pytest.fixture
def catalog(db: Any) -> Iterator[None]:
    """A model whose only version nobody has loaded: enough for what is refused before."""
    call(db, *modelstore("m", models.affine()))
    yield
    call(db, "FCALL", "AI_MODELDEL", 1, "m")
    db.delete(JOBS)


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE)
def test_hostile_npy_that_came_after_the_submit_is_refused_by_the_executor(serves: Any, value: bytes) -> None:
    put(serves, "x", ONE)
    ticket, _ = at_once(serves, predict("m", ("REF", "x")), ("SET", "x", value))
    with pytest.raises(InputLost, match="'x' no longer holds a tensor"):
        answer(serves, ticket)


# --- inputs that do not fit the model


UNFIT: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "another dtype": ("BADDTYPE", lambda: predict("f", ONE.astype("<f8"))),
    "strings": ("BADDTYPE", lambda: predict("f", np.array([[b"1", b"2", b"3", b"4"]]))),
    "too few dims": ("BADSHAPE", lambda: predict("f", ONE[0])),
    "too many dims": ("BADSHAPE", lambda: predict("f", ONE[None])),
    "no dims": ("BADSHAPE", lambda: predict("f", np.array(1, np.float32))),
    "other dims": ("BADSHAPE", lambda: predict("f", np.ones((4, 1), np.float32))),
    "too many inputs": ("BADINPUT", lambda: predict("f", ONE, ONE)),
    "too few inputs": ("BADINPUT", lambda: predict("two", ONE[:, :2])),
    "a name that it does not have": ("BADINPUT", lambda: predict("f", ONE, options=("NAMES", 1, "z"))),
    "a name twice": ("BADINPUT", lambda: predict("two", ONE[:, :2], ONE[:, :2], options=("NAMES", 2, "a", "a"))),
    "too many outputs": ("BADINPUT", lambda: execute("f", ["x"], ["y", "z"])),
    "too few outputs": ("BADINPUT", lambda: execute("two", ["ab", "ab"], ["y"])),
}


@pytest.mark.parametrize(("code", "command"), UNFIT.values(), ids=UNFIT)
@pytest.mark.parametrize("known", [True, False])
def test_inputs_that_do_not_fit(serves: Any, code: str, command: Callable[[], tuple[Any, ...]], known: bool) -> None:
    """While the first version loads nobody knows its signature: then the executor says what the submit would say."""
    stores = (modelstore("f", models.affine()), modelstore("two", models.two_outputs()))
    put(serves, "x", ONE)
    put(serves, "ab", ONE[:, :2])
    if known:
        at_once(serves, *stores)
        wait_until(lambda: state(serves, "f") == state(serves, "two") == "ready", "both are loaded")
        error = refused(code, serves, *command())
    else:
        *_, ticket = at_once(serves, *stores, command())
        with pytest.raises(KeysideError) as caught:
            answer(serves, ticket)
        error = caught.value
    assert error.code == code
    assert any(title in error.text for title in ("'f@1'", "'two@1'"))
    if code != "BADINPUT":
        assert "got" in error.text
    assert not serves.exists("y")


@pytest.mark.parametrize(
    "target", ["nothing", "nothing@1", "m@2", "m@0", "m@01", "m@production", "m@", "@1", "m@1@1", ""]
)
def test_unknown_targets(serves: Any, target: str) -> None:
    refused("NOMODEL", serves, *predict(target, ONE))
    put(serves, "x", ONE)
    refused("NOMODEL", serves, *execute(target, ["x"], ["y"]))


@pytest.mark.parametrize("bad", [99, -99, 2**62, -(2**63)])
def test_a_model_that_fails_at_run(serves: Any, bad: int) -> None:
    store(serves, "f", models.fails_out_of_range())
    with pytest.raises(RunFailed, match="indices element out of data bounds"):
        run(serves, predict("f", np.array([bad])))
    put(serves, "x", np.array([bad]))
    with pytest.raises(RunFailed):
        run(serves, execute("f", ["x"], ["y"]))
    assert not serves.exists("y")


# --- keys of another type


TYPES: dict[str, tuple[Any, ...]] = {
    "text": ("SET", "taken", "a user's text"),
    "nothing": ("SET", "taken", ""),
    "list": ("RPUSH", "taken", "a"),
    "hash": ("HSET", "taken", "type", "a"),
    "set": ("SADD", "taken", "a"),
    "zset": ("ZADD", "taken", 1, "a"),
    "stream": ("XADD", "taken", "1-1", "a", "b"),
}


@pytest.mark.parametrize("make", TYPES.values(), ids=TYPES)
def test_a_key_of_another_type_in_any_position(serves: Any, make: tuple[Any, ...]) -> None:
    put(serves, "x", ONE)
    serves.execute_command(*make)
    before = serves.dump("taken")
    text = make[0] == "SET"
    for mode in ("KEY", "OWN", "REF"):
        refused("NOTENSOR" if text else "WRONGTYPE", serves, *predict("m", (mode, "taken")))
    refused("NOTENSOR" if text else "WRONGTYPE", serves, *execute("m", ["taken"], ["y"]))
    refused("WRONGTYPE", serves, *execute("m", ["x"], ["taken"]))
    refused("NOMODEL", serves, *execute("taken", ["x"], ["y"]))
    refused("WRONGTYPE", serves, *modelstore("taken", models.affine()))
    for function in ("AI_MODELGET", "AI_MODELDEL", "AI_INFO"):
        refused("WRONGTYPE", serves, "FCALL", function, 1, "taken")
    refused("WRONGTYPE", serves, "FCALL", "AI_TENSORSET", 1, "taken", "FLOAT", 1)
    refused("WRONGTYPE", serves, "FCALL_RO", "AI_TENSORGET", 1, "taken")
    assert serves.dump("taken") == before
    assert not serves.exists("y")


@pytest.mark.parametrize("make", TYPES.values(), ids=TYPES)
@pytest.mark.parametrize("width", [3, 20_000])
def test_an_output_key_that_a_user_takes_while_the_job_runs(serves: Any, make: tuple[Any, ...], width: int) -> None:
    store(serves, "f", more_models.wide(width))
    put(serves, "x", ONE[:, :1])
    ticket, _ = at_once(serves, execute("f", ["x"], ["taken"]), make)
    with pytest.raises(KeysideError, match="WRONGTYPE output key 'taken'"):
        answer(serves, ticket)


def test_tensors_and_models_are_no_good_for_each_other(serves: Any) -> None:
    put(serves, "x", ONE)
    refused("WRONGTYPE", serves, *predict("m", ("KEY", "m")))
    refused("WRONGTYPE", serves, *execute("m", ["x"], ["m"]))
    refused("NOMODEL", serves, *predict("x", ONE))
    refused("WRONGTYPE", serves, *modelstore("x", models.affine()))
    refused("WRONGTYPE", serves, "FCALL", "AI_TENSORSET", 1, "m", "FLOAT", 1)
    refused("WRONGTYPE", serves, "FCALL_RO", "AI_TENSORGET", 1, "m")


@pytest.mark.parametrize("ticket", ["mine", "", "ks:", "ks:{0}" + "x" * 1100])
def test_a_ticket_must_be_a_private_name(serves: Any, ticket: str) -> None:
    refused("BADARG", serves, *predict("m", ONE, options=("TICKET", ticket)))


def test_a_ticket_that_holds_something_else_is_the_callers_loss(serves: Any) -> None:
    put(serves, "x", ONE)
    serves.set("ks:{0}:t:mine", "text")
    call(serves, *execute("m", ["x"], ["y"], "TICKET", "ks:{0}:t:mine"))
    wait_until(lambda: serves.exists("y"), "the job is done nevertheless")
    assert serves.get("ks:{0}:t:mine") == b"text"
    serves.delete("ks:{0}:t:mine")


NAMES = {
    "not UTF-8": b"\xff\xfe\x00\x80",
    "braces": b"{}a}{b",
    "quotes and lines": b"'\"\r\n\t $(x)",
    "long": b"n" * 512,
    "a word of the language": b"INPUTS",
    "like a private one": b"ks:{0}:jobs:CPU:",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_names_of_any_bytes(serves: Any, name: bytes) -> None:
    """Users name models and tensors as they like."""
    store(serves, name, models.affine())
    put(serves, b"x" + name, ONE)
    reply = run(serves, predict(name, ("KEY", b"x" + name)))
    np.testing.assert_array_equal(reply.outputs["y"], 2 * ONE + 1)
    assert reply.target == name.decode(errors="replace") + "@1"
    run(serves, predict(name, ("KEY", b"x" + name), outputs=[b"y" + name]))
    np.testing.assert_array_equal(get(serves, b"y" + name), 2 * ONE + 1)
    refused("NOTENSOR", serves, *predict(name, ("KEY", b"z" + name)))
    refused("BADSHAPE", serves, *predict(name, ONE[0]))
    refused("NOMODEL", serves, *predict(name + b"@2", ONE))
    version = add(serves, name, models.garbage())
    assert version == 2
    refused("MODELFAILED", serves, *predict(name + b"@2", ONE))
    call(serves, "FCALL", "AI_MODELDEL", 1, name)
    forget_failed(serves)


# --- models


def truncated() -> bytes:
    return models.mlp()[:-1000]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "garbage": (models.garbage, "not an ONNX"),
    "text": (lambda: b"import os\n" * 50, "not an ONNX"),
    "one byte": (lambda: b"\x08", "not an ONNX"),
    "no graph": (lambda: b"\x08\x08", "no graph"),
    "zeros": (lambda: bytes(1000), "not an ONNX"),
    "truncated": (truncated, "not an ONNX"),
    "external data": (models.external_data, "external file"),
    "external data above": (lambda: models.external_data("../../../etc/passwd"), "external file"),
    "a custom operator": (models.custom_operator, "custom operator"),
    "an unknown operator": (more_models.unknown_operator, "Frobnicate"),
    "fails at warm-up": (more_models.fails_at_warm_up, "warm-up run failed"),
}


@pytest.mark.parametrize(("make", "reason"), BROKEN.values(), ids=BROKEN)
def test_models_that_cannot_be_loaded(serves: Any, make: Callable[[], bytes], reason: str) -> None:
    assert add(serves, "m", make()) == 2
    assert state(serves, "m", 2) == "failed"
    assert reason in serves.hget("m", "2:reason").decode()
    error = refused("MODELFAILED", serves, *predict("m@2", ONE))
    assert "'m@2'" in error.text
    assert reason in error.text
    assert run(serves, predict("m", ONE)).target == "m@1"
    call(serves, "FCALL", "AI_MODELDEL", 1, "m", "VERSION", 2)
    forget_failed(serves)


def forget_failed(db: Any) -> None:
    """Take away what is kept of failed uploads for a while, after a look that it is only for a while."""
    for key in db.scan_iter("ks:{*}:up:*"):
        assert 0 < db.pttl(key) <= 600_000
        db.delete(key)


@pytest.mark.parametrize(
    "options",
    [
        ("OPTIONS", '{"no_such": 1}'),
        ("OPTIONS", '{"intra_op_num_threads": "many"}'),
        ("OPTIONS", '{"warmup": {"shapes": [[1, 5]]}}'),
        ("OPTIONS", '{"warmup": {"shapes": [[1000000000, 4]]}}'),
        ("INPUTS", 1, "z", "OUTPUTS", 1, "y"),
        ("INPUTS", 1, "x", "OUTPUTS", 1, "z"),
    ],
)
def test_options_that_only_the_executor_can_judge(serves: Any, options: tuple[Any, ...]) -> None:
    version = add(serves, "m", models.affine(), *options)
    assert state(serves, "m", version) == "failed"
    assert run(serves, predict("m", ONE)).target == "m@1"
    forget_failed(serves)


def test_backends_and_devices_that_are_not_there(serves: Any) -> None:
    refused("BADARG", serves, *modelstore("f", models.affine(), backend="TF"))
    refused("BADARG", serves, *modelstore("f", models.affine(), backend="no such"))
    refused("BADARG", serves, *modelstore("f", models.affine(), device="no such"))
    assert add(serves, "f", models.affine(), backend="NOSUCH") == 1
    assert "no backend NOSUCH" in refused("MODELFAILED", serves, *predict("f", ONE)).text
    forget_failed(serves)


def upload(db: Any, name: str, chunks: list[bytes], digest: str = "", size: int = 0) -> tuple[Any, ...]:
    """Put up the chunks of a model, and return the command that stores it."""
    for i, chunk in enumerate(chunks):
        db.set(f"ks:{{{name}}}:up:u1:{i}", chunk, px=3_600_000)
    blob = b"".join(chunks)
    return (
        "FCALL", "AI_MODELSTORE", 1, name, "ONNX", "CPU", "UPLOAD", "u1", len(chunks), size or len(blob),
        "DIGEST", digest or hashlib.sha256(blob).hexdigest(),
    )  # fmt: skip


def test_a_huge_model(serves: Any) -> None:
    """Above 8 MiB the inline way is refused and names the other, by which garbage comes no further."""
    huge = models.garbage(9 << 20)
    error = refused("TOOBIG", serves, *modelstore("f", huge))
    assert "UPLOAD" in error.text
    call(serves, *upload(serves, "f", [huge[: 4 << 20], huge[4 << 20 : 8 << 20], huge[8 << 20 :]]))
    wait_until(lambda: state(serves, "f") == "failed", "it fails to load")
    refused("MODELFAILED", serves, *predict("f", ONE))
    forget_failed(serves)


def test_an_upload_that_is_not_what_was_announced(serves: Any) -> None:
    blob = models.affine()
    error = refused("UPLOADLOST", serves, *upload(serves, "f", [blob], size=len(blob) + 1))
    assert str(len(blob) + 1) in error.text
    command = upload(serves, "f", [blob[:50], blob[50:]])
    serves.delete("ks:{f}:up:u1:1")
    refused("UPLOADLOST", serves, *command)
    assert not serves.exists("f")
    call(serves, *upload(serves, "f", [blob], digest="0" * 64))
    wait_until(lambda: state(serves, "f") == "failed", "it fails to load")
    assert "SHA-256" in refused("MODELFAILED", serves, *predict("f", ONE)).text
    forget_failed(serves)


# --- values


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("FLOAT", "abc"), ("FLOAT", ""), ("FLOAT", "1,5"), ("FLOAT", "0x10"), ("FLOAT", "1e39"), ("DOUBLE", "1e400"),
        ("INT32", "1.5"), ("INT32", "nan"), ("INT8", "128"), ("UINT8", "-1"), ("INT64", "9223372036854775808"),
        ("BOOL", "2"), ("FLOAT", b"\xff\x00"), ("INT64", "1" * 1_000_000),
    ],
)  # fmt: skip
def test_values_that_are_no_numbers_of_the_dtype(db: Any, dtype: str, value: str | bytes) -> None:
    put(db, "x", ONE)
    refused("BADVALUE", db, "FCALL", "AI_TENSORSET", 1, "x", dtype, 2, "VALUES", 1, value)
    np.testing.assert_array_equal(get(db, "x"), ONE)


def test_values_by_the_million(db: Any) -> None:
    error = refused("TOOBIG", db, "FCALL", "AI_TENSORSET", 1, "x", "UINT8", 1_000_000, "VALUES", *["1"] * 1_000_000)
    assert "SET" in error.text
    assert not db.exists("x")


# --- clients that vanish


def test_a_client_that_vanishes_after_its_submit(serves: Any, server: Server) -> None:
    """Its job ends as it would; the reply goes 10 s after the deadline, if nobody fetches it."""
    put(serves, "x", np.ones((1, 20_000), np.float32))
    store(serves, "f", models.affine(width=20_000))
    with server.client() as other:
        ticket = call(other, *execute("f", ["x"], ["y"], "TIMEOUT", 5000))
    wait_until(lambda: serves.exists("y"), "the job is done")
    assert serves.llen(ticket) == 1
    assert 10_000 < serves.pttl(ticket) <= 15_000
    serves.delete(ticket)


def test_a_client_that_vanishes_while_it_waits(serves: Any, executor: Executor, server: Server) -> None:
    with server.client() as other, paused(executor):
        number = other.client_id()
        ticket = call(other, *predict("m", ONE, options=("TIMEOUT", 5000)))
        connection = other.connection_pool.get_connection()
        connection.send_command("BLPOP", ticket, 5)
        wait_until(lambda: serves.info("clients")["blocked_clients"] == 1, "it waits")
        for client in serves.client_list():
            if client["cmd"] == "blpop" or int(client["id"]) == number:
                serves.client_kill_filter(_id=client["id"])
        connection.disconnect()
    wait_until(lambda: serves.llen(ticket), "the reply is there")
    assert 10_000 < serves.pttl(ticket) <= 15_000
    serves.delete(ticket)


def test_a_large_reply_that_nobody_fetches(serves: Any) -> None:
    store(serves, "f", more_models.wide(20_000))
    ticket = call(serves, *predict("f", ONE[:, :1], options=("TIMEOUT", 5000)))
    wait_until(lambda: serves.llen(ticket), "the reply is there")
    (output,) = serves.scan_iter("ks:{*}:out:*")
    assert 0 < serves.pttl(output) <= 60_000
    serves.delete(ticket, output)


# --- inputs that go, and inputs that are given away


@pytest.mark.parametrize("meanwhile", [("DEL", "x"), ("RENAME", "x", "z"), ("PEXPIREAT", "x", "1")])
def test_a_referenced_input_that_has_gone(serves: Any, meanwhile: tuple[Any, ...]) -> None:
    put(serves, "x", ONE)
    ticket, _ = at_once(serves, predict("m", ("REF", "x")), meanwhile)
    with pytest.raises(InputLost, match="'x' was gone"):
        answer(serves, ticket)


@pytest.mark.parametrize("make", [make for name, make in TYPES.items() if name != "nothing"])
def test_a_referenced_input_that_became_something_else(serves: Any, make: tuple[Any, ...]) -> None:
    put(serves, "taken", ONE)
    ticket, *_ = at_once(serves, predict("m", ("REF", "taken")), ("DEL", "taken"), make)
    with pytest.raises(InputLost, match="'taken'"):
        answer(serves, ticket)


def test_a_referenced_input_is_read_when_the_job_runs(serves: Any) -> None:
    put(serves, "x", ONE)
    put(serves, "new", 5 * ONE)
    put(serves, "other", ONE.astype(np.int32))
    as_then, _, unfit, _ = at_once(
        serves,
        predict("m", ("REF", "x")),
        ("COPY", "new", "x", "REPLACE"),
        predict("m", ("REF", "new")),
        ("COPY", "other", "new", "REPLACE"),
    )
    np.testing.assert_array_equal(answer(serves, as_then).outputs["y"], 10 * ONE + 1)
    with pytest.raises(KeysideError, match="BADDTYPE"):
        answer(serves, unfit)


@pytest.mark.parametrize("width", [3, 20_000])
def test_an_input_that_is_given_away_is_gone(serves: Any, width: int) -> None:
    store(serves, "f", models.affine(width=width))
    x = np.ones((1, width), np.float32)
    put(serves, "x", x)
    ticket, left = at_once(serves, execute("f", ["OWN x"], ["y"]), ("EXISTS", "x"))
    assert left == 0
    answer(serves, ticket)
    np.testing.assert_array_equal(get(serves, "y"), 2 * x + 1)
    assert not serves.exists("x")


@pytest.mark.parametrize("width", [3, 20_000])
def test_an_input_that_is_given_away_stays_when_the_call_is_refused(serves: Any, width: int) -> None:
    put(serves, "x", np.ones((1, width), np.float32), px=100_000)
    refused("BADSHAPE", serves, *predict("m", ("OWN", "x")))
    assert 0 < serves.pttl("x") <= 100_000
    refused("NOTENSOR", serves, *predict("m", ("OWN", "z")))


@pytest.mark.parametrize("other", ["OWN", "KEY", "REF"])
def test_an_input_that_is_given_away_cannot_be_another_one_too(serves: Any, other: str) -> None:
    store(serves, "two", models.two_outputs())
    put(serves, "x", ONE[:, :2])
    refused("BADARG", serves, *predict("two", ("OWN", "x"), (other, "x")))
    assert serves.exists("x")


def test_a_captured_input_that_was_evicted(serves: Any, executor: Executor) -> None:
    x = np.ones((1, 20_000), np.float32)
    store(serves, "f", models.affine(width=20_000))
    put(serves, "x", x)
    with paused(executor):
        ticket = call(serves, *execute("f", ["x"], ["y"]))
        (capture,) = serves.scan_iter("ks:{x}:cap:*")
        assert 0 < serves.pttl(capture) <= 40_000
        serves.delete(capture)
    with pytest.raises(InputLost):
        answer(serves, ticket)
    assert not serves.exists("y")


# --- entries that no function of ours has made


def header(**changes: Any) -> bytes:
    """The header of a job, as somebody may forge it; its deadline is in the year 2100."""
    fields: dict[str, Any] = {
        "format": 1, "op": "run", "model": "u-1", "key": "m", "version": 1, "deadline": 4102444800000,
        "ticket": "ks:{0}:forged", "corr": "", "inputs": ["v"], "names": [], "outputs": [], "bytes": 0,
    }  # fmt: skip
    return bytes(msgpack.packb(list({**fields, **changes}.values())))


NPY = file(described(), DATA)
FOREIGN: dict[str, tuple[Any, ...]] = {
    "other fields": ("a", "b"),
    "many fields": tuple(str(n) for n in range(10_000)),
    "no header": ("0", NPY),
    "an empty header": ("h", ""),
    "no msgpack": ("h", b"\xc1\xff\xff"),
    "a cut msgpack": ("h", header()[:-5]),
    "msgpack of another kind": ("h", msgpack.packb({"a": 1})),
    "an empty list": ("h", msgpack.packb([])),
    "lists in lists": ("h", b"\x91" * 500 + b"\xc0"),
    "a length without data": ("h", b"\xdd\xff\xff\xff\xff"),
    "all numbers": ("h", msgpack.packb([1] * 12)),
    "a short list": ("h", msgpack.packb([1, "run", "u-1"])),
    "an unknown format": ("h", header(format=99), "0", NPY),
    "an unknown operation": ("h", header(op="rm"), "0", NPY),
    "a number for a name": ("h", header(key=5), "0", NPY),
    "a fraction for a version": ("h", header(version=1.5), "0", NPY),
    "a model that was never there": ("h", header(), "0", NPY),
    "a model id without a version": ("h", header(model="u"), "0", NPY),
    "a model id that is no text": ("h", header(model=b"\xff\xfe-1"), "0", NPY),
    "a model id with a strange version": ("h", header(model="u-x"), "0", NPY),
    "a model key that is no text": ("h", header(key=b"\xff\xfe"), "0", NPY),
    "a negative deadline": ("h", header(deadline=-1), "0", NPY),
    "a distant deadline": ("h", header(deadline=2**63 - 1), "0", NPY),
    "no inputs": ("h", header(inputs=[])),
    "an input that is not there": ("h", header()),
    "more inputs than are there": ("h", header(inputs=["v", "v"]), "0", NPY),
    "an unknown kind of input": ("h", header(inputs=["q"]), "0", NPY),
    "a number for an input": ("h", header(inputs=[7]), "0", NPY),
    "an input without a kind": ("h", header(inputs=[""]), "0", NPY),
    "an input that is no npy": ("h", header(), "0", b"junk"),
    "an input that is a pickle": ("h", header(), "0", HOSTILE["pickled objects"]),
    "a key that is not there": ("h", header(inputs=["rnothing"])),
    "a name that is a list": ("h", header(names=[["x"]]), "0", NPY),
    "an output that is a number": ("h", header(outputs=[5]), "0", NPY),
    "a load of nothing": ("h", header(op="load", inputs=[])),
    "a load of a strange version": ("h", header(op="load", inputs=[], model="u-x", version=-1)),
    "negative bytes": ("h", header(bytes=-(2**62)), "0", NPY),
}


@pytest.mark.parametrize("fields", FOREIGN.values(), ids=FOREIGN)
def test_foreign_entries_in_a_job_stream(serves: Any, fields: tuple[Any, ...]) -> None:
    """They are dropped, or fail like a job; jobs beside them do not notice."""
    foreign = ("XADD", JOBS, "*", *fields)
    before, _, after = at_once(serves, predict("m", ONE), foreign, predict("m", ONE))
    for ticket in (before, after):
        np.testing.assert_array_equal(answer(serves, ticket).outputs["y"], 2 * ONE + 1)
    wait_until(lambda: serves.xlen(JOBS) == 0, "the entry is dropped")
    assert serves.xpending(JOBS, "ks")["pending"] == 0
    serves.delete("ks:{0}:bytes:CPU", "ks:{0}:forged")


def test_a_forged_job_for_a_model_that_is_there(serves: Any) -> None:
    """What is well-formed is run: whoever may write to the stream may also submit. Its npy is still not trusted."""
    identity = f"{serves.hget('m', 'uid').decode()}-1"
    now = int(serves.time()[0]) * 1000
    for value, code in ((NPY, ""), (HOSTILE["cut off in the data"], "BADNPY"), (HOSTILE["Fortran order"], "BADNPY")):
        forged = header(model=identity, deadline=now + 10_000)
        serves.execute_command("XADD", JOBS, "*", "h", forged, "0", value)
        popped = serves.blpop(["ks:{0}:forged"], timeout=5)
        assert popped is not None
        assert popped[1].startswith(code.encode()) if code else popped[1][0] >= 0x80


def test_a_queue_that_became_something_else(serves: Any) -> None:
    """Somebody who overwrites the stream stops its jobs, not the executor: with the key it goes on."""
    serves.set(JOBS, "not a stream")
    refused("WRONGTYPE", serves, *predict("m", ONE))
    serves.delete(JOBS)
    wait_until(lambda: serves.exists(JOBS), "the executor makes it again")
