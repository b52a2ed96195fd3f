"""The queue's commands in this process: what they print, record and refuse. Studies are run in tests/integration."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import pytest

from scheduler_search.cli.app import AlgorithmName, State
from scheduler_search.cli.lease import wait_for_lease
from scheduler_search.errors import LeaseHeldError
from scheduler_search.storage import StudyDatabase, leases
from scheduler_search.study.search_section import SearchSection
from scheduler_search.study.states import StudyRecord, StudyState
from tests.cli.test_bad_input import JSONL, STUDY, one_line, study_file, written
from tests.command_line import Run


@pytest.fixture
def database(tmp_path: Path) -> Iterator[StudyDatabase]:
    with StudyDatabase.open(f"sqlite:///{tmp_path}/scheduler-search.db") as opened:
        yield opened


def names(run: Run, *options: str) -> list[str]:
    return [study["name"] for study in json.loads(run("list", "--json", *options)[1])]


@pytest.mark.slow
def test_submit_list_cancel_retry(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    code, out, _ = run("submit", "bad.toml", "--priority", "3")
    assert code == 0
    assert out == "study bad is queued, priority 3; next: scheduler-search coordinate\n"
    assert "priority 7" in run("submit", "bad.toml", "--priority", "7")[1]
    (study,) = json.loads(run("list", "--json")[1])
    assert (study["state"], study["priority"], study["attempts"], study["owner"]) == ("queued", 7, 0, None)
    table = run("list")[1]
    assert re.search(r"bad\s.*queued\s.*g-search\s.*testbed:tiny-llava\s.*7", table)
    assert "is cancelled" in run("cancel", "bad")[1]
    assert names(run, "--state", "cancelled") == ["bad"]
    assert "queued again" not in run("logs", "bad")[1]
    assert "study bad is queued, priority 7" in run("retry", "bad")[1]
    log = run("logs", "bad")[1].splitlines()
    assert [line.split(" ", 2)[2] for line in log] == ["warning cancelled", "info    queued again"]
    assert run("logs", "bad", "--lines", "1")[1].splitlines() == log[1:]


def test_list_filters(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    other = STUDY.replace('"bad"', '"other"').replace("stride = 6", 'algorithm = "frontier"')
    study_file(tmp_path, other.replace("testbed:tiny-llava", "llava-hf/llava-1.5-7b-hf"), "other.toml")
    for name in ("bad.toml", "other.toml"):
        assert run("submit", name)[0] == 0
    assert names(run) == ["bad", "other"]
    assert names(run, "--algorithm", "frontier") == ["other"]
    assert names(run, "--model", "llava-hf/") == ["other"]
    assert names(run, "--model", "llava", "--algorithm", "g-search") == ["bad"]
    assert names(run, "--state", "running") == []


def test_the_choices_of_list_are_all_there_are() -> None:
    assert set(get_args(State)) == {state.value for state in StudyState}
    assert set(get_args(AlgorithmName)) == set(get_args(SearchSection.model_fields["algorithm"].annotation))


def test_a_study_is_submitted_from_another_folder_than_it_is_run_in(
    run: Run, tmp_path: Path, database: StudyDatabase
) -> None:
    (tmp_path / "sub").mkdir()
    study_file(tmp_path / "sub", JSONL)
    assert run("submit", "sub/bad.toml")[0] == 0
    assert database.study("bad").definition.data.path == str(tmp_path / "sub" / "data.jsonl")


@pytest.mark.slow
def test_a_study_whose_data_are_not_here_is_given_up_after_three_attempts(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, JSONL)
    assert run("submit", "bad.toml")[0] == 0
    code, out, _ = run("coordinate", "--once")
    assert code == 0
    assert [line.split(": ")[1] for line in out.splitlines()[:-1]] == [
        *("taken up, attempt 1 of 3", "failed", "taken up, attempt 2 of 3", "failed"),
        *("taken up, attempt 3 of 3", "given up"),
    ]
    assert out.splitlines()[-1] == "nothing waits"
    (study,) = json.loads(run("list", "--json")[1])
    assert (study["state"], study["attempts"]) == ("failed", 3)
    assert str(tmp_path / "data.jsonl") in study["error"]
    log = run("logs", "bad")[1]
    assert len(re.findall(r" error +.*data\.jsonl", log)) == 3
    assert "Traceback" in log
    one_line(*refusal(run("submit", "bad.toml")), "a failed study", "scheduler-search retry bad")
    assert "is queued" in run("retry", "bad")[1]


def refusal(done: tuple[int, str, str]) -> tuple[int, str]:
    return done[0], done[2]


def test_commands_that_find_nothing(run: Run, tmp_path: Path) -> None:
    for command in (("coordinate", "--once"), ("list",), ("cancel", "x"), ("retry", "x"), ("logs", "x")):
        one_line(*refusal(run(*command)), "scheduler-search.db")
    one_line(*refusal(run("submit", "missing.toml")), "missing.toml")
    study_file(tmp_path, STUDY.replace("stride = 6", "strid = 6"))
    one_line(*refusal(run("submit", "bad.toml")), "did you mean", "stride")
    assert written(tmp_path) == {"bad.toml"}


def test_an_unknown_study(run: Run, tmp_path: Path) -> None:
    study_file(tmp_path, STUDY)
    assert run("submit", "bad.toml")[0] == 0
    for command in ("cancel", "retry", "logs"):
        one_line(*refusal(run(command, "bed")), "'bed'", "did you mean 'bad'?")


def test_states_that_a_command_does_not_apply_to(run: Run, tmp_path: Path, database: StudyDatabase) -> None:
    study_file(tmp_path, STUDY)
    assert run("submit", "bad.toml")[0] == 0
    study = database.study("bad")
    database.set_state(study, StudyState.RUNNING)
    one_line(*refusal(run("retry", "bad")), "a running one", "'bad'")
    assert "study bad is running; next: scheduler-search logs bad" in run("submit", "bad.toml")[1]
    database.set_state(study, StudyState.FINISHED)
    one_line(*refusal(run("cancel", "bad")), "finished to cancelled", "'bad'")
    assert "study bad is finished; next: scheduler-search export bad" in run("submit", "bad.toml")[1]
    study_file(tmp_path, STUDY.replace("stride = 6", "stride = 5"))
    one_line(*refusal(run("submit", "bad.toml")), "keeps its definition", "another name")


def test_usage_errors_exit_with_2(run: Run) -> None:
    assert run("list", "--state", "asleep")[0] == 2
    assert run("logs", "x", "--lines", "0")[0] == 2
    assert run("submit", "x.toml", "--priority", "high")[0] == 2


@pytest.fixture
def owned(tmp_path: Path, database: StudyDatabase, monkeypatch: pytest.MonkeyPatch) -> StudyRecord:
    """A study that somebody ran a moment ago; who is silent for a second gives way."""
    monkeypatch.setattr(leases, "SILENT_SECONDS", 1.0)
    from scheduler_search.study import read_study_file

    study = database.add_study(read_study_file(tmp_path / study_file(tmp_path, STUDY)))
    database.claim(study, "somebody pid 7 abc")
    return study


@contextmanager
def renewing(database: StudyDatabase, study: StudyRecord) -> Iterator[None]:
    """Somebody is still at work."""
    lease = database.claim(study, "somebody pid 7 abc")
    left = threading.Event()

    def beat() -> None:
        while not left.wait(0.2):
            database.renew(lease)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()


@pytest.mark.slow
def test_a_silent_owner_is_waited_out_with_a_countdown(
    database: StudyDatabase, owned: StudyRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    wait_for_lease(database, owned)
    assert "somebody pid 7 abc was at work 0 s ago; if it stays silent, go on in 1 s" in capsys.readouterr().err
    holder = database.holder(owned)
    assert holder is not None
    assert holder.silent_seconds >= 1.0
    # Nothing to wait for any more.
    wait_for_lease(database, owned)
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_an_owner_at_work_is_named(run: Run, database: StudyDatabase, owned: StudyRecord) -> None:
    with renewing(database, owned):
        with pytest.raises(LeaseHeldError, match="one coordinator at a time"):
            wait_for_lease(database, owned)
        for command in (("resume", "bad"), ("launch", "bad.toml")):
            code, _, error = run(*command)
            assert code == 2
            # The line before it is the countdown.
            assert re.fullmatch(
                r"error: .*somebody pid 7 abc.*study 'bad'.*scheduler-search resume bad --take-over",
                error.splitlines()[-1],
            )


def test_a_study_that_nobody_owns_is_not_waited_for(database: StudyDatabase, owned: StudyRecord) -> None:
    database.release(database.claim(owned, "somebody pid 7 abc"))
    wait_for_lease(database, owned)
