"""Figures: the paper's as files, the book's as data; what is drawn is what was measured."""

import re
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from nucleoscope import quantities
from nucleoscope.stats import bootstrap, correlation, fits
from nucleoscope.store import results
from nucleoscope.views import figures, numbers, panels
from synthetic import draw_full

RUNS = {("model b", "xsum"): draw_full(1), ("model a", "gsm8k"): draw_full(2), ("model a", "xsum"): draw_full(3)}


def draw_panels(runs, resamples):
    return panels.plot_grid(runs, panels.bin_runs(runs, resamples=resamples))


def find_traces(figure, name):
    """The trace of each kind in the panel of one run, by kind."""
    found = [trace for trace in figure.data if name in (trace.hovertemplate or "")]
    return dict(zip(("median", "mean", "density"), found, strict=True))


def test_no_figure_lets_plotly_format_a_fraction_in_a_template():
    """Plotly writes a hyphen for the minus sign there, but not where an axis formats a number (``hoverformat``)."""
    package = Path(figures.__file__).parents[1]
    found = [
        path.name for path in package.rglob("*.py") if re.search(r"%\{+\w+(\[\d\])?:[^}]*[fgeE]", path.read_text())
    ]
    assert [name for name in found if name != "numbers.py"] == []


def test_the_paper_figure_has_a_panel_for_each_run_and_a_blank_for_a_missing_one():
    figure = figures.plot_paper(RUNS)
    drawn = [axes.axison for axes in figure.axes]
    assert drawn == [True, True, False, True]  # model a: gsm8k, xsum; model b: no gsm8k, xsum
    texts = {text.get_text() for axes in figure.axes for text in axes.texts}
    assert texts == {"model a", "model b", "gsm8k", "xsum"}
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1


def test_the_paper_figure_shows_the_medians_and_one_standard_deviation():
    axes = figures.plot_paper({("m", "d"): RUNS["model b", "xsum"]}).axes[0]
    pairs = results.select_choices(RUNS["model b", "xsum"])
    given = pairs["entropy"], pairs["cosine"]
    bins = bootstrap.choose_bins(len(pairs))
    median, edges, _ = stats.binned_statistic(*given, "median", bins=bins)
    deviation = stats.binned_statistic(*given, "std", bins=bins).statistic
    held = np.isfinite(median)
    x, y = axes.lines[0].get_data()
    np.testing.assert_allclose(x, (edges[1:] + edges[:-1]) / 2)
    np.testing.assert_allclose(y, median)  # NaN where a bin is empty: the line breaks
    corners = np.concatenate([path.vertices for path in axes.collections[0].get_paths()])
    for edge in (median + deviation, median - deviation):
        drawn = [any(np.allclose(corner, point) for corner in corners) for point in zip(x, edge, strict=True)]
        assert np.array_equal(drawn, held)


def test_the_paper_figure_is_300_dpi_and_its_letters_are_letters(tmp_path):
    paths = tmp_path / "deep" / "f.png", tmp_path / "deep" / "f.pdf"
    figures.save(figures.plot_paper(RUNS), *paths)
    with Image.open(paths[0]) as image:
        assert image.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
    raw = paths[1].read_bytes()
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", raw, re.DOTALL)
    text = raw + b"".join(zlib.decompress(part) for part in streams if part[:1] == b"x")
    assert b"/Subtype /Type0" in text  # TrueType outlines, embedded whole: font type 42
    assert b"/Subtype /Type3" not in text
    again = tmp_path / "again.pdf"
    figures.save(figures.plot_paper(RUNS), again)
    assert again.read_bytes() == raw
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["f.pdf", "f.png"]


def test_the_paper_figures_line_and_band_differ_in_grey():
    shades = [0.299 * red + 0.587 * green + 0.114 * blue for red, green, blue in ((0, 114, 178), (86, 180, 233))]
    behind = 255 - 0.45 * (255 - shades[1])  # the band is see-through
    assert shades[0] < 100 < 190 < behind < 230


def compute_intervals(pairs, kind, resamples):
    """The interval of each bin that holds tokens, from resamples spelled out with scipy."""
    given, edges = (
        pairs["prompt"].unique(),
        np.linspace(pairs["entropy"].min(), pairs["entropy"].max(), bootstrap.choose_bins(len(pairs)) + 1),
    )
    found = []
    for counts in bootstrap.draw_counts(len(given), resamples, 0):
        taken = pairs.loc[np.repeat(pairs.index, pairs["prompt"].map(dict(zip(given, counts, strict=True))))]
        found.append(stats.binned_statistic(taken["entropy"], taken["cosine"], kind, bins=edges).statistic)
    held = np.histogram(pairs["entropy"], edges)[0] > 0
    return [bound[held] for bound in bootstrap.compute_interval(np.array(found))]


def test_the_grid_has_what_scipy_counts_in_each_panel():
    figure = draw_panels(RUNS, 20)
    pairs = results.select_choices(RUNS["model a", "gsm8k"])
    given = pairs["entropy"], pairs["cosine"]
    panel = find_traces(figure, "model a, gsm8k")
    for kind in ("median", "mean"):
        expected = stats.binned_statistic(*given, kind, bins=bootstrap.choose_bins(len(pairs))).statistic
        np.testing.assert_allclose(panel[kind].y, expected[np.isfinite(expected)], atol=6e-5)
        counts, spans = zip(*panel[kind].customdata, strict=True)
        assert sum(counts) == len(pairs)
        low, high = compute_intervals(pairs, kind, resamples=20)
        bars = panel[kind].error_y.arrayminus, panel[kind].error_y.array
        np.testing.assert_allclose(np.array(bars[0], float), panel[kind].y - low, atol=2e-4)
        np.testing.assert_allclose(np.array(bars[1], float), high - panel[kind].y, atol=2e-4)
        assert np.nanmax(high - low) > 0.01
        shown = numbers.format_points(expected[np.isfinite(expected)], low, high)
        few = [" from too few prompts" if np.isnan(end) else "" for end in low]
        assert list(spans) == [text + why for text, why in zip(shown, few, strict=True)]
    assert np.sum(panel["density"].z) == len(pairs)


@pytest.mark.parametrize(("prompts", "known"), [(4, False), (5, True)])
def test_a_run_of_a_few_prompts_has_neither_bars_nor_a_band(prompts, known):
    run = draw_full(2)
    rows = panels.bin_runs({("m", "d"): run[run["prompt"] < prompts]}, resamples=20)
    names = ["median low", "median high", "mean low", "mean high", "deviation"]
    assert rows[names].notna().any().tolist() == [known] * 5
    assert rows[["median", "mean"]].notna().all(axis=None)


@pytest.mark.parametrize(("points", "size"), [(1, 10), (10, 10), (1000, 6), (10_000, 4), (10**6, 4)])
def test_few_points_are_large_and_many_small(points, size):
    look = figures.choose_look(points)
    assert look["size"] == size
    assert 0.3 <= look["opacity"] <= 0.83


def test_the_two_switches_of_the_grid_set_different_things():
    figure = draw_panels(RUNS, 5)
    views, pairs = figure.layout.updatemenus
    assert [button.label for button in views.buttons] == ["median", "mean", "density"]
    shown = [button.args[0] for button in views.buttons]
    assert all(list(view) == ["visible"] and len(view["visible"]) == len(figure.data) for view in shown)
    assert np.sum([view["visible"] for view in shown], axis=0).tolist() == [1] * len(figure.data)
    assert [trace.visible for trace in figure.data] == shown[0]["visible"]
    assert len(pairs.buttons) == len(correlation.PAIRS)
    for button, (x, y) in zip(pairs.buttons, correlation.PAIRS, strict=True):
        data, layout = button.args
        assert "visible" not in data
        assert {len(values) for values in data.values()} == {len(figure.data)}
        texts = [figure.layout.annotations[int(re.search(r"\d+", key)[0])].text for key in layout]
        assert texts == [
            quantities.find_title(name) for name in correlation.PAIRS[0]
        ]  # the axes' titles, no run's name
        assert list(layout.values()) == [quantities.find_title(x), quantities.find_title(y)]


def test_the_titles_of_rows_are_above_their_panels_and_overlap_nothing():
    names = [f"SmolLM2-135M-Instruct@top_p={p}@temperature=0.75@seed={s}" for p in (0.9, 0.95) for s in (2, 10)]
    figure = draw_panels({(name, "gsm8k"): RUNS["model a", "gsm8k"] for name in names}, 5)
    inner = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    tops = [figure.get_subplot(row, 1).yaxis.domain[::-1] for row in range(1, 5)]
    titles = [note for note in figure.layout.annotations if note.text.startswith("SmolLM2")]
    assert [title.y for title in titles] == [top for top, _ in tops]
    assert [title.text.rpartition(" ")[2] for title in titles] == ["2", "10", "2", "10"]
    for title, (_, bottom), (top, _) in zip(titles[1:], tops, tops[1:], strict=False):
        assert inner * (bottom - top) >= panels.LINE * len(title.text.split("<br>")) + panels.TICKS
    assert max(len(line) for title in titles for line in title.text.split("<br>")) <= panels.TITLE
    (data_set,) = [note for note in figure.layout.annotations if note.text == "gsm8k"]
    assert data_set.yshift == figure.layout.meta["head"] >= 2 * panels.LINE


@pytest.mark.parametrize(("width", "lines"), [(60, 2), (24, 3), (5, 4)])
def test_the_settings_of_a_rows_title_are_broken_between_settings(width, lines):
    found = figures.list_title_lines("m@top_p=0.95@temperature=0.7@seed=10", width)
    assert len(found) == lines
    assert " ".join(found[1:]) == "top_p 0.95, temperature 0.7, seed 10"
    assert found[0] == "m"


def test_the_first_choice_of_quantities_is_what_the_grid_shows():
    figure = draw_panels(RUNS, 5)
    data = figure.layout.updatemenus[1].buttons[0].args[0]
    for place, trace in enumerate(figure.data):
        assert list(trace.x) == list(data["x"][place])
        assert list(trace.y) == list(data["y"][place])


def test_a_run_without_choices_leaves_its_panels_empty():
    runs = RUNS | {("model c", "xsum"): draw_full(4).assign(k=1)}
    figure = draw_panels(runs, 5)
    assert all(len(trace.x) == 0 for trace in find_traces(figure, "model c, xsum").values())
    assert [axes.axison for axes in figures.plot_paper(runs).axes].count(True) == 3


def test_lines_of_bins_that_hold_too_few_tokens_are_missed_in_words():
    (key, run), *_ = RUNS.items()
    few, enough = (figures.plot_overlay({key: run}, least=least) for least in (len(run) + 1, 1))
    (note,) = few.layout.annotations
    assert note.text == f"Points are single tokens:<br>a line needs 5 bins with {len(run) + 1} tokens each"
    titles = [figure.layout.yaxis.title.text for figure in (few, enough)]
    assert titles == ["cosine similarity", "median cosine similarity"]
    read = [figures.describe_overlay(figure) for figure in (few, enough)]
    assert ["line" in text for text in read] == [False, True]
    assert read[0].startswith("Each point is a token")
    assert len(few.data[0].x) == len(figures.select_pairs(run, "entropy", "cosine"))
    assert (few.data[0].mode, enough.data[0].mode) == ("markers", "lines")
    assert not enough.layout.annotations


@pytest.mark.parametrize(("medians", "mode"), [(1, "markers"), (2, "markers"), (4, "markers"), (5, "lines")])
def test_a_run_with_few_medians_has_points_for_its_tokens(medians, mode):
    run = draw_full(1).assign(k=2, entropy=np.arange(len(draw_full(1))) % 2)
    tokens = 30 * medians
    run = run[:0].reindex(range(tokens + 1)).assign(model="m", dataset="d", prompt=0, step=0, k=2, cosine=0.5)
    bins = bootstrap.choose_bins(len(run))
    run["entropy"] = [*np.repeat(np.arange(medians), 30), bins]  # the last token makes the bins as wide as 1
    (trace,) = figures.plot_overlay({("m", "d"): run}).data
    assert (trace.mode, len(trace.x)) == (mode, medians if mode == "lines" else tokens + 1)


def test_a_run_with_lines_beside_one_with_points_is_told_apart_in_words():
    (key, run), *_ = RUNS.items()
    small = run[run["prompt"] < 2]
    (note,) = figures.plot_overlay({key: run, ("small", "xsum"): small}, least=15).layout.annotations
    assert note.text.startswith("Where a run has points, they are single tokens")
    assert "Of the other runs, each point is a token" in figures.describe_overlay(
        figures.plot_overlay({key: run, ("small", "xsum"): small}, least=15)
    )


@pytest.mark.parametrize("plot", [figures.plot_scatter, figures.plot_distributions])
def test_a_run_without_choices_has_a_sentence_instead_of_a_figure(plot):
    assert plot(draw_full(4).assign(k=1)).data == figures.NO_CHOICE


def test_runs_without_choices_have_a_sentence_on_the_first_page_and_for_panels():
    runs = {("m", "d"): draw_full(4).assign(k=1)}
    assert figures.plot_overlay(runs).data == figures.NO_CHOICE
    assert figures.describe_overlay(figures.plot_overlay(runs)) == ""
    assert draw_panels(runs, 5).data == figures.NO_CHOICE


def test_runs_without_coefficients_or_curves_have_a_sentence():
    runs = {("m", "d"): draw_full(4).assign(k=1)}
    table = correlation.compute_statistics(runs, resamples=2)
    assert figures.plot_coefficients(table, correlation.load_published()).data == figures.NO_COEFFICIENT
    assert figures.plot_fitted(fits.compute_lines(runs)).data == figures.NO_CURVE


@pytest.mark.parametrize(("n", "bins"), [(0, 1), (1, 1), (120, 11), (2499, 50), (100_000, 50)])
def test_bins_follow_the_number_of_tokens(n, bins):
    assert bootstrap.choose_bins(n) == bins


def test_published_coefficients_stand_only_beside_the_same_run():
    runs = {("Qwen3-8B", "xsum"): draw_full(1), ("mine", "xsum"): draw_full(2)}
    statistics = correlation.compute_statistics(runs, resamples=20)
    figure = figures.plot_coefficients(statistics, correlation.load_published())
    for place, (kind, theirs) in enumerate({"Pearson": -0.373, "Spearman": -0.4287}.items()):
        ours, published = figure.data[2 * place : 2 * place + 2]
        assert ours.xaxis == published.xaxis == ("x", "x2")[place]
        assert list(ours.x) == pytest.approx(statistics[f"{kind} r"].tolist(), abs=5e-5)
        assert list(published.x) == [theirs, None]
        bounds = ours.x[0] - ours.error_x.arrayminus[0], ours.x[0] + ours.error_x.array[0]
        assert bounds == pytest.approx(statistics.loc[0, [f"{kind} low", f"{kind} high"]].tolist(), abs=2e-4)


def test_fitted_curves_and_medians_are_those_of_the_run_that_is_picked():
    lines = fits.compute_lines(RUNS)
    figure = figures.plot_fitted(lines)
    labels = [button.label for button in figure.layout.updatemenus[0].buttons]
    runs = ["model a, gsm8k", "model a, xsum", "model b, xsum", "model a, (all)", "(all), xsum"]
    assert labels == [f"{run}, {bins}" for run in runs for bins in ("equal width", "equal tokens")]
    for button in figure.layout.updatemenus[0].buttons:
        model, dataset, bins = button.label.split(", ")
        rows = lines[(lines["Model"] == model) & (lines["Dataset"] == dataset) & (lines["Bins"] == bins)]
        for place, trace in enumerate(figure.data):
            expected = rows[rows["Curve"] == trace.name]
            np.testing.assert_allclose(button.args[0]["y"][place], expected["y"], atol=6e-5)
    assert figure.data[0].name == "medians"
    assert sum(figure.data[0].customdata) == len(results.select_choices(RUNS["model a", "gsm8k"]))


def test_every_figure_says_in_words_what_it_shows():
    statistics = correlation.compute_statistics(RUNS, resamples=5)
    shown = [draw_panels(RUNS, 5), figures.plot_coefficients(statistics, correlation.load_published())]
    shown += [
        figures.plot_fitted(fits.compute_lines(RUNS)),
        figures.plot_scatter(draw_full(1)),
        figures.plot_distributions(draw_full(1)),
    ]
    assert all(len(figure.layout.meta["alt"]) > 20 for figure in shown)


def test_what_is_not_finite_is_left_out_of_every_figure():
    run = draw_full(1)
    run.loc[[3, 50], "full_entropy"] = np.inf
    run.loc[60, "entropy"] = np.nan
    draw_panels({("m", "d"): run}, 5)
    figures.plot_paper({("m", "d"): run})
    assert len(figures.plot_scatter(run).data[0].x) == len(results.select_choices(run)) - (run.loc[60, "k"] > 1)
