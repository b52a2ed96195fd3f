"""Every mistake in a study file is one clear line that names the place."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from scheduler_search.errors import StudyFileError
from scheduler_search.study.file import read_study_file
from tests.study.files import JSONL, MINIMAL, read, write


def refused(path: Path) -> str:
    with pytest.raises(StudyFileError) as caught:
        read_study_file(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text
    return text


def test_a_missing_file(tmp_path: Path) -> None:
    assert "must exist, but got no such file" in refused(tmp_path / "none.toml")


def test_a_folder(tmp_path: Path) -> None:
    assert "must be readable, but got Is a directory" in refused(tmp_path)


def test_a_syntax_error_names_the_line(tmp_path: Path) -> None:
    assert "must be TOML" in (text := refused(write(tmp_path, 'name = "a"\nseed = \n')))
    assert "line 2" in text


def test_a_binary_file(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_bytes(b"\xff\xfe\x00name")
    assert "must be UTF-8 text" in refused(path)


@pytest.mark.parametrize(
    ("addition", "place", "near"),
    [
        (
            "[search]\nstrid = 2",
            "[search]",
            'got "strid"',
        ),
        ("[search]\nstrid = 2", "[search]", 'did you mean "stride"?'),
        ("[searhc]\nstride = 2", "study.toml)", 'did you mean "search"?'),
        ("validation = { sample = 2 }", "[data] validation)", 'did you mean "samples"?'),
        ("[workers]\nzzzzz = 2", "[workers]", "known keys: attempts, chunk_timeout, count, cpus, executor"),
        (
            '[search]\nalgorithm = "p-sigmoid"\nbudget = { tflop = 2 }',
            "[search] budget",
            "a budget is a mean keep rate",
        ),
        (
            '[search]\nalgorithm = "p-sigmoid"\nbudget = { tflops = 2, keep = 1 }',
            "[search] budget)",
            "known keys: tflops",
        ),
        (
            '[search]\nalgorithm = "p-sigmoid"\nbudget = { as = "step", layers = 2, keep = 1 }',
            "[search] budget)",
            'did you mean "layer"?',
        ),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(tmp_path: Path, addition: str, place: str, near: str) -> None:
    text = refused(write(tmp_path, MINIMAL + addition))
    assert place in text
    assert near in text


def test_what_reading_adds_is_no_key_of_the_file(tmp_path: Path) -> None:
    text = refused(write(tmp_path, "written_paths = []\n" + MINIMAL))
    assert 'got "written_paths"' in text
    assert text.count("written_paths") == 1


@pytest.mark.parametrize("key", ["name", "[model]", "id", "[data]", "source", "search"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    lines = MINIMAL.splitlines()
    if key.startswith("["):
        start = lines.index(key)
        end = next((i for i in range(start + 1, len(lines)) if lines[i].startswith("[")), len(lines))
        kept = lines[:start] + lines[end:]
    else:
        kept = [line for line in lines if not line.startswith(f"{key} =")]
    assert f'key "{key.strip("[]")}" is required' in refused(write(tmp_path, "\n".join(kept)))


SIGMOID = '[search]\nalgorithm = "p-sigmoid"\n'
RANDOM = '[rule]\nname = "random"\nat = "entry"\n'


@pytest.mark.parametrize(
    ("addition", "place", "message"),
    [
        ("[search]\nstride = 0", "[search] stride", "must be greater than or equal to 1, but got 0"),
        ('[search]\nstride = "3"', "[search] stride", "must be a valid integer, but got '3'"),
        ("[search]\nstride = 2.0", "[search] stride", "must be a valid integer"),
        ("[search]\nfirst_layer = 1", "[search] first_layer", "greater than or equal to 2"),
        ("[search]\npenalty = -0.1", "[search] penalty", "greater than or equal to 0"),
        ("[search]\npenalty = nan", "[search] penalty", "must be a finite number"),
        ("[search]\npenalty = true", "[search] penalty", "must be a valid number"),
        ("[search]\ninitial = 0", "[search] initial", "greater than or equal to 1"),
        ("[search]\niterations = -1", "[search] iterations", "greater than or equal to 0"),
        ('[search]\nsampler = "cma"', "[search] sampler", "'expected-improvement', 'random', 'tpe' or 'gp'"),
        ('[search]\nalgorithm = "annealing"', "[search] algorithm", "'g-search', 'p-sigmoid' or 'frontier'"),
        ("[search]\npenalty = -1.0", "[search] penalty", "greater than or equal to 0"),
        ("[search]\npenalty = { flop = 1.0 }", "[search] penalty", "only known keys"),
        ('[search]\nobjective = "loss"', "[search] objective", "'score' or 'fidelity'"),
        ("[search]\nobjective = { fidelity = 1.0 }", "[search] objective.fidelity", "less than 1"),
        ("[search]\nfaithful = true\nbatch = 2", "[search] batch", "a faithful search has batch = 1"),
        ("[search]\nfaithful = true\nrefine = true", "[search] refine", "a faithful search has refine = false"),
        ('[search]\nalgorithm = "frontier"\nfaithful = true', "[search] faithful", "no procedure of seed 003"),
        ('[search]\nalgorithm = "frontier"\nsampler = "tpe"', "[search] sampler", "no single best candidate"),
        ('[search]\nalgorithm = "frontier"\nstride = 2', "[search] stride", "belongs to g-search, not to frontier"),
        ("[search]\nbudget = 0.5", "[search] budget", "belongs to p-sigmoid, not to g-search: its budget follows"),
        (SIGMOID, "[search] budget", "p-sigmoid needs a budget"),
        (SIGMOID + "budget = 0.5\nstride = 3", "[search] stride", "belongs to g-search, not to p-sigmoid"),
        (SIGMOID + "budget = 0.5\npenalty = 0.0", "[search] penalty", "belongs to g-search, not to p-sigmoid"),
        (SIGMOID + "budget = 0.0", "[search] budget", "must be greater than 0"),
        (SIGMOID + "budget = 1.5", "[search] budget", "must be less than or equal to 1, but got 1.5"),
        (SIGMOID + 'budget = "0.5"', "[search] budget", "must be a valid number"),
        (SIGMOID + "budget = { tflops = 0 }", "[search] budget.tflops", "must be greater than 0"),
        (SIGMOID + "budget = {}", "[search] budget", "a budget is a mean keep rate in (0, 1], or a table"),
        (SIGMOID + 'budget = { as = "step", keep = 0.5 }', "[search] budget.layer", "needs the layer"),
        (SIGMOID + 'budget = { as = "uniform", keep = 0.5, layer = 2 }', "[search] budget.layer", "takes no layer"),
        (SIGMOID + 'budget = { as = "step", layer = 2, keep = 2 }', "[search] budget.keep", "less than or equal to 1"),
        (SIGMOID + 'budget = { as = "cosine", keep = 0.5 }', "[search] budget.as", "'step' or 'uniform'"),
        ('[rule]\nname = "atention-rank"', "[rule]", "must be a known one, but got 'atention-rank'"),
        ('[rule]\nname = "divprune"\nat = "decoder"', "[rule] at", "'divprune' acts only at entry, but got 'decoder'"),
        ('[rule]\nname = "random"\nat = ["entry", "vision"]', "[rule] at", "'random' acts only at entry and decoder"),
        ('[rule]\nat = "decoders"', "[rule] at", "a place must be a known one, but got 'decoders'"),
        ('[rule]\nat = "tower"', "[rule] at", "places: vision, entry, decoder"),
        ('[rule]\nname = "random"\nat = ["entry", "entry"]', "[rule] at", "a place is named once, but got"),
        ("[rule]\nat = []", "[rule] at", "at is the name of a place, or a list of them, but got []"),
        ("[rule]\nat = true", "[rule] at", "at is the name of a place, or a list of them, but got True"),
        ("[rule]\nversion = 7", "[rule]", "rule 'attention-rank' is known in version 1, but got version 7"),
        ("[rule]\nversion = true", "[rule] version", "must be a valid integer"),
        ('[rule]\nname = "pooling"\n' + SIGMOID + "budget = 0.5", "[search] algorithm", "and no other place, but"),
        (RANDOM + '[search]\nalgorithm = "frontier"', "[search] algorithm", "frontier searches the layers of"),
        (RANDOM + "[search]\nrefine = true", "[search] refine", "only a search over the decoder alone is refined"),
        (RANDOM + "[search]\nvision_stride = 2", "[search] vision_stride", "got a rule at entry"),
        ("[search]\nvision_first_layer = 2", "[search] vision_first_layer", "belongs to a rule inside the"),
        ('[rule]\nhead_reduction = "median"', "[rule]", "must be one of 'mean', 'max', 'sum', but got 'median'"),
        ("[rule]\nheads = 3", "[rule]", "takes only its declared parameters"),
        ('[rule]\nhead_reductoin = "max"', "[rule]", "did you mean 'head_reduction'?"),
        ("[rule]\nhead_reduction = [1]", "[rule] head_reduction", "must be a string, a number or a boolean"),
        ("[rule]\nratio = nan", "[rule] ratio", "must be a finite number, but got nan"),
        ('[rule]\nname = "mustdrop"\nratio = 1', "parameter 'ratio'", "of type float, but got 1"),
        ("[rule]\nname = 3", "[rule] name", "must be a valid string"),
        ('[workers]\nexecutor = "dask"', "[workers] executor", "the value must be 'local' or 'ray', but got 'dask'"),
        ("[workers]\nthreads = 0", "[workers] threads", "greater than or equal to 1"),
        ("validation = { samples = 0 }", "[data] validation.samples", "greater than or equal to 1"),
        ("validation = 3", "[data] validation", "must be a table"),
        ("chunk = 0", "[data] chunk", "greater than or equal to 1"),
        ("max_new_tokens = 0", "[data] max_new_tokens", "greater than or equal to 1"),
        ('metric = "bleu"', "[data] metric", "'exact-match', 'vqa-accuracy' or 'fidelity'"),
        ('path = "a.jsonl"', "[data] path", "makes its own samples and takes no path"),
        ('images = "a"', "[data] images", "makes its own samples and takes no path"),
        ('test = { samples = 1, path = "a" }', "[data] test.path", "makes its own samples and takes no path"),
    ],
)
def test_a_wrong_value_is_named(tmp_path: Path, addition: str, place: str, message: str) -> None:
    text = refused(write(tmp_path, MINIMAL + addition))
    assert place in text
    assert message in text


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ('name = "first"', 'name = "First"', ", name", "must match pattern"),
        ('name = "first"', 'name = "../first"', ", name", "must match pattern"),
        ('name = "first"', 'name = "a\\n"', ", name", "must match pattern"),
        ('name = "first"', f'name = "{"a" * 101}"', ", name", "must match pattern"),
        ('name = "first"', 'name = "first"\nseed = -1', ", seed", "greater than or equal to 0"),
        ('name = "first"', 'name = "first"\nseed = 1.5', ", seed", "valid integer"),
        ('source = "testbed"', 'source = "datasets"', "[data] source", "'testbed' or 'jsonl', but got 'datasets'"),
        ('source = "testbed"', 'source = "jsonl"', "[data] search", 'source = "jsonl" needs a path'),
        ('id = "testbed:tiny-llava"', 'id = ""', "[model] id", "at least 1 character"),
        ('id = "testbed', 'dtype = "fp16"\nid = "testbed', "[model] dtype", "'bfloat16' or 'float16'"),
        (
            'id = "testbed',
            'attention = "flash"\nid = "testbed',
            "[model] attention",
            "'sdpa', 'eager' or 'flash_attention_2'",
        ),
        ('id = "testbed', 'device = "gpu"\nid = "testbed', "[model] device", "must match pattern"),
        ('id = "testbed', 'device_map = "cuda"\nid = "testbed', "[model] device_map", "'auto', 'balanced', 'bal"),
        (
            'id = "testbed',
            'device_map = "auto"\ndevice = "cpu"\nid = "testbed',
            "[model] device_map",
            "device must be \"auto\", but got 'cpu'",
        ),
        ('id = "testbed', 'prompt = "hello"\nid = "testbed', "[model] prompt", "or contain {question}"),
        ('id = "testbed', 'trust_remote_code = 1\nid = "testbed', "[model] trust_remote_code", "valid boolean"),
        ("[model]\n", "[[model]]\n", "[model]", "must be a table"),
    ],
)
def test_a_wrong_value_of_a_required_key_is_named(tmp_path: Path, old: str, new: str, place: str, message: str) -> None:
    text = refused(write(tmp_path, MINIMAL.replace(old, new)))
    assert place in text
    assert message in text


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    assert len(refused(write(tmp_path, MINIMAL + f'[search]\nsampler = "{"x" * 5000}"'))) < 600


@pytest.mark.parametrize("other", ["a.jsonl", "./a.jsonl", "sub/../a.jsonl", "link.jsonl"])
@pytest.mark.parametrize(("first", "second"), [("search", "validation"), ("search", "test"), ("validation", "test")])
def test_splits_never_share_a_file_of_their_own(tmp_path: Path, first: str, second: str, other: str) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    splits = {"search": "b.jsonl", first: "a.jsonl", second: other}
    lines = [f'{name} = {{ samples = 1, path = "{path}" }}' for name, path in splits.items()]
    text = refused(write(tmp_path, JSONL + "\n".join(lines)))
    assert f"{first} and {second} must not share data" in text
    assert f"[data] {second}.path" in text


def test_a_split_never_takes_the_whole_file_that_others_are_cut_from(tmp_path: Path) -> None:
    data = 'path = "a.jsonl"\nsearch = { samples = 1 }\nvalidation = { samples = 1, path = "a.jsonl" }'
    assert "search and validation must not share data" in refused(write(tmp_path, JSONL + data))


def test_one_file_can_be_split(tmp_path: Path) -> None:
    data = read(tmp_path, JSONL + 'path = "a.jsonl"\nsearch = { samples = 1 }\nvalidation = { samples = 1 }').data
    assert data.split_path("search") == data.split_path("validation") == str(tmp_path / "a.jsonl")


def test_paths_start_from_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = JSONL.replace("org/model", "./models/../tiny") + 'path = "data/a.jsonl"\nsearch = { samples = 1 }\n'
    write(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    definition = read_study_file("study.toml")
    assert definition.model.id == str(tmp_path / "tiny")
    assert definition.data.path == str(tmp_path / "data" / "a.jsonl")
    assert definition.data.image_folder("search") == tmp_path / "data"


def test_images_can_lie_elsewhere(tmp_path: Path) -> None:
    text = JSONL + 'path = "a.jsonl"\nimages = "/pictures"\nsearch = { samples = 1 }'
    assert read(tmp_path, text).data.image_folder("search") == Path("/pictures")


@pytest.mark.parametrize("model", ["org/model", "testbed:tiny-llava"])
def test_a_hub_id_is_no_path(tmp_path: Path, model: str) -> None:
    definition = read(tmp_path, MINIMAL.replace("testbed:tiny-llava", model))
    assert definition.model.id == model
    assert definition.written_paths == ()
