"""The declared rules, one file for each family of them. Data alone: names, parameters, sources, and names of stages."""
