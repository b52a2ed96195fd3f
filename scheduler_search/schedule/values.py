"""The values of a schedule: the model it is for, what is executed, and both together.

Knows: which keep rates and rules can form a schedule. Does not know: JSON (``document``), tensors, or how the rates
were found.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from scheduler_search.errors import ScheduleError
from scheduler_search.rule import Place, Rule, declaration_of, shrinks_images
from scheduler_search.schedule.canonical import digest_of
from scheduler_search.schedule.checks import check_index, check_rates
from scheduler_search.schedule.counts import keep_counts

FORMAT = "keep-rate-schedule"
FORMAT_VERSION = 1

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# The name of a hub repository or of a directory: nothing that says where on some machine it lies.
_PATH = re.compile(r"^[/~.]|\\|/.*/|/$|^$")


@dataclass(frozen=True)
class ModelIdentity:
    """The model a schedule is for. ``id`` is a hub id or a directory's name, never a path.

    ``config_digest`` covers the shape-giving fields of the configuration, not paths or library versions.

    Raises:
        ScheduleError: a field of the wrong type, a path for an id, or a digest that is not ``sha256:`` and 64 digits.
    """

    id: str
    revision: str
    architecture: str
    decoder_layers: int
    vision_layers: int
    config_digest: str

    def __post_init__(self) -> None:
        for name in ("id", "revision", "architecture", "config_digest"):
            if not isinstance(getattr(self, name), str):
                raise ScheduleError(f"model {name} must be a text", actual=repr(getattr(self, name)))
        if _PATH.search(self.id):
            raise ScheduleError("model id must be a hub id or a directory's name, not a path", actual=repr(self.id))
        check_index(self.decoder_layers, "decoder_layers", 1)
        check_index(self.vision_layers, "vision_layers", 0)
        if not _DIGEST.fullmatch(self.config_digest):
            rule = "config_digest must be 'sha256:' and 64 hexadecimal digits"
            raise ScheduleError(rule, actual=repr(self.config_digest))

    def to_document(self) -> dict[str, object]:
        """The JSON object of the model in a schedule document."""
        return {
            "id": self.id,
            "revision": self.revision,
            "architecture": self.architecture,
            "decoder_layers": self.decoder_layers,
            "vision_layers": self.vision_layers,
            "config_digest": self.config_digest,
        }


@dataclass(frozen=True)
class VisionReduction:
    """Keep rates of the vision-tower layers (non-increasing) and the rule that executes them."""

    keep_rates: tuple[float, ...]
    rule: Rule

    def __post_init__(self) -> None:
        check_rates(self.keep_rates, "vision keep rates")
        _check_rule(self.rule, "vision")

    def to_document(self) -> dict[str, object]:
        """The JSON object of the tower's reduction in a schedule document."""
        return {"keep_rates": _plain(self.keep_rates), "rule": self.rule.to_document()}


@dataclass(frozen=True)
class Reduction:
    """What the runtime executes: keep rates of all L decoder layers (non-increasing) and the rules.

    ``keep_rates[i]`` is the share of the original vision tokens at the input of the decoder layer with 0-based index i.
    ``entry_rule`` acts before the first decoder layer and is needed where ``keep_rates[0]`` is below what the tower
    leaves (1.0, or its last rate).

    Raises:
        ScheduleError: rates that are no floats in [0, 1], that increase, or whose first one nothing could execute; a
            rule at a place where it does not act, or without all of its parameters.
        RuleError: a rule that is unknown, in name, version or parameters.
    """

    keep_rates: tuple[float, ...]
    rule: Rule
    entry_rule: Rule | None = None
    vision: VisionReduction | None = None

    def __post_init__(self) -> None:
        check_rates(self.keep_rates, "keep rates")
        _check_rule(self.rule, "decoder")
        if self.entry_rule is not None:
            _check_rule(self.entry_rule, "entry")
        if self.vision is not None and not isinstance(self.vision, VisionReduction):
            raise ScheduleError("vision must be a VisionReduction or None", actual=repr(self.vision)[:60])
        self._check_first_rate(1.0 if self.vision is None else self.vision.keep_rates[-1])

    def _check_first_rate(self, entering: float) -> None:
        first = self.keep_rates[0]
        if first > entering:
            rule = "the keep rate of the first decoder layer must be at most the last one of the vision tower"
            raise ScheduleError(rule, actual=f"{first} after {entering}")
        if first < entering and self.entry_rule is None:
            rule = "a keep rate below what the vision tower leaves at the first decoder layer needs an entry rule"
            raise ScheduleError(rule, actual=f"{first} after {entering} and no entry rule")

    @property
    def tower_rates(self) -> tuple[float, ...]:
        """Keep rates of the layers of the vision tower; none where it is left alone."""
        return () if self.vision is None else self.vision.keep_rates

    @property
    def image_rate(self) -> float:
        """Share of the vision tokens to which images are made smaller in front of the tower; 1.0 where they are not."""
        shrinks = self.entry_rule is not None and shrinks_images(self.entry_rule)
        return self.keep_rates[0] if shrinks else 1.0

    @property
    def unreduced(self) -> Reduction:
        """The reduction that reduces nothing, for a decoder of the same depth."""
        return Reduction((1.0,) * len(self.keep_rates), self.rule)

    def counts(self, vision_tokens: int) -> tuple[int, ...]:
        """Keep counts n_1..n_L of one sample with N = ``vision_tokens``."""
        return keep_counts(self.keep_rates, vision_tokens)

    def reduces(self, vision_tokens: int) -> bool:
        """Whether anything is dropped from a sample with N = ``vision_tokens``, in the tower or in the decoder."""
        in_tower = self.vision is not None and self.vision.keep_rates[-1] < 1.0
        return in_tower or self.counts(vision_tokens)[-1] < vision_tokens

    def to_document(self) -> dict[str, object]:
        """The ``decoder`` and ``vision`` objects of a schedule document."""
        decoder = {
            "keep_rates": _plain(self.keep_rates),
            "rule": self.rule.to_document(),
            "entry_rule": None if self.entry_rule is None else self.entry_rule.to_document(),
        }
        return {"decoder": decoder, "vision": None if self.vision is None else self.vision.to_document()}


@dataclass(frozen=True)
class Schedule:
    """A reduction frozen for one model; equal schedules have equal ``digest`` wherever they came from.

    Raises:
        ScheduleError: not one keep rate per layer of the model.
    """

    model: ModelIdentity
    reduction: Reduction

    def __post_init__(self) -> None:
        _check_length(self.reduction.keep_rates, self.model.decoder_layers, "decoder")
        if self.reduction.vision is not None:
            _check_length(self.reduction.vision.keep_rates, self.model.vision_layers, "vision")

    def to_document(self) -> dict[str, object]:
        """What is executed, as the JSON object that ``digest`` covers, keys in document order."""
        head = {"format": FORMAT, "format_version": FORMAT_VERSION, "model": self.model.to_document()}
        return head | self.reduction.to_document()

    @cached_property
    def digest(self) -> str:
        """``sha256:...`` over what is executed: format, model, decoder and vision."""
        return digest_of(self.to_document())


def _check_rule(rule: Rule, place: Place) -> None:
    if not isinstance(rule, Rule):
        raise ScheduleError(f"the {place} rule must be a Rule", actual=repr(rule)[:60])
    declaration = declaration_of(rule.name, rule.version)
    if place not in declaration.places:
        acts = " and ".join(sorted(declaration.places))
        raise ScheduleError(f"rule {rule.name!r} acts only at {acts}", actual=f"it as the {place} rule")
    if declaration.rule(dict(rule.parameters)) != rule:
        needed = ", ".join(sorted(parameter.name for parameter in declaration.parameters)) or "none"
        given = ", ".join(name for name, _ in rule.parameters) or "none"
        raise ScheduleError(f"rule {rule.name!r} needs all of its parameters in order ({needed})", actual=given)


def _check_length(rates: tuple[float, ...], layers: int, part: str) -> None:
    if len(rates) != layers:
        raise ScheduleError(f"there must be one keep rate for each of the {layers} {part} layers", actual=len(rates))


def _plain(rates: tuple[float, ...]) -> list[float]:
    """As JSON. Adding 0.0 turns -0.0, which equals 0.0, into it: equal schedules have equal digests."""
    return [rate + 0.0 for rate in rates]
