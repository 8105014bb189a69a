"""AI_MODELSTORE, AI_MODELGET, AI_MODELDEL, AI_MODELSCAN and AI_INFO, without an executor."""

import hashlib
import json
import time
from typing import Any

import pytest
from tests.lua.jobs import ONE, ROW, TWO, Hand, ok

from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.records import ModelInfo

MIB = 1 << 20
SHA = "ab" * 32


def info(hand: Hand, key: Any = "m") -> ModelInfo:
    return ModelInfo.from_hash(key, hand.do("HGETALL", key))


def record(hand: Hand, target: str) -> dict[str, Any] | None:
    """What the functions of this node know of a target."""
    raw = hand.do("HGET", hand.node.catalog, target)
    return None if raw is None else dict(json.loads(raw))


def upload(hand: Hand, key: Any, name: str, *chunks: bytes) -> None:
    for i, chunk in enumerate(chunks):
        hand.do("SET", keys.upload_chunk(key, name, i), chunk, "PX", 3600000)


# --- store


def test_a_version_is_stored_and_loading(hand: Hand) -> None:
    assert hand.fcall("AI_MODELSTORE", ["m"], "onnx", "cpu", "BLOB", b"file") == b"OK"
    model = info(hand)
    assert (model.last, model.default, list(model.versions)) == (1, None, [1])
    version = model.versions[1]
    assert (version.state, version.backend, version.device, version.tag) == ("loading", "ONNX", "CPU", "")
    assert (version.size, version.chunks, version.sha1) == (4, 1, hashlib.sha1(b"file").hexdigest())
    assert abs(version.created - hand.now()) < 10_000
    assert hand.do("GET", keys.upload_chunk("m", version.upload, 0)) == b"file"
    for target, more in (("m", {"last": 1}), ("m@1", {})):
        assert record(hand, target) == {
            "key": "m", "uid": model.uid, "version": 1, "state": "loading", "device": "CPU", "signature": None,
            "reason": "", **more,
        }  # fmt: skip
    hand.beat()
    (job,) = hand.claim()
    assert (job.op, job.model.decode(), job.key, job.version) == (b"load", model.model_id(1), b"m", 1)
    assert (job.deadline, job.ticket, job.inputs, job.outputs) == (0, b"", [], [])


def test_all_options(hand: Hand) -> None:
    options = '{"threads": 2, "deep": {"list": [1, 2]}}'
    number = hand.fcall(
        "AI_MODELSTORE", ["m"], "TORCH", "GPU:1", "tag", "v1", "BatchSize", 16, "MINBATCHSIZE", 4,
        "MINBATCHTIMEOUT", 20, "INPUTS", 2, "a", "b b", "outputs", 1, "c", "OPTIONS", options,
        "REPLY", "version", "BLOB", b"one", b"two", b"",
    )  # fmt: skip
    assert number == 1
    version = info(hand).versions[1]
    assert (version.backend, version.device, version.tag) == ("TORCH", "GPU:1", "v1")
    assert (version.batchsize, version.minbatchsize, version.minbatchtimeout) == (16, 4, 20)
    assert (version.inputs, version.outputs) == (("a", "b b"), ("c",))
    assert version.options == json.loads(options)
    assert hand.length("GPU:1") == 1
    assert hand.length("CPU") == 0
    assert hand.fcall("AI_MODELGET", ["m"]) == [
        b"backend", b"TORCH", b"device", b"GPU:1", b"tag", b"v1", b"batchsize", 16, b"minbatchsize", 4,
        b"inputs", [b"a", b"b b"], b"outputs", [b"c"], b"minbatchtimeout", 20, b"blob", b"onetwo",
    ]  # fmt: skip


def test_the_same_again_is_the_same_version(hand: Hand) -> None:
    def store(*options: Any, blob: bytes = b"file") -> int:
        return hand.store("m", *options, blob=blob, signature=None)

    assert store() == 1
    before = hand.everything()
    assert store() == 1
    assert hand.everything() == before
    assert store(blob=b"other") == 2
    assert store("TAG", "t") == 3
    assert store("BATCHSIZE", 2) == 4
    assert store("BATCHSIZE", 2, "MINBATCHSIZE", 1) == 5
    assert store("OPTIONS", '{"threads": 1}') == 6
    assert store("INPUTS", 1, "x") == 7
    assert [store(), store(blob=b"other"), store("TAG", "t"), store("INPUTS", 1, "x")] == [1, 2, 3, 7]
    assert hand.publish("m", 1, None, "broken") == 1
    assert store() == 8, "what failed is tried again"
    assert store() == 8
    hand.fcall("AI_MODELDEL", ["m"], "VERSION", 2)
    assert store(blob=b"other") == 9, "what was deleted is stored again"


def test_many_versions_are_stored_and_deleted_in_linear_time(hand: Hand) -> None:
    def took(count: int) -> float:
        for i in range(count):
            hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "BLOB", b"%d" % i)
            hand.do("HSET", "m", f"{i + 1}:digest", SHA, f"{i + 1}:state", "ready")
        assert hand.store("m", blob=b"0", signature=None) == 1
        began = time.monotonic()
        hand.fcall("AI_MODELDEL", ["m"])
        return time.monotonic() - began

    few = took(50)
    assert took(1000) < 100 * max(few, 0.002)
    assert hand.length() == 1000 + 50, "their loads went on, as far as anybody knows"


def test_a_new_version_serves_only_once_it_is_ready(hand: Hand) -> None:
    hand.store(blob=b"one")
    assert info(hand).default == 1
    hand.store(blob=b"two", signature=None)
    assert info(hand).default == 1
    assert (record(hand, "m") or {})["version"] == 1
    hand.store(blob=b"three", signature=TWO)
    assert info(hand).default == 3
    assert hand.publish("m", 2, ONE) == 1
    assert info(hand).default == 3, "a version that took longer to load does not displace a newer one"
    hand.store(blob=b"four", signature=None)
    assert hand.publish("m", 4, None, "MODELFAILED no such operator") == 1
    assert info(hand).default == 3
    assert (record(hand, "m") or {})["version"] == 3
    assert (record(hand, "m@4") or {})["reason"] == "MODELFAILED no such operator"


def test_a_ready_version_has_its_blob_under_its_digest(hand: Hand) -> None:
    blob = bytes(range(256)) * (5 * MIB // 256)
    hand.store("a}b", blob=blob)
    version = info(hand, "a}b").versions[1]
    assert (version.state, version.digest, version.chunks, version.signature) == ("ready", "0" * 64, 2, ONE)
    uid = info(hand, "a}b").uid
    names = [keys.blob_chunk("a}b", uid, "0" * 64, i) for i in range(2)]
    assert hand.fcall("AI_MODELGET", ["a}b"], "CHUNKS") == names
    assert b"".join(hand.do("GET", name) for name in names) == blob
    assert [hand.do("TTL", name) for name in names] == [-1, -1]
    assert hand.do("KEYS", "*:up:*") == []
    assert hand.fcall("AI_MODELGET", ["a}b"], "BLOB") == blob


def test_a_blob_by_upload(hand: Hand) -> None:
    upload(hand, "m", "u-1", b"abc", b"de")
    args = ("ONNX", "CPU", "REPLY", "VERSION", "UPLOAD", "u-1", 2, 5, "DIGEST", SHA.upper())
    assert hand.fcall("AI_MODELSTORE", ["m"], *args) == 1
    version = info(hand).versions[1]
    assert (version.upload, version.chunks, version.size, version.expected) == ("u-1", 2, 5, SHA)
    assert [hand.do("TTL", keys.upload_chunk("m", "u-1", i)) for i in range(2)] == [-1, -1]
    assert hand.publish("m", 1, ONE, digest=SHA) == 1
    assert hand.fcall("AI_MODELGET", ["m"], "BLOB") == b"abcde"
    assert hand.fcall("AI_MODELSTORE", ["m"], *args) == 1, "known by its digest, without another upload"
    assert hand.store("m", blob=b"abcde", signature=None) == 2, "Lua cannot tell that it is the same"


def test_an_upload_that_is_announced_twice(hand: Hand) -> None:
    upload(hand, "m", "u", b"abc", b"de")
    args = ("ONNX", "CPU", "REPLY", "VERSION", "UPLOAD", "u", 2, 5, "DIGEST", SHA)
    assert hand.fcall("AI_MODELSTORE", ["m"], *args) == 1
    before = hand.everything()
    assert hand.fcall("AI_MODELSTORE", ["m"], *args) == 1
    assert hand.everything() == before
    assert hand.publish("m", 1, ONE, digest=SHA) == 1
    assert hand.fcall("AI_MODELGET", ["m"], "BLOB") == b"abcde"


def test_an_upload_of_what_is_there(hand: Hand) -> None:
    for name in ("u", "again", "other"):
        upload(hand, "m", name, b"abc", b"de")
    assert hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "UPLOAD", "u", 2, 5, "DIGEST", SHA) == b"OK"
    other = ("ONNX", "CPU", "TAG", "t", "UPLOAD", "other", 2, 5, "DIGEST", SHA)
    assert hand.fcall("AI_MODELSTORE", ["m"], *other) == b"OK"
    for name in ("again", "other"):
        hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "UPLOAD", name, 2, 5, "DIGEST", SHA)
    assert info(hand).last == 2
    assert hand.do("EXISTS", *(keys.upload_chunk("m", "again", i) for i in range(2))) == 0
    assert hand.do("EXISTS", *(keys.upload_chunk("m", "other", i) for i in range(2))) == 2, "version 2 needs it"


def test_a_chunk_is_missing_or_short(hand: Hand) -> None:
    upload(hand, "m", "u", b"abc", b"de")
    began = time.monotonic()
    for chunks, size in ((2, 6), (3, 5), (1, 5), (1_000_000, 5)):
        args = ("ONNX", "CPU", "UPLOAD", "u", chunks, size, "DIGEST", SHA)
        assert hand.refused("AI_MODELSTORE", ["m"], *args).code == "UPLOADLOST"
    assert time.monotonic() - began < 0.3, "not each of a million is looked for"
    assert not hand.do("EXISTS", "m")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        ((), "backend"),
        (("", "CPU", "BLOB", "x"), "backend"),
        (("9", "CPU", "BLOB", "x"), "backend"),
        (("TF", "CPU", "BLOB", "x"), "tf2onnx"),
        (("TFLITE", "CPU", "BLOB", "x"), "ONNX"),
        (("ONNX",), "DEVICE"),
        (("ONNX", "", "BLOB", "x"), "DEVICE"),
        (("ONNX", "C P U", "BLOB", "x"), "DEVICE"),
        (("ONNX", "X" * 33, "BLOB", "x"), "32"),
        (("ONNX", "CPU"), "missing model BLOB"),
        (("ONNX", "CPU", "BLOB"), "empty"),
        (("ONNX", "CPU", "BLOB", ""), "empty"),
        (("ONNX", "CPU", "x"), "expected BLOB: got 'x'"),
        (("ONNX", "CPU", "TAG"), "TAG"),
        (("ONNX", "CPU", "BATCHSIZE", "BLOB", "x"), "BATCHSIZE"),
        (("ONNX", "CPU", "BATCHSIZE", -1, "BLOB", "x"), "BATCHSIZE"),
        (("ONNX", "CPU", "BATCHSIZE", "0x10", "BLOB", "x"), "BATCHSIZE"),
        (("ONNX", "CPU", "BATCHSIZE", 10**7, "BLOB", "x"), "BATCHSIZE"),
        (("ONNX", "CPU", "MINBATCHSIZE", 2, "BLOB", "x"), "without BATCHSIZE"),
        (("ONNX", "CPU", "BATCHSIZE", 2, "MINBATCHSIZE", 3, "BLOB", "x"), "larger than BATCHSIZE"),
        (("ONNX", "CPU", "BATCHSIZE", 2, "MINBATCHTIMEOUT", 3, "BLOB", "x"), "without MINBATCHSIZE"),
        (("ONNX", "CPU", "INPUTS", 0, "BLOB", "x"), "INPUTS"),
        (("ONNX", "CPU", "INPUTS", 1001, "BLOB", "x"), "INPUTS"),
        (("ONNX", "CPU", "INPUTS", 3, "BLOB", "x"), "only 2 names"),
        (("ONNX", "CPU", "OUTPUTS", "y", "BLOB", "x"), "OUTPUTS"),
        (("ONNX", "CPU", "OPTIONS"), "JSON object"),
        (("ONNX", "CPU", "OPTIONS", "[1]", "BLOB", "x"), "JSON object"),
        (("ONNX", "CPU", "OPTIONS", "1", "BLOB", "x"), "JSON object"),
        (("ONNX", "CPU", "OPTIONS", "{} {}", "BLOB", "x"), "JSON object"),
        (("ONNX", "CPU", "OPTIONS", "{" * 5000, "BLOB", "x"), "JSON object"),
        (("ONNX", "CPU", "REPLY", "BLOB", "x"), "REPLY"),
        (("ONNX", "CPU", "UPLOAD"), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u:1", 1, 1, "DIGEST", SHA), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u" * 65, 1, 1, "DIGEST", SHA), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 0, 1, "DIGEST", SHA), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 1, 0, "DIGEST", SHA), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 1, 1, "SHA", SHA), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 1, 1, "DIGEST", SHA[1:]), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 1, 1, "DIGEST", "zz" * 32), "UPLOAD takes"),
        (("ONNX", "CPU", "UPLOAD", "u", 1, 1, "DIGEST", SHA, "BLOB"), "UPLOAD takes"),
    ],
)
def test_arguments_that_store_refuses(hand: Hand, args: tuple[Any, ...], text: str) -> None:
    error = hand.refused("AI_MODELSTORE", ["m"], *args)
    assert error.code == "BADARG"
    assert text in error.text


@pytest.mark.parametrize("key", ["", "a@b", "k" * 513])
def test_names_that_no_model_can_have(hand: Hand, key: str) -> None:
    assert hand.refused("AI_MODELSTORE", [key], "ONNX", "CPU", "BLOB", "x").code == "BADARG"


def test_a_blob_too_large_to_ride_along(hand: Hand) -> None:
    error = hand.refused("AI_MODELSTORE", ["m"], "ONNX", "CPU", "BLOB", b"x" * (4 * MIB), b"x" * (4 * MIB), b"x")
    assert error.code == "TOOBIG"
    assert "UPLOAD" in error.text
    assert hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "BLOB", b"x" * (8 * MIB)) == b"OK"


# --- keys of another type


@pytest.mark.parametrize("function", ["AI_MODELSTORE", "AI_MODELGET", "AI_MODELDEL", "AI_INFO"])
@pytest.mark.parametrize("kind", ["string", "list", "stream", "hash", "fields of a model"])
def test_a_key_that_holds_something_else(hand: Hand, function: str, kind: str) -> None:
    hand.do(*{
        "string": ("SET", "k", ROW),
        "list": ("RPUSH", "k", 1),
        "stream": ("XADD", "k", "*", "a", "b"),
        "hash": ("HSET", "k", "uid", "u"),
        "fields of a model": ("HSET", "k", "type", "model", "uid", "u", "last", "many"),
    }[kind])  # fmt: skip
    args = ("ONNX", "CPU", "BLOB", "x") if function == "AI_MODELSTORE" else ()
    assert hand.refused(function, ["k"], *args).code == "WRONGTYPE"


@pytest.mark.parametrize("function", ["AI_MODELSTORE", "AI_MODELGET", "AI_MODELDEL", "AI_INFO"])
def test_one_key_and_no_other(hand: Hand, function: str) -> None:
    hand.store()
    for names in ([], ["m", "m"]):
        assert hand.refused(function, names).code == "BADARG"


@pytest.mark.parametrize("function", ["AI_MODELGET", "AI_MODELDEL", "AI_INFO"])
def test_a_model_or_version_that_is_not_there(hand: Hand, function: str) -> None:
    assert hand.refused(function, ["m"]).code == "NOMODEL"
    hand.store()
    for version in ("2", "0", "-1", "x", "", "1:state", "\0"):
        assert hand.refused(function, ["m"], "VERSION", version).code == "NOMODEL"
    for args in (("VERSION",), ("1",), ("META", "x")):
        assert hand.refused(function, ["m"], *args).code == "BADARG"


# --- get


def test_get_in_every_form(hand: Hand) -> None:
    hand.store("m", "TAG", "t", blob=b"one")
    hand.store("m", blob=b"two", signature=None)
    meta = [
        b"backend", b"ONNX", b"device", b"CPU", b"tag", b"t", b"batchsize", 0, b"minbatchsize", 0,
        b"inputs", [], b"outputs", [], b"minbatchtimeout", 0,
    ]  # fmt: skip
    assert hand.fcall("AI_MODELGET", ["m"], "meta") == meta
    assert hand.fcall("AI_MODELGET", ["m"], "BLOB") == b"one"
    assert hand.fcall("AI_MODELGET", ["m"], "META", "BLOB") == [*meta, b"blob", b"one"]
    assert hand.fcall("AI_MODELGET", ["m"]) == [*meta, b"blob", b"one"]
    assert hand.fcall("AI_MODELGET", ["m"], "BLOB", "VERSION", 2) == b"two"
    assert hand.do("FCALL_RO", "AI_MODELGET", 1, "m", "VERSION", 1, "BLOB") == b"one"


def test_a_blob_of_which_a_chunk_has_gone(hand: Hand) -> None:
    hand.store(blob=b"x" * (5 * MIB))
    hand.do("DEL", keys.blob_chunk("m", info(hand).uid, "0" * 64, 1))
    for args in ((), ("BLOB",), ("META", "BLOB")):
        error = hand.refused("AI_MODELGET", ["m"], *args)
        assert error.code == "UPLOADLOST"
        assert "chunk 1 " in error.text
        assert "store the model again" in error.text
    assert hand.fcall("AI_MODELGET", ["m"], "META")


def test_a_blob_that_is_too_large_for_one_reply(hand: Hand) -> None:
    upload(hand, "m", "u", *[b"x" * (4 * MIB)] * 2, b"y")
    hand.fcall("AI_MODELSTORE", ["m"], "ONNX", "CPU", "UPLOAD", "u", 3, 8 * MIB + 1, "DIGEST", SHA)
    error = hand.refused("AI_MODELGET", ["m"], "BLOB")
    assert error.code == "TOOBIG"
    assert "CHUNKS" in error.text
    names = hand.fcall("AI_MODELGET", ["m"], "CHUNKS")
    assert names == [keys.upload_chunk("m", "u", i) for i in range(3)]


# --- delete


def test_a_deleted_model_is_there_for_what_was_queued(hand: Hand) -> None:
    hand.store("m", blob=b"one")
    uid = info(hand).uid
    ticket = hand.predict()
    assert hand.fcall("AI_MODELDEL", ["m"]) == b"OK"
    assert not hand.do("EXISTS", "m")
    assert hand.do("HLEN", hand.node.catalog) == hand.do("HLEN", hand.node.models) == 0
    gone = keys.gone("m", uid)
    left = hand.do("HGETALL", gone)
    assert dict(zip(left[::2], left[1::2], strict=True))[b"1:digest"] == b"0" * 64
    for name in (gone, keys.blob_chunk("m", uid, "0" * 64, 0)):
        assert 0 < hand.do("PTTL", name) <= 600_000
    assert hand.refused("AI_PREDICT", [], "m", "INPUTS", 1, "VALUE", ROW).code == "NOMODEL"
    (job,) = hand.claim()
    assert hand.complete("e1", [ok(job)]) == b"1"
    assert hand.reply(ticket) == b"OK"


def test_a_model_stored_again_is_another_one(hand: Hand) -> None:
    hand.store(blob=b"one")
    first = info(hand).uid
    hand.fcall("AI_MODELDEL", ["m"])
    assert hand.store(blob=b"one", signature=None) == 1
    assert info(hand).uid != first


def test_a_model_stored_again_after_a_plain_delete(hand: Hand) -> None:
    for blob in (b"one", b"two", b"three"):
        hand.store("z", blob=blob)
    hand.fcall("AI_MODELDEL", ["z"], "VERSION", 3)
    uid = info(hand, "z").uid
    hand.predict(target="z")
    (job,) = hand.claim()
    hand.complete("e1", [ok(job)], model=f"{uid}-2".encode())
    hand.do("DEL", "z")
    assert hand.store("z", blob=b"new", signature=None) == 1
    for target in ("z", "z@1"):
        assert (record(hand, target) or {})["uid"] == info(hand, "z").uid != uid
    assert hand.do("HLEN", hand.node.catalog) == 2
    assert hand.do("KEYS", "*:stats:*") == []
    assert hand.refused("AI_PREDICT", [], "z@2", "INPUTS", 1, "VALUE", ROW).code == "NOMODEL"


def test_the_end_of_a_load_from_before_a_plain_delete(hand: Hand) -> None:
    hand.store(signature=None)
    uid = info(hand).uid
    hand.beat()
    (load,) = hand.claim()
    hand.do("DEL", "m")
    hand.store(signature=None)
    before = hand.do("HGETALL", hand.node.catalog)
    assert hand.recover("e2", 0, 1) is None, "given up"
    assert info(hand).versions[1].state == "loading", "of the new model nothing is known"
    end = (load.id, uid, 1, "ready", SHA, ONE.to_json(), "")
    assert hand.fcall("KS_PUBLISH", ["m"], "CPU", "e1", *end) == 0
    assert hand.do("HGETALL", hand.node.catalog) == before


def test_deleting_a_model_that_a_plain_delete_took(hand: Hand) -> None:
    hand.store("z", blob=b"one")
    hand.store("z", blob=b"two")
    hand.do("DEL", "z")
    with pytest.raises(KeysideError, match="NOMODEL"):
        hand.fcall("AI_MODELDEL", ["z"])
    assert hand.do("HLEN", hand.node.catalog) == hand.do("HLEN", hand.node.models) == 0


def test_one_version_is_deleted(hand: Hand) -> None:
    for blob in (b"one", b"two", b"three"):
        hand.store(blob=blob)
    assert hand.fcall("AI_MODELDEL", ["m"], "VERSION", 3) == b"OK"
    assert (list(info(hand).versions), info(hand).default) == ([1, 2], 2)
    assert record(hand, "m@3") is None
    assert (record(hand, "m") or {})["version"] == 2
    hand.fcall("AI_MODELDEL", ["m"], "version", 1)
    assert info(hand).default == 2
    assert hand.store(blob=b"four", signature=None) == 4, "numbers are not used again"
    hand.fcall("AI_MODELDEL", ["m"], "VERSION", 2)
    assert info(hand).default is None
    assert (record(hand, "m") or {})["state"] == "loading"
    hand.fcall("AI_MODELDEL", ["m"], "VERSION", 4)
    assert not hand.do("EXISTS", "m")
    assert hand.fcall("AI_MODELSCAN", []) == []


def test_a_blob_stays_while_another_version_has_it(hand: Hand) -> None:
    hand.store("m", blob=b"one")
    hand.store("m", "TAG", "t", blob=b"one")
    name = keys.blob_chunk("m", info(hand).uid, "0" * 64, 0)
    hand.fcall("AI_MODELDEL", ["m"], "VERSION", 1)
    assert hand.do("TTL", name) == -1
    hand.fcall("AI_MODELDEL", ["m"], "VERSION", 2)
    assert hand.do("PTTL", name) > 0


def test_a_model_deleted_while_it_loads(hand: Hand) -> None:
    hand.store(signature=None)
    uid = info(hand).uid
    hand.beat()
    (job,) = hand.claim()
    hand.fcall("AI_MODELDEL", ["m"])
    end = (job.id, uid, 1, "ready", SHA, ONE.to_json(), "")
    assert hand.fcall("KS_PUBLISH", ["m"], "CPU", "e1", *end) == 0
    assert not hand.do("EXISTS", "m")
    assert hand.length() == 0


# --- scan


def test_scan(hand: Hand) -> None:
    assert hand.fcall("AI_MODELSCAN", []) == []
    assert hand.fcall("AI_MODELSCAN", [], 0) == [b"0", []]
    hand.store("a", "TAG", "first", blob=b"one")
    hand.store("a", "TAG", "second", blob=b"two", signature=None)
    hand.store("b", signature=None)
    assert sorted(hand.do("FCALL_RO", "AI_MODELSCAN", 0)) == [[b"a", b"first"], [b"b", b""]]
    assert hand.publish("a", 2, ONE) == 1
    assert sorted(hand.fcall("AI_MODELSCAN", [])) == [[b"a", b"second"], [b"b", b""]]
    cursor, page = hand.fcall("AI_MODELSCAN", [], "0", "COUNT", 10)
    assert (cursor, sorted(page)) == (b"0", [[b"a", b"second"], [b"b", b""]])
    for args in (("x",), ("-1",), ("0", "COUNT"), ("0", "COUNT", "0"), ("0", "COUNT", "1001"), ("0", "LIMIT", "1")):
        assert hand.refused("AI_MODELSCAN", [], *args).code == "BADARG"
    assert hand.refused("AI_MODELSCAN", [], "0", "COUNT", "1", "x").code == "BADARG"


def test_scan_of_many(hand: Hand) -> None:
    names = {b"m%d" % i for i in range(1001)}
    hand.do("HSET", hand.node.models, *(part for name in names for part in (name, b"t")))
    error = hand.refused("AI_MODELSCAN", [])
    assert error.code == "SCANLIMIT"
    assert "cursor" in error.text
    found, cursor = set(), b"0"
    while True:
        cursor, page = hand.fcall("AI_MODELSCAN", [], cursor, "COUNT", 50)
        found |= {name for name, _ in page}
        if cursor == b"0":
            break
    assert found == names
    hand.do("HDEL", hand.node.models, "m0")
    assert len(hand.fcall("AI_MODELSCAN", [])) == 1000


# --- info


def test_info(hand: Hand) -> None:
    hand.store("m", "TAG", "t")
    uid = info(hand).uid

    def counters(*args: Any) -> dict[bytes, Any]:
        flat = hand.fcall("AI_INFO", ["m"], *args)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    fresh = {
        b"key": b"m", b"type": b"MODEL", b"backend": b"ONNX", b"device": b"CPU", b"tag": b"t",
        b"duration": 0, b"samples": 0, b"calls": 0, b"errors": 0,
    }  # fmt: skip
    assert counters() == fresh
    hand.predict()
    hand.predict()
    jobs = hand.claim()
    assert hand.complete("e1", [ok(job) for job in jobs], model=f"{uid}-1".encode()) == b"11"
    ran = fresh | {b"duration": 1500, b"samples": 3, b"calls": 2}
    assert counters() == counters("VERSION", 1) == ran
    hand.store("m", signature=None)
    assert counters("VERSION", 2)[b"calls"] == 0
    assert hand.fcall("AI_INFO", ["m"], "RESETSTAT") == b"OK"
    assert counters() == fresh


def test_names_of_any_bytes(hand: Hand) -> None:
    for name in (b"\xff\x00\n", b"{", b"}", b"{}x", b"a}b{", b"x y", "modèle".encode()):
        hand.store(name, blob=b"one")
        hand.predict(target=name)
        with pytest.raises(KeysideError) as caught:
            hand.predict(target=name, value=ROW[:-1] + b"zz")
        assert caught.value.code == "BADNPY"
        with pytest.raises(KeysideError) as caught:
            hand.fcall("AI_PREDICT", [], name, "INPUTS", 2, "VALUE", ROW, "VALUE", ROW)
        assert caught.value.code == "BADINPUT"
        assert hand.fcall("AI_MODELGET", [name], "BLOB") == b"one"
        assert hand.fcall("AI_MODELDEL", [name]) == b"OK"
