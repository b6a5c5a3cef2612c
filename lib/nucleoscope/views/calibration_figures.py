"""The figures of the page about a data set's texts and the model's: what is outside the nucleus, and surprisal.

Contract: tables as returned by `two_texts.calibrate_pairs`; nothing is computed here and no file is read. Figures
look like those of `figures`; a menu selects the pair if there are several.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown

from nucleoscope import quantities
from nucleoscope.names import escape_plotly
from nucleoscope.stats.calibration import ALL, EXISTING, GIVEN, OUTSIDE, SURPRISAL, WRITTEN
from nucleoscope.views.figures import build_layout, describe, round_values
from nucleoscope.views.made_of_figures import fill_traces, is_empty
from nucleoscope.views.numbers import format_points
from nucleoscope.views.palette import BLUE, ORANGE, fade

LOOKS = {  # of each text: its name, colour, symbol, and the name of the line that it is compared with
    EXISTING: ("the data set's text", BLUE, "circle", "expected if drawn from p"),
    WRITTEN: ("the model's text", ORANGE, "diamond", "expected if drawn from the nucleus"),
}
BAND = 0.16  # opacity
STROKE = 0.1  # nats to either side of a single bin
NO_BINS = "There is no figure here, because the texts have too few tokens for bins of full entropy: raise `n_prompts`."


def plot_outside(bins: pd.DataFrame) -> go.Figure | Markdown:
    """The share of tokens outside the nucleus over full entropy: both texts, and what a calibrated model would give."""
    shares = [f"{OUTSIDE}{of}{end}" for of in ("", " expected") for end in ("", " low", " high")]
    percent = bins.assign(**{name: 100 * bins[name] for name in shares})
    figure = _plot(percent, OUTSIDE, {EXISTING: True, WRITTEN: False}, 1, "%")
    if figure is None:
        return Markdown(NO_BINS)
    figure.update_yaxes(title="tokens outside the nucleus, %", rangemode="tozero")
    text = (
        "Share of tokens outside the nucleus over full entropy, in the data set's text with 95% intervals and in the "
    )
    return describe(figure, f"{text}model's text, with the share and its band if tokens were drawn from p")


def plot_surprisal(bins: pd.DataFrame) -> go.Figure | Markdown:
    """Mean surprisal over mean full entropy: both texts, and what tokens drawn from p or the nucleus would give."""
    figure = _plot(bins, SURPRISAL, {EXISTING: True, WRITTEN: True}, 2)
    if figure is None:
        return Markdown(NO_BINS)
    given = ", given no end" if bins[GIVEN].all() else ""
    figure.update_yaxes(title=f"mean {quantities.find_title('surprisal')}{given}", rangemode="tozero")
    text = (
        "Mean surprisal over mean full entropy in the data set's text and in the model's, with 95% intervals, and the "
    )
    return describe(figure, f"{text}means and bands that tokens drawn from p or from the nucleus would have")


def _plot(
    bins: pd.DataFrame, name: str, with_line: Mapping[str, bool], digits: int, unit: str = ""
) -> go.Figure | None:
    """Points of both texts in bins of entropy; a line with its band for each text ``with_line``; values in ``unit``.

    None if there is no bin.
    """
    rows = bins[bins["bin"] != ALL]
    figure = go.Figure(layout=build_layout("", height=460))
    contents = {}
    for pair in dict.fromkeys(rows["pair"]):
        own, content = rows[rows["pair"] == pair], []
        for text in LOOKS:
            part = own[own["text"] == text].sort_values("full entropy")
            x = round_values(part["full entropy"])
            if with_line[text]:
                content += _build_line(part, name, x)
            content.append(_build_points(part, name, x, digits, unit))
        contents[escape_plotly(pair)] = content
    for text, (label, color, symbol, expected) in LOOKS.items():
        if with_line[text]:
            band = go.Scatter(mode="lines", fill="toself", fillcolor=fade(BAND, color), line={"width": 0})
            figure.add_trace(
                band.update(hoverinfo="skip", legendgroup=text, showlegend=False, name=f"{expected}, band")
            )
            line = go.Scatter(mode="lines", line={"color": color, "width": 2, "dash": "dash"}, name=expected)
            figure.add_trace(
                line.update(
                    legendgroup=text,
                    hovertemplate=f"{expected}: %{{y}}{unit}<extra></extra>",
                    yhoverformat=f".{digits}f",
                )
            )
        hover = f"{label}: %{{customdata}}<extra></extra>"
        points = go.Scatter(mode="markers", name=label, hovertemplate=hover, cliponaxis=False)  # 0 is on the axis
        figure.add_trace(points.update(marker={"size": 9, "color": color, "symbol": symbol}))
    if is_empty(contents):
        return None
    fill_traces(figure, contents)
    given = ", given no end" if rows[GIVEN].all() else ""
    figure.update_xaxes(title=f"mean {quantities.find_title('full_entropy')} of a bin{given}", rangemode="tozero")
    # above, where no title of an axis that breaks on a phone can reach it
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    return figure.update_layout(legend=legend)


def _build_line(part: pd.DataFrame, name: str, x: list) -> list[dict]:
    """The contents of a band and its line; of a single bin, for which there is no line, of a short stroke at it."""
    if len(part) == 1:
        part, x = pd.concat([part, part]), [round(x[0] - STROKE, 4), round(x[0] + STROKE, 4)]
    edges = [*part[f"{name} expected low"], *part[f"{name} expected high"].iloc[::-1]]
    band = {"x": [*x, *x[::-1]], "y": round_values(np.array(edges, dtype=float))}
    return [band, {"x": x, "y": round_values(part[f"{name} expected"])}]


def _build_points(part: pd.DataFrame, name: str, x: list, digits: int, unit: str) -> dict:
    """Points with their intervals, and the words that pointing at one shows."""
    value, low, high = part[name], part[f"{name} low"], part[f"{name} high"]
    said = format_points(value, low, high, digits, unit)
    return {
        "x": x,
        "y": round_values(value),
        "error_y.array": round_values(high - value),
        "error_y.arrayminus": round_values(value - low),
        "customdata": [f"{text}<br>{n:,} tokens" for text, n in zip(said, part["tokens"], strict=True)],
    }
