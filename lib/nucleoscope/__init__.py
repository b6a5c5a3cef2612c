"""Nucleoscope: what a language model was choosing between, at every token it wrote."""

__version__ = "0.1.0"
