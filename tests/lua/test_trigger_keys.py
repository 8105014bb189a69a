"""Triggers as keys: what may be set, what is said of them, and what goes with them."""

import json
from typing import Any

import pytest
from tests.lua.jobs import LUA_ERROR, ROW, Hand
from tests.lua.triggers import RUN, done, fire, info, lead, onset, write
from tests.servers import wait_until

from keyside.tensorstore import commands_triggers as commands
from keyside.tensorstore.errors import BadArg, KeysideError, NoTrigger, TooBig, WrongType

VALUE = ("RUN", "m", "INPUTS", 1, "VALUE", "{payload}")
FULL = (
    "ON", "SET", "frame:{cam}:{n}", "NOTIFY", "CHANNEL", "chan", "RESULTS", "results", "MAXLEN", 10, "COALESCE",
    "RATE", 5, "PER", 1000, "INFLIGHT", 3, "TTL", 60000, "ONERROR", "PAUSE",
    "RUN", "m@1", "INPUTS", 2, "KEY", "{key}", "REF", "ref:{n}", "NAMES", 2, "a", "b", "OUTPUTS", 1, "boxes:{cam}",
    "TIMEOUT", 5000, "PRIORITY", "LOW",
)  # fmt: skip


def ask(hand: Hand, command: Any) -> Any:
    return command.result(hand.do(*command.args))


def test_what_was_set_is_what_is_told(hand: Hand) -> None:
    hand.fcall("AI_TRIGGERSET", ["t"], *FULL)
    found = ask(hand, commands.ai_triggerget("t"))
    assert found.pop("created") <= hand.now()
    assert found == {
        "name": b"t", "state": b"active", "on": b"set", "source": b"frame:{cam}:{n}", "notify": 1, "channel": b"chan",
        "results": b"results", "maxlen": 10, "coalesce": 1, "rate": [5, 1000], "inflight": 3, "ttl": 60000,
        "onerror": b"pause", "run": [str(word).encode() for word in FULL[FULL.index("RUN") + 1 :]],
    }  # fmt: skip
    assert ask(hand, commands.ai_triggerscan(0)) == (b"0", [("t", "set", "frame:{cam}:{n}", "m@1", "active")])


def test_the_record_is_the_same_for_executors(hand: Hand) -> None:
    hand.fcall(
        "AI_TRIGGERSET", ["s"], "ON", "STREAM", "st", "GROUP", "g", "FROM", "0-1", "RUN", "m", "INPUTS", 1, "KEY", "{k}"
    )
    ((name, raw),) = ask(hand, commands.ks_triggers())
    assert name == b"s"
    record = json.loads(raw)
    assert record.pop("created") > 0
    assert record.pop("uid")
    assert record == {
        "key": "s", "kind": "trigger", "state": "active", "on": "stream", "source": "st", "group": "g", "from": "0-1",
        "channel": "ks:results:s", "onerror": "publish", "run": ["m", "INPUTS", "1", "KEY", "{k}"],
    }  # fmt: skip


def test_defaults(hand: Hand) -> None:
    hand.fcall("AI_TRIGGERSET", ["s"], "ON", "STREAM", "st", *VALUE)
    found = ask(hand, commands.ai_triggerget("s"))
    assert (found["group"], found["from"], found["channel"], found["onerror"]) == (
        b"kss",
        b"$",
        b"ks:results:s",
        b"publish",
    )


def test_executors_are_told_of_what_they_have_to_serve(hand: Hand) -> None:
    onset(hand, "quiet", "a:{x}")
    onset(hand, "noted", "a:{x}", "NOTIFY")
    hand.fcall("AI_TRIGGERSET", ["p"], "ON", "PUBLISH", "news", "SHARDED", *VALUE)
    hand.fcall(
        "AI_TRIGGERSET", ["c"], "ON", "SCHEDULE", 1000, "MEMBERS", "users", "RUN", "m", "INPUTS", 1, "KEY", "{member}"
    )
    hand.fcall("AI_TRIGGERPAUSE", ["c"], "ON")
    records = {name.decode(): json.loads(raw) for name, raw in ask(hand, commands.ks_triggers())}
    assert {name: record["state"] for name, record in records.items()} == {
        "noted": "active",
        "p": "active",
        "c": "paused",
    }
    assert (records["p"]["sharded"], records["c"]["every"], records["c"]["members"]) == (True, 1000, "users")


def test_setting_again_replaces_and_wakes_up(hand: Hand) -> None:
    hand.store()
    onset(hand, "t", "a:{x}", "COALESCE")
    uid = hand.do("HGET", "t", "uid")
    ask(hand, commands.ai_triggerpause("t", True))
    write(hand, "a:1")
    assert hand.length() == 0
    onset(hand, "t", "b:{x}")
    assert hand.do("HGET", "t", "uid") == uid
    write(hand, "a:1")
    assert hand.length() == 0
    write(hand, "b:1")
    assert hand.length() == 1
    assert "coalesce" not in ask(hand, commands.ai_triggerget("t"))


def test_another_kind_in_its_place_no_longer_waits_for_tensors(hand: Hand) -> None:
    hand.store()
    onset(hand, "t", "a:{x}")
    hand.fcall("AI_TRIGGERSET", ["t"], "ON", "PUBLISH", "news", *VALUE)
    assert not hand.do("EXISTS", hand.node.onset)
    write(hand, "a:1")
    assert hand.length() == 0


def test_pause_and_go_on(hand: Hand) -> None:
    hand.store()
    onset(hand, "t", "a:{x}")
    for word, state, runs in (("on", "paused", 0), ("OFF", "active", 1)):
        assert hand.fcall("AI_TRIGGERPAUSE", ["t"], word) == b"OK"
        assert ask(hand, commands.ai_triggerscan(0))[1][0].state == state
        write(hand, "a:1")
        assert hand.length() == runs
    hand.fcall("AI_TRIGGERSET", ["p"], "ON", "PUBLISH", "news", *VALUE)
    lead(hand, "p")
    hand.fcall("AI_TRIGGERPAUSE", ["p"], "ON")
    assert fire(hand, "p", "1", payload=ROW) == ("DROPPED", "PAUSED")
    assert info(hand, "p")["dropped"] == 1


def test_delete(hand: Hand) -> None:
    hand.store()
    before = hand.everything()
    onset(hand, "t", "a:{x}", "COALESCE", "RATE", 5, "PER", 1000)
    write(hand, "a:1")
    assert hand.fcall("AI_TRIGGERDEL", ["t"]) == b"OK"
    left = hand.everything().keys() - before.keys()
    assert {name for name in left if b":rate:" not in name} == {b"a:1", hand.node.dropped}, "but for what expires"
    with pytest.raises(NoTrigger):
        hand.fcall("AI_TRIGGERDEL", ["t"])
    write(hand, "a:1")
    assert hand.length() == 1
    (job,) = hand.claim()
    assert hand.complete("e1", [done(job)]) == b"1", "what was under way ends"
    assert not hand.do("EXISTS", hand.node.tstats("t"))


def test_one_that_went_by_del(hand: Hand) -> None:
    onset(hand, "t", "a:{x}")
    hand.do("DEL", "t")
    with pytest.raises(NoTrigger):
        hand.fcall("AI_TRIGGERDEL", ["t"])
    assert ask(hand, commands.ai_triggerscan(0))[1] == []
    onset(hand, "t", "a:{x}")
    hand.do("DEL", "t")
    hand.store("t")
    assert ask(hand, commands.ai_triggerscan(0))[1] == []
    assert not hand.do("EXISTS", hand.node.onset)


def test_names_are_models_or_triggers(hand: Hand) -> None:
    hand.store("m")
    onset(hand, "t", "a:{x}")
    hand.do("SET", "x", ROW)
    for name, args in (
        ("AI_TRIGGERSET", FULL), ("AI_TRIGGERGET", ()), ("AI_TRIGGERDEL", ()), ("AI_TRIGGERPAUSE", ("ON",)),
        ("AI_TRIGGERINFO", ()),
    ):  # fmt: skip
        for key in ("m", "x"):
            assert type(hand.refused(name, [key], *args)) is WrongType
    of_models = {"AI_MODELSTORE": ("ONNX", "CPU", "BLOB", "b"), "AI_MODELDEL": (), "AI_INFO": ()}
    for name, words in of_models.items():
        assert type(hand.refused(name, ["t"], *words)) is WrongType
    assert hand.refused("AI_PREDICT", [], "t", "INPUTS", 1, "VALUE", ROW).code == "NOMODEL"


def test_at_most_64_on_set(hand: Hand) -> None:
    for n in range(64):
        onset(hand, f"t{n}", "a:{x}")
    with pytest.raises(TooBig, match="64"):
        onset(hand, "one more", "a:{x}")
    assert not hand.do("EXISTS", "one more")
    onset(hand, "t7", "b:{x}")
    hand.fcall("AI_TRIGGERDEL", ["t8"])
    onset(hand, "one more", "a:{x}")


def test_counters_can_be_cleared(hand: Hand) -> None:
    hand.store()
    onset(hand, "t", "a:{x}")
    write(hand, "a:1")
    found = ask(hand, commands.ai_triggerinfo("t"))
    assert (found.fired, found.inflight, found.done) == (1, 1, 0)
    ask(hand, commands.ai_triggerinfo_reset("t"))
    assert ask(hand, commands.ai_triggerinfo("t")).fired == 0
    hand.do("HSET", hand.node.tstats("t"), "fired", "junk")
    assert ask(hand, commands.ai_triggerinfo("t")).fired == 0


def set_words(*words: Any) -> tuple[Any, ...]:
    return ("ON", "SET", "a:{x}", *words, *RUN)


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        ((), "BADARG", "AI_TRIGGERSET takes"),
        (("ON",), "BADARG", "ON takes"),
        (("ON", "TUESDAY", "x", *RUN), "BADARG", "ON takes"),
        (("ON", "SET", "a:{x}"), "BADARG", "RUN is missing"),
        (("ON", "SET", "", *RUN), "BADARG", "1 to"),
        (("ON", "SET", "a" * 513, *RUN), "BADARG", "512"),
        (("ON", "SET", "a:{x}{y}", *RUN), "BADARG", "side by side"),
        (("ON", "SET", "a:{x}:{x}", *RUN), "BADARG", "two captures"),
        (("ON", "SET", "a:{key}", *RUN), "BADARG", "whole key"),
        (("ON", "SET", "{a}:{b}:{c}:{d}:{e}", *RUN), "BADARG", "5 captures"),
        (("ON", "SET", "a:{", *RUN), "BADARG", "{{"),
        (("ON", "SET", "a:}", *RUN), "BADARG", "}}"),
        (("ON", "SET", "a:{}", *RUN), "BADARG", "{{"),
        (("ON", "SET", "a:{x}", "RUN", "m", "INPUTS", 1, "KEY", "{y}"), "BADARG", "{y}"),
        (("ON", "SET", "a:{x}", "RUN", "m", "INPUTS", 1, "OWN", "{key}"), "BADARG", "OWN"),
        (("ON", "SET", "a:{x}", "RUN", "m", "INPUTS", 2, "KEY", "{key}"), "BADARG", "input 2 of 2"),
        (("ON", "SET", "a:{x}", "RUN", "m"), "BADARG", "INPUTS"),
        (("ON", "SET", "a:{x}", *RUN, "OUTPUTS", 1, "{key}"), "LOOP", "itself"),
        (("ON", "SET", "a:{x}", *RUN, "OUTPUTS", 2, "b:{x}", "{key}:y"), "LOOP", "{key}:y"),
        (("ON", "SET", "a:{x}", *RUN, "OUTPUTS", 1, "{x}"), "LOOP", "itself"),
        (("ON", "SET", "a:{x}", *RUN, "OUTPUTS", 1, "a:1"), "LOOP", "itself"),
        (set_words("SHARDED"), "BADARG", "SHARDED"),
        (set_words("GROUP", "g"), "BADARG", "GROUP"),
        (set_words("NOTIFY", "NOTIFY"), "BADARG", "NOTIFY"),
        (set_words("SOON"), "BADARG", "SOON"),
        (set_words("MAXLEN", 5), "BADARG", "RESULTS"),
        (set_words("RESULTS", "r:{y}"), "BADARG", "{y}"),
        (set_words("RATE", 5), "BADARG", "PER"),
        (set_words("RATE", 0, "PER", 5), "BADARG", "from 1"),
        (set_words("INFLIGHT", "many"), "BADARG", "many"),
        (set_words("TTL", -1), "BADARG", "TTL"),
        (set_words("ONERROR", "CRY"), "BADARG", "PUBLISH, PAUSE or DROP"),
        ((*set_words(), "TICKET", "ks:{{0}}:t:a:1"), "BADARG", "TICKET"),
        ((*set_words(), "TIMEOUT", 0), "BADARG", "TIMEOUT"),
        (("ON", "STREAM", "s", "FROM", "now", *RUN), "BADARG", "FROM"),
        (("ON", "STREAM", "s", "COALESCE", *RUN), "BADARG", "COALESCE"),
        (("ON", "STREAM", "s", "RESULTS", "r:{id}", *RUN), "BADARG", "{id}"),
        (("ON", "SCHEDULE", 0, "KEYS", 1, "a", *RUN), "BADARG", "SCHEDULE"),
        (("ON", "SCHEDULE", 10, "RUN", "m", "INPUTS", 1, "KEY", "{member}"), "BADARG", "MEMBERS"),
        (("ON", "SCHEDULE", 10, "KEYS", 2, "a"), "BADARG", "KEYS 2"),
        (("ON", "SCHEDULE", 10, "KEYS", 1, "a", *RUN), "BADARG", "{key}"),
        (("ON", "PUBLISH", "c", "RUN", "m", "INPUTS", 1, "VALUE", "x" * 70000), "TOOBIG", "65536"),
    ],
)  # fmt: skip
def test_what_cannot_be_set(hand: Hand, words: tuple[Any, ...], code: str, text: str) -> None:
    error = hand.refused("AI_TRIGGERSET", ["t"], *words)
    assert error.code == code
    assert text in str(error)


@pytest.mark.parametrize("name", ["", "a@1", "x" * 513, "ks:{0}:t"])
def test_names_that_no_trigger_may_have(hand: Hand, name: str) -> None:
    assert hand.refused("AI_TRIGGERSET", [name], *set_words()).code == "BADARG"


@pytest.mark.parametrize("function", ["SET", "GET", "DEL", "PAUSE", "INFO"])
def test_one_key(hand: Hand, function: str) -> None:
    for names in ([], ["a", "b"]):
        assert hand.refused(f"AI_TRIGGER{function}", names, "ON").code == "BADARG"


def test_numbers_may_be_variables(hand: Hand) -> None:
    """What can only be known with the event is not refused before."""
    hand.fcall("AI_TRIGGERSET", ["p"], "ON", "PUBLISH", "c", "RUN", "m", "INPUTS", 1, "ROWS", "table", 1, "{row}")
    hand.fcall(
        "AI_TRIGGERSET",
        ["q"],
        "ON",
        "PUBLISH",
        "c",
        "RUN",
        "{model}",
        "INPUTS",
        1,
        "HASH",
        "FLOAT",
        1,
        "u:{id}",
        1,
        "age",
    )
    with pytest.raises(KeysideError, match="HASH"):
        hand.fcall("AI_TRIGGERSET", ["q"], "ON", "PUBLISH", "c", "RUN", "m", "INPUTS", 1, "HASH", "FLOAT", 1, "u:{id}")


def test_damaged_records_are_left_out(hand: Hand) -> None:
    hand.store()
    onset(hand, "t", "a:{x}")
    good = hand.do("HGET", hand.node.triggers, "t")
    for bad in (
        b"junk",
        b"{}",
        b"[]",
        good.replace(b'"on":"set"', b'"on":"x"'),
        good.replace(b'"run":[', b'"run":[1,'),
    ):
        hand.do("HSET", hand.node.triggers, "bad", bad)
        hand.do("HSET", hand.node.onset, "bad", bad, "@", bad)
        assert len(ask(hand, commands.ai_triggerscan(0))[1]) == 1
        assert ask(hand, commands.ks_triggers()) == []
        write(hand, "a:1")
    assert hand.length() == 5
    hand.do("HSET", "t", "spec", "junk")
    with pytest.raises(WrongType) as caught:
        hand.fcall("AI_TRIGGERGET", ["t"])
    assert not LUA_ERROR.search(str(caught.value))
    with pytest.raises(WrongType):
        hand.fcall("AI_TRIGGERPAUSE", ["t"], "ON")


def test_who_leads_is_told_when_it_is_due(hand: Hand) -> None:
    hand.store()
    hand.do("SET", "x", ROW)
    hand.fcall(
        "AI_TRIGGERSET", ["c"], "ON", "SCHEDULE", 1500, "KEYS", 1, "x", "RUN", "m", "INPUTS", 1, "KEY", "{member}"
    )
    assert hand.fcall("KS_TICK", [], "c", "e1") == -1
    lead(hand, "c")
    began = hand.now()
    assert hand.fcall("KS_TICK", [], "c", "e1") == 1500
    assert 0 < hand.fcall("KS_TICK", [], "c", "e1") <= 1500
    wait_until(lambda: hand.fcall("KS_TICK", [], "c", "e1") == 0, "it is due")
    assert 1500 <= hand.now() - began < 3300
    assert hand.fcall("KS_TICK", [], "c", "e1") > 0
    assert fire(hand, "c", "x", member="x")[0] == "FIRED"
    # Times that nobody served are left out.
    hand.do("SET", hand.node.due("c"), hand.now() - 7510)
    assert hand.fcall("KS_TICK", [], "c", "e1") == 0
    assert 0 < hand.fcall("KS_TICK", [], "c", "e1") <= 1500
    hand.fcall("AI_TRIGGERSET", ["c"], "ON", "SCHEDULE", 50, "KEYS", 1, "x", "RUN", "m", "INPUTS", 1, "KEY", "{member}")
    hand.do("SET", hand.node.due("c"), hand.now() + 10_000)
    assert hand.fcall("KS_TICK", [], "c", "e1") == 50
    hand.fcall("AI_TRIGGERSET", ["p"], "ON", "PUBLISH", "news", *VALUE)
    with pytest.raises(BadArg):
        hand.fcall("KS_TICK", [], "p", "e1")
