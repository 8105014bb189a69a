"""Every function with arguments that make no sense: an error that was written for callers, and a node in good health.

On a Valkey in cluster mode too, where one command on keys of two slots would break Lua until a restart.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.lua.jobs import LARGE, LUA_ERROR, ROW, Hand
from tests.servers import Cluster, Server

from keyside.tensorstore import keys, library
from keyside.tensorstore.errors import CODES, KeysideError
from keyside.tensorstore.records import Signature

FUNCTIONS = sorted(library.functions())
NATIVE = {"ERR", "NOGROUP", "WRONGTYPE", "NOPERM", "OOM"}
SECONDS = 5.0
EXAMPLES = settings().max_examples // 3

WORDS = [
    "INPUTS", "OUTPUTS", "VALUE", "KEY", "OWN", "REF", "NAMES", "TIMEOUT", "TICKET", "ID", "BLOB", "VALUES", "META",
    "CHUNKS", "VERSION", "RESETSTAT", "UPLOAD", "DIGEST", "TAG", "BATCHSIZE", "MINBATCHSIZE", "MINBATCHTIMEOUT",
    "OPTIONS", "REPLY", "COUNT", "ONNX", "TORCH", "CPU", "GPU:1", "FLOAT", "INT64", "STRING", "BOOL", "FLOAT16",
    "ready", "failed", "V", "S", "K", "{}", '{"inputs":[],"outputs":[]}', "null", "[]", "e1", "e2", "u-1", "run",
    "ON", "OFF", "SET", "PUBLISH", "STREAM", "SCHEDULE", "RUN", "COALESCE", "NOTIFY", "{key}", "{a}", "x:{a}", "{{",
    "}", "INFLIGHT", "ONERROR", "PAUSE", "MEMBERS", "KEYS", "GROUP", "FROM", "CHANNEL", "RESULTS", "t", "p", "c",
    "JOBS", "BYTES", "RATE", "USERRATE", "PER", "NODE", "PRIORITY", "HIGH", "LOW", "USER",
    "HASH", "LIST", "ZSET", "NUMBERS", "ROWS", "DEFAULT", "DEFAULTS", "SCORES", "MEMBERS", "REV", "AUTO",
    "|>", "LOAD", "PERSIST", "ROUTING", "TENSORSET", "TENSORGET", "MODELEXECUTE", "SCRIPTEXECUTE",
    "KEYS", "ARGS", "ENTRY_POINTS", "SOURCE", "FUNCTIONS",
]  # fmt: skip
NUMBERS = [
    "0", "1", "2", "3", "4", "1000", "1001", "-1", "1.5", "1e400", "0x10", "nan", "inf", "2147483648",
    "9007199254740991", "9007199254740992", "9223372036854775807", "18446744073709551616", "1" * 40, "00", "+1", " 1",
]  # fmt: skip
IDS = ["1-1", "0-0", "1", "-", "+", "$", ">", "*", "1-1-1", f"{2**64 - 1}-{2**64 - 1}", f"{2**64}-0"]
NAMES = [
    "x",
    "y",
    "large",
    "text",
    "list",
    "hash",
    "stream",
    "m",
    "n",
    "m@1",
    "m@2",
    "s",
    "stream-trigger",
    "@",
    "none",
    "{a}x",
    "a}b{",
    "}",
    "{",
    "",
]
BYTES = [ROW, LARGE, ROW[:-1], ROW[:20], b"\x93NUMPY", b"\0", b"\xff\xfe", b"\r\n", b"%s%d%n", b"a" * 5000, "f" * 64]

keys_of = st.lists(st.sampled_from(NAMES), max_size=4)
tokens: st.SearchStrategy[Any] = (
    st.sampled_from(NUMBERS)
    | st.sampled_from(WORDS)
    | st.sampled_from(NAMES)
    | st.sampled_from(IDS)
    | st.sampled_from(BYTES)
)

# Calls that are right but for a few of their arguments reach further than random ones.
SOUND: dict[str, list[Any]] = {
    "AI_TENSORSET": ["FLOAT", "1", "4", "VALUES", "1", "2", "3", "4"],
    "AI_TENSORGET": ["META", "VALUES"],
    "AI_MODELSTORE": [
        "ONNX", "CPU", "TAG", "t", "BATCHSIZE", "4", "INPUTS", "1", "x", "OUTPUTS", "1", "y", "OPTIONS", "{}",
        "BLOB", "b",
    ],
    "AI_MODELGET": ["VERSION", "1", "META", "BLOB"],
    "AI_MODELDEL": ["VERSION", "1"],
    "AI_MODELSCAN": ["0", "COUNT", "10"],
    "AI_MODELEXECUTE": [
        "m", "INPUTS", "1", "x", "OUTPUTS", "1", "y", "TIMEOUT", "1000", "TICKET", "T", "c", "ID", "c", "1",
    ],
    "AI_PREDICT": [
        "m", "INPUTS", "1", "VALUE", ROW, "NAMES", "1", "x", "OUTPUTS", "1", "y", "TIMEOUT", "1000", "TICKET", "T", "c",
        "PRIORITY", "HIGH",
    ],
    "AI_DAGEXECUTE": [
        "LOAD", "1", "x", "PERSIST", "1", "x", "TIMEOUT", "1000", "TICKET", "T", "c", "ID", "c", "1",
        "|>", "TENSORSET", "t", "FLOAT", "1", "4", "VALUES", "1", "2", "3", "4",
        "|>", "TENSORSET", "v", "VALUE", ROW, "|>", "MODELEXECUTE", "m", "INPUTS", "1", "x", "OUTPUTS", "1", "x",
        "|>", "TENSORGET", "x", "META", "BLOB",
    ],
    "AI_DAGEXECUTE_RO": [
        "ROUTING", "y", "|>", "TENSORSET", "t", "UINT8", "2", "BLOB", "|>",
        "|>", "MODELEXECUTE", "m", "INPUTS", "1", "t", "OUTPUTS", "1", "z", "|>", "TENSORGET", "z",
    ],
    "AI_CANCEL": ["T", "CPU/1-1"],
    "AI_DEADDEL": ["D", "1-1"],
    "AI_DEADGET": ["D"],
    "AI_DEADRETRY": ["D", "TIMEOUT", "1000"],
    "AI_DEADSCAN": ["0", "COUNT", "10", "MODEL", "m"],
    "AI_LIMITGET": [],
    "AI_LIMITSET": ["JOBS", "1", "BYTES", "2", "RATE", "3", "PER", "4", "USERRATE", "5", "PER", "6"],
    "AI_INFO": ["VERSION", "1"],
    "AI_NODE": [],
    "AI_SCRIPTSTORE": ["CPU", "TAG", "t", "ENTRY_POINTS", "1", "f", "OPTIONS", "{}", "SOURCE", "def f(): pass"],
    "AI_SCRIPTGET": ["VERSION", "1", "META", "SOURCE"],
    "AI_SCRIPTDEL": ["VERSION", "1"],
    "AI_SCRIPTSCAN": ["0", "COUNT", "10"],
    "AI_SCRIPTEXECUTE": [
        "s", "f", "KEYS", "1", "k", "INPUTS", "2", "x", "VALUE", ROW, "ARGS", "1", "a", "OUTPUTS", "1", "y",
        "TIMEOUT", "1000", "TICKET", "T", "c",
    ],
    "AI_TENSORCHANGED": [],
    "AI_TRIGGERDEL": [],
    "AI_TRIGGERGET": [],
    "AI_TRIGGERINFO": ["RESETSTAT"],
    "AI_TRIGGERPAUSE": ["ON"],
    "AI_TRIGGERSCAN": ["0", "COUNT", "10"],
    "AI_TRIGGERSET": [
        "ON", "SET", "x:{a}", "NOTIFY", "CHANNEL", "c", "RESULTS", "r:{a}", "MAXLEN", "5", "COALESCE", "RATE", "5",
        "PER", "6", "INFLIGHT", "7", "TTL", "8", "ONERROR", "PAUSE", "RUN", "m", "INPUTS", "1", "KEY", "{key}", "NAMES",
        "1", "x", "OUTPUTS", "1", "y:{a}", "TIMEOUT", "1000", "PRIORITY", "LOW",
    ],
    "KS_FIRE": ["p", "e1", "s", "1", "payload", ROW],
    "KS_TICK": ["c", "e1"],
    "KS_TRIGGERS": [],
    "KS_CATALOG": ["0", "10", "REVS"],
    "KS_MERGE": ["NEWER", "1", "m2", "5", "t", "2", "m2", "{}", "m3", "6", "", "0"],
    "KS_REFRESH": ["m", "none"],
    "KS_BEAT": ["e1", "{}", "2000", "CPU", "GPU:1"],
    "KS_COMPLETE": [
        "CPU", "e1", "100", "u-1", "10", "1", "0", "0:5:u 0", "2",
        "1-1", "9007199254740991", "", "", "OK", "5", "1", "x", "y", "V", ROW,
        "J", "9007199254740991", "T", "c", "OK", "7", "0", "y", "V", ROW, "large", "S", "x",
    ],
    "KS_DROP": ["CPU", "e1", "1-1", "J"],
    "KS_EXPIRE": ["CPU", "1-1", "J"],
    "KS_EXTEND": ["CPU", "e1", "1-1", "J"],
    "KS_FORWARD": ["CPU", "0/CPU/1-1", "9007199254740991", "T", "h", "H"],
    "KS_LEAVE": ["e1", "CPU", "!", "CPU/1-1"],
    "KS_PUBLISH": ["CPU", "e1", "L", "u", "1", "ready", "0" * 64, '{"inputs":[],"outputs":null}', ""],
    "KS_RECOVER": ["CPU", "e1", "0", "3"],
    "KS_VERSION": [],
}  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, function: str) -> list[Any]:
    """A sound call with a few arguments replaced, left out, doubled or added."""
    args = list(SOUND[function])
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(args)))
        args[at : at + draw(st.integers(0, 2))] = draw(st.lists(tokens, max_size=2))
    return args


@pytest.fixture(scope="module", params=["redis", "valkey", "valkey in a cluster"])
def target(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that may be broken."""
    if request.param == "valkey in a cluster":
        with Cluster("valkey", primaries=1, replicas=0) as cluster:
            cluster.load_library()
            yield cluster.primaries[0]
        return
    with Server(request.param) as server:
        server.load_library()
        yield server


def prepare(hand: Hand) -> dict[str, Any]:
    """Fill the server with things that calls may stumble over; gives what the placeholders in calls stand for."""
    hand.do("FLUSHALL")
    hand.node = keys.NodeKeys(hand.beat("e1")[1])
    hand.store("m", blob=b"one")
    hand.fcall("AI_SCRIPTSTORE", ["s"], "CPU", "ENTRY_POINTS", 1, "f", "FUNCTIONS")
    assert hand.publish("s", 1, Signature((), None)) == 1
    hand.store("n", blob=b"two", signature=None)
    hand.wire.call_many(
        [
            ("SET", "x", ROW), ("SET", "large", LARGE), ("SET", "text", "text"), ("SET", "{a}x", LARGE),
            ("SET", "a}b{", LARGE), ("RPUSH", "list", "1"), ("HSET", "hash", "a", "b"),
            ("XADD", "stream", "*", "a", "b"),
            ("XADD", hand.node.jobs("CPU"), "*", "h", "junk"),
        ]
    )  # fmt: skip
    run = ("RUN", "m", "INPUTS", 1)
    hand.fcall("AI_TRIGGERSET", ["t"], "ON", "SET", "{a}", "NOTIFY", *run, "KEY", "{key}")
    hand.fcall(
        "AI_TRIGGERSET", ["p"], "ON", "PUBLISH", "news", "COALESCE", "RATE", 5, "PER", 1000, *run, "VALUE", "{payload}"
    )
    hand.fcall("AI_TRIGGERSET", ["stream-trigger"], "ON", "STREAM", "stream", *run, "KEY", "{key}")
    hand.fcall("AI_TRIGGERSET", ["c"], "ON", "SCHEDULE", 1, "KEYS", 1, "x", *run, "KEY", "{member}")
    hand.do("XGROUP", "CREATE", "stream", "ksstream-trigger", "0")
    hand.do("XREADGROUP", "GROUP", "ksstream-trigger", "e1", "STREAMS", "stream", ">")
    for name in ("t", "p", "c"):
        hand.do("SET", hand.node.lead(name), "e1")
    hand.predict()
    claimed = hand.do("XREADGROUP", "GROUP", "ks", "e1", "STREAMS", hand.node.jobs("CPU"), ">")[0][1]
    hand.predict()
    letter = hand.do("XADD", hand.node.dead, "*", "id", "CPU/1-1", "reason", "r", *claimed[2][1])
    job, (_, header, *_) = claimed[2]
    return {"D": letter, "T": b"ks:{%b}:t" % hand.node.tag, "L": claimed[0][0], "J": job, "H": header}


@pytest.mark.parametrize("function", FUNCTIONS)
@given(data=st.data())
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_garbage_is_refused_politely(target: Server, function: str, data: st.DataObject) -> None:
    names = data.draw(keys_of, label="keys")
    args = data.draw(damaged(function) | st.lists(tokens, max_size=12), label="arguments")
    with Hand(target.url_unix) as hand:
        stand_for = prepare(hand)
        args = [stand_for.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
        began = time.monotonic()
        error = None
        try:
            with watchdog(target):
                hand.fcall(function, names, *args)
        except KeysideError as refused:
            error = refused
        if error is not None:
            assert error.code in CODES.keys() | NATIVE, error
            assert not LUA_ERROR.search(str(error)), error
            assert "\n" not in str(error)
        assert time.monotonic() - began < SECONDS, "it kept everybody else waiting"
        try:
            hand.fcall("AI_MODELSCAN", [])
        except KeysideError:
            again(target)
            raise AssertionError("it broke the node: no key is local any more") from None


class watchdog:  # noqa: N801  # reads as what it is
    """Ends a function that does not end by itself, so that the test can say which."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        if not self._over.wait(SECONDS):
            again(self._server)


def again(server: Server) -> None:
    """Bring a server back to its senses."""
    server.kill()
    server.start()
    server.load_library()


def test_every_function_has_a_sound_call() -> None:
    assert sorted(SOUND) == FUNCTIONS


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_sound_call_is_taken(target: Server, function: str) -> None:
    with Hand(target.url_unix) as hand:
        stand_for = prepare(hand)
        args = [stand_for.get(arg, arg) if isinstance(arg, str) else arg for arg in SOUND[function]]
        names = {
            "AI_TENSORSET": ["tensor"], "AI_TENSORGET": ["x"], "AI_MODELEXECUTE": ["x", "y"], "AI_PREDICT": ["y"],
            "AI_DAGEXECUTE": ["x"], "AI_DAGEXECUTE_RO": ["y"], "AI_SCRIPTEXECUTE": ["x", "y"],
            "AI_SCRIPTGET": ["s"], "AI_SCRIPTDEL": ["s"], "AI_SCRIPTSTORE": ["s"],
        }  # fmt: skip
        one = ["t" if "TRIGGER" in function else "m"] if library.functions()[function].keys else []
        hand.do("DEL", "y")
        if target.kind == "valkey" and hand.node.tag != b"0" and function in ("AI_MODELEXECUTE", "AI_SCRIPTEXECUTE"):
            return  # x and y are in different slots
        hand.fcall(function, names.get(function, one), *args)
