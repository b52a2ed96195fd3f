"""StudyDefinition: everything that a study file says, as one frozen value.

Knows: the sections together, their canonical form and digest, and the JSON in which the study database keeps them. Does
not know: the TOML file (``file``) or the state of the study (``states``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from scheduler_search.errors import RuleError
from scheduler_search.rule import PLACES, Place, Rule, make_rule
from scheduler_search.schedule.canonical import canonical_json, digest_of
from scheduler_search.schedule.cost import ModelShape
from scheduler_search.schedule.values import Reduction, VisionReduction
from scheduler_search.study.faults import study_file_error
from scheduler_search.study.rule_section import RECORDED, EntryRuleSection, RuleSection
from scheduler_search.study.search_section import SearchSection, search_at
from scheduler_search.study.section import Section, broken
from scheduler_search.study.sections import DataSection, ModelSection, Seed, WorkersSection


class StudyDefinition(Section):
    """One study: one model, one data set, one rule, one algorithm.

    Args:
        entry_rule: another rule in front of the decoder; None where ``rule`` acts there itself, or nothing does.
        written_paths: (dotted key, text in the file) of every path that reading made absolute. The digest covers the
            text as written, so a study keeps its digest when its folder moves; what lies behind a path has digests of
            its own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
    seed: Seed = 0
    model: ModelSection
    data: DataSection
    rule: RuleSection = RuleSection()
    entry_rule: EntryRuleSection | None = None
    search: SearchSection = Field(default_factory=SearchSection, validate_default=True)
    workers: WorkersSection = WorkersSection()
    written_paths: tuple[tuple[str, str], ...] = ()

    @field_validator("search", mode="before")
    @classmethod
    def _suits_the_rule(cls, search: Any, info: ValidationInfo) -> Any:
        rule, entry = info.data.get("rule"), info.data.get("entry_rule")
        given = search.model_dump(by_alias=True, exclude_unset=True) if isinstance(search, SearchSection) else search
        if rule is None or not isinstance(given, Mapping):
            return search
        return search_at(_together(rule, entry), given)

    @field_validator("entry_rule")
    @classmethod
    def _stands_alone(cls, entry: EntryRuleSection | None, info: ValidationInfo) -> EntryRuleSection | None:
        rule = info.data.get("rule")
        if entry is not None and rule is not None and "entry" in rule.places:
            actual = f"{rule.name!r} at {' and '.join(rule.places)}"
            remedy = "say at which other place [rule] acts, or remove [entry_rule]"
            raise broken("one rule acts at the entry", actual=actual, remedy=remedy)
        return entry

    @model_validator(mode="after")
    def _has_the_encoder_that_its_rule_asks_for(self) -> Self:
        named = self.model.text_encoder
        asks = self.rule.asks_encoder or (self.entry_rule is not None and self.entry_rule.asks_encoder)
        if asks and named is None:
            rule = 'a rule with text_features = "clip" needs the CLIP model of the vision tower as text encoder'
            remedy = 'for example text_encoder = "openai/clip-vit-large-patch14-336"; or text_features = "decoder"'
            raise broken(rule, key="model.text_encoder", remedy=remedy)
        if named is not None and not asks:
            rule = 'a text encoder is named for a rule that asks it, with text_features = "clip" at the entry'
            remedy = "remove the key, or ask it in [rule]; in a campaign, name it beside that rule in [[matrix]]"
            raise broken(rule, key="model.text_encoder", actual=f"{named!r} for {self.rule.name!r}", remedy=remedy)
        return self

    @property
    def resolved_rule(self) -> Rule:
        """The rule of the study with all parameters written out."""
        return self.rule.resolve(self.seed)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the rules act, in the order in which tokens pass."""
        return _together(self.rule, self.entry_rule)

    def rule_at(self, place: Place) -> Rule:
        """The rule at one of ``places``, with all parameters written out."""
        return (self.entry_rule if place == "entry" and self.entry_rule else self.rule).resolve(self.seed)

    def tower_layers(self, shape: ModelShape) -> int:
        """How many of the keep rates that the study decides on are of layers of the model's vision tower."""
        return 0 if "vision" not in self.places or shape.vision is None else shape.vision.layers

    def reduction(self, keep_rates: Sequence[float], tower_layers: int = 0) -> Reduction:
        """What is executed under the keep rates of a decision.

        A rule is left out where it has nothing to drop, so that equal reductions are equal values. In a decoder where
        it does not act the rates are constant, and the rule that stands there is never run.

        Args:
            keep_rates: of ``tower_layers`` layers of the tower, then of all decoder layers.
        """
        rule = self.resolved_rule
        tower, decoder = tuple(keep_rates[:tower_layers]), tuple(keep_rates[tower_layers:])
        entering = tower[-1] if tower else 1.0
        return Reduction(
            keep_rates=decoder,
            rule=rule if "decoder" in self.places else make_rule("attention-rank"),
            entry_rule=self.rule_at("entry") if "entry" in self.places and decoder[0] < entering else None,
            vision=VisionReduction(tower, rule) if entering < 1.0 else None,
        )

    @property
    def digest(self) -> str:
        """``sha256:`` over the canonical JSON with defaults written out and paths as they were written.

        Of ``[workers]`` only ``threads`` counts: all else changes nothing but who runs a study and how fast.
        """
        document = self.to_document()
        document["workers"] = self.workers.identity()
        document["rule"] = {**self.resolved_rule.to_document(), **({"at": list(self.rule.at)} if self.rule.at else {})}
        if self.entry_rule is not None:
            document["entry_rule"] = self.rule_at("entry").to_document()
        for dotted, text in self.written_paths:
            *sections, key = dotted.split(".")
            target = document
            for section in sections:
                target = target[section]  # type: ignore[assignment]
            target[key] = text
        return digest_of(document)

    def to_document(self) -> dict[str, object]:
        """The definition as the nested tables of a study file: defaults written out, absent keys left out."""
        document: dict[str, object] = self.model_dump(
            mode="json", by_alias=True, exclude_none=True, exclude={"search", "written_paths"}
        )
        return {**document, "search": self.search.to_document()}

    def to_json(self) -> str:
        """JSON for the study database; ``from_json`` gives back an equal definition."""
        return canonical_json({**self.to_document(), "written_paths": self.written_paths})

    @classmethod
    def from_json(cls, text: str, place: str = "the study database") -> Self:
        """The definition that ``to_json`` wrote.

        Raises:
            StudyFileError: the text is not a definition, or asks for what this version does not know.
        """
        try:
            return cls.model_validate_json(text, context=RECORDED)
        except ValidationError as error:
            raise study_file_error(error, cls, place) from error
        except RuleError as error:
            raise study_file_error(error, cls, place) from error


def _together(rule: RuleSection, entry: EntryRuleSection | None) -> tuple[Place, ...]:
    """Where one of both acts, in the order in which tokens pass."""
    return tuple(place for place in PLACES if place in rule.places or (entry is not None and place == "entry"))
