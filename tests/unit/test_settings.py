"""Settings: from variables, with precise errors."""

from pathlib import Path
from typing import Any

import pytest

from keyside.executor.settings import Settings, SettingsError, parse_bytes, variable


def test_defaults() -> None:
    settings = Settings.from_env({})

    assert settings.url == ""
    assert settings.devices == ("CPU",)
    assert settings.memory_budget == 2 << 30
    assert settings.name
    assert Settings.from_env({"KEYSIDE_LEASE_MS": " "}).lease_ms == 10_000


def test_everything_can_be_set() -> None:
    settings = Settings.from_env(
        {
            "KEYSIDE_URL": "redis://:secret@example:6379",
            "KEYSIDE_DEVICES": "GPU:0, CPU",
            "KEYSIDE_NAME": "one",
            "KEYSIDE_LEASE_MS": "3000",
            "KEYSIDE_BEAT_MS": "100",
            "KEYSIDE_MAX_DELIVERIES": "5",
            "KEYSIDE_MAX_BATCH": "8",
            "KEYSIDE_CLAIM": "16",
            "KEYSIDE_MEMORY_BUDGET": "1.5gb",
            "KEYSIDE_THREADS": "4",
            "KEYSIDE_LOADER_THREADS": "2",
            "KEYSIDE_CACHE_DIR": "/var/cache/keyside",
            "KEYSIDE_HTTP_HOST": "0.0.0.0",
            "KEYSIDE_HTTP_PORT": "8002",
            "KEYSIDE_LOG_LEVEL": "DEBUG",
            "KEYSIDE_LOG_FORMAT": "json",
            "KEYSIDE_ALLOW_CODE": "yes",
            "KEYSIDE_INLINE_MS": "0.5",
            "KEYSIDE_MIN_BATCH_TIMEOUT_MS": "20",
            "KEYSIDE_DRAIN_S": "1",
            "KEYSIDE_RUN_LIMIT_S": "2.5",
            "KEYSIDE_LOAD_LIMIT_S": "0",
        }
    )

    assert settings == Settings(
        url="redis://:secret@example:6379",
        devices=("GPU:0", "CPU"),
        name="one",
        lease_ms=3000,
        beat_ms=100,
        max_deliveries=5,
        max_batch=8,
        claim=16,
        memory_budget=3 << 29,
        threads=4,
        loader_threads=2,
        cache_dir=Path("/var/cache/keyside"),
        http_host="0.0.0.0",
        http_port=8002,
        log_level="debug",
        log_format="json",
        allow_code=True,
        inline_ms=0.5,
        min_batch_timeout_ms=20,
        drain_s=1.0,
        run_limit_s=2.5,
        load_limit_s=0.0,
    )
    assert "secret" not in repr(settings)


def test_where_the_url_comes_from() -> None:
    both = {"KEYSIDE_URL": "redis://a", "REDIS_URL": "redis://b"}

    assert Settings.from_env(both).url == "redis://a"
    assert Settings.from_env({"REDIS_URL": "redis://b"}).url == "redis://b"
    assert Settings.from_env(both, url="redis://c").url == "redis://c"
    assert Settings.from_env(both, url=None).url == "redis://a"


def test_overrides_may_be_text_or_values() -> None:
    settings = Settings.from_env({}, memory_budget="64mb", devices=("A",), threads=2)

    assert (settings.memory_budget, settings.devices, settings.threads) == (64 << 20, ("A",), 2)
    with pytest.raises(TypeError, match="no setting 'thread'"):
        Settings.from_env({}, thread=2)


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("lease_ms", "soon", "must be a whole number, got 'soon'"),
        ("lease_ms", "1", "must be 100 .. 3,600,000, got 1"),
        ("beat_ms", "9000", "must be at most a third of lease_ms"),
        ("memory_budget", "lots", "not a size such as 1048576, 512mb or 2gb, got 'lots'"),
        ("memory_budget", "10", "must be 1,048,576 .."),
        ("inline_ms", "nan", "must be a number, got 'nan'"),
        ("inline_ms", "-1", "must be 0 .. 60,000"),
        ("allow_code", "maybe", "must be yes or no, got 'maybe'"),
        ("devices", ",", "names no device queue"),
        ("devices", "CPU,CPU", "names a device queue twice"),
        ("devices", "C PU", "'C PU' is not 1 to 32 capital letters, digits or :_.-"),
        ("name", "a b", "'a b' is not 1 to 64 letters"),
        ("http_port", "70000", "must be 0 .. 65,535"),
        ("log_level", "loud", "must be one of debug, info, warning, error, critical, got 'loud'"),
        ("log_format", "xml", "must be one of console, json, got 'xml'"),
    ],
)
def test_errors_name_the_setting_and_its_variable(field: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({variable(field): text})

    assert str(caught.value).startswith(f"{field} (KEYSIDE_{field.upper()}): ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1 << 20),
        ("512mb", 512 << 20),
        ("2 GiB", 2 << 30),
        ("1k", 1024),
        ("0.5MB", 1 << 19),
        ("7b", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "mb", "-1", "1.5", "1 potato", "1e9", "٣mb"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        parse_bytes(text)


def test_settings_do_not_change() -> None:
    settings: Any = Settings()

    with pytest.raises(AttributeError):
        settings.threads = 2
