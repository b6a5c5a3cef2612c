"""A table of tokens in, statistics of entropy and cosine out.

Contract: pandas tables as `results.load_table` makes them; no files, no figures.
"""

import numpy as np
import pandas as pd


def choices(table: pd.DataFrame) -> pd.DataFrame:
    """The tokens that had an alternative (k > 1): with one candidate there is no pair to compare."""
    return table[table["k"] > 1]


def coefficients(table: pd.DataFrame, x: str = "entropy", y: str = "cosine") -> dict[str, float]:
    """Pearson's and Spearman's coefficient of two columns over the tokens with k > 1, and the counts."""
    pairs = choices(table)
    return {
        "tokens": len(table),
        "tokens with k > 1": len(pairs),
        "Pearson r": round(float(pairs[x].corr(pairs[y])), 4),
        "Spearman r": round(float(pairs[x].corr(pairs[y], method="spearman")), 4),
    }


def binned(x: pd.Series, y: pd.Series, bins: int = 50) -> pd.DataFrame:
    """Statistics of y in equal-width bins of x: center, count, median, std; empty bins are left out."""
    edges = np.linspace(x.min(), x.max(), bins + 1)
    place = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
    groups = y.groupby(place)
    frame = groups.agg(count="size", median="median", std=lambda values: values.std(ddof=0)).reset_index(names="bin")
    frame.insert(0, "center", (edges[frame["bin"]] + edges[frame["bin"] + 1]) / 2)
    return frame.drop(columns="bin")
