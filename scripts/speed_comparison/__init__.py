"""The comparison behind scripts/benchmark.py: how fast Nucleoscope and its alternatives are."""

DATASETS = ("math", "stories", "articles")  # what --against measures by default
