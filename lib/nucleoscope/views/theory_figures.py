"""The figures of the theory page.

Contract: arrays in, plotly figures out; only `load_measured` reads files. Figures look like those of
`nucleoscope.views.figures` and contain their alternative text in ``layout.meta["alt"]``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from nucleoscope.store import results
from nucleoscope.views.figures import build_layout
from nucleoscope.views.palette import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION

COLORS = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
LEAST = 20  # minimum of nuclei of one size for quantiles
MOST = 2000  # points of measured nuclei


def plot_curves(
    x: np.ndarray,
    lines: Mapping[str, np.ndarray],
    titles: Sequence[str],
    alt: str,
    dots: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    stacked: bool = False,
    log: str = "",
) -> go.Figure:
    """``lines`` against one ``x``, and ``dots`` with an x of their own; ``titles``: title, x title, y title.

    ``stacked`` stacks the lines as areas; ``log`` names the axes ("x", "y", "xy") with a logarithmic scale.
    """
    figure = go.Figure(layout=build_layout(titles[0], height=440))
    for place, (name, (across, up)) in enumerate((dots or {}).items()):
        few = len(across) <= 50
        color = COLORS[(len(lines) + place) % len(COLORS)]
        marker = {"size": 10 if few else 5, "color": color, "opacity": 1 if few else 0.5}
        figure.add_trace(
            go.Scatter(x=_round_values(across), y=_round_values(up), mode="markers", name=name, marker=marker)
        )
    for place, (name, up) in enumerate(lines.items()):
        style = {"color": COLORS[place], "dash": "solid" if stacked else DASHES[place], "width": 2.5}
        area = {"stackgroup": "one"} if stacked else {}
        figure.add_trace(
            go.Scatter(x=_round_values(x), y=_round_values(up), mode="lines", name=name, line=style, **area)
        )
    return _finish(figure, titles, alt, log)


def plot_histograms(
    samples: Mapping[str, np.ndarray], marks: Sequence[float], titles: Sequence[str], alt: str
) -> go.Figure:
    """Relative frequencies of each sample in common bins, a vertical line at each of ``marks``."""
    edges = np.linspace(min(map(np.min, samples.values())), max(map(np.max, samples.values())), 61)
    centers = (edges[1:] + edges[:-1]) / 2
    heights = {name: np.histogram(values, edges)[0] / len(values) for name, values in samples.items()}
    figure = plot_curves(centers, heights, titles, alt)
    figure.update_traces(line_shape="hvh", line_dash="solid", fill="tozeroy")
    for mark, color in zip(marks, COLORS, strict=False):
        figure.add_vline(x=mark, line={"color": color, "dash": "dash"})
    return figure


def _round_values(values: np.ndarray) -> np.ndarray:
    """Six digits, because a page contains the numbers of its figures."""
    return np.array([float(f"{value:.6g}") for value in np.asarray(values, float)])


def _finish(figure: go.Figure, titles: Sequence[str], alt: str, log: str) -> go.Figure:
    """Adds axes, and a legend below the plot, where it covers nothing on a narrow screen."""
    powers = {"type": "log", "dtick": 1, "minor": {"ticks": "outside", "tickcolor": GREY}}
    figure.update_xaxes(title=titles[1], **(powers | {"exponentformat": "none"} if "x" in log else {}))
    figure.update_yaxes(title=titles[2], **(powers | {"exponentformat": "power"} if "y" in log else {}))
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.22, "yanchor": "top"}
    return figure.update_layout(legend=legend, meta={"alt": alt}, hovermode="closest", margin_b=90)


def load_measured(results_dir: str) -> pd.DataFrame:
    """The number of candidates k and the cosine of every measured nucleus that has one, of all runs together."""
    found = results.iterate_runs(results_dir, {}, ("k", "cosine"))
    tables = [results.select_choices(table)[["k", "cosine"]].dropna() for _, table in found]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"k": [], "cosine": []})


def plot_measured(nuclei: pd.DataFrame) -> go.Figure | None:
    """Quantiles of the measured cosines by size of the nucleus, two sizes per octave; None without ``nuclei``.

    If fewer than two sizes have `LEAST` nuclei, each nucleus is a point instead, or every n-th of more than `MOST`.
    """
    if nuclei.empty:
        return None
    titles = (f"Mean cosine of {_count_nuclei(len(nuclei))}", "candidates k", "mean cosine")
    quantiles = _compute_quantiles(nuclei)
    if len(quantiles) < 2:
        shown = nuclei.iloc[:: -(-len(nuclei) // MOST)]
        dots = {"nucleus": (shown["k"].to_numpy(), shown["cosine"].to_numpy())}
        return plot_curves(np.array([]), {}, titles, "Mean cosine of each measured nucleus against k.", dots, log="x")
    lines = {name: quantiles[name].to_numpy() for name in quantiles}
    alt = "Quantiles of measured mean cosines against k."
    return plot_curves(quantiles.index.to_numpy(), lines, titles, alt, log="x")


def describe_measured(nuclei: pd.DataFrame) -> str:
    """What the figure of `plot_measured` shows and what to compare it with, or what is missing: a sentence or two."""
    if nuclei.empty:
        return "No nucleus with more than one candidate was measured yet, so there is no figure of measurements here."
    compare = "Compare this with the funnel of blind draws, whose median is level and whose range narrows steadily"
    if len(_compute_quantiles(nuclei)) < 2:
        step = -(-len(nuclei) // MOST)
        which = "Each point is a measured nucleus" + (f", 1 of {step}" if step > 1 else "")
        few = f"quantiles need two sizes with at least {LEAST} nuclei each"
        return f"{which}, for all runs together: {few}. {compare}."
    return (
        "At each size the lines mark the median of the measured cosines and the range that contains nine tenths of "
        f"them, for all runs together. {compare}: any difference means that the draws are not blind, or that several "
        "models with different $\\bar c$ are in one figure."
    )


def _compute_quantiles(nuclei: pd.DataFrame) -> pd.DataFrame:
    """Median and range of the cosines at the sizes that have at least `LEAST` nuclei."""
    size = 2.0 ** (np.floor(2 * np.log2(nuclei["k"])) / 2)  # two bins per octave
    groups = nuclei.groupby(size)["cosine"]
    shares = {"median": 0.5, "95%": 0.95, "5%": 0.05}
    return pd.DataFrame({name: groups.quantile(share) for name, share in shares.items()})[groups.size() >= LEAST]


def _count_nuclei(number: int) -> str:
    return f"{number:,} measured {'nucleus' if number == 1 else 'nuclei'}"
