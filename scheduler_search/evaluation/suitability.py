"""Whether a model can serve the rule of a study, before anything is scored.

Knows: a reduction that drops something wherever the study may. Does not know: what is refused and why (``runtime``).
"""

from __future__ import annotations

from scheduler_search.evaluation.models import LoadedModel
from scheduler_search.runtime import apply_reduction, model_shape
from scheduler_search.schedule.values import Reduction
from scheduler_search.study.definition import StudyDefinition


def check_rule(loaded: LoadedModel, definition: StudyDefinition) -> None:
    """Refuse a study that would stop at its first reduced candidate.

    Raises:
        UnsupportedError: what the model cannot serve, as ``apply_reduction`` says it.
    """
    shape = model_shape(loaded.model.config)
    tower_layers = definition.tower_layers(shape)
    everywhere = _everywhere(definition, tower_layers, shape.decoder.layers)
    apply_reduction(loaded.model, everywhere, question_encoder=loaded.question_encoder).remove()


def _everywhere(definition: StudyDefinition, tower_layers: int, layers: int) -> Reduction:
    """Half of the tokens go at each place where the rule acts."""
    rate, rates = 1.0, [1.0] * (tower_layers + layers)
    first_of = {"vision": 1, "entry": tower_layers, "decoder": tower_layers + definition.search.first_layer - 1}
    for place in definition.places:
        rate /= 2
        rates[first_of[place] :] = [rate] * len(rates[first_of[place] :])
    return definition.reduction(rates, tower_layers)
