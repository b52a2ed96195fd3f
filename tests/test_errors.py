from __future__ import annotations

import inspect
import pickle

import pytest

from scheduler_search import errors

KINDS = [
    kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.SchedulerSearchError)
]


def test_an_error_gives_rule_value_place_and_remedy() -> None:
    error = errors.StudyFileError("a must hold", actual=3, place="file.toml, [search] a", remedy="set a")
    assert str(error) == "a must hold, but got 3 (in file.toml, [search] a); set a"


def test_an_error_is_one_line() -> None:
    error = errors.DataError("a\nmust\nhold", actual="x\ny")
    assert str(error) == "a must hold, but got x y"


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_survives_pickling(kind: type[errors.SchedulerSearchError]) -> None:
    error = kind("rule", actual=(1, "two"), place="place", remedy="remedy")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), copy.actual, copy.exit_code) == (str(error), (1, "two"), error.exit_code)


@pytest.mark.parametrize("kind", KINDS)
def test_exit_codes(kind: type[errors.SchedulerSearchError]) -> None:
    assert kind.exit_code == (3 if kind is errors.GateError else 2)
