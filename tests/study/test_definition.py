"""A definition is one value: equal meaning gives an equal digest, and JSON gives it back exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from scheduler_search.errors import RuleError, StudyFileError
from scheduler_search.rule import make_rule
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.file import read_study_file
from scheduler_search.study.search_section import FlopsBudget, ScheduleBudget
from tests.search.shapes import TINY
from tests.study.files import JSONL, MINIMAL, read, write

# Every default, spelled out.
SPELLED_OUT = """
name = "first"
seed = 0
[model]
id = "testbed:tiny-llava"
revision = "main"
dtype = "auto"
attention = "sdpa"
device = "auto"
prompt = "auto"
trust_remote_code = false
[data]
source = "testbed"
search = { samples = 8 }
metric = "exact-match"
chunk = 16
max_new_tokens = 16
[rule]
name = "attention-rank"
query_rows = "instruction"
head_reduction = "mean"
[search]
algorithm = "g-search"
first_layer = 3
stride = 3
refine = true
objective = "score"
penalty = 0.01
faithful = false
initial = 2
iterations = 20
sampler = "expected-improvement"
race_delta = 0.05
race_margin = 0.0
tolerance = 0.001
batch = 1
[workers]
executor = "local"
threads = 1
"""
SIGMOID = MINIMAL + '[search]\nalgorithm = "p-sigmoid"\nbudget = '


def test_defaults_spelled_out_change_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, SPELLED_OUT).digest == read(tmp_path, MINIMAL).digest


def test_the_digest_is_the_one_of_this_version(tmp_path: Path) -> None:
    """A study that was launched keeps its digest: a change here makes every recorded study foreign."""
    assert read(tmp_path, MINIMAL).digest == "sha256:acfbbd274508a3f4a6db87d18a8c2c3f6e53065c505b573dcd1b4912c6ab6514"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"first"', '"second"'),
        ("seed = 0", "seed = 1"),
        ('"testbed:tiny-llava"', '"org/model"'),
        ('"main"', '"v2"'),
        ('dtype = "auto"', 'dtype = "float32"'),
        ('"sdpa"', '"eager"'),
        ('device = "auto"', 'device = "cpu"'),
        ('device = "auto"', 'device_map = "auto"'),
        ('device = "auto"', 'device = "auto"\ndevice_map = "sequential"'),
        ('prompt = "auto"', 'prompt = "{question}"'),
        ("trust_remote_code = false", "trust_remote_code = true"),
        ("samples = 8", "samples = 9"),
        ("search = { samples = 8 }", "search = { samples = 8 }\nvalidation = { samples = 8 }"),
        ("search = { samples = 8 }", "search = { samples = 8 }\ntest = { samples = 8 }"),
        ('"exact-match"', '"vqa-accuracy"'),
        ("chunk = 16", "chunk = 8"),
        ("max_new_tokens = 16", "max_new_tokens = 8"),
        ('name = "attention-rank"\nquery_rows = "instruction"', 'name = "fastv"'),
        ('query_rows = "instruction"', 'query_rows = "last"'),
        ("first_layer = 3", "first_layer = 2"),
        ("stride = 3", "stride = 2"),
        ("penalty = 0.01", "penalty = 0"),
        ("initial = 2", "initial = 9"),
        ("iterations = 20", "iterations = 0"),
        ('"expected-improvement"', '"random"'),
        ("threads = 1", "threads = 2"),
    ],
)
def test_every_key_counts(tmp_path: Path, old: str, new: str) -> None:
    assert old in SPELLED_OUT
    assert read(tmp_path, SPELLED_OUT.replace(old, new)).digest != read(tmp_path, MINIMAL).digest


def test_an_integer_is_the_float_of_its_value(tmp_path: Path) -> None:
    whole, fraction = (read(tmp_path, MINIMAL + f"[search]\npenalty = {text}") for text in ("1", "1.0"))
    assert (whole, whole.digest) == (fraction, fraction.digest)


def test_a_moved_study_keeps_its_digest_and_finds_its_files(tmp_path: Path) -> None:
    text = JSONL.replace("org/model", "./tiny") + 'path = "a.jsonl"\nsearch = { samples = 1, path = "b.jsonl" }'
    definitions = []
    for folder in (tmp_path / "here", tmp_path / "there"):
        folder.mkdir()
        definitions.append(read(folder, text))
    here, there = definitions
    assert here.digest == there.digest
    assert there.data.split_path("search") == str(tmp_path / "there" / "b.jsonl")
    assert read(tmp_path, text.replace('path = "a', 'path = "c')).digest != here.digest


@pytest.mark.parametrize(
    "text",
    [
        MINIMAL,
        SPELLED_OUT,
        SIGMOID + "0.125",
        SIGMOID + "{ tflops = 2.7 }",
        SIGMOID + '{ as = "step", layer = 2, keep = 0.125 }',
        SIGMOID + '{ as = "uniform", keep = 1 }',
        MINIMAL + '[rule]\nname = "random"\nseed = 3',
        MINIMAL + '[rule]\nname = "random"\nat = ["entry", "decoder"]\n[search]\nstride = 2',
        MINIMAL + '[rule]\nname = "pooling"',
        MINIMAL + '[rule]\nname = "fastv"\nversion = 1',
        JSONL + 'path = "ü.jsonl"\nsearch = { samples = 1 }\nimages = "/x"',
    ],
)
def test_json_gives_back_the_definition(tmp_path: Path, text: str) -> None:
    definition = read(tmp_path, text)
    again = StudyDefinition.from_json(definition.to_json())
    assert (again, again.digest) == (definition, definition.digest)
    assert again.to_json() == definition.to_json()


@given(
    seed=st.integers(0, 2**32 - 1),
    penalty=st.floats(0, 1e9),
    samples=st.integers(1, 10**9),
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=50),
)
def test_json_keeps_every_value_bit_for_bit(seed: int, penalty: float, samples: int, prompt: str) -> None:
    definition = StudyDefinition.model_validate(
        {
            "name": "a",
            "seed": seed,
            "model": {"id": "m", "prompt": prompt + "{question}"},
            "data": {"source": "testbed", "search": {"samples": samples}},
            "search": {"penalty": penalty},
        }
    )
    again = StudyDefinition.from_json(definition.to_json())
    assert (again, again.digest) == (definition, definition.digest)


def test_recorded_json_of_another_version_is_one_clear_error(tmp_path: Path) -> None:
    document = json.loads(read(tmp_path, MINIMAL).to_json())
    document["search"]["algorithm"] = "annealing"
    with pytest.raises(StudyFileError, match=r"or 'frontier'.*the study database, \[search\] algorithm"):
        StudyDefinition.from_json(json.dumps(document))


def test_budgets_are_values(tmp_path: Path) -> None:
    budgets = [
        read(tmp_path, SIGMOID + text).search.budget
        for text in ("1", "{ tflops = 3 }", '{ as = "step", layer = 2, keep = 0.5 }')
    ]
    assert budgets[:2] == [1.0, FlopsBudget(tflops=3.0)]
    assert isinstance(budgets[2], ScheduleBudget)
    assert (budgets[2].family, budgets[2].layer, budgets[2].keep) == ("step", 2, 0.5)


def test_the_random_rule_gets_the_study_seed_unless_it_has_its_own(tmp_path: Path) -> None:
    text = "seed = 7\n" + MINIMAL + '[rule]\nname = "random"\n'
    assert read(tmp_path, text).resolved_rule.parameter("seed") == 7
    assert read(tmp_path, text + "seed = 3").resolved_rule.parameter("seed") == 3
    assert read(tmp_path, text + "seed = 7").digest == read(tmp_path, text).digest


def test_other_rules_have_no_seed(tmp_path: Path) -> None:
    definition = read(tmp_path, "seed = 7\n" + MINIMAL + '[rule]\nhead_reduction = "max"')
    assert dict(definition.rule.resolve(7).parameters)["head_reduction"] == "max"
    assert "seed" not in dict(definition.rule.resolve(7).parameters)


def test_where_a_rule_acts_is_part_of_what_a_study_is(tmp_path: Path) -> None:
    text = MINIMAL + '[rule]\nname = "random"\nat = '
    plain, default, entry, both, turned = (
        read(tmp_path, addition)
        for addition in (
            text.removesuffix("at = "),
            text + '"decoder"',
            text + '["entry"]',
            text + '["entry", "decoder"]',
            text + '["decoder", "entry"]',
        )
    )
    assert plain == default
    assert plain.to_document()["rule"] == {"name": "random"}
    assert len({plain.digest, entry.digest, both.digest}) == 3
    assert both == turned
    assert (plain.places, entry.places, both.places) == (("decoder",), ("entry",), ("entry", "decoder"))


def test_a_search_over_another_place_is_not_refined(tmp_path: Path) -> None:
    pooling = read(tmp_path, MINIMAL + '[rule]\nname = "pooling"')
    assert pooling.places == ("entry",)
    assert not pooling.search.refine
    assert read(tmp_path, MINIMAL + '[rule]\nname = "pooling"\n[search]\nrefine = false') == pooling
    assert read(tmp_path, MINIMAL).search.refine


def test_only_a_rule_in_the_tower_has_keys_of_the_tower(tmp_path: Path, tower_rule: str) -> None:
    text = MINIMAL + f'[rule]\nname = "{tower_rule}"\nat = ["vision", "decoder"]\n[search]\n'
    definition = read(tmp_path, text)
    assert (definition.search.vision_first_layer, definition.search.vision_stride) == (2, 6)
    assert read(tmp_path, text + "vision_first_layer = 2\nvision_stride = 6").digest == definition.digest
    assert read(tmp_path, text + "vision_stride = 5").digest != definition.digest
    assert StudyDefinition.from_json(definition.to_json()) == definition
    assert "vision_stride" not in read(tmp_path, MINIMAL).to_json()


def test_a_recorded_definition_keeps_the_version_of_its_rule(tmp_path: Path) -> None:
    newest = read(tmp_path, MINIMAL + '[rule]\nname = "fastv"')
    assert newest.rule.version == 2
    document = newest.to_document()
    recorded = json.dumps({**document, "rule": {"name": "fastv"}})
    assert StudyDefinition.from_json(recorded).resolved_rule.version == 1
    assert StudyDefinition.from_json(newest.to_json()).resolved_rule.version == 2


def test_rates_become_a_reduction(tmp_path: Path, tower_rule: str) -> None:
    text = MINIMAL + f'[rule]\nname = "{tower_rule}"\nat = '
    rule, idle = make_rule(tower_rule), make_rule("attention-rank")
    decoder, entry, tower, all_three = (
        read(tmp_path, text + places)
        for places in ('"decoder"', '"entry"', '"vision"', '["vision", "entry", "decoder"]')
    )
    assert decoder.reduction((1.0, 0.5)) == Reduction((1.0, 0.5), rule)
    assert entry.reduction((0.5, 0.5)) == Reduction((0.5, 0.5), idle, rule)
    half = VisionReduction((1.0, 0.5), rule)
    assert tower.reduction((1.0, 0.5, 0.5, 0.5), 2) == Reduction((0.5, 0.5), idle, None, half)
    assert all_three.reduction((1.0, 0.5, 0.5, 0.2), 2) == Reduction((0.5, 0.2), rule, None, half)
    assert all_three.reduction((1.0, 0.5, 0.4, 0.2), 2) == Reduction((0.4, 0.2), rule, rule, half)
    assert all_three.reduction((1.0, 1.0, 1.0, 1.0), 2) == Reduction((1.0, 1.0), rule)
    assert [one.tower_layers(TINY) for one in (decoder, entry, tower)] == [0, 0, 2]


def test_a_definition_is_frozen_and_strict(tmp_path: Path) -> None:
    definition = read(tmp_path, MINIMAL)
    with pytest.raises(ValidationError):
        definition.name = "other"  # type: ignore[misc]
    with pytest.raises(RuleError):
        StudyDefinition.model_validate({**definition.to_document(), "rule": {"name": "nothing"}})


def test_splits_come_in_order(tmp_path: Path) -> None:
    definition = read(tmp_path, MINIMAL + "test = { samples = 2 }\nvalidation = { samples = 1 }")
    assert list(definition.data.splits) == ["search", "validation", "test"]
    assert definition.data.split_path("test") is None
    assert definition.data.image_folder("test") is None


def test_reading_twice_gives_equal_values(tmp_path: Path) -> None:
    path = write(tmp_path, MINIMAL)
    assert read_study_file(path) == read_study_file(str(path))
