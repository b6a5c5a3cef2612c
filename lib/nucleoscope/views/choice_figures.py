"""The figure and the tables of the page "Does the choice matter?".

Contract: tables of `stats.choice` in, plotly figures and tables out; only means are computed, and no file is read.
"""

import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown

from nucleoscope.stats.choice import ALL, GIVEN, OUTCOMES, PREDICTORS, STATISTICS, WITHIN
from nucleoscope.store.run_settings import format_values, list_run_columns, select_head
from nucleoscope.views.figures import build_layout, describe, round_values
from nucleoscope.views.made_of_figures import ZERO, build_points, fill_traces, is_empty, list_groups, name_group, shift
from nucleoscope.views.numbers import format_bounded, format_number
from nucleoscope.views.palette import BLUE, GREEN, GREY, VERMILLION, fade

LOOKS = {ALL: (BLUE, "circle"), GIVEN: (VERMILLION, "diamond"), WITHIN: (GREEN, "square")}
NOTHING = (
    "There is no figure here, because there are too few branch points for a coefficient: raise `n_prompts` or "
    "branch at more tokens of each text."
)
NULL = "outcomes exchanged, equal k"
SHORT = {  # labels in two lines leave room on a narrow screen
    "cosine of embeddings": "cosine of<br>embeddings",
    "similarity in context": "similarity<br>in context",
    "entropy": "entropy",
    "number of candidates k": "candidates k",
}


def plot_coefficients(coefficients: pd.DataFrame, csv: str = "") -> go.Figure | Markdown:
    """What predicts how much the choice matters: coefficients with intervals, and the null model as grey bars.

    ``coefficients`` are those of `choice.compute_coefficients`. A row per predictor, a colour per statistic; a menu
    selects the run and the outcome. ``csv`` is the file with the data, if any.
    """
    rows = coefficients[coefficients["r"].notna()]
    figure = go.Figure(layout=build_layout("", height=200 + 70 * len(PREDICTORS)))
    contents = {}
    for outcome in OUTCOMES:
        for group in list_groups(rows):
            own = select_head(rows, group)
            own = own[own["outcome"] == outcome]
            if len(own):
                parts = [own[own["statistic"] == statistic] for statistic in STATISTICS]
                places = [_list_places(part, place) for place, part in enumerate(parts)]
                points = [build_points(part, at, "x") for part, at in zip(parts, places, strict=True)]
                contents[f"{name_group(group)}: {outcome}"] = [_build_nulls(parts, places), *points]
    bars = {"color": fade(0.35, GREY), "width": 11}
    figure.add_trace(go.Scatter(mode="lines", line=bars, name=NULL, hoverinfo="skip", connectgaps=False))
    for statistic, (color, symbol) in LOOKS.items():
        hover = f"{statistic}: %{{customdata}}<extra></extra>"
        trace = go.Scatter(mode="markers", name=statistic, hovertemplate=hover)
        figure.add_trace(trace.update(marker={"size": 9, "color": color, "symbol": symbol}))
    if is_empty(contents):
        return Markdown(NOTHING)
    fill_traces(figure, contents)
    ticks = {"tickvals": list(range(len(PREDICTORS))), "ticktext": [SHORT[name] for name in PREDICTORS]}
    figure.update_yaxes(autorange="reversed", automargin=True, zeroline=False, **ticks)
    figure.update_xaxes(title="rank correlation with the outcome", **ZERO)
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.24, "yanchor": "top"}
    figure.update_layout(legend=legend, showlegend=True, margin={"b": 120})
    text = "Rank correlations of four predictors with how much the choice matters, with 95% intervals, over all branch "
    text += "points, given k and entropy, and within branch points"
    return describe(figure, f"{text}; grey bars: what exchanging outcomes among points of equal k leaves", csv)


def _list_places(rows: pd.DataFrame, place: int) -> list[float]:
    """The place of each row's predictor on the axis, moved for the statistic at ``place``."""
    names = list(PREDICTORS)
    return [round(names.index(name) + shift(place, len(STATISTICS)), 2) for name in rows["predictor"]]


def _build_nulls(parts: list[pd.DataFrame], places: list[list[float]]) -> dict:
    """The bars of the null model, as one line with gaps."""
    x, y = [], []
    for part, at in zip(parts, places, strict=True):
        for low, high, place in zip(part["null low"], part["null high"], at, strict=True):
            if pd.notna(low):
                x += [*round_values(pd.Series([low, high])), None]
                y += [place, place, None]
    return {"x": x, "y": y}


def summarise_outcomes(points: pd.DataFrame) -> pd.DataFrame:
    """Means of the outcomes over the branch points of one run, of candidates and of the baseline."""
    means, baseline = {}, {}
    for name in ("divergence", "equal_tokens", "met", "meeting_step"):
        means[name], baseline[name] = points[name].mean(), points[f"baseline_{name}"].mean()
    rows = {"different candidates, same random numbers": means, "same candidate, other random numbers": baseline}
    return pd.DataFrame(rows).T.round(2).rename_axis("branches")


def format_means(summary: pd.DataFrame) -> pd.DataFrame:
    """The table of `choice.summarise` for readers: value [interval]."""
    compared = ("candidates", "same candidate", "difference")
    rows, head = [], list_run_columns(summary)
    for row in format_values(summary).to_dict("records"):
        bounded = {name: format_bounded(row[name], row[f"{name} low"], row[f"{name} high"]) for name in compared}
        rows.append({name: row[name] for name in (*head, "outcome", "points")} | bounded)
    return pd.DataFrame(rows, columns=[*head, "outcome", "points", *compared]).set_index(head)


def format_coefficients(coefficients: pd.DataFrame, outcome: str = "divergence") -> pd.DataFrame:
    """The coefficients with one outcome for readers: value [interval], the means over runs first."""
    known = coefficients[coefficients["r"].notna() & (coefficients["outcome"] == outcome)]
    rows, head = [], list_run_columns(known)
    ordered = pd.concat([known[:0], *(select_head(known, group) for group in list_groups(known))])
    for row in format_values(ordered).to_dict("records"):
        cells = {name: row[name] for name in (*head, "predictor", "statistic", "given")}
        cells["coefficient"] = format_bounded(row["r"], row["low"], row["high"])
        ends = [format_number(row[f"null {end}"]) for end in ("low", "high")]
        cells["outcomes exchanged"] = "" if pd.isna(row["null low"]) else f"[{', '.join(ends)}]"
        rows.append(cells | {"observations": row["observations"]})
    names = ["predictor", "statistic", "given", "coefficient", "outcomes exchanged", "observations"]
    return pd.DataFrame(rows, columns=[*head, *names]).set_index(head)
