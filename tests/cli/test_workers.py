"""Events of workers as a user reads them: what is logged, what is printed, and when."""

from __future__ import annotations

import pytest

from scheduler_search.cli.workers import WorkerNews, progress_text
from scheduler_search.cluster.events import Progress, WorkerJoined, WorkerLogged, WorkerLost
from scheduler_search.coordinator.events import Event, StageStarted
from scheduler_search.errors import LeaseLostError

STARTED = StageStarted("layer-3", "keep_rate", 4, 0)
JOINED = WorkerJoined("worker-1", "10.0.0.7", "cuda")
LOST = WorkerLost("worker-1", "10.0.0.7", "it died:\n  SIGKILL")
LONG = WorkerLost("worker-1", "10.0.0.7", "x" * 2000)
LOST_LINE = "worker-1 on 10.0.0.7 was lost: it died: SIGKILL"


class Study:
    """What its log got, and its display."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        self.shown: list[str] = []
        self.events: list[Event] = []

    def write(self, level: str, text: str) -> None:
        self.lines.append((level, text))


def test_lines_wait_until_the_study_is_ours(capsys: pytest.CaptureFixture[str]) -> None:
    news, study = WorkerNews(), Study()
    news.receive(JOINED)
    with news.told(study.write, study.shown.append) as begin:
        listener = begin(study.events.append)
        assert study.lines == []
        listener(STARTED)
        listener(STARTED)
        assert study.lines == [("info", "worker-1 joined: cuda on 10.0.0.7")]
        news.receive(LOST)
        assert study.lines[1:] == [("warning", LOST_LINE)]
    assert study.events == [STARTED, STARTED]
    news.receive(JOINED)
    assert len(study.lines) == 2
    out, error = capsys.readouterr()
    # A loss is told to whoever watches; who joins is not.
    assert (out, error) == ("", LOST_LINE + "\n")


def test_what_workers_log_keeps_its_level() -> None:
    news, study = WorkerNews(), Study()
    with news.told(study.write, study.shown.append) as begin:
        begin(study.events.append)(STARTED)
        for level in ("debug", "info", "warning", "error", "critical"):
            news.receive(WorkerLogged("worker-1", level, "slow\nimage processor" + " x" * 1000))
    assert [level for level, _ in study.lines] == ["info", "info", "warning", "error", "error"]
    assert all(text.startswith("worker-1: slow image processor") and len(text) == 1000 for _, text in study.lines)


def test_progress_is_shown_and_its_last_is_logged() -> None:
    news, study = WorkerNews(), Study()
    news.receive(Progress(1, 0, 0.0, 0))
    with news.told(study.write, study.shown.append) as begin:
        begin(study.events.append)(STARTED)
        news.receive(Progress(2, 10, 4.0, 3 * 2**29))
    assert study.shown == ["2 workers, 2.5 chunks/s, 1.5 GiB at most"]
    assert study.lines == [("info", study.shown[0])]


def test_what_is_not_known_of_progress_is_left_out() -> None:
    assert progress_text(Progress(1, 0, 0.0, 0)) == "1 worker"
    assert progress_text(Progress(0, 4, 2.0, 0)) == "0 workers, 2.0 chunks/s"


def test_a_lost_lease_does_not_stop_a_worker(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(_level: str, _text: str) -> None:
        raise LeaseLostError("a coordinator must own its study")

    news, study = WorkerNews(), Study()
    with news.told(refuse, study.shown.append) as begin:
        begin(study.events.append)(STARTED)
        news.receive(LOST)
    assert LOST_LINE in capsys.readouterr().err


def test_a_long_reason_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    news, study = WorkerNews(), Study()
    with news.told(study.write, study.shown.append) as begin:
        begin(study.events.append)(STARTED)
        news.receive(LONG)
    printed = capsys.readouterr().err.rstrip()
    assert (len(printed), len(study.lines[0][1])) == (200, 1000)
    assert printed.endswith("x...")
