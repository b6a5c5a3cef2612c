"""One figure with a panel for every run, with switches for what it shows.

Contract: as `figures`. One switch sets which traces are visible (median, mean, density), the other
their content (the pair of quantities), so neither undoes the other.
"""

from functools import partial
from itertools import chain

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from IPython.display import Markdown
from plotly.subplots import make_subplots

from nucleoscope import quantities
from nucleoscope.names import escape_plotly
from nucleoscope.stats.bootstrap import Bins, compute_interval, draw_counts
from nucleoscope.stats.correlation import PAIRS
from nucleoscope.stats.parallel import map_parallel
from nucleoscope.store.results import count_tokens, select
from nucleoscope.store.run_names import describe_model, order_run
from nucleoscope.store.run_settings import find_heads, list_run_columns, select_head
from nucleoscope.views.figures import (
    NO_CHOICE,
    Tables,
    bin_run,
    build_layout,
    describe,
    list_rows_and_columns,
    list_title_lines,
    round_values,
    select_pairs,
)
from nucleoscope.views.numbers import format_points
from nucleoscope.views.palette import BLUE, BUTTON, BUTTON_TEXT, VERMILLION, fade

FADED = fade(0.18)
# From faint to full BLUE, in steps of about a third of a decade: counts differ by orders of magnitude.
DENSITY = [[at, fade(a)] for at, a in ((0, 0), (0.003, 0.2), (0.01, 0.3), (0.03, 0.45), (0.1, 0.6), (0.3, 0.8), (1, 1))]
NEED = 600  # maximum bytes per token in `bin_runs`, of prompts with ten tokens or more
FEWEST = 5  # minimum of prompts for intervals and a band: those of fewer would mean nothing
FIELDS = (40, 30)  # numbers of density bins along x and y
PANEL, TICKS, LINE = 150, 22, 15  # pixels: the height of a panel, of the numbers below one, and of a line of a title
TITLE = 48  # letters of a line of a title, as many as a phone has room for


def bin_runs(
    tables: Tables,
    pairs: tuple[tuple[str, str], ...] = PAIRS,
    resamples: int = 500,
    seed: int = 0,
    jobs: int | None = 1,
) -> pd.DataFrame:
    """The bins that the panels show: one row per bin with tokens, for each run and pair of quantities.

    Columns: Model, Dataset, the settings that differ, x, y (names of the quantities), center, tokens, median and mean
    each with the bounds of its 95% interval from resampled prompts (low, high), deviation (one standard deviation of
    the tokens). Of runs with fewer than `FEWEST` prompts, the bounds and the deviation are missing. ``jobs`` are
    processes, None means one per core.
    """
    heads, keys = find_heads(tables), sorted(tables, key=order_run)
    columns = {"prompt", "k", *chain.from_iterable(pairs)}
    runs = [select(tables, [key], columns) for key in keys]
    need = NEED * max(map(count_tokens, runs), default=0)
    done = map_parallel(partial(_bin_one, pairs=pairs, resamples=resamples, seed=seed), runs, jobs, need)
    parts = [part.assign(**heads[key], x=x, y=y) for key, found in zip(keys, done, strict=True) for x, y, part in found]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["Model", "Dataset", "x", "y"])
    head = [*list_run_columns(frame), "x", "y"]
    return frame[[*head, *(name for name in frame if name not in head)]]


def _bin_one(
    run: Tables, pairs: tuple[tuple[str, str], ...], resamples: int, seed: int
) -> list[tuple[str, str, pd.DataFrame]]:
    """The bins of one run, for each of the pairs of which it has tokens."""
    (table,) = run.values()
    found = []
    for x, y in pairs:
        if (bins := bin_run(table, x, y)) is not None:
            found.append((x, y, _compute_bin_rows(bins, resamples, seed)))
    return found


def _compute_bin_rows(bins: Bins, resamples: int, seed: int) -> pd.DataFrame:
    prompts = int(bins.prompt.max()) + 1
    counts = draw_counts(prompts, resamples, seed)
    columns = {"center": bins.centers, "tokens": bins.count}
    for name, middle, drawn in (
        ("median", bins.compute_medians(), bins.compute_sizes_and_medians(counts)[1]),
        ("mean", bins.compute_means(bins.count_once())[0], bins.compute_means(counts)),
    ):
        low, high = compute_interval(drawn)
        columns |= {name: middle, f"{name} low": low, f"{name} high": high}
    frame = pd.DataFrame({**columns, "deviation": bins.compute_deviations()})[bins.count > 0]
    if prompts < FEWEST:
        frame.loc[:, [name for name in frame if name.endswith((" low", " high")) or name == "deviation"]] = np.nan
    return frame


def plot_grid(tables: Tables, rows: pd.DataFrame, csv: str = "") -> go.Figure | Markdown:
    """An interactive version of the paper's figure: median, mean or density, for each pair of quantities.

    ``rows`` are those of `bin_runs`, ``csv`` the file that contains them, if any. The bars are 95%
    intervals of a bin's median or mean; the band is one standard deviation. Hover gives the bin's
    count and interval.
    """
    if rows.empty:
        return Markdown(NO_CHOICE)
    models, datasets = list_rows_and_columns(tables)
    pairs = list(dict.fromkeys(zip(rows["x"], rows["y"], strict=True))) or list(PAIRS)
    heads = find_heads(tables)
    tables = select(tables, columns={"prompt", "k", *chain.from_iterable(pairs)})
    titles = [list_title_lines(model, TITLE) for model in models]
    above = LINE * max(map(len, titles), default=1) + 6  # pixels for the title of a row
    inner = len(models) * (PANEL + above) - above
    figure = make_subplots(
        len(models), len(datasets), shared_xaxes="all", shared_yaxes="all",
        column_titles=[*map(escape_plotly, datasets)],
        x_title=quantities.find_title(pairs[0][0]), y_title=quantities.find_title(pairs[0][1]),
        horizontal_spacing=0.02, vertical_spacing=(above + TICKS) / (inner + TICKS * (len(models) - 1)),
    )  # fmt: skip
    contents: list[list[dict]] = [[] for _ in pairs]
    for model, dataset in sorted(tables, key=order_run):
        table = tables[model, dataset]
        own = select_head(rows, heads[model, dataset])
        for content, (x, y) in zip(contents, pairs, strict=True):
            content += _build_panel(own[(own["x"] == x) & (own["y"] == y)], table, x, y)
        place = {"row": models.index(model) + 1, "col": datasets.index(dataset) + 1}
        for trace, values in zip(
            _build_traces(escape_plotly(f"{describe_model(model)}, {dataset}")), contents[0][-7:], strict=True
        ):
            figure.add_trace(trace.update(values), **place)
    switches = _build_switches(contents, pairs, len(datasets), above)
    height = inner + TICKS * (len(models) - 1) + 190 + above
    figure.update_layout(build_layout("", height=height), showlegend=False, updatemenus=switches)
    figure.update_layout(margin={"t": 120 + above, "r": 20, "l": 70, "b": 70})
    for title in figure.layout.annotations[: len(datasets)]:
        title.yshift = above
    for row, lines in enumerate(titles):
        top = figure.get_subplot(row + 1, 1).yaxis.domain[1]
        place = {"x": 0, "y": top, "xref": "paper", "yref": "paper", "xanchor": "left", "yanchor": "bottom"}
        text = "<br>".join(map(escape_plotly, lines))
        figure.add_annotation(text=text, align="left", showarrow=False, **place)
    figure.update_annotations(font_size=12).update_xaxes(nticks=5, tickangle=0)
    text = (
        "Median cosine similarity against entropy, one panel for each run: a row for each model with its settings, a "
        "column for each data set"
    )
    described = describe(figure, text, csv)
    return described.update_layout(
        meta=described.layout.meta | {"head": above}
    )  # for the book, which has its own menus


def _build_panel(rows: pd.DataFrame, table: pd.DataFrame, x: str, y: str) -> list[dict]:
    """The data of the seven traces of `_build_traces` for one pair, in their order, as plain lists."""
    if rows.empty:
        return [{"x": [], "y": []} for _ in range(6)] + [{"x": [], "y": [], "z": []}]
    center, found = round_values(rows["center"]), []
    for name in ("median", "mean"):
        middle, low, high = rows[name], rows[f"{name} low"], rows[f"{name} high"]
        for edge in (middle - rows["deviation"], middle + rows["deviation"]):
            found.append({"x": center, "y": round_values(edge)})
        alone = [" from too few prompts" if np.isnan(end) else "" for end in low]
        said = [text + why for text, why in zip(format_points(middle, low, high), alone, strict=True)]
        rest = [list(row) for row in zip(rows["tokens"].tolist(), said, strict=True)]
        bars = {"error_y.array": round_values(high - middle), "error_y.arrayminus": round_values(middle - low)}
        found.append({"x": center, "y": round_values(middle), "customdata": rest, **bars})
    return [*found, _build_density(table, x, y)]


def _build_density(table: pd.DataFrame, x: str, y: str) -> dict:
    pairs = select_pairs(table, x, y)
    counts, across, up = np.histogram2d(pairs[x], pairs[y], FIELDS)
    fields = counts.T.astype(int).tolist()
    return {"x": round_values((across[:-1] + across[1:]) / 2), "y": round_values((up[:-1] + up[1:]) / 2), "z": fields}


def _build_traces(name: str) -> list:
    """The empty traces of one panel: band, median; band, mean; density."""
    found = []
    for word, color in (("median", BLUE), ("mean", VERMILLION)):
        edge = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "visible": word == "median"}
        edge |= {"name": f"one standard deviation from the {word}", "meta": name}
        found += [go.Scatter(edge), go.Scatter(edge, fill="tonexty", fillcolor=FADED)]
        hover = f"{word} %{{customdata[1]}}<br>%{{customdata[0]:,}} tokens at %{{x}}"
        found.append(
            go.Scatter(
                mode="lines+markers",
                line={"color": color, "width": 2},
                marker={"size": 4},
                error_y={"type": "data", "symmetric": False, "thickness": 1, "width": 0, "color": color},
                hovertemplate=f"{hover}<extra>{name}</extra>",
                xhoverformat=".2f",
                visible=word == "median",
                name=word,
                meta=name,
            )
        )
    hover = f"%{{z:,}} tokens near %{{x}}, %{{y}}<extra>{name}</extra>"
    density = go.Heatmap(colorscale=DENSITY, showscale=False, visible=False, name="tokens", meta=name)
    return [*found, density.update(hovertemplate=hover, xhoverformat=".2f", yhoverformat=".2f")]


def _build_switches(
    contents: list[list[dict]], pairs: tuple[tuple[str, str], ...], titles: int, above: int
) -> list[dict]:
    """Two independent switches: one sets which traces are visible, the other their content."""
    panels = len(contents[0]) // 7
    views = {"median": [0, 1, 2], "mean": [3, 4, 5], "density": [6]}
    look = {"x": 0, "xanchor": "left", "yanchor": "bottom", "bgcolor": BUTTON, "font": {"color": BUTTON_TEXT}}
    shown = [
        {"label": label, "method": "restyle", "args": [{"visible": [i in places for i in range(7)] * panels}]}
        for label, places in views.items()
    ]
    keys = ("x", "y", "z", "customdata", "error_y.array", "error_y.arrayminus")
    chosen = [
        {
            "label": f"{y} against {x}".replace("_", " "),
            "method": "update",
            "args": [
                {key: [values.get(key) for values in content] for key in keys},
                {
                    f"annotations[{titles}].text": quantities.find_title(x),
                    f"annotations[{titles + 1}].text": quantities.find_title(y),
                },
            ],
        }
        for content, (x, y) in zip(contents, pairs, strict=True)
    ]
    return [
        {
            "type": "buttons",
            "direction": "right",
            "buttons": shown,
            "y": 1.0,
            "pad": {"b": 62 + above},
            "showactive": True,
            **look,
        },
        {"type": "dropdown", "buttons": chosen, "y": 1.0, "pad": {"b": 26 + above}, **look},
    ]
