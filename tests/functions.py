"""Functions as an operator registers them, for executors that are started with --functions tests.functions."""

import time
from typing import Any

import numpy as np

import keyside

__all__ = ["allocate", "boom", "length", "tokens"]

Arrays = list[np.ndarray[Any, Any]]


@keyside.function
def tokens(tensors: Arrays, keys: list[str], args: list[str]) -> Any:
    """Split texts into words: the words, and how many each text has."""
    del keys
    split = [text.decode().split(args[0] if args else None) for text in tensors[0].ravel()]
    keyside.metric("words", sum(map(len, split)))
    return np.array([word for words in split for word in words]), np.array([len(words) for words in split])


@keyside.function("text.length")
def length(tensors: Arrays, keys: list[str], args: list[str]) -> Any:
    """Say how long the names of keys and the texts are."""
    del tensors
    return np.array([len(text) for text in (*keys, *args)])


@keyside.function
def boom(tensors: Arrays, keys: list[str], args: list[str]) -> Any:
    """Fail."""
    del tensors, keys
    known: dict[str, Any] = {}
    return known[args[0]]


@keyside.function
def allocate(tensors: Arrays, keys: list[str], args: list[str]) -> Any:
    """Take memory without end, or with an argument so many MiB, and keep it for a while."""
    del tensors, keys
    taken: list[Any] = []
    while not args or len(taken) < int(args[0]):
        taken.append(np.ones(1 << 20, np.uint8))
        time.sleep(0.001)
    time.sleep(0.2)
    return np.array(len(taken))
