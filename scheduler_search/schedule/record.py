"""Where a schedule came from and what it was measured to do: the parts of a document that are not executed.

Knows: the fields of ``provenance`` and ``measured``. Does not know: how any of them is computed.

All of them are frozen pydantic models, strict (a text is no number, a bool is no float, unknown keys are refused).
"""

from __future__ import annotations

import json
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=0)]
# JSON has lists and no tuples, so that strictness ends at this one step; the items are strict again.
Interval = Annotated[tuple[float, float], Field(strict=False)]


class Provenance(BaseModel):
    """The study that found the schedule.

    Args:
        algorithm_parameters: any JSON values, defaults written out.
        search_data_digest: digest of the split that the search saw; the validation one is null without validation.
        software: versions by distribution name.
    """

    model_config = STRICT

    study: Text
    algorithm: Text
    algorithm_parameters: dict[str, JsonValue]
    search_data_digest: Text
    validation_data_digest: Text | None
    search_samples: Count
    validation_samples: Count
    seed: int
    software: dict[str, Text]

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            json.dumps(self.algorithm_parameters, allow_nan=False)
        except ValueError as error:
            raise ValueError("algorithm_parameters must be finite numbers") from error
        if (self.validation_data_digest is None) != (self.validation_samples == 0):
            raise ValueError("validation_data_digest must be null exactly where validation_samples is 0")
        return self


class Estimate(BaseModel):
    """A mean score over the validation split, in [0, 1], with its standard error."""

    model_config = STRICT

    score: Share
    standard_error: NotNegative


class Difference(BaseModel):
    """A mean of paired differences of scores, with its 95 % interval [low, high]."""

    model_config = STRICT

    mean: Annotated[float, Field(ge=-1.0, le=1.0)]
    interval: Interval

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.interval[0] > self.interval[1]:
            raise ValueError("interval must be [low, high] with low <= high")
        return self


class PrefillTeraflops(BaseModel):
    """Mean prefill TFLOPs over the samples of the validation split; ``formula`` names the arithmetic."""

    model_config = STRICT

    formula: Text
    reduced: Positive
    unreduced: Positive


class PrefillMilliseconds(BaseModel):
    """Measured wall time of a prefill, and on which device."""

    model_config = STRICT

    device: Text
    reduced: Positive
    unreduced: Positive


class Baseline(BaseModel):
    """A baseline at (nearly) the same FLOPs on the same samples.

    Args:
        difference: score of the schedule minus score of the baseline, paired.
        flops_ratio: FLOPs of the baseline over FLOPs of the schedule.
        beaten: whether the exporter counts the baseline as beaten.
    """

    model_config = STRICT

    name: Text
    rule: Text
    score: Share
    difference: Difference
    flops_ratio: Positive
    beaten: bool


class Measured(BaseModel):
    """What the schedule does on the validation split, which the search never saw.

    Args:
        difference: score reduced minus score unreduced, paired.
        kv_cache_ratio: mean over the samples of ``cost.kv_cache_ratio``: all tokens, reduced over unreduced.
        vision_kv_cache_ratio: the same of the vision tokens alone, the "memory cost" of seed 003.
        prefill_milliseconds: None where nothing was timed.
    """

    model_config = STRICT

    metric: Text
    samples: Annotated[int, Field(ge=1)]
    reduced: Estimate
    unreduced: Estimate
    difference: Difference
    tflops: PrefillTeraflops
    kv_cache_ratio: Share
    vision_kv_cache_ratio: Share
    prefill_milliseconds: PrefillMilliseconds | None
    baselines: Annotated[tuple[Baseline, ...], Field(strict=False)]
