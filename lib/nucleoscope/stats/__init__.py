"""From tables of tokens to coefficients, intervals, null models and curves."""
