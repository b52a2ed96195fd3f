"""What the files of a deployment say: read, with variables filled in as Docker Compose does, and their commands.

Knows: where the files lie, Compose's variables, shell words. Does not know: any rule that the files are held to.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
WORKERS = ROOT / "workers"
COMPOSE = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<rest>[^}]*))?\})")
_BETWEEN_COMMANDS = re.compile(r"&&|\|\||[;|\n]")


class MissingVariableError(Exception):
    """A variable without which Compose starts nothing."""


def compose(environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The compose file as written, or with its variables filled in from an environment."""
    document = yaml.safe_load(COMPOSE.read_text())
    filled = document if environment is None else _filled(document, environment)
    assert isinstance(filled, dict)
    return filled


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, environment) for item in value]
    return interpolate(value, environment) if isinstance(value, str) else value


def interpolate(text: str, environment: Mapping[str, str]) -> str:
    """``${NAME}``, ``${NAME:-default}``, ``${NAME:?message}`` and ``$$``, as the Compose specification has them.

    Raises:
        MissingVariableError: a variable that is asked for with ``:?`` is empty or absent.
    """

    def fill(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        value = environment.get(match["name"], "")
        if not value and match["kind"] == "?":
            raise MissingVariableError(match["name"])
        return value or (match["rest"] if match["kind"] == "-" else "")

    return _VARIABLE.sub(fill, text)


def command_of(service: Mapping[str, Any]) -> list[str]:
    """The command of a service, word by word; the ones of a shell as ``sh -c`` has them."""
    command = service.get("command", [])
    assert isinstance(command, list)
    return [str(word) for word in command]


def kuberay() -> dict[str, Any]:
    """The objects of the Kubernetes manifest, by kind."""
    documents = yaml.safe_load_all((WORKERS / "kuberay.yaml").read_text())
    return {document["kind"]: document for document in documents}


def ray_cluster() -> dict[str, Any]:
    """The file of ``ray up``."""
    document = yaml.safe_load((WORKERS / "ray-cluster.yaml").read_text())
    assert isinstance(document, dict)
    return document


def dockerfile() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile with what follows them: no comments, continued lines joined, no mounts."""
    lines = (WORKERS / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    pairs = [line.split(maxsplit=1) for line in text.splitlines() if line]
    return [(name, re.sub(r"^(--mount=\S+\s+)*", "", rest).strip()) for name, rest in pairs]


def readme_blocks() -> list[str]:
    """The shell blocks of the README."""
    return re.findall(r"```sh\n(.*?)```", (WORKERS / "README.md").read_text(), flags=re.DOTALL)


def invocations(shell: str, program: str) -> Iterator[list[str]]:
    """What a shell text gives to a program, call by call; also inside quoted commands, as for ``ray exec``."""
    for part in _BETWEEN_COMMANDS.split(re.sub(r"(^|\s)#.*", "", shell, flags=re.MULTILINE)):
        for found in re.finditer(rf"(?:^|[\s'\"]){program} (?P<rest>[^'\"]*(?:'[^']*'[^'\"]*)*)", part):
            yield shlex.split(found["rest"].strip())
