"""errors: codes, text, pickling, and what becomes of the server's error replies."""

import pickle

import pytest

from keyside.tensorstore import errors

# what the server adds to errors raised inside a function
ORIGIN = " script: AI_X, on @user_function:12."
BRANCHES = (errors.CallerError, errors.StateError, errors.TransportError, errors.ExecutionError)

# code: branch, as in section 8 of the protocol and the three that have no reply of their own
CALLER = """BADARG BADNPY BADVALUE TOOBIG NOTENSOR NOFEATURE WRONGTYPE NOMODEL MODELFAILED BADINPUT BADDTYPE
    BADSHAPE BADMODEL CROSSSLOT NOPERM SCANLIMIT UPLOADLOST NOTRIGGER LOOP"""
TABLE = {
    **dict.fromkeys(CALLER.split(), errors.CallerError),
    **dict.fromkeys(["BUSY", "OOM", "TRYAGAIN", "INPUTLOST", "NOLIBRARY", "OLDLIBRARY"], errors.StateError),
    "UNREACHABLE": errors.TransportError,
    **dict.fromkeys(["RUNFAILED", "TIMEDOUT", "DEADLETTER", "CANCELLED"], errors.ExecutionError),
    "ERR": errors.ServerError,
}


def test_every_code_has_a_class_in_the_right_branch() -> None:
    assert TABLE.keys() == errors.CODES.keys()
    for code, branch in TABLE.items():
        cls = errors.CODES[code]
        assert cls.code == code
        assert issubclass(cls, branch)
        assert [b for b in BRANCHES if issubclass(cls, b)] == ([branch] if branch in BRANCHES else [])


@pytest.mark.parametrize("cls", errors.CODES.values(), ids=lambda cls: cls.code)
def test_text_and_pickling(cls: type[errors.KeysideError]) -> None:
    error = cls("want 4, got 3")
    assert str(error) == f"{cls.code} want 4, got 3"
    assert error.text == "want 4, got 3"
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (str(copy), copy.text, copy.args) == (str(error), error.text, error.args)
    assert str(cls()) == cls.code


@pytest.mark.parametrize("code", TABLE)
def test_a_reply_becomes_its_class_again(code: str) -> None:
    error = errors.from_reply(f"{code} what happened")
    assert type(error) is errors.CODES[code]
    assert str(error) == f"{code} what happened"


def test_builtin_bases() -> None:
    assert isinstance(errors.Unreachable("x"), ConnectionError)
    assert isinstance(errors.TimedOut("x"), TimeoutError)
    assert all(issubclass(cls, errors.KeysideError) for cls in errors.CODES.values())


@pytest.mark.parametrize(
    ("reply", "cls", "text"),
    [
        ("NOPERM User x has no permissions", errors.NoPerm, "NOPERM User x has no permissions"),
        ("NOAUTH Authentication required.", errors.NoPerm, "NOPERM NOAUTH Authentication required."),
        (
            "OOM command not allowed when used memory > 'maxmemory'.",
            errors.OutOfMemory,
            "OOM command not allowed when used memory > 'maxmemory'.",
        ),
        (
            "WRONGTYPE Operation against a key holding the wrong kind of value" + ORIGIN,
            errors.WrongType,
            "WRONGTYPE Operation against a key holding the wrong kind of value",
        ),
        ("MOVED 3999 127.0.0.1:6381", errors.TryAgain, "TRYAGAIN MOVED 3999 127.0.0.1:6381"),
        ("ASK 3999 127.0.0.1:6381", errors.TryAgain, "TRYAGAIN ASK 3999 127.0.0.1:6381"),
        (
            "TRYAGAIN Multiple keys request during rehashing of slot",
            errors.TryAgain,
            "TRYAGAIN Multiple keys request during rehashing of slot",
        ),
        (
            "ERR Script attempted to access a non local key in a cluster node" + ORIGIN,
            errors.TryAgain,
            "TRYAGAIN Script attempted to access a non local key in a cluster node",
        ),
        (
            "ERR Script attempted to access keys that do not hash to the same slot",
            errors.CrossSlot,
            "CROSSSLOT Script attempted to access keys that do not hash to the same slot",
        ),
        (
            "LOADING Redis is loading the dataset in memory",
            errors.Unreachable,
            "UNREACHABLE LOADING Redis is loading the dataset in memory",
        ),
        ("ERR syntax error", errors.ServerError, "ERR syntax error"),
        (
            "READONLY You can't write against a read only replica.",
            errors.ServerError,
            "ERR READONLY You can't write against a read only replica.",
        ),
        ("BADSHAPE", errors.BadShape, "BADSHAPE"),
        ("", errors.ServerError, "ERR"),
    ],
)
def test_replies_of_the_server_itself(reply: str, cls: type[errors.KeysideError], text: str) -> None:
    error = errors.from_reply(reply)
    assert type(error) is cls
    assert str(error) == text


def test_a_missing_library_comes_with_advice() -> None:
    error = errors.from_reply("ERR Function not found")
    assert type(error) is errors.LibraryMissing
    assert "keyside install" in str(error)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("BUSY queue CPU holds 2 jobs, its limit: add executors, or come again; retry in 120 ms", 0.12),
        ("BUSY model 'x; retry in 5 ms' takes 1 job in 9 ms: come again; retry in 1 ms", 0.001),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", None),
        ("BUSY; retry in -5 ms", None),
        ("BUSY; retry in 5 ms and more", None),
        ("BUSY ; retry in 99999999999999 ms", None),
    ],
)
def test_when_to_come_again(text: str, seconds: float | None) -> None:
    error = errors.from_reply(text)
    if isinstance(error, errors.Busy):
        assert error.retry_after == seconds
    else:
        assert seconds is None
