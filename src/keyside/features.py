"""Inputs that are gathered where they live: `Hash`, `ListRange`, `SortedSet`, `Numbers`, `Rows`."""

from keyside.tensorstore.features import Feature, Hash, ListRange, Numbers, Rows, SortedSet

__all__ = ["Feature", "Hash", "ListRange", "Numbers", "Rows", "SortedSet"]
