"""Which events go to the log of a study in the database: a line per stage, and none per trial.

Knows: how an event reads as a line. Does not know: terminals, or how a run ended (``ownership`` logs that).
"""

from __future__ import annotations

from scheduler_search.coordinator.events import Event, Listener, StageDecided, StageStarted
from scheduler_search.storage import StudyDatabase
from scheduler_search.study.states import StudyRecord


def logged(database: StudyDatabase, study: StudyRecord, listener: Listener) -> Listener:
    """A listener that logs what ``listener`` then gets."""
    started: set[str] = set()

    def receive(event: Event) -> None:
        match event:
            case StageStarted():
                started.add(event.name)
                database.add_log(study, "info", _started(event))
            # A stage that an earlier run decided is told again, and was logged then.
            case StageDecided() if event.decision.name in started:
                database.add_log(study, "info", decided_text(event))
            case _:
                pass
        listener(event)

    return receive


def decided_text(event: StageDecided) -> str:
    """What a stage decided, as a line."""
    decision = event.decision
    return (
        f"{decision.name}: {decision.parameter} {decision.value:.4f}, score {decision.score:.4f}, "
        f"objective {decision.objective:.4f}"
    )


def _started(event: StageStarted) -> str:
    if event.finished:
        return f"{event.name}: goes on, {event.finished} of at most {event.trials} trials are recorded"
    return f"{event.name}: begins, at most {event.trials} trials"
