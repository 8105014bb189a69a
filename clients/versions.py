"""Versions of models, as the client shows them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keyside.tensorstore.errors import BadArg, NoModel
from keyside.tensorstore.records import ModelInfo, Signature, VersionInfo

__all__ = ["ModelVersion", "meant", "newest", "parse_target", "same_version"]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a model.

    Attributes:
        name: of the model.
        info: its settings, and what an executor has found out.
        missing: nodes of a cluster that had no live executor for its device when it was waited for: what is asked of
            those waits in vain until there is one.
    """

    name: str
    info: VersionInfo
    missing: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Its number."""
        return self.info.version

    @property
    def target(self) -> str:
        """What to give to `predict` to run this version, `name@3`."""
        return f"{self.name}@{self.info.version}"

    @property
    def state(self) -> str:
        """`loading`, `ready` or `failed`."""
        return self.info.state

    @property
    def signature(self) -> Signature | None:
        """Inputs and outputs; None until an executor has loaded it."""
        return self.info.signature


def parse_target(target: str) -> tuple[str, int | None]:
    """Split `name@3` into name and number; a bare name has none.

    Raises:
        BadArg: what follows the @ is no number.
    """
    name, at, number = target.partition("@")
    if not at:
        return name, None
    if not number.isascii() or not number.isdigit():
        raise BadArg(f"{target!r} names no version: give name@number")
    return name, int(number)


def newest(info: ModelInfo, number: int | None) -> ModelVersion:
    """Return a version of a model, without a number the newest one.

    Raises:
        NoModel: there is no such version.
    """
    wanted = max(info.versions, default=0) if number is None else number
    found = info.versions.get(wanted)
    if found is None:
        raise NoModel(f"model {info.key!r} has no version {wanted}")
    return ModelVersion(info.key, found)


def meant(info: ModelInfo, number: int | None) -> ModelVersion:
    """Return a version of a model, without a number the one that the bare name means.

    That is its default; before there is one, the newest that has not failed.

    Raises:
        NoModel: there is no such version.
    """
    if number is None:
        number = info.default
    if number is None:
        number = max((n for n, version in info.versions.items() if version.state != "failed"), default=None)
    return newest(info, number)


def same_version(info: ModelInfo, digest: str, settings: Mapping[str, Any]) -> int | None:
    """Return the newest version of these bytes and settings that has not failed; None if there is none."""
    for number in sorted(info.versions, reverse=True):
        version = info.versions[number]
        same = version.digest == digest and all(getattr(version, name) == value for name, value in settings.items())
        if same and version.state != "failed":
            return number
    return None
