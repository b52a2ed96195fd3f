"""Benchmarks: each prints a table and its ratios. They measure; tests never look at a time."""
