"""A campaign file becomes studies: every combination once, with a valid name that does not depend on the others."""

from __future__ import annotations

import json
import math
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.errors import StudyFileError
from scheduler_search.study.campaign import Campaign, read_campaign_file
from scheduler_search.study.file import read_study_file
from tests.study.files import write

COMMON = """
[campaign]
name = "sweep"
[study.model]
id = "testbed:tiny-llava"
[study.data]
source = "testbed"
search = { samples = 8 }
"""
MATRIX = '[[matrix]]\nsearch.algorithm = ["p-sigmoid"]\nsearch.budget = [0.125, 0.25]\nseed = [0, 1]\n'
SIGMOID = '[study.search]\nalgorithm = "p-sigmoid"\nbudget = 0.5\n'


def read(folder: Path, text: str) -> Campaign:
    return read_campaign_file(write(folder, text, "campaign.toml"))


def names(folder: Path, text: str) -> list[str]:
    return [study.name for study in read(folder, text).studies]


def refused(folder: Path, text: str) -> str:
    with pytest.raises(StudyFileError) as caught:
        read(folder, text)
    found = str(caught.value)
    assert "\n" not in found
    assert str(folder / "campaign.toml") in found
    return found


def test_a_matrix_gives_every_combination_in_the_order_of_the_file(tmp_path: Path) -> None:
    campaign = read(tmp_path, COMMON + MATRIX)
    assert [(study.name, study.search.budget, study.seed) for study in campaign.studies] == [
        ("sweep-p-sigmoid-budget-0.125-seed-0", 0.125, 0),
        ("sweep-p-sigmoid-budget-0.125-seed-1", 0.125, 1),
        ("sweep-p-sigmoid-budget-0.25-seed-0", 0.25, 0),
        ("sweep-p-sigmoid-budget-0.25-seed-1", 0.25, 1),
    ]
    assert (campaign.name, campaign.section.workers, campaign.section.attempts) == ("sweep", 1, 3)


def test_quoted_and_nested_keys_are_the_same(tmp_path: Path) -> None:
    quoted = MATRIX.replace("search.algorithm", '"search.algorithm"').replace("search.budget", '"search.budget"')
    assert read(tmp_path, COMMON + quoted).studies == read(tmp_path, COMMON + MATRIX).studies


def test_a_study_of_a_campaign_is_the_one_of_its_own_file(tmp_path: Path) -> None:
    study = read(tmp_path, COMMON + MATRIX).studies[1]
    alone = (
        COMMON.replace('[campaign]\nname = "sweep"', f'name = "{study.name}"\nseed = 1').replace("[study.", "[")
        + '[search]\nalgorithm = "p-sigmoid"\nbudget = 0.125\n'
    )
    definition = read_study_file(write(tmp_path, alone))
    assert definition == study
    assert definition.digest == study.digest


def test_entries_of_the_matrix_are_added_up(tmp_path: Path) -> None:
    entries = '[[matrix]]\nsearch.algorithm = ["g-search"]\nsearch.penalty = [0.01, { tflop = 2.5 }]\n'
    assert names(tmp_path, COMMON + MATRIX + entries)[4:] == [
        "sweep-g-search-penalty-0.01",
        "sweep-g-search-penalty-tflop-2.5",
    ]


def test_a_value_that_is_no_list_holds_for_its_entry_and_stays_out_of_names(tmp_path: Path) -> None:
    entry = '[[matrix]]\nsearch.algorithm = "g-search"\nsearch.refine = false\nsearch.stride = [2, 4]\n'
    studies = read(tmp_path, COMMON + MATRIX + entry).studies[4:]
    assert [study.name for study in studies] == ["sweep-stride-2", "sweep-stride-4"]
    assert [(study.search.algorithm, study.search.refine) for study in studies] == [("g-search", False)] * 2


def test_a_whole_section_can_vary(tmp_path: Path) -> None:
    entry = '[[matrix]]\nsearch = [{ algorithm = "p-sigmoid", budget = { as = "uniform", keep = 0.5 } }, {}]\n'
    campaign = read(tmp_path, COMMON + SIGMOID + entry)
    assert [study.name for study in campaign.studies] == [
        "sweep-search-algorithm-p-sigmoid-budget-as-uniform-keep-0.5",
        "sweep-search",
    ]
    assert [study.search.algorithm for study in campaign.studies] == ["p-sigmoid", "g-search"]


@pytest.mark.parametrize(
    ("entry", "left"),
    [
        ("seed = 1", ["0.125-seed-0", "0.25-seed-0"]),
        ("seed = 1\nsearch.budget = 0.25", ["0.125-seed-0", "0.125-seed-1", "0.25-seed-0"]),
        ('"search.budget" = [0.125, 0.25]\nseed = [0]', ["0.125-seed-1", "0.25-seed-1"]),
    ],
)
def test_exclude_leaves_out_what_has_all_its_values(tmp_path: Path, entry: str, left: list[str]) -> None:
    found = names(tmp_path, COMMON + MATRIX + f"[[exclude]]\n{entry}\n")
    assert found == [f"sweep-p-sigmoid-budget-{one}" for one in left]


def test_exclude_reaches_into_tables(tmp_path: Path) -> None:
    matrix = '[[matrix]]\nsearch.budget = [{ tflops = 2.0 }, { as = "uniform", keep = 0.5 }]\n'
    found = names(tmp_path, COMMON + SIGMOID + matrix + '[[exclude]]\nsearch.budget = { as = "uniform" }\n')
    assert found == ["sweep-budget-tflops-2.0"]


def test_names_take_the_last_part_of_models_and_what_labels_say(tmp_path: Path) -> None:
    matrix = (
        '[[matrix]]\nmodel.id = ["llava-hf/llava-1.5-7b-hf", "testbed:tiny-llava", "./models/Mine/"]\nseed = [0]\n'
        'model.revision = ["refs/pr/1"]\n[labels]\n"testbed:tiny-llava" = "tiny"\n'
    )
    campaign = read(tmp_path, COMMON.replace('[study.model]\nid = "testbed:tiny-llava"\n', "") + matrix)
    assert [study.name for study in campaign.studies] == [
        f"sweep-{model}-refs-pr-1-seed-0" for model in ("llava-1.5-7b-hf", "tiny", "mine")
    ]
    assert campaign.studies[2].model.id == str(tmp_path / "models" / "Mine")
    assert campaign.studies[2].written_paths == (("model.id", "./models/Mine/"),)


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path) -> None:
    text = COMMON.replace('source = "testbed"', 'source = "jsonl"')
    studies = read(tmp_path, text + '[[matrix]]\ndata.path = ["a.jsonl", "sub/b.jsonl"]\n').studies
    assert [study.name for study in studies] == ["sweep-a.jsonl", "sweep-b.jsonl"]
    assert [study.data.path for study in studies] == [str(tmp_path / "a.jsonl"), str(tmp_path / "sub" / "b.jsonl")]


def test_workers_of_the_campaign_become_those_of_each_study(tmp_path: Path) -> None:
    text = COMMON + "[study.workers]\nthreads = 2\n" + MATRIX
    alone, together = (
        read(tmp_path, text.replace('"sweep"\n', f'"sweep"\nworkers = {count}\n')).studies[0] for count in (1, 3)
    )
    assert (alone.workers.executor, alone.workers.count, alone.workers.threads) == ("local", None, 2)
    assert (together.workers.executor, together.workers.count, together.workers.threads) == ("ray", 3, 2)
    assert alone.digest == together.digest


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        (COMMON, "", 'key "matrix" is required'),
        (MATRIX, "", 'key "campaign" is required'),
        (COMMON.replace('name = "sweep"', "") + MATRIX, "[campaign]", 'key "name" is required'),
        (COMMON.replace("sweep", "Sweep") + MATRIX, "[campaign] name", "must match pattern"),
        (COMMON.replace('"sweep"', '"sweep"\nworker = 2') + MATRIX, "[campaign]", 'did you mean "workers"?'),
        (COMMON.replace('"sweep"', '"sweep"\nworker = 2') + MATRIX, "[campaign]", "a campaign file takes only known"),
        (COMMON.replace('"sweep"', '"sweep"\nworkers = 0') + MATRIX, "[campaign] workers", "greater than or equal"),
        (COMMON.replace('"sweep"', '"sweep"\nmax_concurrent = "2"') + MATRIX, "max_concurrent", "valid integer"),
        (COMMON + "[matrix]\nseed = [1]", "[matrix]", "must be a valid list"),
        ("matrix = []\n" + COMMON, "[matrix]", "at least 1 item"),
        (COMMON + "[[matrix]]", "[[matrix]] 1", "at least one key"),
        (COMMON + "[[matrix]]\nseed = []", "[[matrix]] 1, seed", "but got an empty list"),
        (COMMON + '[[matrix]]\nname = ["a"]', "[[matrix]] 1", "only known keys"),
        (COMMON + "[[matrix]]\nserch.stride = [1]", "[[matrix]] 1", 'did you mean "search"?'),
        (COMMON + '[[matrix]]\n"search..stride" = [1]', "[[matrix]] 1", "names a section and a key"),
        (COMMON + "[[matrix]]\nsearch.strid = [1]", "study sweep-strid-1, [search]", 'did you mean "stride"?'),
        (COMMON + "[[matrix]]\nsearch.stride = [1, 0]", "study sweep-stride-0, [search] stride", "greater than or"),
        (COMMON + '[[matrix]]\nsearch = [{}]\n"search.stride" = [1]', "[[matrix]] 1", "must not overlap"),
        (COMMON + "[[matrix]]\nseed = [1, 1]", "", 'got "sweep-seed-1" twice'),
        (COMMON + '[[matrix]]\nmodel.id = ["a/m", "b/m"]', "", 'got "sweep-m" twice'),
        (COMMON + '[[matrix]]\nmodel.id = ["///"]', "", "must leave something for a name"),
        (COMMON + f'[[matrix]]\nmodel.id = ["{"m" * 100}"]', "", "at most 100 letters"),
        (COMMON + f"[[matrix]]\nseed = {list(range(200))}\nsearch.stride = {list(range(51))}", "", "at most 10000"),
        (COMMON + MATRIX + "[[exclude]]", "[[exclude]] 1", "at least one key"),
        (COMMON + MATRIX + "[[exclude]]\nseed = 7", "[[exclude]] 1", "leaves something out"),
        (COMMON + MATRIX + "[[exclude]]\nseed = true", "[[exclude]] 1", "leaves something out"),
        (COMMON + MATRIX + "[[exclude]]\nsed = 1", "[[exclude]] 1", "keys of the matrix: search.algorithm, search.b"),
        (COMMON + MATRIX + "[[exclude]]\nseed = [0, 1]", "[[exclude]]", "at least one study"),
        (COMMON + MATRIX + '[labels]\n"p-sigmod" = "p"', "[labels]", 'got "p-sigmod"'),
        (COMMON + MATRIX + '[labels]\n"p-sigmoid" = "P"', "[labels]", "must match pattern"),
        (COMMON.replace("[study.model]", '[study]\nname = "x"\n[study.model]') + MATRIX, "", "common to all studies"),
        (COMMON + "[study.serch]\n" + MATRIX, "[study]", 'did you mean "search"?'),
        (COMMON.replace("[study.model]", "[study]\nsearch = 3\n[study.model]") + MATRIX, "[study]", "must be a table"),
        (COMMON + '[study.workers]\nexecutor = "ray"\n' + MATRIX, "[workers]", "says who runs its studies"),
        (COMMON + "[study.workers]\ncount = 2\n" + MATRIX, "[workers]", "use workers = ... in [campaign]"),
        ("name = ", "", "a campaign file must be TOML"),
    ],
)
def test_a_mistake_is_one_line_with_its_place(tmp_path: Path, text: str, place: str, message: str) -> None:
    found = refused(tmp_path, text)
    assert place in found
    assert message in found


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="a campaign file must exist"):
        read_campaign_file(tmp_path / "none.toml")


AXES = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
        "search.budget": st.lists(st.floats(0.001, 1.0), min_size=1, max_size=4, unique=True),
        "search.initial": st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
        "rule.name": st.permutations(["attention-rank", "fastv", "random"]),
        "data.chunk": st.lists(st.integers(1, 99), min_size=1, max_size=3, unique=True),
    },
).filter(len)


def entry_text(axes: dict[str, list[Any]]) -> str:
    return "".join(f'"{key}" = {json.dumps(values)}\n' for key, values in axes.items())


def expand(text: str) -> Campaign:
    with tempfile.TemporaryDirectory() as folder:
        return read(Path(folder), text)


@settings(max_examples=60)
@given(AXES)
def test_every_combination_is_there_once_under_a_valid_name(axes: dict[str, list[Any]]) -> None:
    studies = expand(f"{COMMON}{SIGMOID}[[matrix]]\n{entry_text(axes)}").studies
    assert len(studies) == math.prod(map(len, axes.values()))
    assert len({study.name for study in studies}) == len({study.digest for study in studies}) == len(studies)
    assert all(re.fullmatch(r"sweep-[a-z0-9._-]{1,94}", study.name) for study in studies)


@settings(max_examples=40)
@given(AXES, st.data())
def test_what_is_left_keeps_its_name_and_its_definition(axes: dict[str, list[Any]], data: st.DataObject) -> None:
    text = f"{COMMON}{SIGMOID}[[matrix]]\n{entry_text(axes)}"
    every = {study.name: study for study in expand(text).studies}
    key = data.draw(st.sampled_from(sorted(axes)))
    gone = data.draw(st.sampled_from(axes[key]))
    rest = [value for value in axes[key] if value != gone]
    if rest:
        excluded = expand(f"{text}[[exclude]]\n{entry_text({key: [gone]})}").studies
        shorter = expand(f"{COMMON}{SIGMOID}[[matrix]]\n{entry_text({**axes, key: rest})}").studies
        assert excluded == shorter
        assert all(every[study.name] == study for study in shorter)
        assert len(shorter) == len(every) - len(every) // len(axes[key])
