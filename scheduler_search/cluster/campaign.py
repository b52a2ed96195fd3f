"""A campaign on a Ray cluster: an experiment of Ray Tune whose trials are whole studies.

Knows: what a study needs of the cluster, and how Tune is started, watched and stopped. Does not know: campaign files,
terminals, or what a study does.

The study database is the truth. Tune gets the names of the studies that the database says are unfinished, and nothing
else: its experiment lies in a folder that is gone with the run, and its snapshots are never read, since they are
pickles. To resume is to begin a new experiment over the studies that are left. The database's URL may hold a
password, and travels in Ray's object store alone.
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray

from scheduler_search.cluster.room import reserved_for
from scheduler_search.errors import ClusterError, LeaseHeldError
from scheduler_search.storage import StudyDatabase, absolute_url, is_file
from scheduler_search.study.campaign import CampaignSection
from scheduler_search.study.definition import StudyDefinition
from scheduler_search.study.states import StudyState

Bundles = list[dict[str, float]]

_LOOK_SECONDS = 0.5
_PATIENCE_SECONDS = 60.0
# Tune reads these when it is imported or started: no output, no log files, and no long wait for a trial that hangs.
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_FORCE_TRIAL_CLEANUP_S": "5",
}


def check_resources(definitions: Sequence[StudyDefinition], url: str) -> None:
    """Refuse a study that the connected cluster cannot hold even alone: Tune would wait for room for ever.

    Args:
        url: of the study database; the coordinator of a study runs beside one that is a file.

    Raises:
        ClusterError: with what is asked for and what there is.
    """
    total = ray.cluster_resources()
    beside = _resources_here() if is_file(url) else total
    for definition in definitions:
        bundles = bundles_of(definition, total.get("GPU", 0.0))
        for resource in ("CPU", "GPU"):
            asked = sum(bundle.get(resource, 0.0) for bundle in bundles)
            _require(definition, resource, asked, total, "the cluster", "lower workers of [campaign], or add nodes")
            first, remedy = bundles[0].get(resource, 0.0), "use a PostgreSQL database, which can be used from any node"
            _require(definition, resource, first, beside, "the machine of an SQLite database", remedy)


def _require(
    definition: StudyDefinition, resource: str, asked: float, there: Mapping[str, float], where: str, remedy: str
) -> None:
    if asked > there.get(resource, 0.0):
        raise ClusterError(
            f"{where} must hold what a study reserves",
            actual=f"{asked:g} {resource} asked for, and {there.get(resource, 0.0):g} there",
            place=f"study {definition.name!r}",
            remedy=remedy,
        )


def _resources_here() -> dict[str, float]:
    """What the nodes of this machine have, together."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        if node["Alive"] and node["NodeManagerAddress"] == ray.util.get_node_ip_address():
            for resource, amount in node["Resources"].items():
                found[resource] = found.get(resource, 0.0) + float(amount)
    return found


def bundles_of(definition: StudyDefinition, gpus: float, node: str | None = None) -> Bundles:
    """What a study reserves: with workers of its own, the first bundle is its coordinator's.

    Args:
        gpus: of the whole cluster, for studies that leave it to the machine.
        node: that the coordinator must run on.
    """
    worker = reserved_for(definition, gpus).bundle
    pinned = {} if node is None else {node: 0.001}
    if definition.workers.executor == "local":
        return [worker | pinned]
    return [{"CPU": 1.0} | pinned] + [dict(worker) for _ in range(definition.workers.count or 1)]


def run_trials(
    database: StudyDatabase,
    url: str,
    section: CampaignSection,
    definitions: Sequence[StudyDefinition],
    *,
    stop: Callable[[], bool],
    look: Callable[[], None],
) -> dict[str, str]:
    """Run recorded studies on the connected cluster, each in a trial; the errors of trials that failed, by study.

    A study that another coordinator runs is waited for, and taken up when that one falls silent. When ``stop`` is true
    the trials lose their studies at once: what they recorded stays, and the studies are marked interrupted.

    Args:
        url: of ``database``.
        look: called about twice a second.

    Raises:
        ClusterError: Tune itself failed.
    """
    run = f"campaign {secrets.token_hex(4)}"
    stopping = threading.Event()
    names = [definition.name for definition in definitions]
    with _quiet_tune(), tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        tuner = _tuner(url, run, section, definitions, folder, stopping)
        experiment = _Experiment(tuner)
        try:
            while not experiment.over(_LOOK_SECONDS):
                look()
                if stop():
                    stopping.set()
                    _settle(database, names, run, StudyState.INTERRUPTED, None)
        finally:
            stopping.set()
            experiment.over(_PATIENCE_SECONDS)
        if stop():
            _settle(database, names, run, StudyState.INTERRUPTED, None)
        else:
            reason = f"its process ended without a reason, {section.attempts} times"
            _settle(database, names, run, StudyState.FAILED, reason)
    look()
    return experiment.errors()


def _settle(database: StudyDatabase, names: Sequence[str], run: str, state: StudyState, error: str | None) -> None:
    """Take the studies that trials of this run hold from them; a trial that still writes is refused."""
    from scheduler_search.cluster.trial import is_of

    for name in names:
        study = database.study(name)
        holder = database.holder(study)
        if study.state is not StudyState.RUNNING or holder is None or not is_of(holder.owner, run):
            continue
        try:
            lease = database.claim(study, f"{run} itself", take_over=True)
        except LeaseHeldError:
            continue
        with database.holding(lease):
            if database.study(name).state is StudyState.RUNNING:
                database.set_state(study, state, error)
                database.add_log(study, "warning", error or "stopped with its campaign")
        database.release(lease)


def _tuner(
    url: str,
    run: str,
    section: CampaignSection,
    definitions: Sequence[StudyDefinition],
    folder: str,
    stopping: threading.Event,
) -> Any:
    from ray import tune

    from scheduler_search.cluster.trial import STUDY, StudyTrial

    node = f"node:{ray.util.get_node_ip_address()}" if is_file(url) else None
    gpus = ray.cluster_resources().get("GPU", 0.0)
    bundles = {definition.name: bundles_of(definition, gpus, node) for definition in definitions}
    trainable = tune.with_parameters(StudyTrial, url=absolute_url(url), run=run)
    return tune.Tuner(
        tune.with_resources(trainable, partial(_placement, bundles)),
        param_space={STUDY: tune.grid_search(list(bundles))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=section.max_concurrent,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name=section.name,
            storage_path=folder,
            stop=_stopper(stopping),
            # A trial has nothing to save that is not in the study database.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            failure_config=tune.FailureConfig(max_failures=section.attempts - 1),
            verbose=0,
        ),
    )


def _placement(bundles: Mapping[str, Bundles], config: Mapping[str, Any]) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory(bundles[str(config["study"])])


def _trial_name(trial: Any) -> str:
    return str(trial.config["study"])


def _stopper(stopping: threading.Event) -> Any:
    from ray.tune.stopper import Stopper

    class WhenAsked(Stopper):
        """Ends the experiment; Tune copies and pickles it, which an event does not bear."""

        def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
            del trial_id, result
            return False

        def stop_all(self) -> bool:
            return stopping.is_set()

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            del memo
            return self

        def __reduce__(self) -> Any:
            from ray.tune.stopper import NoopStopper

            return (NoopStopper, ())

    return WhenAsked()


class _Experiment:
    """Tune's experiment in a thread of its own, so that signals and the screen stay with the main thread."""

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        self._results: Any = None
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._fit, name="campaign", daemon=True)
        self._thread.start()

    def _fit(self) -> None:
        try:
            self._results = self._tuner.fit()
        except Exception as error:  # noqa: BLE001 - raised again in the main thread
            self._error = error

    def over(self, seconds: float) -> bool:
        """Whether it is over, after at most so many seconds."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def errors(self) -> dict[str, str]:
        """What the last attempts of trials raised, by study."""
        if self._error is not None or self._results is None:
            raise ClusterError(
                "Ray Tune must run the trials of a campaign",
                actual="a stop that took too long" if self._error is None else repr(self._error),
                remedy="what is recorded stays; go on with --resume",
            ) from self._error
        failed = [result for result in self._results if result.error is not None]
        return {str(result.config["study"]): _text(result.error) for result in failed}


def _text(error: Exception) -> str:
    """The last line of what a trial raised, which is the error itself."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


@contextmanager
def _quiet_tune() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
