"""The figures and tables about similarity in context of one run.

Contract: tables and matrices in, plotly figures and tables out; no file is read.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown

from nucleoscope.stats import what_or_how
from nucleoscope.store.context import find_matrix
from nucleoscope.views import palette
from nucleoscope.views.figures import MOST, NO_CHOICE
from nucleoscope.views.theory_figures import plot_curves
from nucleoscope.views.token_text import Reader
from nucleoscope.wording import count

KEYS = ["prompt", "step"]
QUANTITIES = ("mean_similarity", "weighted_similarity", "continuations", "groups", "cosine", "entropy", "k")
CHOICES = {"least similar": 0.0, "median": 0.5, "most similar": 1.0}  # quantiles of the mean similarity


def join(compared: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of context.parquet with the quantities of the same tokens, from tokens.parquet.

    The latter's ``similarity_entropy``, which is about embeddings, becomes ``embedding_similarity_entropy``.
    """
    renamed = table.rename(columns={"similarity_entropy": "embedding_similarity_entropy"})
    return compared.merge(renamed, on=KEYS, how="left", validate="one_to_one")


def plot_similarities(compared: pd.DataFrame) -> go.Figure | Markdown:
    """Mean similarity in context over the mean cosine: a point per token, of at most `figures.MOST`."""
    if compared[["cosine", "mean_similarity"]].dropna().empty:
        return Markdown(NO_CHOICE)
    every = max(1, -(-len(compared) // MOST))
    drawn = compared[::every]
    dots = {"token": (drawn["cosine"].to_numpy(), drawn["mean_similarity"].to_numpy())}
    title = f"{count(len(compared), 'token')} with more than one candidate" + (
        f", 1 in {every} drawn" if every > 1 else ""
    )
    titles = (title, "mean cosine of embeddings", "mean similarity in context")
    return plot_curves(
        np.empty(0), {}, titles, "Similarity in context over cosine similarity: one point per token.", dots
    )


def summarise(compared: pd.DataFrame) -> pd.DataFrame:
    """Quartiles of some quantities over tokens, and Spearman's coefficient of each with the mean similarity."""
    shown = compared[list(QUANTITIES)]
    rows = shown.quantile([0.25, 0.5, 0.75]).T.set_axis(["lower quartile", "median", "upper quartile"], axis="columns")
    rows["rank correlation with mean_similarity"] = shown.corrwith(compared["mean_similarity"], method="spearman")
    return rows.round(2).rename_axis("quantity")


def plot_thresholds(curve: Mapping[str, np.ndarray], threshold: float) -> go.Figure | Markdown:
    """The mean entropy about what follows, and about how it is put, over the threshold, with both null models.

    ``curve`` is that of `what_or_how.compute_curve`; a vertical line marks the ``threshold`` of the run.
    """
    names = {
        "what": "entropy_what",
        "how": "entropy_how",
        "what, groups at random": "entropy_what_null",
        "how, groups at random": "entropy_how_null",
    }
    lines = {name: curve[column] for name, column in names.items()}
    if not any(np.isfinite(line).any() for line in lines.values()):
        return Markdown(NO_CHOICE)
    titles = ("What or how, by threshold", "similarity that joins two groups", "mean entropy, nats")
    alt = "Mean entropy over groups and within groups against the threshold, with those of groups drawn at random."
    figure = plot_curves(curve["threshold"], lines, titles, alt)
    return figure.add_vline(x=threshold, line={"color": palette.GREY, "dash": "dot"})


def show_choices(
    compared: pd.DataFrame, matrices: Mapping[str, np.ndarray], tokenizer: Any, threshold: float
) -> pd.DataFrame:
    """Of the tokens with at least the median entropy, the `CHOICES`, with their candidates by group as a note.

    Of two such tokens there is no median.
    """
    wide = compared[compared["entropy"] >= compared["entropy"].median()].sort_values(["mean_similarity", *KEYS])
    reader, rows = Reader(tokenizer), []
    places = {name: round(share * (len(wide) - 1)) for name, share in CHOICES.items()}
    if len(wide) < len(places):  # of one or two, there is no median
        places = {name: place for name, place in (("least similar", 0), ("most similar", 1)) if place < len(wide)}
    for name, place in places.items():
        token = wide.iloc[place]
        ids, shares, matrix = find_matrix(matrices, token["prompt"], token["step"])
        groups = what_or_how.cut(what_or_how.link(matrix[np.triu_indices(len(ids), 1)]), threshold)
        words = [f"{reader.show(int(one))} {share:.2f}" for one, share in zip(ids, shares, strict=True)]
        order = dict.fromkeys(groups.tolist())  # by the likeliest candidate of each
        joined = [" / ".join(words[place] for place in np.flatnonzero(groups == group)) for group in order]
        rows.append(
            {
                "choice": name,
                "prompt": int(token["prompt"]),
                "step": int(token["step"]),
                "mean similarity": round(token["mean_similarity"], 3),
                "what, nats": round(token["entropy_what"], 3),
                "how, nats": round(token["entropy_how"], 3),
                "note": "; ".join(joined),
            }
        )
    columns = ("choice", "prompt", "step", "mean similarity", "what, nats", "how, nats", "note")
    return pd.DataFrame(rows, columns=list(columns)).set_index("choice")
