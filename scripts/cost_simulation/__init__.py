"""The simulation behind scripts/scale.py: what a study of a given size costs."""
