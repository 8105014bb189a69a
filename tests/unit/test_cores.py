"""How many cores an executor may use: executor/cores.py."""

import os
from pathlib import Path

import pytest

from keyside.executor import cores

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max 100000\n", HERE),
        ("50000 100000\n", 0.5),
        ("100000 100000\n", 1.0),
        (f"{HERE + 1}00000 100000\n", HERE),
        ("rubbish\n", HERE),
        ("-1 100000\n", HERE),
        ("100 0\n", HERE),
        ("", HERE),
    ],
)
def test_a_quota_of_version_2(tmp_path: Path, text: str, expected: float) -> None:
    (tmp_path / "cpu.max").write_text(text)
    assert cores.allowed(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", HERE), ("25000", 0.25)])
def test_a_quota_of_version_1(tmp_path: Path, quota: str, expected: float) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert cores.allowed(tmp_path) == expected


def test_without_control_groups(tmp_path: Path) -> None:
    assert cores.allowed(tmp_path / "nothing") == HERE


def test_of_this_process() -> None:
    assert 0 < cores.allowed() <= HERE
