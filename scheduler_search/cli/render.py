"""How values look in a terminal: bar charts of keep rates, percentages, intervals. Knows no files and no databases."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

_WIDTH = 32


def bar_charts(keep_rates: Sequence[float], tower_rates: Sequence[float] = ()) -> Group:
    """Keep rate per layer of the vision tower, where it is reduced, and per decoder layer."""
    tower = [_bar_chart("vision tower", tower_rates)] if tower_rates else []
    return Group(*tower, _bar_chart("decoder", keep_rates))


def _bar_chart(part: str, keep_rates: Sequence[float]) -> Table:
    """One bar for each layer; layers are counted from 1."""
    table = Table(title=f"keep rate per {part} layer", title_justify="left", box=None, padding=(0, 1))
    table.add_column("layer", justify="right")
    table.add_column("rate", justify="right")
    table.add_column("", no_wrap=True)
    for layer, rate in enumerate(keep_rates, start=1):
        table.add_row(str(layer), f"{rate:.3f}", "█" * round(rate * _WIDTH))
    return table


def interval(mean: float, low: float, high: float) -> str:
    """``+0.012 [-0.003, +0.027]``."""
    return f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"


def plain_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Table:
    """A table whose first ``texts`` columns are text and whose other columns are figures.

    Nothing is cut off, and nothing is taken for markup.
    """
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def say(text: str, console: Console | None = None) -> None:
    """Print a line as it is: not broken to the width of the terminal, and without markup."""
    (console or Console()).print(text, soft_wrap=True, highlight=False, markup=False)
