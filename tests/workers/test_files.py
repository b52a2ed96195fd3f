"""The files of a deployment: each by its schema, and all by our own rules about ports, tokens, passwords and users."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_jsonschema
import pytest
import ray.autoscaler
import yaml
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.workers.deployment import (
    COMPOSE,
    ROOT,
    WORKERS,
    MissingVariableError,
    command_of,
    compose,
    dockerfile,
    kuberay,
    ray_cluster,
    readme_blocks,
)

SECRETS = {"POSTGRES_PASSWORD": "one", "DASHBOARD_PASSWORD": "two", "RAY_AUTH_TOKEN": "three"}
SERVICES: dict[str, dict[str, Any]] = compose(SECRETS)["services"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text().splitlines()
FILES = [COMPOSE, *(path for path in WORKERS.rglob("*") if path.is_file())]
COMPOSE_SCHEMA = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
RAY_SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"
KUBERAY_SCHEMA = Path(__file__).parent / "kuberay.schema.json"


def checker(schema: Path) -> Validator:
    document = json.loads(schema.read_text())
    validator = validator_for(document)
    validator.check_schema(document)
    return validator(document)


def faults(schema: Path, document: object) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in checker(schema).iter_errors(document)]


def starts_ray(service: dict[str, Any]) -> bool:
    return "ray start " in " ".join(command_of(service))


def is_ours(service: dict[str, Any]) -> bool:
    return str(service["image"]).startswith("scheduler-search:")


def test_the_compose_file_is_one_of_the_specification() -> None:
    assert faults(COMPOSE_SCHEMA, compose()) == []
    assert faults(COMPOSE_SCHEMA, compose(SECRETS)) == []
    wrong = compose()
    wrong["services"]["ray-head"]["stop_grace_time"] = "1s"
    assert faults(COMPOSE_SCHEMA, wrong) != []


def test_the_cluster_file_is_one_of_ray() -> None:
    assert faults(RAY_SCHEMA, ray_cluster()) == []
    prepared = prepare_config(ray_cluster())
    validate_config(prepared)
    (workers,) = prepared["available_node_types"].values()
    assert (workers["min_workers"], workers["max_workers"]) == (1, 1)


@pytest.mark.parametrize("kind", ["RayCluster", "Deployment"])
def test_the_manifest_has_only_fields_that_we_know(kind: str) -> None:
    assert sorted(kuberay()) == ["Deployment", "RayCluster"]
    assert faults(KUBERAY_SCHEMA, kuberay()[kind]) == []


@pytest.mark.parametrize("name", SECRETS)
def test_nothing_starts_without_a_secret(name: str) -> None:
    for value in ({}, {name: ""}):
        with pytest.raises(MissingVariableError, match=name):
            compose({other: text for other, text in SECRETS.items() if other != name} | value)


def test_ports_are_published_on_loopback_only() -> None:
    ports = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert ports == {"optuna-dashboard": ["127.0.0.1:8080:8080"]}
    assert not [name for name, service in SERVICES.items() if "network_mode" in service]


def test_services_of_compose_are_what_they_should_be() -> None:
    assert list(SERVICES) == [
        *("database", "database-init", "ray-head", "gpu-worker", "cpu-worker", "coordinator", "optuna-dashboard")
    ]
    assert SERVICES["database"]["volumes"][0] == "database:/var/lib/postgresql/data"
    assert SERVICES["gpu-worker"]["profiles"] == ["gpu"]
    assert SERVICES["cpu-worker"]["profiles"] == ["cpu"]
    (device,) = SERVICES["gpu-worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    for service in SERVICES.values():
        assert "restart" in service
        assert "healthcheck" in SERVICES["database"]
        for name, needs in service.get("depends_on", {}).items():
            assert needs["condition"] != "service_healthy" or "healthcheck" in SERVICES[name]


def test_studies_and_models_are_read_only_and_lie_the_same_everywhere() -> None:
    inputs = {"/srv/studies": "./studies", "/srv/models": "./models"}
    for service in filter(starts_ray, SERVICES.values()):
        mounts = {mount["target"]: mount for mount in service["volumes"]}
        assert {target: mounts[target]["source"] for target in inputs} == inputs
        assert all(mounts[target]["read_only"] for target in inputs)
    written = [mount["target"] for mount in SERVICES["coordinator"]["volumes"] if not mount.get("read_only")]
    assert written == ["/srv/schedules"]


def test_every_ray_service_of_compose_asks_for_the_token() -> None:
    services = [name for name, service in SERVICES.items() if starts_ray(service)]
    assert services == ["ray-head", "gpu-worker", "cpu-worker", "coordinator"]
    for name in services:
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        (secret,) = SERVICES[name]["secrets"]
        assert environment["RAY_AUTH_TOKEN_PATH"] == f"/run/secrets/{secret['target']}"
        assert (secret["source"], secret["mode"]) == ("ray_token", 0o400)
        assert int(SERVICES[name]["shm_size"].removesuffix("gb")) * 2**30 > 1_000_000_000
    assert compose()["secrets"] == {"ray_token": {"environment": "RAY_AUTH_TOKEN"}}


def test_every_ray_container_of_kubernetes_asks_for_the_token() -> None:
    spec = kuberay()["RayCluster"]["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    containers = [spec["autoscalerOptions"], *(container for group in groups for container in pod_containers(group))]
    containers += kuberay()["Deployment"]["spec"]["template"]["spec"]["containers"]
    for container in containers:
        environment = {entry["name"]: entry for entry in container["env"]}
        assert environment["RAY_AUTH_MODE"]["value"] == "token"
        reference = environment["RAY_AUTH_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert reference == {"name": "scheduler-search-ray", "key": "auth_token"}


def pod_containers(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from group["template"]["spec"]["containers"]


def test_the_manifest_fits_together() -> None:
    cluster, deployment = kuberay()["RayCluster"], kuberay()["Deployment"]
    assert f"ray=={cluster['spec']['rayVersion']}" in CONSTRAINTS
    pods = [group["template"]["spec"] for group in cluster["spec"]["workerGroupSpecs"]]
    pods.append(deployment["spec"]["template"]["spec"])
    for pod in pods:
        volumes = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
        assert mounts == volumes
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]
    (coordinator,) = pods[-1]["containers"]
    assert coordinator["command"][-1].count(f"{cluster['metadata']['name']}-head-svc:6379") == 2
    (group,) = cluster["spec"]["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def test_every_node_of_the_cluster_file_asks_for_the_token() -> None:
    cluster = ray_cluster()
    token = "~/.scheduler-search/ray-token"
    assert cluster["file_mounts"][token] == token
    written = next(command for command in cluster["setup_commands"] if "> ~/.scheduler-search/environment" in command)
    assert f"RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH={token.replace('~', '$HOME')} " in written
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    assert all(command.startswith(". ~/.scheduler-search/environment && ") for command in commands)
    assert [
        source for source in cluster["file_mounts"].values() if source != token and not (ROOT / source).exists()
    ] == []
    needed = {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "scheduler_search"}
    assert needed <= set(cluster["file_mounts"].values())


def test_rays_dashboard_stays_on_loopback() -> None:
    head = command_of(SERVICES["ray-head"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--dashboard-host=127.0.0.1" in " ".join(ray_cluster()["head_start_ray_commands"])
    assert kuberay()["RayCluster"]["spec"]["headGroupSpec"]["rayStartParams"]["dashboard-host"] == "127.0.0.1"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_file_holds_a_password(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"\b[0-9a-fA-F]{16,}\b|BEGIN [A-Z ]*PRIVATE KEY", text) == []
    in_urls = set(re.findall(r"://[^\s/@:]+:([^\s@]+)@", text))
    assert in_urls <= {"${POSTGRES_PASSWORD:?}", "password"}


def test_secrets_come_from_the_environment() -> None:
    secret = re.compile("PASSWORD|TOKEN|SECRET|DATABASE$")
    for service in compose()["services"].values():
        for name, value in service.get("environment", {}).items():
            if secret.search(name):
                assert re.search(r"\$\{\w+:\?[^}]*\}|^/run/secrets/\w+$", value), (name, value)
    for document in kuberay().values():
        for entry in entries(document):
            assert "valueFrom" in entry or not secret.search(entry["name"]), entry


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """Every entry of every environment in a manifest."""
    if isinstance(value, dict):
        yield from value.get("env", ())
        for item in value.values():
            yield from entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from entries(item)


def test_services_run_without_rights() -> None:
    instructions = dockerfile()
    users = [rest for name, rest in instructions if name == "USER"]
    assert users == ["${USER_ID}"]
    assert ("ARG", "USER_ID=1000") in instructions
    after = instructions[instructions.index(("USER", "${USER_ID}")) + 1 :]
    assert {name for name, _ in after} <= {"WORKDIR", "CMD"}
    for service in filter(is_ours, SERVICES.values()):
        assert "user" not in service
        assert "privileged" not in service
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True


def test_the_image_comes_from_docker_hub_and_is_pinned() -> None:
    images = [rest for name, rest in dockerfile() if name == "FROM"]
    images += [service["image"] for service in SERVICES.values()]
    for image in images:
        assert re.fullmatch(r"[a-z-]+:[\w.-]+", image), image
        assert not image.endswith(":latest")
    installs = [run for name, run in dockerfile() if name == "RUN" and "pip install" in run]
    assert len(installs) == 2
    assert all("--constraint" in run for run in installs)
    assert not re.search(r"https?://", (WORKERS / "Dockerfile").read_text() + COMPOSE.read_text())


def test_no_secret_reaches_a_layer_of_the_image() -> None:
    names = {name for name, _ in dockerfile()}
    assert names == {"FROM", "ARG", "ENV", "RUN", "USER", "WORKDIR", "CMD"}
    assert [rest.partition("=")[0] for name, rest in dockerfile() if name == "ARG"] == [
        "DEVICE",
        "TORCH_INDEX",
        "USER_ID",
    ]
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(rule for rule in rules if rule and not rule.startswith("#")) == "*"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", "constraints.txt", project["project"]["readme"], *project["project"]["license-files"]}
    assert {rule[1:] for rule in rules if rule.startswith("!")} == needed | {"scheduler_search"}


def test_the_readme_names_every_file_and_variable() -> None:
    readme = (WORKERS / "README.md").read_text()
    for path in FILES:
        assert (
            f"`{path.name}`" in readme
            or f"`{path.relative_to(WORKERS)}`" in readme
            or path == COMPOSE
            or path.name == "README.md"
        )
    for name in re.findall(r"\$\{(\w+)", COMPOSE.read_text()):
        assert f"`{name}`" in readme
    first = readme_blocks()[0].strip().splitlines()
    assert len(first) == 10


def mappings(node: yaml.Node) -> Iterator[yaml.MappingNode]:
    if isinstance(node, yaml.MappingNode):
        yield node
        for _, value in node.value:
            yield from mappings(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from mappings(value)


@pytest.mark.parametrize("name", ["docker-compose.yml", "workers/ray-cluster.yaml", "workers/kuberay.yaml"])
def test_no_mapping_has_a_key_twice(name: str) -> None:
    for document in yaml.compose_all((ROOT / name).read_text(), yaml.SafeLoader):
        for mapping in mappings(document):
            keys = [key.value for key, _ in mapping.value]
            assert len(keys) == len(set(keys)), (keys, mapping.start_mark)
