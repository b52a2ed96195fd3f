"""StudyDefinition: everything that a study file says, as one frozen value.

Knows: the sections together, their canonical form and digest, and the JSON in which the study database keeps them. Does
not know: the TOML file (``file``) or the state of the study (``states``).
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, ValidationError

from scheduler_search.errors import RuleError
from scheduler_search.rule import Rule
from scheduler_search.schedule.canonical import canonical_json, digest_of
from scheduler_search.study.faults import study_file_error
from scheduler_search.study.search_section import SearchSection
from scheduler_search.study.section import Section
from scheduler_search.study.sections import DataSection, ModelSection, RuleSection, Seed, WorkersSection


class StudyDefinition(Section):
    """One study: one model, one data set, one rule, one algorithm.

    Args:
        written_paths: (dotted key, text in the file) of every path that reading made absolute. The digest covers the
            text as written, so a study keeps its digest when its folder moves; what lies behind a path has digests of
            its own.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
    seed: Seed = 0
    model: ModelSection
    data: DataSection
    rule: RuleSection = RuleSection()
    search: SearchSection = SearchSection()
    workers: WorkersSection = WorkersSection()
    written_paths: tuple[tuple[str, str], ...] = ()

    @property
    def resolved_rule(self) -> Rule:
        """The rule of the study with all parameters written out."""
        return self.rule.resolve(self.seed)

    @property
    def digest(self) -> str:
        """``sha256:`` over the canonical JSON with defaults written out and paths as they were written.

        Of ``[workers]`` only ``threads`` counts: all else changes nothing but who runs a study and how fast.
        """
        document = self.to_document()
        document["workers"] = self.workers.identity()
        document["rule"] = self.resolved_rule.to_document()
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
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise study_file_error(error, cls, place) from error
        except RuleError as error:
            raise study_file_error(error, cls, place) from error
