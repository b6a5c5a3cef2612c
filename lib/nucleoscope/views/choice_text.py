"""The sentences of the page "Does the choice matter?": each says what the tables show.

Contract: tables of `stats.choice` in, Markdown out; nothing is computed but comparisons. A predictor is said to predict
an outcome only if the 95 % interval of its coefficient does not contain 0.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from nucleoscope.stats.choice import ALL, GIVEN, OUTCOMES, PAIR_PREDICTORS, WITHIN
from nucleoscope.stats.null_models import POOLED
from nucleoscope.views.made_of_figures import list_groups, select
from nucleoscope.views.made_of_text import format_bounded, join_words
from nucleoscope.views.token_text import escape_name

NOTHING = (
    "No run has branches yet, because they take longer than measuring itself. To get them for a run that is measured "
    "already, name it, as in `.venv/bin/python scripts/correlation_pipeline.py --model_name=SmolLM2-135M-Instruct "
    "--dataset_name=math --only=branches`; for all runs of a grid, add the line `branches: true` to its `parameters`. "
    "[Branch at some tokens](/use/branch.md) has the details."
)
QUESTIONS = {  # predictor: how it is called in a sentence, and what "more" of it is
    "cosine of embeddings": (
        "the cosine similarity of the candidates' embeddings",
        "the more similar their embeddings",
    ),
    "similarity in context": (
        "the similarity of the candidates in context",
        "the more similar what is expected after them",
    ),
    "entropy": ("entropy", "the higher the entropy of the choice"),
}


def describe_runs(runs: Mapping[tuple[str, str], object], problems: Mapping[str, str]) -> str:
    """Which runs have branches, and which files cannot be read; without any, how to get them."""
    text = NOTHING
    if runs:
        names = join_words([escape_name(f"{model} on {dataset}") for model, dataset in sorted(runs)])
        text = f"{len(runs)} {'run has' if len(runs) == 1 else 'runs have'} branches: {names}."
    for name, problem in sorted(problems.items()):
        text += f"\n\nLeft out: {escape_name(name)} ({escape_name(problem)})."
    return text


def describe_answer(coefficients: pd.DataFrame, outcome: str = "divergence") -> str:
    """The answer for one outcome, from the means over runs, or from the only run: a sentence per predictor."""
    rows = coefficients[coefficients["r"].notna() & (coefficients["outcome"] == outcome)]
    if rows.empty:
        return "" if coefficients.empty else "There are too few branch points for any coefficient."
    model, dataset = group = list_groups(rows)[0]
    rows = select(rows, group)
    whole = rows[rows["statistic"] == ALL].iloc[:1]
    counts = "".join(
        f"{row['observations']:,} branch points of {row['prompts']:,} texts" for _, row in whole.iterrows()
    )
    of = f"Over {rows['runs'].max()} runs" if model == POOLED else escape_name(f"{model} on {dataset}")
    lines = [f"* {_describe_predictor(rows[rows['predictor'] == name], name)}" for name in QUESTIONS]
    return f"{of}{f', with {counts}' if counts else ''}, by the {OUTCOMES[outcome]}:\n\n" + "\n".join(lines)


def _describe_predictor(rows: pd.DataFrame, name: str) -> str:
    """ "**No.** Given k and entropy, ... does not predict ...: 0.02 [-0.1, 0.1]; ..." for one predictor."""
    what, more = QUESTIONS[name]
    found = {row["statistic"]: row for _, row in rows.iterrows()}
    if GIVEN not in found:
        return f"**Not known**: {what} has no coefficient given the others."
    row = found[GIVEN]
    verdict = judge(row["low"], row["high"])
    number = format_bounded(row["r"], row["low"], row["high"])
    words = {
        "yes": f"**Yes**: {more}, the {'further' if row['r'] > 0 else 'less far'} the texts part",
        "no": f"**Not demonstrably**: the interval of the coefficient of {what} contains 0",
        "": f"**Not known**: the coefficient of {what} has no interval",
    }[verdict]
    text = f"{words}, given {row['given'].replace('k', 'the number of candidates')} ({number})."
    if ALL in found:
        row = found[ALL]
        inside = row["null low"] <= row["r"] <= row["null high"]
        text += f" Over all points it is {format_bounded(row['r'], row['low'], row['high'])}"
        if np.isfinite(row["null low"]):
            place = "inside" if inside else "outside"
            text += f", {place} what exchanging outcomes among points of equal k leaves"
        text += "."
    if name in PAIR_PREDICTORS and WITHIN in found:
        row = found[WITHIN]
        said = {
            "yes": f"the more similar pairs part {'further' if row['r'] > 0 else 'less'}",
            "no": "it cannot be told whether the more similar pairs part less",
            "": "there is no interval",
        }[judge(row["low"], row["high"])]
        text += f" Among the pairs of one point, {said} ({format_bounded(row['r'], row['low'], row['high'])})."
    return text


def judge(low: float, high: float) -> str:
    """Whether an interval shows a relation: "yes", "no" if it contains 0, or "" if there is none."""
    if np.isnan(low) or np.isnan(high):
        return ""
    return "yes" if low > 0 or high < 0 else "no"


def describe_means(summary: pd.DataFrame, outcome: str = "divergence") -> str:
    """In how many runs branches of different candidates part further than those of the same candidate."""
    rows = summary[(summary["outcome"] == outcome) & summary["difference"].notna()]
    if rows.empty:
        return ""
    signs = {"further": rows["difference low"] > 0, "less far": rows["difference high"] < 0}
    counts = [f"{where.sum()} of {len(rows)} runs, {how}" for how, where in signs.items() if where.any()]
    rest = len(rows) - sum(where.sum() for where in signs.values())
    counts += [f"{rest} of {len(rows)} runs, no further than can be told from the intervals"] if rest else []
    return (
        "Compared with branches of the same candidate with other random numbers, those of different candidates with "
        f"the same random numbers part, in {join_words(counts)}."
    )
