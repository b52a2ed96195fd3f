"""The command line: the composition root that reads files, builds executors and databases, and prints.

Knows: every package below it. Does not know: how any of them does its work. Commands import what they need when they
run, so that ``scheduler-search --help`` is quick and loads no torch.
"""

from scheduler_search.cli.app import app, main

__all__ = ["app", "main"]
