"""Python functions that an operator lets callers run: registered in a module of the operator's own.

    import keyside

    @keyside.function
    def tokenize(tensors, keys, args):
        ...

An executor that is started with `--functions that_module` has them. Nothing of them ever comes from the database: what
is stored there names them.
"""

import importlib
import inspect
import re
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, overload

__all__ = ["Function", "function", "load_modules", "metric", "registered"]

Function = Callable[[list[Any], list[str], list[str]], Any]
"""Takes tensors (arrays, not to be written to), names of keys, and texts; gives an array, or several in a list."""

_F = TypeVar("_F", bound=Callable[..., Any])
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,127}", re.ASCII)
_functions: dict[str, Function] = {}
_lock = threading.Lock()


@overload
def function(named: _F, /) -> _F: ...


@overload
def function(named: str, /) -> Callable[[_F], _F]: ...


def function(named: Any, /) -> Any:
    """Register a Python function, to be run beside the data: `@keyside.function`, or `@keyside.function("name")`.

    It is called with the list of input arrays (read-only), the list of names given with KEYS, and that of the texts
    given with ARGS, and returns an array, or a list or tuple of them. STRING tensors come as arrays of bytes (`|S`);
    they go as such, or as text.

    Args:
        named: the function, or the name under which it is to be known; else that is its own.

    Raises:
        ValueError: the name is taken by another function, or is not made of letters, digits, `_` and `.`.
        TypeError: what is registered is not a function that takes three arguments.
    """
    if isinstance(named, str):
        return lambda found: _register(named, found)
    return _register(getattr(named, "__name__", "?"), named)


def _register(name: str, found: _F) -> _F:
    if not callable(found) or inspect.isclass(found):
        raise TypeError(f"@keyside.function is for functions, not for {found!r:.80}")
    if inspect.iscoroutinefunction(found):
        raise TypeError(f"function {name!r} is async; functions of an executor are not")
    if not _NAME.fullmatch(name):
        raise ValueError(f"a function's name has 1 to 128 letters, digits, _ and ., not {name!r:.80}")
    try:
        inspect.signature(found).bind([], [], [])
    except TypeError:
        raise TypeError(f"function {name!r} must take three arguments: tensors, keys, args") from None
    except ValueError:
        pass  # a builtin may not tell what it takes
    with _lock:
        known = _functions.get(name)
        # A module that is imported anew registers its functions anew.
        if known is not None and _place(known) != _place(found):
            raise ValueError(f"there is a function {name!r} already, in {_place(known)}; name this one otherwise")
        _functions[name] = found
    return found


def _place(found: Any) -> str:
    return f"{getattr(found, '__module__', '?')}.{getattr(found, '__qualname__', '?')}"


def registered() -> Mapping[str, Function]:
    """Return all functions by their names."""
    with _lock:
        return MappingProxyType(dict(_functions))


def load_modules(names: Iterable[str]) -> None:
    """Import the modules that register functions; the current directory is searched behind all else.

    Raises:
        ImportError: one cannot be imported, whatever it raised; the text says which and why.
    """
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise ImportError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error


def metric(name: str, value: Any) -> None:
    """Count a value of a metric of one's own, in a function that runs in an executor.

    The executor exports `keyside_custom_metric{script, name}`: how many values there were, and their sum.

    Args:
        name: of the metric, at most 64 characters. An executor keeps 200 of them.
        value: a number, or an array of one element; what is not finite is passed over.

    Raises:
        ValueError: it is no number. Likewise TypeError.
    """
    number = float(value.item() if hasattr(value, "item") else value)
    from keyside.executor import script_metrics

    script_metrics.observe(name, number)
