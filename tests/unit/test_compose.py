"""docker-compose.yml against the schema of the Compose Specification, and for what a schema cannot see."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema.protocols import Validator

from keyside.executor.settings import Settings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def schema() -> Validator:
    document = json.loads((ROOT / "tests/data/compose-spec.json").read_text())
    validator = jsonschema.validators.validator_for(document)
    validator.check_schema(document)
    return validator(document)


@pytest.fixture
def compose() -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return document


def mounts(service: dict[str, Any]) -> dict[str, str]:
    return dict(mount.split(":")[:2] for mount in service["volumes"])


def test_the_file_fits_the_compose_schema(schema: Validator, compose: dict[str, Any]) -> None:
    assert [error.message for error in schema.iter_errors(compose)] == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda document: document["services"]["executor"].update(enviroment={}),
        lambda document: document["services"]["executor"].update(depends_on={"valkey": {"condition": "up"}}),
        lambda document: document["services"]["valkey"].update(ports="6379"),
        lambda document: document.update(service={}),
    ],
    ids=["misspelt key", "unknown condition", "ports not a list", "unknown section"],
)
def test_the_schema_notices_a_mistake(schema: Validator, compose: dict[str, Any], spoil: Any) -> None:
    spoiled = copy.deepcopy(compose)
    spoil(spoiled)
    assert not schema.is_valid(spoiled)


def test_both_services_reach_the_socket_through_one_volume_as_one_user(compose: dict[str, Any]) -> None:
    valkey, executor = compose["services"]["valkey"], compose["services"]["executor"]
    socket = valkey["command"][valkey["command"].index("--unixsocket") + 1]
    folder = str(Path(socket).parent)

    assert f"unix://{socket}" == executor["environment"]["KEYSIDE_URL"]
    assert folder == mounts(valkey)["socket"] == mounts(executor)["socket"]
    assert {name for service in (valkey, executor) for name in mounts(service)} == set(compose["volumes"])

    uid, gid = valkey["user"].split(":")
    assert valkey["user"] == executor["user"]
    assert f"uid={uid},gid={gid},mode=0700" in compose["volumes"]["socket"]["driver_opts"]["o"]
    assert f"ARG UID={uid}\n" in (ROOT / "Dockerfile").read_text()


def test_the_executor_understands_its_environment(compose: dict[str, Any]) -> None:
    executor = compose["services"]["executor"]
    image = dict(re.findall(r"(KEYSIDE_\w+)=(\S+)", (ROOT / "Dockerfile").read_text()))
    settings = Settings.from_env(image | executor["environment"])

    assert executor["environment"]["KEYSIDE_URL"] == settings.url
    assert [str(settings.http_port)] == executor["expose"]
    assert str(settings.cache_dir) == mounts(executor)["models"]
    assert float(executor["stop_grace_period"].removesuffix("s")) > settings.drain_s


def test_the_server_is_published_to_this_host_only_and_never_evicts(compose: dict[str, Any]) -> None:
    valkey = compose["services"]["valkey"]
    assert all(port.startswith("127.0.0.1:") for port in valkey["ports"])
    assert valkey["command"][valkey["command"].index("--maxmemory-policy") + 1] == "noeviction"


def test_the_image_is_built_from_everything_that_the_package_links_to() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    linked = {link.name for link in (ROOT / "src/keyside").iterdir() if link.is_symlink()}
    assert linked <= sent
    assert all((ROOT / name).exists() for name in sent)
