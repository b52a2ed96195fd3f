"""One model and one seed: its splits, its scores and its costs. What was ever scored comes from the database.

Knows: the study database and the executor. Does not know: searches, rivals or tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import TracebackType
from typing import Self

from scheduler_search.coordinator import Evaluations, run_study
from scheduler_search.coordinator.evaluations import Request
from scheduler_search.evaluation import LocalExecutor
from scheduler_search.export import searched_reduction
from scheduler_search.schedule.cost import ModelShape, SplitCost
from scheduler_search.schedule.values import Reduction
from scheduler_search.search import Race
from scheduler_search.storage import StudyDatabase
from scheduler_search.study import StudyDefinition
from scheduler_search.study.states import StudyState
from scheduler_search.study.values import SplitDescription, SplitName

FIRST_LAYER = 3
"""The first layer that anything but FastV's shape, pooling and withdrawal reduces (seed 003, section 3.3)."""


# Probability that races give up the best of the reductions that ``best`` is given.
_DELTA = 0.05


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        share: of the unreduced FLOPs, on the search split.
        trials: candidates that were tried.
        samples: of the search split that were read for all trials together.
    """

    reduction: Reduction
    share: float
    trials: int
    samples: int


class Bench:
    """Scores and costs of reductions of one model, on the splits of one seed.

    Args:
        label: of the model, in the names of studies.
        model: ``testbed:tiny-llava`` or the directory of a checkpoint.
    """

    def __init__(self, database: StudyDatabase, label: str, model: str, seed: int, samples: int, test: int) -> None:
        self.seed = seed
        self._label = label
        self._database = database
        self._tables = {
            "seed": seed,
            "model": {"id": model, "device": "cpu"},
            "data": {"source": "testbed", "search": {"samples": samples}, "test": {"samples": test}},
            "workers": {"threads": 1},
        }
        self._executor = LocalExecutor(self._definition("bench", {"algorithm": "g-search"}))
        self._evaluations = Evaluations(database, self._executor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.close()

    @property
    def shape(self) -> ModelShape:
        """Of the model, for FLOPs."""
        return self._executor.model().shape

    @property
    def layers(self) -> int:
        """L, decoder layers."""
        return self.shape.decoder.layers

    def split(self, name: SplitName) -> SplitDescription:
        """One split."""
        return self._executor.split(name)

    def cost(self, name: SplitName) -> SplitCost:
        """Mean prefill FLOPs of keep rates over a split."""
        split = self.split(name)
        return SplitCost(self.shape, split.vision_tokens, split.text_tokens)

    def share(self, keep_rates: Sequence[float]) -> float:
        """Mean prefill FLOPs over the search split, of those of the unreduced model."""
        cost = self.cost("search")
        return cost(keep_rates) / cost((1.0,) * self.layers)

    def scores(self, name: SplitName, reduction: Reduction) -> tuple[float, ...]:
        """Scores of all samples; run once in the life of the database."""
        whole = sum(1 for rate in reduction.keep_rates if rate == 1.0)
        shared = 0 if reduction.entry_rule else min(whole, FIRST_LAYER - 1)
        return self._evaluations.read(name, [Request(reduction, shared_layers=shared)])[0]

    def mean(self, name: SplitName, reduction: Reduction) -> float:
        """Mean score over a split."""
        return fmean(self.scores(name, reduction))

    def search(self, name: str, settings: Mapping[str, object]) -> Found:
        """What a study finds; a finished study is only read."""
        definition = self._definition(f"{self._label}.seed-{self.seed}.{name}", settings)
        study = self._database.add_study(definition)
        if study.state is not StudyState.FINISHED:
            run_study(self._database, study, self._executor)
            study = self._database.study(definition.name)
        trials = [trial for stage in self._database.stages(study) for trial in self._database.trials(stage)]
        samples = sum(trial.figures.samples for trial in trials if trial.figures is not None)
        reduction = searched_reduction(self._database, study)
        return Found(reduction, self.share(reduction.keep_rates), len(trials), samples)

    def best(self, reductions: Sequence[Reduction]) -> Reduction:
        """The best on the search split; the first of several. What cannot be the best is not read to its end."""
        best, best_scores = reductions[0], self.scores("search", reductions[0])
        for reduction in reductions[1:]:
            race = Race(fmean(best_scores), len(best_scores), _DELTA / len(reductions), [(0.6, best_scores)])
            (scores,) = self._evaluations.read("search", [Request(reduction, race, FIRST_LAYER - 1)])
            if len(scores) == len(best_scores) and fmean(scores) > fmean(best_scores):
                best, best_scores = reduction, tuple(scores)
        return best

    def _definition(self, name: str, settings: Mapping[str, object]) -> StudyDefinition:
        return StudyDefinition.model_validate({**self._tables, "name": name, "search": dict(settings)})
