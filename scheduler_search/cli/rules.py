"""`rules`: which token-reduction rules there are, and everything that is declared of one.

Knows: declarations, and how they are printed. Does not know: tensors, or how a study uses a rule.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler_search.cli.render import plain_table, say
from scheduler_search.rule import Declaration, Parameter, Place, Stages, declaration_of, declarations, versions_of

_NOTE = "* where a study uses the rule, unless its [rule] section says at which places"


def print_rules(name: str | None, as_json: bool) -> None:
    """Print all rules, or one in full.

    Raises:
        RuleError: no rule of that name.
    """
    shown = declarations() if name is None else (declaration_of(name),)
    if as_json:
        documents = [_document(declaration) for declaration in shown]
        print(json.dumps(documents if name is None else documents[0], indent=2))
    elif name is None:
        _print_all(shown)
    else:
        _print_one(shown[0])


def _document(declaration: Declaration) -> dict[str, object]:
    return {
        "name": declaration.name,
        "versions": list(versions_of(declaration.name)),
        "stages": {place: _stages(declaration.stages[place]) for place in declaration.places},
        "default_places": list(declaration.default_places),
        "parameters": [
            {
                "name": parameter.name,
                "default": parameter.default,
                "allowed": _allowed(parameter),
                "meaning": parameter.meaning,
            }
            for parameter in declaration.parameters
        ],
        "source": declaration.source,
        "follows": declaration.follows,
    }


def _stages(stages: Stages) -> dict[str, str | None]:
    return {"filter": stages.filter, "correlate": stages.correlate, "compress": stages.compress}


def _print_all(shown: Iterable[Declaration]) -> None:
    """Three columns, so that no name is broken where a terminal is 80 columns wide."""
    console = Console()
    table = Table(title="rules", title_justify="left", show_lines=True)
    for heading in ("rule", "acts at"):
        table.add_column(heading, no_wrap=True)
    table.add_column("filter, correlate, compress; parameters; source", overflow="fold")
    for declaration in shown:
        places = "\n".join(_marked(declaration, place) for place in declaration.places)
        table.add_row(*map(Text, (declaration.name, places, "\n".join(_summary(declaration)))))
    console.print(table)
    say(_NOTE, console)


def _summary(declaration: Declaration) -> list[str]:
    parameters = ", ".join(f"{one.name}={one.default}" for one in declaration.parameters)
    return [*_chains(declaration), *([parameters] if parameters else []), declaration.source]


def _chains(declaration: Declaration) -> list[str]:
    """The stages, of each place where they differ."""
    chains = {place: _chain(declaration.stages[place]) for place in declaration.places}
    if len(set(chains.values())) == 1:
        return [chains[declaration.places[0]]]
    return [f"{place}: {chain}" for place, chain in chains.items()]


def _chain(stages: Stages) -> str:
    """A rule that prunes has a filter alone."""
    return ", ".join(name for name in (stages.filter, stages.correlate, stages.compress) if name is not None)


def _marked(declaration: Declaration, place: Place) -> str:
    return f"{place} *" if place in declaration.default_places else place


def _print_one(declaration: Declaration) -> None:
    console = Console()
    say(f"rule {declaration.name}, version {declaration.version}{_older(declaration)}", console)
    say(f"source: {declaration.source}", console)
    if declaration.follows:
        say(f"follows: {declaration.follows}", console)
    headings = ("acts at", "filter", "correlate", "compress")
    rows = [
        (_marked(declaration, place), *(name or "" for name in _stages(declaration.stages[place]).values()))
        for place in declaration.places
    ]
    console.print(plain_table("stages", headings, rows, texts=4))
    say(_NOTE, console)
    settings = [(one.name, str(one.default), _allowed(one), one.meaning) for one in declaration.parameters]
    if settings:
        console.print(plain_table("parameters", ("parameter", "default", "allowed", "meaning"), settings, texts=4))


def _older(declaration: Declaration) -> str:
    older = [str(version) for version in versions_of(declaration.name) if version != declaration.version]
    return f"; schedules may also name version {', '.join(older)}" if older else ""


def _allowed(parameter: Parameter) -> str:
    """``mean, max, sum``, ``a whole number of at least 0``, ``a number from 0 to 1``."""
    if parameter.choices is not None:
        return ", ".join(str(choice) for choice in parameter.choices)
    kind = {bool: "true or false", int: "a whole number", float: "a number"}.get(type(parameter.default), "a text")
    low, high = parameter.low, parameter.high
    if low is not None and high is not None:
        return f"{kind} from {low:g} to {high:g}"
    if low is not None:
        return f"{kind} of at least {low:g}"
    return kind if high is None else f"{kind} of at most {high:g}"
