"""What a study is: its file, its definition, its states, and the values that pass between the parts that run it.

Knows: no model, no database, no algorithm. Does not import torch, Optuna or SQL.
"""
