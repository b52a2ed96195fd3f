"""The JSON document as pydantic sees it: which keys there are, and of which type.

Knows: the shape of a version 1 document, from which the JSON Schema is generated. Does not know: digests, whether rates
increase, or which rules exist; that is for the values it is turned into.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from scheduler_search.rule import ParameterValue, Rule
from scheduler_search.schedule.record import STRICT, Measured, Provenance, Share, Text
from scheduler_search.schedule.values import ModelIdentity, Reduction, Schedule, VisionReduction

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Rates = Annotated[list[Share], Field(min_length=1)]


def _check_time(text: str) -> str:
    # The pattern has settled the form; this refuses the 30th of February.
    datetime.fromisoformat(text)
    return text


Time = Annotated[
    str,
    Field(pattern=r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|\+00:00)$"),
    AfterValidator(_check_time),
]


class WireModel(BaseModel):
    """The model that the schedule was made for."""

    model_config = STRICT

    id: Text
    revision: str
    architecture: str
    decoder_layers: Annotated[int, Field(ge=1)]
    vision_layers: Annotated[int, Field(ge=0)]
    config_digest: Digest

    def value(self) -> ModelIdentity:
        """The identity; ScheduleError if the id is a path."""
        return ModelIdentity(**self.model_dump())


class WireRule(BaseModel):
    """A token-reduction rule with every parameter written out."""

    model_config = STRICT

    name: Text
    version: Annotated[int, Field(ge=1)]
    parameters: dict[str, ParameterValue]

    def value(self) -> Rule:
        """The rule; whether it exists is checked where it is used."""
        return Rule(self.name, self.version, tuple(sorted(self.parameters.items())))


class WireDecoder(BaseModel):
    """Share of the original vision tokens at the input of each decoder layer, and the rules that choose them."""

    model_config = STRICT

    keep_rates: Rates
    rule: WireRule
    entry_rule: WireRule | None


class WireVision(BaseModel):
    """Share of the tokens of the vision tower at the input of each of its layers, and the rule that chooses them."""

    model_config = STRICT

    keep_rates: Rates
    rule: WireRule

    def value(self) -> VisionReduction:
        """The reduction inside the tower; ScheduleError or RuleError if there is none such."""
        return VisionReduction(tuple(self.keep_rates), self.rule.value())


class WireProvenance(Provenance):
    """The study that found the schedule, and when the document was made (UTC, ISO 8601)."""

    created: Time


class WireDocument(BaseModel):
    """A keep-rate schedule for the vision tokens of one multimodal LLM, with its origin and its measurement."""

    model_config = STRICT

    format: Literal["keep-rate-schedule"]
    format_version: Literal[1]
    model: WireModel
    decoder: WireDecoder
    vision: WireVision | None
    provenance: WireProvenance
    digest: Digest
    record_digest: Digest
    measured: Measured | None

    def schedule(self) -> Schedule:
        """The schedule; ScheduleError or RuleError for rates or rules that cannot be one."""
        reduction = Reduction(
            keep_rates=tuple(self.decoder.keep_rates),
            rule=self.decoder.rule.value(),
            entry_rule=None if self.decoder.entry_rule is None else self.decoder.entry_rule.value(),
            vision=None if self.vision is None else self.vision.value(),
        )
        return Schedule(self.model.value(), reduction)
