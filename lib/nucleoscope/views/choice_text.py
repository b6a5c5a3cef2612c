"""The sentences of the page "Does the choice matter?": each says what the tables show.

Contract: tables of `stats.choice` in, Markdown out; nothing is computed but comparisons. A predictor is said to predict
an outcome only if the 95% interval of its coefficient does not contain 0.
"""

import os
from collections.abc import Mapping

import numpy as np
import pandas as pd

from nucleoscope.settings import Settings
from nucleoscope.stats.choice import ALL, GIVEN, OUTCOMES, PAIR_PREDICTORS, WITHIN
from nucleoscope.store.run_names import describe_run, order_run
from nucleoscope.views.commands import find_written, format_pipeline, list_run_options
from nucleoscope.views.made_of_text import Lead, list_leads
from nucleoscope.views.numbers import format_bounded
from nucleoscope.views.token_text import escape_name
from nucleoscope.wording import count, join_names, name_part

NOTHING = """No run has branches yet, because they take longer than measuring itself. To get them for a run that is
measured already, name it:

```bash
{command}
```

For all runs of a grid, add the line `branches: true` to its `parameters`. The guide has the details, under
"Branch at selected tokens"."""
MORE = {  # of a predictor, to complete "the ..., the further branches diverge"
    "cosine of embeddings": "more similar the embeddings of the candidates",
    "similarity in context": "more similar what is expected after the candidates",
    "entropy": "higher the entropy",
}


def describe_runs(
    runs: Mapping[tuple[str, str], object],
    problems: Mapping[str, str],
    results_dir: str | os.PathLike = Settings.results_dir,
) -> str:
    """Which runs have branches, and which files cannot be read; without any, how to get them in ``results_dir``."""
    folder = find_written(results_dir)
    options = list_run_options(folder) if folder else ["--model_name=SmolLM2-135M-Instruct", "--dataset_name=math"]
    text = NOTHING.format(command=format_pipeline(*options, "--only=branches", results_dir=results_dir))
    if runs:
        names = join_names([escape_name(describe_run(*key)) for key in sorted(runs, key=order_run)])
        text = f"{len(runs)} {'run has' if len(runs) == 1 else 'runs have'} branches: {names}."
    for name, problem in sorted(problems.items()):
        text += f"\n\nLeft out: {escape_name(name)} ({escape_name(problem)})."
    return text


def describe_answer(coefficients: pd.DataFrame, outcome: str = "divergence") -> str:
    """The answer for one outcome, from the means over runs, or from the only run: a few sentences per predictor.

    The last of them says whether the other outcomes agree.
    """
    rows = coefficients[coefficients["r"].notna()]
    if not (rows["outcome"] == outcome).any():
        return "" if coefficients.empty else "There are too few branch points for any coefficient."
    return "\n\n".join(_describe_lead(lead, outcome) for lead in list_leads(rows))


def _describe_lead(lead: Lead, outcome: str) -> str:
    rows = lead.rows[lead.rows["outcome"] == outcome]
    whole = rows[rows["statistic"] == ALL].iloc[:1]
    counts = "".join(
        f"{count(int(row['observations']), 'branch point')} of {count(int(row['prompts']), 'text')}"
        for _, row in whole.iterrows()
    )
    others = lead.rows[(lead.rows["outcome"] != outcome) & (lead.rows["statistic"] == GIVEN)]
    lines = [
        f"* {_describe_predictor(rows[rows['predictor'] == name], name)}"
        f"{_describe_others(others[others['predictor'] == name])}"
        for name in MORE
    ]
    return f"{lead.of}{f', with {counts}' if counts else ''}, by the {OUTCOMES[outcome]}:\n\n" + "\n".join(lines)


def _describe_predictor(rows: pd.DataFrame, name: str) -> str:
    """ "**Entropy: no relationship found.** Given k, the coefficient is 0.02 [-0.1, 0.1]. ..." for one predictor."""
    found, title = {row["statistic"]: row for _, row in rows.iterrows()}, name.capitalize()
    if GIVEN not in found:
        return f"**{title}: not known.** There is no coefficient given the other quantities."
    row = found[GIVEN]
    how, given = judge(row["low"], row["high"]), row["given"].replace("k", "the number of candidates")
    verdict = {"yes": "yes", "no": "no relationship found", "": "not known"}[how]
    text = f"**{title}: {verdict}.** Given {given}, "
    if how == "yes":
        text += f"the {MORE[name]}, the {_name_direction(row['r'])} branches diverge: {_format(row)}."
    else:
        text += f"the coefficient is {_format(row)}, and its interval "
        text += "contains 0." if how else "is not known."
    if ALL in found:
        row = found[ALL]
        text += f" Over all points it is {_format(row)}"
        if np.isfinite(row["null low"]):
            inside = row["null low"] <= row["r"] <= row["null high"]
            text += (
                f", {'inside' if inside else 'outside'} the range that remains if outcomes are exchanged among points "
            )
            text += "of equal k"
        text += "."
    if name in PAIR_PREDICTORS and WITHIN in found:
        row = found[WITHIN]
        text += " Among the pairs of candidates of one point, "
        if judge(row["low"], row["high"]) == "yes":
            text += f"the more similar ones diverge {_name_direction(row['r'])}: {_format(row)}."
        else:
            text += f"no relationship is found: {_format(row)}."
    return text


def _describe_others(rows: pd.DataFrame) -> str:
    """In how many of the other outcomes the coefficient given the other quantities differs from 0."""
    if rows.empty:
        return ""
    found = [row["outcome"] for row in rows.to_dict("records") if judge(row["low"], row["high"]) == "yes"]
    if not found:
        return " No relationship is found with any other outcome."
    return f" A relationship is found with {name_part(len(found), len(rows), 'other outcome')} ({join_names(found)})."


def _name_direction(r: float) -> str:
    return "further" if r > 0 else "less"


def _format(row: pd.Series) -> str:
    return format_bounded(row["r"], row["low"], row["high"])


def judge(low: float, high: float) -> str:
    """Whether an interval shows a relation: "yes", "no" if it contains 0, or "" if there is none."""
    if np.isnan(low) or np.isnan(high):
        return ""
    return "yes" if low > 0 or high < 0 else "no"


def describe_means(summary: pd.DataFrame, outcome: str = "divergence") -> str:
    """In how many runs branches of different candidates diverge further than those of the same candidate."""
    rows = summary[(summary["outcome"] == outcome) & summary["difference"].notna()]
    if rows.empty:
        return ""
    counts = [
        f"in {name_part(where.sum(), len(rows), 'run')} {how}"
        for how, where in (
            ("they diverge further", rows["difference low"] > 0),
            ("they diverge less", rows["difference high"] < 0),
            (
                "the interval of the difference contains 0",
                (rows["difference low"] <= 0) & (rows["difference high"] >= 0),
            ),
            ("the difference has no interval", rows["difference low"].isna()),
        )
        if where.any()
    ]
    return (
        "Branches of different candidates with the same random numbers, compared with branches of the same candidate "
        f"with other ones, by divergence: {join_names(counts)}."
    )
