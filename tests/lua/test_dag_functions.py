# ruff: noqa: E501  # the tables of refusals
"""AI_DAGEXECUTE and AI_DAGEXECUTE_RO: what they take, what they make of it, and what they refuse with which words."""

import json
from typing import Any

import numpy as np
import pytest
from tests.lua.jobs import ONE, ROW, Hand

from keyside.executor.extras import NOTHING
from keyside.executor.protocol import Job
from keyside.tensorstore import npy
from keyside.tensorstore.records import Signature, TensorSpec

RUN = ["|>", "MODELEXECUTE", "m", "INPUTS", "1", "x", "OUTPUTS", "1", "y"]


@pytest.fixture
def stored(hand: Hand) -> Hand:
    hand.store("m")
    hand.fcall(
        "AI_MODELSTORE", ["s"], "SCRIPT", "CPU", "OPTIONS", json.dumps({"entry_points": ["fn", "gn"]}), "BLOB", "s"
    )
    assert hand.publish("s", 1, Signature((), None)) == 1
    hand.do("SET", "x", ROW)
    return hand


def submit(hand: Hand, names: list[Any], *args: Any) -> Job:
    """Submit a DAG that is taken, and claim its job."""
    assert bytes(hand.fcall("AI_DAGEXECUTE", names, *args)).startswith(b"ks:{0}:ticket:")
    (job,) = hand.claim()
    assert (job.model, job.key, job.op) == (b"0-1", b"", b"run")
    assert job.composed
    job.decode([hand.do("GET", source[0]) for source in job.inputs if isinstance(source, tuple)])
    return job


def program(job: Job) -> tuple[Any, Any, Any]:
    found = (job.extra or NOTHING)[b"d"]
    return tuple(found[field] or [] for field in (b"n", b"o", b"p"))  # type: ignore[return-value]


def values(job: Job) -> list[Any]:
    return [array.tolist() for array in job.arrays]


def test_a_dag(stored: Hand) -> None:
    job = submit(
        stored, ["x", "y", "t"], "LOAD", 1, "x", "PERSIST", 2, "y", "t", "TIMEOUT", 5000,
        "|>", "TENSORSET", "t", "INT64", 2, "VALUES", 1, 2, *RUN, "|>", "AI.TENSORGET", "y", "META", "VALUES",
    )  # fmt: skip
    assert program(job) == (
        [b"x"],
        [[b"s", b"t", 1], [b"m", b"m", [b"x"], [b"y"]], [b"g", b"y"]],
        [b"y", b"t"],
    )
    assert job.outputs == [b"y", b"t"]
    assert values(job) == [[[0.0, 1.0, 2.0, 3.0]], [1, 2]]
    ((target, model, key, version),) = (job.extra or NOTHING)[b"m"]
    assert (target, key, version) == (b"m", b"m", 1)
    assert model == stored.do("HGET", "m", "uid") + b"-1"
    assert job.deadline - stored.now() <= 5000


def test_tensors_in_all_forms(stored: Hand) -> None:
    stored.do("SET", "own", ROW)
    stored.do("SET", "ref", ROW)
    job = submit(
        stored, ["x", "own", "ref"], "ROUTING", "x",
        "|>", "TENSORSET", "a", "FLOAT", 2, 1, "BLOB", np.array([1, 2], np.float32).tobytes(),
        "|>", "tensorset", "b", "UINT8", 3,
        "|>", "TENSORSET", "c", "STRING", 2, "VALUES", "|>", "VALUES",
        "|>", "TENSORSET", "d", "STRING", 1, "BLOB", "|>\0",
        "|>", "TENSORSET", "e", "UINT8", 2, "BLOB", "|>",
        "|>", "TENSORSET", "f", "VALUE", npy.to_bytes(np.int8(3)),
        "|>", "TENSORSET", "g", "KEY", "x",
        "|>", "TENSORSET", "h", "OWN", "own",
        "|>", "TENSORSET", "i", "REF", "ref",
        "|>", "TENSORSET", "a", "BOOL",
    )  # fmt: skip
    row = [[0.0, 1.0, 2.0, 3.0]]
    assert values(job) == [
        [[1.0], [2.0]], [0, 0, 0], [b"|>", b"VALUES"], [b"|>"], [ord("|"), ord(">")], 3, row, row, row, False,
    ]  # fmt: skip
    assert stored.do("EXISTS", "own") == 0
    assert stored.do("EXISTS", "ref") == 1


def test_scripts(stored: Hand) -> None:
    call = [
        "|>",
        "SCRIPTEXECUTE",
        "s",
        "fn",
        "INPUTS",
        1,
        "x",
        "OUTPUTS",
        2,
        "p",
        "q",
        "ARGS",
        2,
        "INPUTS",
        "|>",
        "KEYS",
        1,
        "x",
    ]
    job = submit(stored, ["x"], "LOAD", 1, "x", *call, "|>", "SCRIPTEXECUTE", "s", "gn", "|>", "TENSORGET", "q")
    assert program(job)[1] == [
        [b"f", b"s", b"fn", [b"x"], [b"p", b"q"], [b"x"], [b"INPUTS", b"|>"]],
        [b"f", b"s", b"gn", [], [], [], []],
        [b"g", b"q"],
    ]
    assert [member[0] for member in (job.extra or NOTHING)[b"m"]] == [b"s"]


def test_a_dag_without_tensors(stored: Hand) -> None:
    job = submit(stored, ["x"], "ROUTING", "x", "|>", "SCRIPTEXECUTE", "s", "fn")
    assert job.inputs == []


def test_graphs_bring_what_they_run(stored: Hand) -> None:
    stored.fcall("AI_MODELSTORE", ["g"], "GRAPH", "CPU", "OPTIONS", '{"uses":["m@1"]}', "BLOB", "g")
    assert stored.publish("g", 1, ONE) == 1
    job = submit(stored, ["x"], "LOAD", 1, "x", "|>", "MODELEXECUTE", "g", "INPUTS", 1, "x", "OUTPUTS", 1, "x")
    assert [member[0] for member in (job.extra or NOTHING)[b"m"]] == [b"g", b"m@1"]


def test_it_goes_to_the_queue_of_the_first_device_that_is_no_cpu(stored: Hand) -> None:
    stored.beat("loader", "CPU", "GPU:1")
    stored.fcall("AI_MODELSTORE", ["gpu"], "ONNX", "GPU:1", "BLOB", "gpu")
    stored.fcall(
        "AI_DAGEXECUTE", ["x"], "LOAD", 1, "x", *RUN, "|>", "MODELEXECUTE", "gpu", "INPUTS", 1, "x", "OUTPUTS", 1, "z"
    )
    jobs = stored.claim(device="GPU:1")
    assert [job.op for job in jobs] == [b"load", b"run"]


def test_a_call_that_comes_again(stored: Hand) -> None:
    stored.do("SET", "own", ROW)
    call: list[Any] = [
        "ROUTING", "own", "TICKET", "ks:{0}:t:c:1", "ID", "c", 1, "|>", "TENSORSET", "x", "OWN", "own", *RUN,
    ]  # fmt: skip
    assert bytes(stored.fcall("AI_DAGEXECUTE", ["own"], *call)).startswith(b"CPU/")
    stored.fcall("AI_MODELDEL", ["m"])
    assert stored.fcall("AI_DAGEXECUTE", ["own"], *call) == b""
    assert stored.length() == 1


def test_what_is_refused_is_said_on_the_ticket_too(stored: Hand) -> None:
    ticket = "ks:{0}:t:c:2"
    for corr, front in (([], b""), (["word"], b"word ")):
        head: list[Any] = ["LOAD", 1, "x", "TICKET", ticket, *corr, "TIMEOUT", 100]
        error = stored.wire.call_many([("FCALL", "AI_DAGEXECUTE", 1, "x", *head, "|>", "NONSENSE", "TICKET", ticket)])[
            0
        ]
        assert stored.reply(ticket) == front + str(error).encode()


GET = ["|>", "TENSORGET", "x"]
LOAD = ["LOAD", 1, "x"]
SCRIPT = ["|>", "SCRIPTEXECUTE", "s", "fn"]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "BADARG missing arguments for 'AI.DAGEXECUTE' command"),
        (LOAD, "BADARG DAG is empty"),
        (GET, "BADARG AI.DAGEXECUTE and AI.DAGEXECUTE_RO commands must contain at least one out of ROUTING, LOAD, PERSIST keywords"),
        (["LOAD"], "BADARG missing arguments after LOAD keyword in DAG command"),
        (["LOAD", "0", "x"], "BADARG invalid or negative value found in number of keys to LOAD"),
        (["LOAD", "-1", "x"], "BADARG invalid or negative value found in number of keys to LOAD"),
        (["LOAD", "2", "x", *GET], "BADARG number of keys to LOAD into DAG does not match the number of given arguments"),
        (["LOAD", "1", "q", *GET], "BADARG key 'q' is used but not among the KEYS"),
        (["PERSIST"], "BADARG missing arguments after PERSIST keyword in DAG command"),
        (["PERSIST", "x", *GET], "BADARG invalid or negative value found in number of keys to PERSIST"),
        (["PERSIST", "2", "x", *GET], "BADARG number of keys to PERSIST after DAG execution does not match the number"),
        (["PERSIST", "1", "x", "|>", "TENSORSET", "y", "FLOAT"], "BADARG PERSIST key cannot be found in DAG: 'x'"),
        (["ROUTING"], "BADARG Missing ROUTING value"),
        (["ROUTING", "|>", *GET], "BADARG Missing ROUTING value"),
        ([*LOAD, "TIMEOUT", *GET], "BADARG No value provided for TIMEOUT"),
        ([*LOAD, "TIMEOUT", "x", *GET], "BADARG Invalid value for TIMEOUT"),
        ([*LOAD, "BAD_ARG", *GET], "BADARG Invalid DAG command. Unexpected argument:  BAD_ARG"),
        ([*LOAD, *LOAD, *GET], "BADARG Invalid DAG command. Unexpected argument:  LOAD"),
        ([*LOAD, "ID", "c", "1", *GET], "BADARG ID needs TICKET"),
        ([*LOAD, "|>"], "BADARG Unsupported command within DAG: ''"),
        ([*LOAD, "|>", "SET", "a", "b"], "BADARG Unsupported command within DAG: 'SET'"),
        ([*LOAD, "|>", "AI.MODELRUN", "m"], "BADARG Deprecated AI.MODELRUN cannot be used in AI.DAGEXECUTE command"),
        ([*LOAD, "|>", "SCRIPTRUN", "m"], "BADARG Deprecated AI.SCRIPTRUN cannot be used in AI.DAGEXECUTE command"),
        ([*LOAD, *GET, "META", "META"], "BADARG unsupported data format: 'META'"),
        ([*LOAD, *GET, "BLOB", "VALUES"], "BADARG both BLOB and VALUES specified"),
        ([*LOAD, "|>", "TENSORGET"], "BADARG wrong number of arguments for 'AI.TENSORGET' command"),
        ([*LOAD, "|>", "TENSORGET", "q"], "BADARG INPUT key cannot be found in DAG: 'q'"),
        ([*LOAD, "|>", "TENSORSET", "t"], "BADARG wrong number of arguments for 'AI.TENSORSET' command"),
        ([*LOAD, "|>", "TENSORSET", "t", "NONE", *GET], "BADARG no dtype 'NONE'"),
        ([*LOAD, "|>", "TENSORSET", "t", "FLOAT", "2", "VALUES", "1", *GET], "BADARG 1 VALUES given, the shape has 2 elements"),
        ([*LOAD, "|>", "TENSORSET", "t", "FLOAT", "1", "VALUES", "1", "2", *GET], "BADARG 2 VALUES given, the shape has 1 elements"),
        ([*LOAD, "|>", "TENSORSET", "t", "FLOAT", "1", "BLOB", *GET], "BADARG"),
        ([*LOAD, "|>", "TENSORSET", "t", "FLOAT", "100", "100"], "TOOBIG a TENSORSET of 40128 bytes: in a DAG it takes 32768"),
        ([*LOAD, "|>", "TENSORSET", "t", "VALUE", "abc"], "BADNPY input VALUE"),
        ([*LOAD, "|>", "TENSORSET", "t", "KEY", "q"], "BADARG key 'q' is used but not among the KEYS"),
        ([*LOAD, "|>", "TENSORSET", "t", "OWN", "x", *GET], "BADARG input key 'x' is given as OWN, and as another input too"),
        ([*LOAD, "|>", "MODELEXECUTE"], "BADARG wrong number of arguments for 'AI.MODELEXECUTE' command"),
        ([*LOAD, "|>", "MODELEXECUTE", "m"], "BADARG INPUTS not specified"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "a"], "BADARG Invalid argument for input_count"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "1", "x"], "BADARG OUTPUTS not specified"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "1", "x", "OUTPUTS", "0"], "BADARG Invalid argument for output_count"),
        ([*LOAD, *RUN, "TIMEOUT", "1"], "BADARG TIMEOUT not allowed within a DAG command"),
        ([*LOAD, *RUN, "more"], "BADARG unexpected 'more' behind operation 1, MODELEXECUTE"),
        ([*LOAD, "|>", "MODELEXECUTE", "q", "INPUTS", "1", "x", "OUTPUTS", "1", "y"], "NOMODEL no model 'q'"),
        ([*LOAD, "|>", "MODELEXECUTE", "s", "INPUTS", "1", "x", "OUTPUTS", "1", "y"], "BADARG 's@1' is a script"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "1", "q", "OUTPUTS", "1", "y"], "BADARG INPUT key cannot be found in DAG: 'q'"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "2", "x", "x", "OUTPUTS", "1", "y"], "BADINPUT Number of keys given as INPUTS here does not match model definition"),
        ([*LOAD, "|>", "MODELEXECUTE", "m", "INPUTS", "1", "x", "OUTPUTS", "2", "y", "z"], "BADINPUT Number of keys given as OUTPUTS here does not match model definition"),
        ([*LOAD, "|>", "SCRIPTEXECUTE", "s"], "BADARG wrong number of arguments for 'AI.SCRIPTEXECUTE' command"),
        ([*LOAD, "|>", "SCRIPTEXECUTE", "m", "fn"], "BADARG 'm@1' is no script"),
        ([*LOAD, "|>", "SCRIPTEXECUTE", "s", "hn"], "BADARG Function hn does not exist in the given script"),
        ([*LOAD, *SCRIPT, "KEYS", "1", "q"], "BADARG key 'q' is used but not among the KEYS"),
        ([*LOAD, *SCRIPT, "NAMES", "1", "q"], "BADARG Invalid AI.SCRIPTEXECUTE command. Unexpected argument: NAMES"),
        ([*LOAD, *SCRIPT, "ARGS", "1", "a", "ARGS", "1", "a"], "BADARG Already encountered ARGS"),
        ([*LOAD, *SCRIPT, "TIMEOUT", "1"], "BADARG TIMEOUT not allowed within a DAG command"),
        (["LOAD", "1", "none", *GET], "BADARG"),
    ],
)  # fmt: skip
def test_what_is_refused(stored: Hand, args: list[Any], text: str) -> None:
    assert str(stored.refused("AI_DAGEXECUTE", ["x"], *args)).startswith(text)


def test_tensors_that_are_none(stored: Hand) -> None:
    stored.do("RPUSH", "list", "1")
    assert str(stored.refused("AI_DAGEXECUTE", ["none"], "LOAD", 1, "none", "|>", "TENSORGET", "none")).startswith(
        "NOTENSOR "
    )
    assert str(stored.refused("AI_DAGEXECUTE", ["list"], "LOAD", 1, "list", "|>", "TENSORGET", "list")).startswith(
        "WRONGTYPE "
    )
    stop = ["PERSIST", 1, "list", "|>", "TENSORSET", "list", "BOOL"]
    assert str(stored.refused("AI_DAGEXECUTE", ["list"], *stop)).startswith("WRONGTYPE output key 'list'")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ([], "BADARG missing arguments for 'AI.DAGEXECUTE_RO' command"),
        ([*LOAD, "PERSIST", "1", "x", *GET], "BADARG PERSIST cannot be specified in a read-only DAG"),
        ([*LOAD, *SCRIPT], "BADARG AI.SCRIPTEXECUTE command cannot be specified in a read-only DAG"),
    ],
)
def test_what_a_read_only_dag_refuses(stored: Hand, args: list[Any], text: str) -> None:
    assert str(stored.refused("AI_DAGEXECUTE_RO", ["x"], *args)).startswith(text)


def test_a_read_only_dag(stored: Hand) -> None:
    stored.fcall("AI_DAGEXECUTE_RO", ["x"], *LOAD, *RUN, *GET)
    (job,) = stored.claim()
    assert [operation[0] for operation in program(job)[1]] == [b"m", b"g"]


def test_many_operations(stored: Hand) -> None:
    job = submit(stored, ["x"], *LOAD, *(GET * 1000))
    assert len(program(job)[1]) == 1000
    assert str(stored.refused("AI_DAGEXECUTE", ["x"], *LOAD, *(GET * 1001))).startswith(
        "TOOBIG a DAG has 1000 operations"
    )


def test_a_model_whose_outputs_are_not_known(stored: Hand) -> None:
    stored.store("late", signature=Signature((TensorSpec("x", "", None),), None))
    job = submit(stored, ["x"], *LOAD, "|>", "MODELEXECUTE", "late", "INPUTS", 1, "x", "OUTPUTS", 3, "a", "b", "c")
    assert program(job)[1][0][3] == [b"a", b"b", b"c"]


def test_a_dead_dag_is_not_run_again(stored: Hand) -> None:
    stored.fcall("AI_DAGEXECUTE", ["x"], *LOAD, *GET)
    stored.claim()
    assert stored.recover("e2", limit=1) is None
    (letter,) = stored.fcall("AI_DEADSCAN", [], "0")[1]
    error = stored.refused("AI_DEADRETRY", [], letter[1])
    assert str(error).startswith(f"BADARG dead letter '{letter[1].decode()}' is a DAG")
    assert stored.fcall("AI_DEADDEL", [], letter[1]) == 1


def test_a_dead_job_of_a_graph_is_run_again(stored: Hand) -> None:
    stored.fcall("AI_MODELSTORE", ["g"], "GRAPH", "CPU", "OPTIONS", '{"uses":["m@1"]}', "BLOB", "g")
    assert stored.publish("g", 1, ONE) == 1
    stored.predict(target="g")
    (job,) = stored.claim()
    assert stored.recover("e2", limit=1) is None
    (letter,) = stored.fcall("AI_DEADSCAN", [], "0")[1]
    stored.fcall("AI_DEADRETRY", [], letter[1])
    (again,) = stored.claim()
    assert again.extra == job.extra
    assert (again.extra or NOTHING)[b"m"]
