"""The rule that the README adds is added, file and line as they stand there, and it does what the README says."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import scheduler_search.reducers
from scheduler_search.reducers import Grid, load, similarity
from scheduler_search.rule import Declaration, catalogue, registry
from tests.reducers import test_laws
from tests.reducers.synthetic import Sample, tokens_of

README = (Path(scheduler_search.reducers.__file__).parent / "README.md").read_text()
SECTION = README.split("\n## Adding a rule\n")[1]
FILE, STAGE = re.findall(r"```python\n(.*?)```", SECTION, flags=re.DOTALL)
(LINE,) = re.findall(r"```diff\n\+(.*?)```", SECTION, flags=re.DOTALL)
(NAME,) = re.findall(r"`scheduler_search/rule/catalogue/(\w+)\.py`", SECTION)


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Declaration:
    """The declaration of the rule, from a registry that has the line, where reducers are loaded from."""
    (tmp_path / f"{NAME}.py").write_text(FILE)
    monkeypatch.setattr(catalogue, "__path__", [*catalogue.__path__, str(tmp_path)])
    monkeypatch.setitem(similarity.__dict__, "alike", None)  # taken away again after the test
    exec(STAGE, similarity.__dict__)
    source = Path(registry.__file__).read_text()
    assert source.count("_FILES = (\n") == 1
    extended = ModuleType(registry.__name__)
    exec(source.replace("_FILES = (\n", f"_FILES = (\n{LINE}"), extended.__dict__)
    monkeypatch.setattr(load, "declaration_of", extended.declaration_of)
    module = importlib.import_module(f"{catalogue.__name__}.{NAME}")
    monkeypatch.delitem(sys.modules, module.__name__)
    declaration = extended.declaration_of("merge-similar")
    assert isinstance(declaration, Declaration)
    assert declaration in extended.declarations()
    return declaration


def test_it_is_short() -> None:
    assert len(SECTION.splitlines()) < 40


def test_it_drops_what_is_least_attended_and_merges_it_into_the_most_similar(added: Declaration) -> None:
    reducer = load.load_reducer(added.rule({}), "decoder")
    tokens = tokens_of([Sample((Grid(3, 4),), 2, 3, 5, reduced=False, seed=1)], "decoder", reducer.reads)
    result = test_laws.reduced(reducer, tokens)
    assert tokens.attention is not None
    attention = tokens.attention[0].masked_fill(~tokens.vision[0], float("-inf"))
    kept = attention.topk(5).indices.sort().values
    assert torch.equal(result.kept[0].nonzero()[:, 0], kept)
    clusters: dict[int, list[int]] = {int(slot): [int(slot)] for slot in kept}
    for slot in (tokens.vision[0] & ~result.kept[0]).nonzero()[:, 0]:
        similarities = torch.cosine_similarity(tokens.hidden[0, slot], tokens.hidden[0, kept])
        clusters[int(kept[similarities.argmax()])].append(int(slot))
    for target, members in clusters.items():
        torch.testing.assert_close(result.hidden[0, target], tokens.hidden[0, members].mean(0))


@pytest.mark.parametrize("law", [name for name in vars(test_laws) if name.startswith("test_")])
def test_the_laws_hold(added: Declaration, law: str) -> None:
    getattr(test_laws, law)(declaration=added, place="decoder")
