"""The figures of the theory page.

Contract: arrays in, plotly figures out; only `plot_measured` reads files. Figures look like those of
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


def plot_measured(results_dir: str) -> go.Figure | None:
    """Quantiles of the measured cosines by size of the nucleus, or None if nothing was measured."""
    found = results.iterate_runs(results_dir, {}, ("k", "cosine"))
    table = pd.concat([results.select_choices(table) for _, table in found] or [pd.DataFrame()])
    if not len(table):
        return None
    size = 2.0 ** (np.floor(2 * np.log2(table["k"])) / 2)  # two bins per octave
    groups = table.groupby(size)["cosine"]
    shares = {"median": 0.5, "95 %": 0.95, "5 %": 0.05}
    quantiles = pd.DataFrame({name: groups.quantile(share) for name, share in shares.items()})[groups.size() >= 20]
    lines = {name: quantiles[name].to_numpy() for name in shares}
    titles = (f"Mean cosine of {len(table):,} measured nuclei", "candidates k", "mean cosine")
    return plot_curves(
        quantiles.index.to_numpy(), lines, titles, "Quantiles of measured mean cosines against k.", log="x"
    )
