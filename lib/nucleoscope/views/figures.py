"""From tables to figures: plotly for the notebooks and the book, matplotlib for the paper.

Contract: figures carry no data of their own and read no files. Where there is nothing to draw, a sentence that says
what is missing and what to do replaces the figure. Colours are Okabe and Ito's
("Color Universal Design", 2008), which colour-blind readers tell apart. Importing this module
makes notebooks store figures as plotly's JSON only: JupyterLab draws that, and plotly.js is
not copied into every notebook.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
from IPython.display import Markdown
from plotly.subplots import make_subplots

from nucleoscope import quantities
from nucleoscope.atomic import write_atomically
from nucleoscope.names import escape_mathtext, escape_plotly
from nucleoscope.stats.bootstrap import Bins, choose_bins
from nucleoscope.store.results import select, select_choices
from nucleoscope.store.run_names import describe_model, divide_model, order_model, order_run, split
from nucleoscope.store.run_settings import describe_head, describe_head_settings, list_run_columns
from nucleoscope.views.numbers import format_number, format_points
from nucleoscope.views.palette import (
    BLUE,
    BUTTON,
    BUTTON_TEXT,
    CLEAR,
    FAINT,
    GREEN,
    GREY,
    GRID,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    ZERO,
)
from nucleoscope.wording import count

if TYPE_CHECKING:
    import matplotlib.figure

plotly.io.renderers.default = "plotly_mimetype"
FONTS = {"pdf.fonttype": 42, "font.family": "DejaVu Sans", "font.size": 8}  # 42: text stays text in the pdf
NO_CHOICE = (
    "There is no figure here, because no token had more than one candidate, so there is nothing to compare: raise "
    "`top_p` or `n_prompts`."
)
NO_COEFFICIENT = "There is no figure here, because no run has a coefficient: measure more prompts (`n_prompts`)."
NO_CURVE = (
    "There is no figure here, because no run has the tokens and prompts that a curve needs: raise `n_prompts` or "
    "`max_tokens`."
)
SYMBOLS = ("circle", "square", "diamond", "cross", "x")
LEGEND_BELOW = {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"}
HOVER = {"xhoverformat": ".2f", "yhoverformat": ".3f"}  # of %{x} and %{y} in a template: plotly then writes minus signs
MOST = 20_000  # points in one scatter plot: more make the page heavy, and overlap
LINE = 5  # minimum of medians that are joined by a line
NARROW = 40  # letters of a line of a legend, as many as a phone has room for
PAPER_ROW, PAPER_TITLE = 1.45, 24  # of the published figure: inches of a row, and letters that have room along it
_EDGE = {"xycoords": "axes fraction", "annotation_clip": False}
Tables = Mapping[tuple[str, str], pd.DataFrame]


def plot_scatter(table: pd.DataFrame, x: str = "entropy", y: str = "cosine") -> go.Figure | Markdown:
    """Every token with k > 1 as a point, and the median of ``y`` in equal-width bins of ``x`` (`bin_run`).

    Of more than `MOST` tokens every n-th is drawn, and the title gives n. The medians are those of all tokens. The
    fewer points there are, the larger and the less transparent they are.
    """
    pairs, bins = select_pairs(table, x, y), bin_run(table, x, y)
    if bins is None:
        return Markdown(NO_CHOICE)
    every, title = -(-len(pairs) // MOST), f"{count(len(pairs), 'token')} with more than one candidate"
    figure = go.Figure(
        layout=build_layout(title + (f", every {_format_ordinal(every)} one drawn" if every > 1 else ""), height=460)
    )
    pairs = pairs[:: max(every, 1)]
    held = bins.count > 0
    point = {"color": BLUE, **choose_look(len(pairs))}
    figure.add_trace(
        go.Scattergl(x=pairs[x], y=pairs[y], mode="markers", marker=point, name="token", hoverinfo="x+y", **HOVER)
    )
    figure.add_trace(
        go.Scattergl(  # WebGL, like the points: WebGL is drawn above SVG
            x=bins.centers[held],
            y=bins.compute_medians()[held],
            customdata=bins.count[held],
            mode="lines+markers",
            line={"color": ORANGE, "width": 3},
            name="median of a bin",
            hovertemplate="%{x}: median %{y} of %{customdata:,} tokens<extra></extra>",
            **HOVER,
        )
    )
    figure.update_xaxes(title=quantities.find_title(x), rangemode="tozero")
    figure.update_yaxes(title=quantities.find_title(y))
    return describe(
        figure, f"{quantities.find_title(y)} over {quantities.find_title(x)}: one point per token, and bin medians"
    )


def choose_look(points: int) -> dict[str, float]:
    """The size and the opacity of each of that many points: ten are seen at once, ten thousand can be told apart."""
    power = min(max(np.log10(max(points, 1)), 1), 4)
    return {"size": round(12 - 2 * power, 1), "opacity": round(1 - 0.175 * power, 2)}


def plot_distributions(table: pd.DataFrame, left: str = "entropy", right: str = "cosine") -> go.Figure | Markdown:
    """Histograms of two quantities over the tokens with k > 1, binned here so that a page contains only the bins."""
    pairs = select_choices(table)
    figure = make_subplots(1, 2, horizontal_spacing=0.1)
    for column, (name, color) in enumerate(((left, BLUE), (right, GREEN)), 1):
        values = pairs[name].to_numpy()
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        counts, edges = np.histogram(values, choose_bins(len(values)))
        spans = [f"{format_number(low)} to {format_number(high)}" for low, high in pairwise(edges)]
        hover = "%{customdata}: %{y:,} tokens<extra></extra>"
        bars = go.Bar(
            x=round_values((edges[:-1] + edges[1:]) / 2), y=counts.tolist(), customdata=spans, marker_color=color
        )
        figure.add_trace(bars.update(hovertemplate=hover, name=name), row=1, col=column)
        figure.update_xaxes(title=quantities.find_title(name), row=1, col=column)
    figure.update_yaxes(title="tokens", col=1)
    figure.update_layout(
        build_layout(f"Distributions over {count(len(pairs), 'token')}", height=340), showlegend=False, bargap=0
    )
    if not figure.data:
        return Markdown(NO_CHOICE)
    return describe(figure, f"Histograms of {quantities.find_title(left)} and {quantities.find_title(right)}")


def build_layout(title: str, height: int) -> dict:
    """The layout that all figures share: transparent, with a grey that is legible on light and dark pages."""
    axis = {"gridcolor": GRID, "zerolinecolor": ZERO}
    return {
        "title": {"text": title, "font": {"size": 15}},
        "template": {"layout": {"xaxis": axis, "yaxis": axis}},
        "font": {"color": GREY},
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "height": height,
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "legend": {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top", "bgcolor": CLEAR},
    }


def plot_paper(tables: Tables, x: str = "entropy", y: str = "cosine") -> "matplotlib.figure.Figure":
    """The published figure: models down, data sets across; the median of y in 50 equal-width bins of x, or fewer.

    The band is one standard deviation of the bin's tokens to either side. A missing run is blank.
    """
    from matplotlib import rc_context  # half a second, which the notebooks without this figure need not wait for
    from matplotlib.figure import Figure

    models, datasets = list_rows_and_columns(tables)
    tables = select(tables, columns={"prompt", "k", x, y})
    titles = [list_title_lines(model, PAPER_TITLE) for model in models]
    tall = max([PAPER_ROW, *(len(line) * PAPER_ROW / PAPER_TITLE for lines in titles for line in lines)])
    with rc_context(FONTS):
        figure = Figure(figsize=(0.9 + 2.1 * len(datasets), 0.95 + tall * len(models)), layout="constrained")
        axes = figure.subplots(len(models), len(datasets), sharex=True, sharey=True, squeeze=False)
        measured = np.array(
            [
                [
                    _plot_paper_panel(axes[row, column], tables.get((model, dataset)), x, y)
                    for column, dataset in enumerate(datasets)
                ]
                for row, model in enumerate(models)
            ]
        )
        for column, dataset in enumerate(datasets):
            axes[0, column].annotate(escape_mathtext(dataset), (0.5, 1.03), ha="center", va="bottom", **_EDGE)
            axes[np.flatnonzero(measured[:, column]).max(initial=0), column].tick_params(labelbottom=True)
        for row, lines in enumerate(titles):
            axes[row, -1].annotate(
                "\n".join(map(escape_mathtext, lines)), (1.03, 0.5), ha="left", va="center", rotation=-90, **_EDGE
            )
            axes[row, np.argmax(measured[row])].tick_params(labelleft=True)
        key = ["median of a bin", "± one standard deviation"]
        drawn = [axes.flat[place] for place in np.flatnonzero(measured)[:1]]
        handles = [handle for panel in drawn for handle in (panel.lines[0], panel.collections[0])]
        figure.legend(handles, key[: len(handles)], loc="outside upper left", ncols=2, frameon=False)
        figure.supxlabel(quantities.find_title(x))
        figure.supylabel(quantities.find_title(y))
        figure.draw_without_rendering()  # places everything, here, where the fonts are set,
        figure.set_layout_engine("none")  # and for good: a file must not depend on the one written before it
    return figure


def save(figure: "matplotlib.figure.Figure", *paths: Path) -> None:
    """Writes the figure in the format of each path's extension, completely or not at all, with 300 dpi.

    The same figure gives the same bytes: dates in a PDF's fonts and header are 1970.
    """
    from matplotlib import rc_context

    with rc_context(FONTS), _fix_date():
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_atomically(path) as stream:
                figure.savefig(stream, format=path.suffix[1:], dpi=300)


@contextlib.contextmanager
def _fix_date() -> Iterator[None]:
    """matplotlib and fontTools take the date from this variable (https://reproducible-builds.org)."""
    before = os.environ.get("SOURCE_DATE_EPOCH")
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    try:
        yield
    finally:
        del os.environ["SOURCE_DATE_EPOCH"]
        if before is not None:
            os.environ["SOURCE_DATE_EPOCH"] = before


def _plot_paper_panel(axes, table: pd.DataFrame | None, x: str, y: str) -> bool:
    """Draws one run; False if there is nothing to draw and the panel is blank."""
    bins = bin_run(table, x, y)
    if bins is None:
        axes.axis("off")
        return False
    median, deviation = bins.compute_medians(), bins.compute_deviations()  # NaN in an empty bin interrupts the line
    axes.fill_between(bins.centers, median - deviation, median + deviation, color=SKY, alpha=0.45, linewidth=0)
    axes.plot(bins.centers, median, ".-", color=BLUE, linewidth=1.2, markersize=1.5)  # a lone bin is a dot
    axes.grid(color="0.85", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    return True


def list_title_lines(model: str, width: int) -> list[str]:
    """The title of a row of panels: the model, and on lines of up to ``width`` letters the settings in its name.

    A single setting is never broken.
    """
    name, settings = divide_model(model)
    lines = [name]
    for part in filter(None, settings.split(", ")):
        if len(lines) > 1 and len(lines[-1]) + len(part) + 2 <= width:
            lines[-1] += f", {part}"
        else:
            lines[-1] += "," if len(lines) > 1 else ""
            lines.append(part)
    return lines


def list_rows_and_columns(tables: Tables) -> tuple[list[str], list[str]]:
    """Models and data sets, in the order of the tables of statistics."""
    return sorted({model for model, _ in tables}, key=order_model), sorted({dataset for _, dataset in tables})


def select_pairs(table: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """The tokens with k > 1 for which both quantities are known."""
    pairs = select_choices(table[["prompt", "k", x, y]])
    return pairs[np.isfinite(pairs[[x, y]]).all(axis=1)]


def bin_run(table: pd.DataFrame | None, x: str, y: str) -> Bins | None:
    """The equal-width bins of a run, as many as `choose_bins` says, or None if there is nothing to show."""
    if table is None or (pairs := select_pairs(table, x, y)).empty:
        return None
    columns = (pairs[x].to_numpy(), pairs[y].to_numpy(), pd.factorize(pairs["prompt"])[0])
    return Bins(*columns)


def plot_overlay(tables: Tables, x: str = "entropy", y: str = "cosine", least: int = 20) -> go.Figure | Markdown:
    """One line per run: the median of y in the bins of x that contain at least ``least`` tokens.

    A run with fewer than `LINE` such bins has a point for each of its tokens instead, or for every n-th of more than
    `MOST`, and the figure says so. `describe_overlay` says how to read it.
    """
    colors, dashes = (BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY), ("solid", "dash", "dot", "dashdot", "longdash")
    models, datasets = list_rows_and_columns(tables)
    tables = select(tables, columns={"prompt", "k", x, y})
    figure = go.Figure(layout=build_layout("", height=440))
    few = 0  # runs without a line
    for model, dataset in sorted(tables, key=order_run):
        table = tables[model, dataset]
        bins = bin_run(table, x, y)
        if bins is None:
            continue
        held = bins.count >= least
        # With one model, colours distinguish data sets; with several, colours distinguish models and dashes data sets.
        color, dash = models.index(model), datasets.index(dataset)
        color, dash = (color, dash) if len(models) > 1 else (dash, 0)
        both = escape_plotly(f"{describe_model(model)}, {dataset}")
        name = both if len(models) > 1 else escape_plotly(dataset)
        if split(model)[1]:  # a legend does not break lines
            first, *rest = list_title_lines(model, NARROW)
            name = "<br>".join(map(escape_plotly, [f"{first}, {dataset}", *rest]))
        if held.sum() < LINE:
            few, pairs = few + 1, select_pairs(table, x, y)
            pairs = pairs[:: -(-len(pairs) // MOST)]
            point = {"size": 7, "color": colors[color % len(colors)], "opacity": 0.6}
            point["symbol"] = SYMBOLS[dash % len(SYMBOLS)]
            figure.add_scatter(
                x=round_values(pairs[x]), y=round_values(pairs[y]), mode="markers", marker=point, name=name,
                hovertemplate=f"one token: %{{x}}, %{{y}}<extra>{both}</extra>", **HOVER,
            )  # fmt: skip
            continue
        hover = "median %{y} of %{customdata:,} tokens at %{x}" + f"<extra>{both}</extra>"
        line = {"color": colors[color % len(colors)], "dash": dashes[dash % len(dashes)], "width": 2.5}
        figure.add_trace(
            go.Scatter(
                x=round_values(bins.centers[held]),
                y=round_values(bins.compute_medians()[held]),
                customdata=bins.count[held].tolist(),
                mode="lines",
                line=line,
                name=name,
                hovertemplate=hover,
                **HOVER,
            )
        )
    if few:
        which = "Points are" if few == len(figure.data) else "Where a run has points, they are"
        # a phone has room for this much
        text = f"{which} single tokens:<br>a line needs {LINE} bins with {least} tokens each"
        place = {"xref": "paper", "yref": "paper", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        figure.add_annotation(text=text, align="left", showarrow=False, **place)
    if not figure.data:
        return Markdown(NO_CHOICE)
    across, up = quantities.find_title(x), quantities.find_title(y)
    axes = {"xaxis_title": across, "xaxis_rangemode": "tozero", "yaxis_title": up if few else f"median {up}"}
    if any(split(model)[1] for model in models):  # names too long to be beside the lines
        lines = sum(trace.name.count("<br>") + 1 for trace in figure.data)
        axes |= {"legend": LEGEND_BELOW, "height": 440 + 20 * lines}
    figure.update_layout(showlegend=bool(figure.data), margin={"t": 40 if few else 20}, **axes)
    drawn = _find_modes(figure)
    lines, points = f"Median {up} over {across}, one line for each model and data set", f"{up} over {across}, by token"
    return describe(figure, lines if drawn == {"lines"} else points if drawn == {"markers"} else f"{lines}, or points")


def _find_modes(figure: go.Figure) -> set[str]:
    return {trace.mode for trace in figure.data}


def describe_overlay(figure: go.Figure | Markdown, least: int = 20) -> str:
    """How to read the figure of `plot_overlay`, by whether it has lines, points or both; "" of a sentence."""
    drawn = _find_modes(figure) if isinstance(figure, go.Figure) else set()
    parts = []
    if "lines" in drawn:
        parts.append(
            "There is a line for each run with enough tokens. Tokens are grouped into bins by their entropy; the line "
            "shows the median cosine similarity of the candidates in each bin with at least "
            f"{count(least, 'token')}."
        )
    if "markers" in drawn:
        rest = "Of the other runs, each" if parts else "Each"
        parts.append(f"{rest} point is a token: its entropy, and the cosine similarity of its candidates.")
    if parts:
        parts.append("Further right, the model was less sure; further up, its candidates were more similar.")
    if "lines" in drawn:
        parts.append(
            "If a line falls, the candidates are less similar when the model is less sure; if it rises, they are more "
            "similar."
        )
    return " ".join(parts)


def plot_coefficients(statistics: pd.DataFrame, published: pd.DataFrame) -> go.Figure | Markdown:
    """Our coefficients of every run with their 95% intervals, and the published ones of the same runs."""
    if statistics[["Pearson r", "Spearman r"]].isna().all(axis=None):
        return Markdown(NO_COEFFICIENT)
    figure = make_subplots(1, 2, shared_yaxes=True, column_titles=["Pearson", "Spearman"], horizontal_spacing=0.04)
    both = statistics[list_run_columns(statistics)].merge(published, how="left")
    names = [_name_row(head) for head in statistics[list_run_columns(statistics)].to_dict("records")]
    for column, kind in enumerate(("Pearson", "Spearman"), 1):
        ours = statistics[f"{kind} r"]
        low, high = (ours - statistics[f"{kind} low"]).abs(), (statistics[f"{kind} high"] - ours).abs()
        bars = {
            "type": "data",
            "symmetric": False,
            "array": round_values(high),
            "arrayminus": round_values(low),
            "thickness": 2,
        }
        hover = "%{customdata}<extra>ours, %{y}</extra>"
        look = {"mode": "markers", "y": names, "showlegend": column == 1, "meta": kind}
        figure.add_trace(
            go.Scatter(
                x=round_values(ours), error_x=bars, marker={"size": 9, "color": BLUE}, name="ours", hovertemplate=hover,
                customdata=format_points(ours, statistics[f"{kind} low"], statistics[f"{kind} high"]), **look,
            ),
            row=1, col=column,
        )  # fmt: skip
        if both[f"{kind} r"].isna().all():
            continue
        hover = "%{x}<extra>published, %{y}</extra>"
        marker = {"size": 11, "color": VERMILLION, "symbol": "diamond-open", "line": {"width": 2}}
        figure.add_trace(
            go.Scatter(
                x=round_values(both[f"{kind} r"]), xhoverformat=".3f", marker=marker, name="published",
                hovertemplate=hover, **look,
            ),
            row=1, col=column,
        )  # fmt: skip
    figure.update_layout(build_layout("", height=150 + 36 * len(names)), margin={"t": 70})
    figure.update_layout(legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom"})
    figure.update_layout(legend_title_text="", legend_yref="container", legend_yanchor="top")
    figure.update_yaxes(autorange="reversed")
    also = ", with those of the published study" if both["Pearson r"].notna().any() else ""
    return describe(figure, f"Coefficients of every run with their intervals{also}")


def plot_fitted(lines: pd.DataFrame, csv: str = "") -> go.Figure | Markdown:
    """Medians of one run or pool, sized by their weights, and the curves fitted to them; a menu selects run and bins.

    ``lines`` are those of `fits.compute_lines`, ``csv`` the file that contains them, if any.
    """
    if lines.empty:
        return Markdown(NO_CURVE)
    groups = list(lines.groupby([*list_run_columns(lines), "Bins"], sort=False, dropna=False))
    kinds = {"constant": FAINT, "line": PURPLE, "decay": GREEN, "unimodal": VERMILLION}
    looks = {"medians": BLUE, **kinds, "free": SKY, "spline": GREY}
    figure = go.Figure(layout=build_layout("", height=520))
    contents = [[_build_curve(group[group["Curve"] == kind]) for kind in looks] for _, group in groups]
    for (kind, color), content in zip(looks.items(), contents[0] if contents else [], strict=False):
        if kind == "medians":
            hover = "median %{y} of %{customdata:,} tokens at %{x}<extra></extra>"
            marker = {"color": color, "sizemode": "area", "sizeref": 2, "sizemin": 3}  # 100 is 2% of the weight
            trace = go.Scatter(mode="markers", marker=marker, name="medians", hovertemplate=hover, **HOVER)
        else:
            dash = {"constant": "dot", "line": "dot", "spline": "dash"}.get(kind, "solid")
            hover = f"{kind}: %{{y}} at %{{x}}<extra></extra>"
            line = {"color": color, "dash": dash}
            trace = go.Scatter(mode="lines", line=line, name=kind, hovertemplate=hover, **HOVER)
        figure.add_trace(trace.update(content))
    heads = [(group[list_run_columns(lines)].iloc[0].to_dict(), names[-1]) for names, group in groups]
    labels = [f"{describe_head(head, ', ')}, {bins}" for head, bins in heads]
    buttons = [
        {"label": escape_plotly(label), "method": "restyle", "args": [_build_columns(content)]}
        for label, content in zip(labels, contents, strict=True)
    ]
    look = {"x": 0, "xanchor": "left", "y": 1.0, "yanchor": "bottom", "bgcolor": BUTTON}
    look |= {"font": {"color": BUTTON_TEXT}}
    figure.update_layout(updatemenus=[{"buttons": buttons, "pad": {"b": 12}, **look}], margin={"t": 70})
    figure.update_xaxes(title=quantities.find_title("entropy"), rangemode="tozero")
    figure.update_yaxes(title=quantities.find_title("cosine"))
    return describe(figure, "Median cosine similarity against entropy, and the curves fitted to the medians", csv)


def _name_row(head: Mapping[str, Any]) -> str:
    """How an axis calls a run: its model, and below it the data set and the settings that differ."""
    below = ", ".join(filter(None, (head["Dataset"], describe_head_settings(head))))
    return f"{escape_plotly(head['Model'])}<br>{escape_plotly(below)}"


def _build_curve(rows: pd.DataFrame) -> dict:
    found = {"x": round_values(rows["x"].to_numpy()), "y": round_values(rows["y"].to_numpy())}
    if rows["tokens"].notna().any():
        sizes = (5000 * rows["weight"]).round(1).tolist()
        found |= {"customdata": rows["tokens"].astype(int).tolist(), "marker.size": sizes}
    return found


def _build_columns(content: list[dict]) -> dict:
    return {key: [values.get(key) for values in content] for key in ("x", "y", "customdata", "marker.size")}


def round_values(values: np.ndarray | pd.Series) -> list:
    """Four decimals, None for NaN: the form of numbers in a page."""
    return [None if np.isnan(value) else round(float(value), 4) for value in values]


def _format_ordinal(n: int) -> str:
    """English: 2nd, 3rd, 4th, 11th, 21st."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th") if n % 100 not in (11, 12, 13) else "th"
    return f"{n}{ending}"


def describe(figure: go.Figure, text: str, csv: str = "") -> go.Figure:
    """The figure with a text alternative and, if there is one, the name of the file with its data."""
    return figure.update_layout(meta={"alt": text, **({"csv": csv} if csv else {})})
