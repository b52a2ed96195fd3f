"""Torch-free schedules: the value, rate families, cost arithmetic, budget solving and the JSON document."""
