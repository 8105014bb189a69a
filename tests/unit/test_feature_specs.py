"""Inputs that are gathered: their words, the keys that they name, and what is refused before anything is sent."""

import pickle
from typing import Any

import numpy as np
import pytest

import keyside
from keyside.clients import inputs
from keyside.clients.inputs import Key
from keyside.clients.request import Identity
from keyside.features import Feature, Hash, ListRange, Numbers, Rows, SortedSet
from keyside.tensorstore import errors
from keyside.tensorstore.command import Command

A = np.ones((1, 2), np.float32)

WORDS: list[tuple[Feature, str]] = [
    (Hash("h", "f"), "HASH FLOAT 1 h 1 f"),
    (Hash(["h", b"g"], ["a", "b"], "int64"), "HASH INT64 2 h g 2 a b"),
    (Hash("h", ["a", "b"], None, 0), "HASH AUTO 1 h 2 a b DEFAULT 0"),
    (Hash("h", ["a", "b"], default=[0.1, np.float32(0.5)]), "HASH FLOAT 1 h 2 a b DEFAULTS 2 0.1 0.5"),
    (Hash("h", ["a", "b"], default=np.array([1, 2])), "HASH FLOAT 1 h 2 a b DEFAULTS 2 1 2"),
    (Hash("h", "a", "BOOL", default=True), "HASH BOOL 1 h 1 a DEFAULT 1"),
    (Hash("h", "a", "STRING", default="x"), "HASH STRING 1 h 1 a DEFAULT x"),
    (Hash("h", "a", default=float("nan")), "HASH FLOAT 1 h 1 a DEFAULT nan"),
    (Numbers("n"), "NUMBERS FLOAT 1 n"),
    (Numbers(("n", "m"), "UINT8", [1, 2]), "NUMBERS UINT8 2 n m DEFAULTS 2 1 2"),
    (ListRange("l"), "LIST FLOAT l 0 -1"),
    (ListRange(b"l", -3, "{stop}", None), "LIST AUTO l -3 {stop}"),
    (SortedSet("z"), "ZSET FLOAT z 0 -1 SCORES"),
    (SortedSet("z", 2, 4, "members", reverse=True, dtype="STRING"), "ZSET STRING z 2 4 MEMBERS REV"),
    (Rows("t", 5), "ROWS t 1 5"),
    (Rows("t", [5, np.int8(0)]), "ROWS t 2 5 0"),
    (Rows("t", np.array([[1, 2], [3, 4]])), "ROWS t 4 1 2 3 4"),
    (Rows("{user}", "{item}"), "ROWS {user} 1 {item}"),
]


@pytest.mark.parametrize(("feature", "expected"), WORDS)
def test_the_words(feature: Feature, expected: str) -> None:
    assert b" ".join(feature.words).decode() == expected
    given = feature.keys if isinstance(feature, Hash | Numbers) else feature.key  # type: ignore[attr-defined]
    names = [given] if isinstance(given, str | bytes) else given
    assert feature.names == tuple(name if isinstance(name, bytes) else name.encode() for name in names)


@pytest.mark.parametrize("feature", [feature for feature, _ in WORDS if "array" not in repr(feature)], ids=repr)
def test_they_are_values(feature: Feature) -> None:
    copy = pickle.loads(pickle.dumps(feature))
    assert (copy == feature or "nan" in repr(feature), copy.words) == (True, feature.words)
    with pytest.raises(AttributeError):
        feature.words = ()  # type: ignore[misc]
    assert type(feature).__name__ in repr(feature)
    assert "words" not in repr(feature)


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Hash([], "f"), errors.BadArg),
        (lambda: Hash("h", []), errors.BadArg),
        (lambda: Hash(3, "f"), errors.BadArg),  # type: ignore[arg-type]
        (lambda: Hash(["h", 3], "f"), errors.BadArg),  # type: ignore[list-item]
        (lambda: Hash("h", {"f": 1}), errors.BadArg),  # type: ignore[arg-type]
        (lambda: Hash("h", "f", "FLOAT32"), errors.BadDtype),
        (lambda: Hash("h", ["a", "b"], default=[1]), errors.BadArg),
        (lambda: Hash("h", ["a", "b"], default=[1, None]), errors.BadArg),  # type: ignore[list-item]
        (lambda: Hash("h", "a", default=object()), errors.BadArg),  # type: ignore[arg-type]
        (lambda: Numbers([]), errors.BadArg),
        (lambda: ListRange(["l"]), errors.BadArg),  # type: ignore[arg-type]
        (lambda: ListRange("l", 1.0), errors.BadArg),  # type: ignore[arg-type]
        (lambda: SortedSet("z", 0, True), errors.BadArg),
        (lambda: SortedSet("z", 0, 1, "ranks"), errors.BadArg),  # type: ignore[arg-type]
        (lambda: Rows("t", []), errors.BadArg),
        (lambda: Rows("t", [1.5]), errors.BadArg),  # type: ignore[list-item]
        (lambda: Rows("t", np.array([0.5])), errors.BadArg),
    ],
)
def test_what_is_refused(make: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


def test_they_stand_where_arrays_stand() -> None:
    feature = Hash("h", "f")
    assert inputs.bind(feature).items == [feature]
    assert inputs.bind([feature, [1.0]]).items == [feature, [1.0]]
    assert inputs.bind({"a": feature}).names == ["a"]
    assert inputs.bind_keys(["x", feature]).items == [Key("x"), feature]
    assert not inputs.bind(feature).needs_signature
    with pytest.raises(errors.BadArg, match="gathered"):
        inputs.count_rows(inputs.bind(feature))
    assert keyside.features.Hash is Hash


def submitted(*items: object, outputs: tuple[bytes, ...] = (), node: bytes = b"0") -> Command[bytes]:
    request = inputs.request("m", inputs.bind(list(items)), outputs, 1.0, Identity(), node)
    return request.submit(1.0, b"ks:{0}:t:x:1")


def test_their_keys_are_keys_of_the_call() -> None:
    args = submitted(Hash(["h", "g"], "f"), A, Key("k"), Rows("k", 1)).args
    assert args[:6] == (b"FCALL", "AI_PREDICT", 3, b"h", b"g", b"k")
    args = submitted(Hash("h", "f"), outputs=(b"y",)).args
    assert args[:5] == (b"FCALL", "AI_PREDICT", 2, b"h", b"y")


def test_on_a_cluster_they_say_where_the_call_goes() -> None:
    made = inputs.request("m", inputs.bind([A, Numbers(["{u}a", "{u}b"])]), (), 1.0, Identity(), b"")
    assert (made.tag, made.keyed) == (b"u", True)
    for items in ([Hash(["a", "b"], "f")], [Hash("a", "f"), Key("b")], [Hash("a", "f"), Rows("b", 1)]):
        with pytest.raises(errors.CrossSlot, match=r"'a'.*'b'"):
            submitted(*items, node=b"")
    with pytest.raises(errors.CrossSlot):
        submitted(Hash("a", "f"), outputs=(b"b",), node=b"")
    bound = inputs.bind([Key("a"), Hash("b", "f"), Key("b")])
    assert inputs.strangers(bound, ()) == [0]
    assert inputs.strangers(bound, (b"a",)) == [2]
