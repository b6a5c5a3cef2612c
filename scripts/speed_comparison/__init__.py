"""The comparison behind scripts/benchmark.py: how fast Nucleoscope and its alternatives are."""
