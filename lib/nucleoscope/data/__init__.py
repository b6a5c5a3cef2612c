"""From a data set's name to its prompts; downloading data sets and models beforehand."""
