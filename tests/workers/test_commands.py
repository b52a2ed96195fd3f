"""Every command in the files of a deployment exists, with its options, and every shell line parses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.scripts.scripts import cli as ray_command

from scheduler_search.cli import app
from tests.workers.deployment import (
    WORKERS,
    command_of,
    compose,
    dockerfile,
    invocations,
    kuberay,
    ray_cluster,
    readme_blocks,
)

# Typer has a click of its own; what both offer is enough here.
PROGRAMS: dict[str, Any] = {"scheduler-search": typer.main.get_command(app), "ray": ray_command}


def accept(program: str, words: Sequence[str]) -> None:
    """Parse the words of a command line as the program would, without running anything."""
    command, name, rest = PROGRAMS[program], program, list(words)
    while hasattr(command, "commands"):
        name, *rest = rest
        assert name in command.commands, f"{program} has no command {name}"
        command = command.commands[name]
    command.make_context(name, rest)


def kuberay_commands() -> list[list[str]]:
    """What containers run, their probes, and the ``ray start`` that the operator makes of the parameters."""
    commands = []

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if "command" in value:
                commands.append(value["command"])
            if "rayStartParams" in value:
                options = [f"--{name}={text}" for name, text in value["rayStartParams"].items()]
                commands.append(["ray", "start", "--block", *options])
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    for document in kuberay().values():
        visit(document)
    return commands


def shell_lines() -> list[str]:
    cluster = ray_cluster()
    names = [name for name in cluster if name.endswith("_commands")]
    lines = [line for name in names for line in cluster[name]]
    lines += [rest for name, rest in dockerfile() if name == "RUN"]
    return [*lines, *readme_blocks(), (WORKERS / "database" / "dashboard-role.sh").read_text()]


def direct_commands() -> list[list[str]]:
    services = compose({"POSTGRES_PASSWORD": "a", "DASHBOARD_PASSWORD": "b", "RAY_AUTH_TOKEN": "c"})[
        "services"
    ].values()
    checks = [service["healthcheck"]["test"][1:] for service in services if "healthcheck" in service]
    return [*map(command_of, services), *checks, *kuberay_commands()]


def command_lines() -> list[tuple[str, tuple[str, ...]]]:
    """The words after ``ray`` and ``scheduler-search``, wherever these are called."""
    found = []
    shells = [words[2] for words in direct_commands() if words[:2] == ["sh", "-c"]] + shell_lines()
    for program in PROGRAMS:
        found += [(program, tuple(words[1:])) for words in direct_commands() if words[:1] == [program]]
        found += [(program, tuple(words)) for shell in shells for words in invocations(shell, program)]
    # The command that `ray exec` is given is a shell line of its own.
    return sorted({(program, (*words, "true") if words[0] == "exec" else words) for program, words in found})


@pytest.mark.parametrize(("program", "words"), command_lines(), ids=str)
def test_it_is_a_command_with_these_options(program: str, words: tuple[str, ...]) -> None:
    accept(program, words)


def test_all_of_them_were_seen() -> None:
    seen = {(program, words[0]) for program, words in command_lines()}
    ours = {"coordinate", "database", "export", "launch", "logs", "submit"}
    rays = {"down", "exec", "health-check", "rsync-down", "start", "stop", "up"}
    assert seen == {("scheduler-search", name) for name in ours} | {("ray", name) for name in rays}


@pytest.mark.parametrize("words", [["coordinate", "--no-such"], ["no-such"], ["database", "no-such"], ["submit"]])
def test_what_is_none_is_refused(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"no-such|[Mm]issing"):
        accept("scheduler-search", words)


def ids(line: str) -> str:
    return line[:40]


@pytest.mark.parametrize("line", shell_lines(), ids=ids)
def test_shell_lines_parse(line: str) -> None:
    subprocess.run(["sh", "-n", "-c", line], check=True)


@pytest.mark.parametrize(
    ("device", "index", "code", "called"),
    [
        ("cpu", "", 0, False),
        ("cpu", "https://index", 0, True),
        ("cuda", "https://index", 0, True),
        ("cuda", "", 1, False),
        ("gpu", "https://index", 1, False),
    ],
)
def test_the_image_takes_torch_from_the_index_that_is_asked_for(
    tmp_path: Path, device: str, index: str, code: int, called: bool
) -> None:
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    pip.chmod(0o755)
    script = next(rest for name, rest in dockerfile() if name == "RUN")
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "DEVICE": device, "TORCH_INDEX": index}
    done = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, (tmp_path / "called").exists()) == (code, called), done.stderr
    assert bool(done.stderr) == bool(code)
    if called:
        assert (tmp_path / "called").read_text().split()[-1] == "torch"
        assert "--index-url https://index" in (tmp_path / "called").read_text()
