"""Every command and every line of Python in the README is run, in the order in which it stands there.

The study it launches is the quickstart's own, so this is also the test that the quickstart keeps its promises: the loss
on the search split is at most lambda, and the loss on data nobody looked at agrees with the published one.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler_search.study import read_study_file
from tests.integration import commands
from tests.integration.commands import environment
from tests.integration.conftest import read

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text()
FIRST_STEPS = "The three things people do"
SCHEDULE = Path("exported") / "tiny-llava" / "quickstart.v1.json"


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def lines_of_sh(text: str = README) -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh", text) for line in block.splitlines()]
    return [line for line in lines if line]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository to someone who follows the README."""
    path = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "studies", path / "studies")
    (path / "scheduler_search").symlink_to(ROOT / "scheduler_search")
    return path


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        arguments, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def scheduler_search(folder: Path, *arguments: str, database: str = "scheduler-search.db", fresh: bool = False) -> str:
    variables = environment() | {"SCHEDULER_SEARCH_DATABASE": f"sqlite:///{database}"}
    done = commands.run(*arguments, folder=folder, variables=variables, fresh=fresh)
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def followed(folder: Path) -> Path:
    """The folder after every command of the README."""
    for part in README.split("\n## "):
        title = part.split("\n")[0]
        # For someone who begins there: the queue has finished the study of that section by now.
        database = "cluster.db" if title == "On a cluster" else "scheduler-search.db"
        for words in map(shlex.split, lines_of_sh(part)):
            if words[0] == "make":
                # The quickstart's steps are the commands below it; running it whole is left to who follows the README.
                run(ROOT, "make", "--dry-run", *words[1:])
            else:
                assert words[0] == "scheduler-search", words
                # The first steps as a newcomer takes them, in interpreters of their own; the others sooner.
                scheduler_search(folder, *words[1:], database=database, fresh=title == FIRST_STEPS)
    return folder


def test_every_command_runs(followed: Path) -> None:
    assert (followed / SCHEDULE).exists()
    launched = {words[2] for words in map(shlex.split, lines_of_sh()) if words[:2] == ["scheduler-search", "launch"]}
    assert launched == {"studies/quickstart.toml", "studies/quickstart-sigmoid.toml"}
    assert {"launch", "export", "evaluate"} <= {line.split()[1] for line in lines_of_sh(section(FIRST_STEPS))}
    assert 0 < len(lines_of_sh(section("On a cluster"))) <= 3


def test_the_commands_of_the_quickstart_are_those_of_the_readme() -> None:
    script = (ROOT / "studies" / "quickstart.sh").read_text()
    used = {line.split()[2] for line in script.splitlines() if line.startswith("run scheduler-search")}
    shown = {words[1] for words in map(shlex.split, lines_of_sh()) if words[0] == "scheduler-search"}
    assert used <= shown


def test_the_python_runs(followed: Path) -> None:
    (code,) = blocks("python")
    prelude = "from scheduler_search.testbed import generate\nimage = generate('test', 1, seed=1)[0].image\n"
    out = run(followed, sys.executable, "-c", prelude + code + "\nprint(processor.tokenizer.decode(answer[0, -2:]))")
    assert "LayerReport" in out


def test_the_loss_on_the_search_split_is_at_most_the_price_of_what_is_saved(followed: Path) -> None:
    search = read_study_file(ROOT / "studies" / "quickstart.toml").search
    assert search.penalty_unit == "tflop"
    evaluation = json.loads(scheduler_search(followed, "evaluate", str(SCHEDULE), "--split", "search", "--json"))
    loss = evaluation["unreduced"]["score"] - evaluation["reduced"]["score"]
    saved = evaluation["tflops"]["unreduced"] - evaluation["tflops"]["reduced"]
    assert loss <= search.penalty_value * saved + 1e-12


def test_the_loss_on_the_test_split_agrees_with_the_published_one(followed: Path) -> None:
    """False-alarm probability below 0.001: 3.3 standard errors of the difference of two independent means."""
    measured = read(followed / SCHEDULE)["measured"]
    assert isinstance(measured, dict)
    evaluation = json.loads(scheduler_search(followed, "evaluate", str(SCHEDULE), "--split", "test", "--json"))
    first, second = measured["difference"], evaluation["difference"]
    errors = [(interval[1] - interval[0]) / (2 * 1.96) for interval in (first["interval"], second["interval"])]
    assert abs(first["mean"] - second["mean"]) < 3.3 * math.hypot(*errors)


def test_the_tree_names_every_folder() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"^\s*([\w.]+/?)", tree, flags=re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {path.split("/")[0] + "/" for path in tracked if "/" in path and not path.startswith(".")}
    packages = {path.split("/")[1] + "/" for path in tracked if re.match(r"scheduler_search/\w+/", path)}
    assert folders | packages <= named
