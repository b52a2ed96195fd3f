from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler_search.testbed.questions import CATEGORIES, MIXTURE, ask, sample_question, view
from scheduler_search.testbed.scenes import Scene, draw_scene, random_stream
from scheduler_search.testbed.vocabulary import CELLS, DIRECTIONS, GRID, NUMBERS, WORD_IDS

seeds = st.integers()


def _only_cell(scene: Scene, word: str) -> tuple[int, int]:
    if word in CELLS:
        return divmod(CELLS.index(word), GRID)
    (cell,) = [cell for cell, thing in scene.items() if word in thing]
    return cell


def _answer(scene: Scene, words: tuple[str, ...]) -> str:
    """The answer by reading the question's words: written without the generator's lookups."""
    match words:
        case ("how", "many", word):
            return NUMBERS[sum(word in thing for thing in scene.values())]
        case (wanted, "same", shared, "as", word):
            index = ("color", "shape").index(shared)
            cell = _only_cell(scene, word)
            (other,) = [c for c, thing in scene.items() if c != cell and thing[index] == scene[cell][index]]
            return scene[other][("color", "shape").index(wanted)]
        case (wanted, direction, "of", word) if direction in DIRECTIONS:
            row, column = _only_cell(scene, word)
            down, right = DIRECTIONS[direction]
            return _about(scene, wanted, (row + down, column + right))
        case (wanted, _, word):
            return _about(scene, wanted, _only_cell(scene, word))
    raise AssertionError(words)


def _about(scene: Scene, wanted: str, cell: tuple[int, int]) -> str:
    if wanted == "where":
        inside = all(0 <= place < GRID for place in cell)
        return CELLS[cell[0] * GRID + cell[1]] if inside else "none"
    return scene[cell][("color", "shape").index(wanted)] if cell in scene else "none"


@settings(deadline=None)
@given(seed=seeds, category=st.sampled_from(CATEGORIES))
def test_answers_are_what_the_scene_shows(seed: int, category: str) -> None:
    stream = random_stream(seed)
    scene = draw_scene(stream, "train")
    for _ in range(10):
        asked = ask(view(scene), category, stream)
        if asked is not None:
            assert asked[1] == _answer(scene, asked[0])


@settings(deadline=None)
@given(seed=seeds)
def test_every_word_is_in_the_vocabulary(seed: int) -> None:
    stream = random_stream(seed)
    seen = view(draw_scene(stream, "train"))
    for _ in range(20):
        words, answer = sample_question(seen, stream, MIXTURE)[1]
        assert {*words, answer} <= set(WORD_IDS)


def test_ids_are_dense() -> None:
    assert sorted(WORD_IDS.values()) == list(range(len(WORD_IDS)))


def test_the_mixture_names_every_category() -> None:
    assert set(MIXTURE) == set(CATEGORIES)


@settings(deadline=None)
@given(seed=seeds)
def test_no_category_asks_in_vain_forever(seed: int) -> None:
    # Scenes of a single object allow neither `same` nor many others; the mixture must still find a question.
    stream = random_stream(seed)
    category, _ = sample_question(view(draw_scene(stream, "train", (1, 1))), stream, MIXTURE)
    assert category in CATEGORIES
