"""Campaigns of studies that take a second each."""

from __future__ import annotations

from pathlib import Path

TINY = """
[campaign]
name = "tiny"
[study.model]
id = "testbed:tiny-llava"
device = "cpu"
[study.data]
source = "testbed"
search = { samples = 32 }
[study.search]
first_layer = 9
initial = 2
iterations = 2
"""
# G-Search at two penalties and P-Sigmoid at four budgets, under two rules: twelve studies.
TWELVE = (
    TINY
    + """
[[matrix]]
"rule.name" = ["attention-rank", "random"]
"search.algorithm" = ["g-search"]
"search.stride" = 3
"search.refine" = false
"search.penalty" = [0.01, 0.1]
[[matrix]]
"rule.name" = ["attention-rank", "random"]
"search.algorithm" = ["p-sigmoid"]
"search.budget" = [0.1, 0.2, 0.3, 0.5]
"""
)
# Long enough that it cannot end by itself before something was done to it.
LONG = TINY.replace("samples = 32", "samples = 128").replace("iterations = 2", "iterations = 20\nstride = 1")


def write(folder: Path, text: str) -> Path:
    path = folder / "campaign.toml"
    path.write_text(text)
    return path
