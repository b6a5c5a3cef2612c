"""Tables for papers and readers: LaTeX that compiles, csv that keeps every digit."""

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from messages import assert_one_line
from nucleoscope.stats import correlation, fits, random_effects
from nucleoscope.stats.curves import FORMULAS
from nucleoscope.views import numbers, tables
from nucleoscope.views.token_text import escape_name
from synthetic import draw_full

NAMES = [("Llama-3.1-8B", "gsm8k"), ("Llama-3.1-8B", "my_texts"), ("100%_of$#{}&~^\\", "gsm8k")]


@pytest.fixture(scope="module")
def runs():
    created = {names: draw_full(seed) for seed, names in enumerate(NAMES)}
    created["constant", "gsm8k"] = draw_full(9).assign(cosine=0.5)
    return created


@pytest.fixture(scope="module")
def statistics(runs):
    return correlation.compute_statistics(runs, resamples=30)


@pytest.fixture(scope="module")
def curves(runs):
    return fits.fit_all(runs, resamples=10)


@pytest.fixture(scope="module")
def latex(statistics, curves):
    return {
        "full": tables.format_correlation_tex(statistics),
        "short": tables.format_correlation_short_tex(statistics),
        "fits": tables.format_fits_tex(curves),
    }


def test_every_row_has_as_many_fields_as_the_table_has_columns(latex):
    for text in latex.values():
        for tabular in re.findall(r"\\begin\{tabular\}.*?\\end\{tabular\}", text, re.DOTALL):
            columns = re.match(r"\\begin\{tabular\}\{(\w+)\}", tabular)[1]
            rows = [line for line in tabular.splitlines() if line.endswith(r"\\")]
            assert len(rows) > len(NAMES)
            assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}


def test_latex_has_booktabs_rules_multirow_models_and_escaped_names(latex):
    for text in latex.values():
        for part in (r"\toprule", r"\midrule", r"\bottomrule", r"\multirow[t]{2}{*}{Llama-3.1-8B}", r"my\_texts"):
            assert part in text
        assert r"\cline" not in text
        assert "nan" not in text
        assert r"100\%\_of\$\#\{\}\&\textasciitilde{}\textasciicircum{}\textbackslash{}" in text


def test_latex_says_why_a_run_is_empty(latex):
    for text in latex.values():
        assert re.search(r"^% constant, gsm8k: .*constant$", text, re.MULTILINE)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="NO pdflatex HERE: the LaTeX is only parsed")
def test_latex_compiles_in_an_article_with_booktabs_and_multirow_alone(latex, tmp_path):
    for name, text in latex.items():
        (tmp_path / f"{name}.tex").write_text(text)
    body = "\n\n".join(rf"\input{{{name}}}" for name in latex)
    document = rf"\documentclass{{article}}\usepackage{{booktabs,multirow}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-1500:]
    assert (tmp_path / "paper.pdf").is_file()


def test_csv_starts_as_the_published_one_and_gives_every_number_back(statistics):
    text = tables.format_csv(statistics)
    back = pd.read_csv(io.StringIO(text), keep_default_na=True, dtype={"Pearson p": str, "Spearman p": str})
    assert list(back.columns[:6]) == list(correlation.load_published().columns) == correlation.PUBLISHED_COLUMNS
    for name in statistics.select_dtypes("number"):
        np.testing.assert_allclose(back[name], statistics[name], rtol=1e-9, err_msg=name)
    assert back["Pearson p"].fillna("").tolist() == statistics["Pearson p"].fillna("").tolist()


def test_a_csv_has_as_many_digits_as_the_precision_of_its_numbers():
    exact = np.array([0.1, -0.7, np.nan])
    frame = pd.DataFrame({kind.__name__: exact.astype(kind) for kind in (np.float16, np.float32, np.float64)})
    frame["stored"] = exact.astype(np.float32).astype(np.float64)
    frame["count"] = [1234567.0, 1.0, np.nan]
    assert tables.format_csv(frame).splitlines()[1:] == ["0.1,0.1,0.1,0.1,1234567", "-0.7,-0.7,-0.7,-0.7,1", ",,,,"]
    thirds = pd.DataFrame({kind.__name__: np.array([1 / 3], kind) for kind in (np.float16, np.float32, np.float64)})
    assert tables.format_csv(thirds).splitlines()[1] == "0.3333,0.33333334,0.3333333333"


def test_a_p_value_that_no_double_holds_keeps_its_magnitude():
    run = draw_full(0, prompts=100, length=80).assign(k=2)
    run["cosine"] = -run["entropy"] + np.random.default_rng(0).normal(0, 0.01, len(run))
    text = tables.format_csv(correlation.compute_statistics({("m", "d"): run}, resamples=10))
    row = pd.read_csv(io.StringIO(text), dtype=str).iloc[0]
    assert int(row["Pearson p"].partition("e-")[2]) > 320
    assert float(row["Pearson log10 p"]) < -320


def test_readers_see_value_and_interval_and_notes_only_where_there_are_any(statistics, curves):
    shown = tables.format_readable(statistics)
    found = re.findall(r"-?\d\.\d+", shown.loc[NAMES[0], "Pearson r"].replace("−", "-"))
    value, low, high = map(float, found)
    assert low <= value <= high
    assert shown.loc[("constant", "gsm8k"), "Pearson r"] == ""
    assert "constant" in shown.loc[("constant", "gsm8k"), "note"]
    assert "note" not in tables.format_readable(statistics[statistics["note"] == ""])
    parameters = tables.format_parameters(curves, "unimodal", {"a": 2, "peak": 2})
    assert ("Llama-3.1-8B", "(all)") in parameters.index.droplevel("Bins")
    assert parameters.index.is_unique  # on a phone, only the index names a row
    assert list(tables.compare_curves(curves, "delta AICc", 1)) == list(FORMULAS)
    assert set(tables.format_explained(curves).index.get_level_values("Curve")) <= set(FORMULAS) - {"constant"}


def test_curves_without_parameters_are_a_list_by_reason_and_not_empty_rows():
    rows = pd.DataFrame(
        [
            ("m", "math", "equal width", 1.0, ""),
            ("m", "math", "equal tokens", np.nan, "not better than a constant by AICc"),
            ("m", "my_set", "equal width", np.nan, "not better than a constant by AICc"),
            ("m", "my_set", "equal tokens", np.nan, "not better than a constant by AICc"),
            ("n", "math", "equal width", np.nan, "only 5 bins contain tokens; 8 are needed"),
        ],
        columns=["Model", "Dataset", "Bins", "peak", "note"],
    )
    rows = rows.assign(Curve="unimodal", **dict.fromkeys(("peak low", "peak high", "before peak"), np.nan))
    assert list(tables.format_parameters(rows, "unimodal", {"peak": 2}).index) == [("m", "math", "equal width")]
    assert tables.describe_missing_parameters(rows, "unimodal", ["peak"]).splitlines() == [
        "Not in this table, and why:",
        "",
        "* not better than a constant by AICc: m, math (equal tokens); m, my&#95;set",
        "* only 5 bins contain tokens; 8 are needed: n, math",
    ]
    assert tables.describe_missing_parameters(rows[:1], "unimodal", ["peak"]) == ""
    none = tables.describe_missing_parameters(rows[1:], "unimodal", ["peak"])
    assert none.startswith("No fit of this curve has values of peak, for these reasons:")


def test_a_recap_says_whether_any_curve_could_be_fitted():
    fits = pd.DataFrame({"R2 (medians)": [np.nan, 0.5]})
    assert tables.describe_fits(fits).startswith("We fitted these curves to the medians of every run and pool")
    assert tables.describe_fits(fits[:1]) == (
        "No curve could be fitted to any run or pool; the reasons are above. Where there are too few tokens, longer "
        "or more texts help: raise `n_prompts` or `max_tokens`."
    )


def test_the_list_of_missing_rises_says_why_no_rise_could_be_measured():
    reason = "no rise measured: fewer than 5 groups of prompts have tokens there"
    notes = ["not better than a constant", f"not better than a constant; {reason}"]
    rows = pd.DataFrame({"Model": "m", "Dataset": ["a", "b"], "Bins": "equal width", "Curve": "free", "note": notes})
    rows = rows.assign(rise=[0.1, np.nan], peak=np.nan)
    assert tables.describe_missing_parameters(rows, "free", ["rise", "peak"]).splitlines()[2:] == [f"* {reason}: m, b"]


def create_comparison() -> pd.DataFrame:
    """Two curves of three runs: one has all numbers, one has no AICc, one has none."""
    rows = pd.DataFrame({"Model": "m", "Dataset": ["a", "a", "b", "b", "c", "c"], "Curve": ["line", "free"] * 3})
    few = "only 5 bins contain tokens; 8 are needed"
    known = [0.5, 0.6, 0.5, 0.6, np.nan, np.nan]
    return rows.assign(Bins="equal width", R2=known, AICc=[1.0, 0.0, *[np.nan] * 4], note=["", "", "", "x", few, few])


def test_rows_without_any_number_of_a_comparison_are_a_list_by_reason():
    rows = create_comparison()
    assert list(tables.compare_curves(rows, "R2", 2).index) == [("m", "a", "equal width"), ("m", "b", "equal width")]
    listed = tables.describe_missing_numbers(rows, "R2")
    assert listed.splitlines()[::2] == [
        "Not in this table, and why:",
        "* only 5 bins contain tokens; 8 are needed: m, c",
    ]
    assert tables.describe_missing_numbers(rows, "AICc", but="R2").splitlines()[2:] == ["* AICc is not defined: m, b"]
    assert tables.describe_missing_numbers(rows[:2], "AICc") == ""


def test_a_section_without_a_table_is_only_what_is_missing():
    none = create_comparison()[4:]
    parts = tables.show_section(
        tables.compare_curves(none, "R2", 2), "Before.", "After.", tables.describe_missing_numbers(none, "R2")
    )
    assert [part.data.splitlines()[0] for part in parts] == ["There is nothing to compare, for these reasons:"]
    whole = tables.show_section(tables.compare_curves(create_comparison(), "R2", 2), "Before.", "After.")
    assert [part.data for part in (whole[0], whole[-1])] == ["Before.", "After."]
    assert "<table" in whole[1].data


def test_a_column_that_is_empty_from_top_to_bottom_is_not_shown_and_the_reason_is():
    head = pd.Index(["m", "n"], name="Model")
    frame = pd.DataFrame({"Spearman r": ["0.1", "0.2"], "within-k Spearman r": "", "share": np.nan}, index=head)
    html = tables.show(frame).data
    said = "within-k Spearman r (no two tokens with the same number of candidates differ in both quantities) and share."
    assert BeautifulSoup(html, "html.parser").select_one("p").text == f"Not shown, because no row has a value: {said}"
    assert html.count("<th") == 2 + 1  # and <thead>
    noted = tables.show(frame.assign(note=["no coefficient given k: k is constant", ""])).data
    assert "no two tokens" not in noted  # the note has another reason
    assert "k is constant" in noted
    assert "Not shown" not in tables.show(frame[["Spearman r"]]).data


@pytest.mark.parametrize(("prompts", "shown"), [(2, "2"), (29, "2"), (30, "1.7")])
def test_the_design_effect_of_a_few_prompts_has_no_decimals_unless_it_would_be_0(statistics, prompts, shown):
    few = statistics.iloc[[0]].assign(prompts=prompts, **{"design effect": 1.71})
    assert tables.format_readable(few)["design effect"].tolist() == [shown]
    for small, number in ((0.371, "0.4"), (0.02, "0.02")):
        assert tables.format_readable(few.assign(**{"design effect": small}))["design effect"].tolist() == [number]


@pytest.mark.parametrize(("prompts", "digits"), [(6, 2), (30, 3), (100, 4)])
def test_errors_of_a_few_prompts_have_few_digits(prompts, digits):
    assert tables.choose_error_digits(pd.DataFrame({"prompts": [500, prompts]})) == digits


def test_without_a_coefficient_given_k_the_plain_one_is_said_and_why_the_other_is_missing(statistics):
    alone = statistics.iloc[[0]].assign(**{"Spearman r": -0.25, "within-k Spearman r": np.nan})
    text = tables.describe_coefficients(alone)
    between = "Spearman's correlation between entropy and cosine similarity"
    assert text.startswith(f"{between} is −0.25. There is no coefficient")
    assert "the same number of candidates" in text
    assert tables.describe_coefficients(alone.assign(**{"Spearman r": np.nan})).startswith("No run has enough tokens")


def test_curves_that_say_nothing_about_tokens_are_missed_in_words(curves):
    assert tables.describe_unexplained(curves).startswith("No curve with bins of equal width is better than a constant")
    none = curves.assign(**{"R2 (medians)": np.nan})
    assert tables.describe_unexplained(none).startswith("No curve with bins of equal width could be fitted")


def test_whether_a_sentence_counts_is_said_and_not_seen_from_the_digits_of_a_name():
    said = [(f"with top_p {value}", "The sign for `all_but_top_3` is clear.") for value in (0.9, 0.95)]
    assert tables.merge_sentences(said) == ["The sign for `all_but_top_3` is clear."]
    (counted,) = tables.merge_sentences(said, counted=True)
    assert counted == "With top_p 0.9 as well as with top_p 0.95: the sign for `all_but_top_3` is clear."
    none = [(where, "No run has SmolLM2.") for where, _ in said]
    assert tables.merge_sentences(none, counted=True) == ["No run has SmolLM2."]


def test_a_parameter_that_no_row_has_is_not_a_column():
    row = {
        "Model": "m",
        "Dataset": "math",
        "Bins": "equal width",
        "Curve": "free",
        "note": "not better than a constant",
    }
    row |= {"rise": 0.1, "rise low": 0.0, "rise high": 0.2}
    row |= dict.fromkeys(("peak", "peak low", "peak high", "before peak"), np.nan)
    assert list(tables.format_parameters(pd.DataFrame([row]), "free", {"rise": 3, "peak": 2})) == ["rise", "note"]


def test_latex_numbers_read_as_numbers():
    powers = [tables._format_power(value) for value in (np.log10(9.7e-300), -873.85, -0.5, np.nan)]
    assert powers == [r"$1{\cdot}10^{-299}$", r"$1{\cdot}10^{-874}$", "$0.3$", "--"]
    assert [tables._format_number(value) for value in (-0.001, -0.5, np.inf)] == ["$0.00$", "$-0.50$", r"$\infty$"]
    rows = pd.DataFrame({"r": [0.08, 0.2], "r low": [0.0041, np.nan], "r high": [0.1612, np.nan]})
    assert tables._format_bounded(rows, "r", "r") == ["$0.080$ $[0.004, 0.161]$", "$0.20$"]  # as on a page


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="NO pdflatex HERE: the LaTeX is only parsed")
def test_the_tables_of_the_studys_names_fit_the_column_of_an_article(tmp_path):
    names = [("Llama-3.1-8B-Instruct", "writingprompts"), ("deepseek-llm-7b-base", "gsm8k")]
    statistics = correlation.compute_statistics(
        {name: draw_full(seed) for seed, name in enumerate(names)}, resamples=30
    )
    (tmp_path / "short.tex").write_text(tables.format_correlation_short_tex(statistics))
    (tmp_path / "full.tex").write_text(tables.format_correlation_tex(statistics))
    body = r"\noindent\input{short}\par\noindent\input{full}"
    document = rf"\documentclass{{article}}\usepackage{{booktabs,multirow}}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "paper.tex").write_text(document)
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "paper"]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600).stdout
    assert "Output written" in log
    assert "Overfull" not in log


def test_a_table_for_readers_has_one_heading_row_and_no_numbers_of_rows(statistics):
    html = tables.show(tables.format_readable(statistics)).data
    assert (
        html.count("<tr") - html.count('<tr class="names"') == len(statistics) + 1 + (statistics["note"] != "").sum()
    )  # a note has its own row
    assert html.index(">Model</th>") < html.index(">Dataset</th>") < html.index(">Pearson r</th>")
    assert "100%_of$#{}&amp;~^" in html
    assert "NaN" not in html


def create_coefficients(plain, given, width=0.1):
    """Both coefficients of some runs, with intervals of twice the ``width``."""
    found = pd.DataFrame({"Spearman r": plain, "within-k Spearman r": given})
    for kind in ("Spearman", "within-k Spearman"):
        for end, sign in (("low", -1), ("high", 1)):
            found[f"{kind} {end}"] = found[f"{kind} r"] + sign * width
    return found


def test_the_sentence_on_coefficients_says_only_what_the_data_show():
    turned = tables.describe_coefficients(create_coefficients([-0.3, -0.2], [0.1, 0.2], width=0.05))
    assert (
        "is between −0.30 and −0.20; among tokens with the same number of candidates it is between 0.10 and 0.20."
        in turned
    )
    assert turned.endswith(
        "Here the signs clearly differ in both runs: among tokens with the same number of candidates, higher entropy "
        "goes with *more* similar candidates."
    )
    assert "*less*" in tables.describe_coefficients(create_coefficients([0.3], [-0.1], 0.05))
    assert "signs clearly differ" not in tables.describe_coefficients(create_coefficients([-0.3], [-0.1]))
    mixed = tables.describe_coefficients(create_coefficients([-0.3, -0.2, np.nan], [0.1, -0.1, np.nan], 0.05))
    assert mixed.endswith("In 1 of 2 runs the signs clearly differ.")
    assert "No run" in tables.describe_coefficients(create_coefficients([np.nan], [np.nan]))


@pytest.mark.parametrize("width", [0.15, np.nan])
def test_a_sign_whose_interval_contains_zero_or_is_unknown_is_not_said_to_differ(width):
    said = " their signs differ, but not clearly: a 95% interval contains 0 or is unknown."
    two = create_coefficients([-0.3, -0.2], [0.1, 0.2], width)
    assert "signs clearly differ" not in tables.describe_coefficients(two.iloc[:1])
    assert tables.describe_coefficients(two.iloc[:1]).endswith(said[1:].capitalize())
    if np.isnan(width):
        assert tables.describe_coefficients(two).endswith("In both runs" + said)
    else:
        assert tables.describe_coefficients(two).endswith(
            "In 1 of 2 runs the signs clearly differ. In 1 of 2 runs" + said
        )


def test_runs_of_one_model_with_several_values_of_a_setting_are_not_counted_together():
    one = create_coefficients([-0.3, -0.2], [0.1, -0.1], 0.05).assign(Model="m", Dataset=["a", "b"])
    other = create_coefficients([-0.35, -0.2], [0.1, -0.1], 0.05).assign(Model="m", Dataset=["a", "b"])
    both = pd.concat([one.assign(top_p=0.9), other.assign(top_p=0.5)], ignore_index=True)
    lines = tables.describe_coefficients(both).splitlines()
    assert [line[: line.index(":")] for line in lines] == [f"* With {escape_name(f'top_p {p}')}" for p in (0.5, 0.9)]
    assert all(line.endswith("In 1 of 2 runs the signs clearly differ.") for line in lines)
    assert tables.describe_coefficients(one).count("of 2 runs") == 1


def test_the_sentence_on_the_rise_counts_runs_and_neither_pools_nor_means_over_models():
    low = {"m": 0.1, "n": -0.1, "(all)": 0.1, "(random effects)": 0.1}
    rows = pd.DataFrame({"Model": list(low), "Dataset": "d", "Curve": "free", "rise low": list(low.values())})
    rows["note"] = ""
    rows["rise"] = rows["rise low"] + 0.05
    rows["rise high"] = rows["rise low"] + 0.1 - 0.05
    text = tables.describe_rise(rows)
    assert text == (
        "There are 2 fits, one for each run and kind of bins. Cosine similarity clearly rises before it falls in 1 of "
        "2 fits; in 1 it is clearly lower at the supposed peak."
    )
    rejected = tables.describe_rise(rows.assign(note="not better than a constant by AICc")[:1])
    assert rejected == (
        "There is 1 fit, one for each run and kind of bins. Cosine similarity clearly rises before it falls in the "
        "only fit, but there the free curve as a whole is not better than a constant."
    )
    rows.loc[1, "rise"] = np.nan
    assert tables.describe_rise(rows).startswith(
        "There are 2 fits, one for each run and kind of bins; a rise can be measured in 1 of them. Cosine similarity "
        "clearly rises before it falls in the only fit"
    )
    assert tables.describe_rise(rows.assign(rise=np.nan)).startswith("No run has enough")


def test_the_mean_over_models_is_shown_by_data_set_and_empty_without_two_models(statistics):
    shown = tables.format_models(random_effects.combine_coefficients(statistics))
    assert shown.index.tolist() == ["gsm8k"]
    value, low, high = map(float, re.findall(r"-?\d\.\d+", shown.loc["gsm8k", "Spearman r"].replace("−", "-")))
    assert low <= value <= high
    alone = statistics[statistics["Dataset"] == "my_texts"]
    assert len(tables.format_models(random_effects.combine_coefficients(alone))) == 0
    assert tables.describe_missing_means(alone).endswith("because only one model was measured.")
    two = alone.iloc[[0, 0]].assign(Model=["a", "b"], Dataset=["x", "y"])
    assert tables.describe_missing_means(two).endswith(
        "because no data set has coefficients of two models with the same settings."
    )
    assert tables.describe_missing_means(alone[:0]) == "There is no such mean yet."


def test_a_page_shows_no_p_values_and_the_share_and_design_effect_of_the_tokens(statistics):
    shown = tables.format_readable(statistics)
    assert not [name for name in shown if name.endswith(" p")]
    row = statistics.iloc[0]
    first = shown.iloc[0]
    assert first["share with k > 1"] == f"{100 * row['tokens with k > 1'] / row['tokens']:.0f}%"
    assert first["design effect"] == f"{row['design effect']:.{int(row['prompts'] >= 30)}f}"
    assert "design effect" not in tables.format_readable(statistics, "full_entropy")


def test_the_published_study_is_compared_only_if_it_has_a_run_in_common():
    assert tables.describe_comparison(0, 15, 3).startswith("None of the 15 published runs")
    assert "diamonds" not in tables.describe_comparison(0, 15, 3)
    several, one = (tables.describe_comparison(common, 15, 3) for common in (2, 1))
    assert several.startswith(
        "2 of the 15 published runs are among the 3 measured here; diamonds mark them in the figure"
    )
    assert one.startswith("1 of the 15 published runs is among the 3 measured here; a diamond marks it in the figure")
    assert "is among the only one measured here" not in tables.describe_comparison(1, 15, 1)
    assert tables.describe_comparison(1, 15, 1).startswith("The run measured here is one of the 15 published runs; a")


def test_statistics_are_read_as_the_analyses_wrote_them(tmp_path):
    written = correlation.compute_statistics({("m", "d"): draw_full(0), ("m", "e"): draw_full(1)}, resamples=50)
    folder = tmp_path / "correlation_eval"
    tables.write(tables.format_csv(written), folder / "correlation_stats.csv")
    found = tables.load_statistics(tmp_path)
    pd.testing.assert_frame_equal(tables.format_readable(found), tables.format_readable(written))
    assert found["Pearson p"].tolist() == written["Pearson p"].tolist()
    with pytest.raises(ValueError, match=r"run scripts/correlation_eval\.py first"):
        tables.load_statistics(tmp_path / "none")


def test_a_note_is_a_row_of_its_own_below_the_row_it_belongs_to():
    frame = pd.DataFrame({"Model": ["a", "b", "c"], "r": [1, 2, 3], "note": ["", "few <b>", None]}).set_index("Model")
    rows = BeautifulSoup(tables.show(frame).data, "html.parser").select("tbody > tr")
    assert [[cell.get_text() for cell in row.select("td")] for row in rows] == [
        ["a", "1"],
        ["b", "2"],
        ["few <b>"],
        ["c", "3"],
    ]
    assert [row.get("class") for row in rows] == [None, None, ["note"], None]
    assert rows[2].td["colspan"] == "2"
    heads = BeautifulSoup(tables.show(frame).data, "html.parser").select("thead th")
    assert [head.get_text() for head in heads] == ["Model", "r"]


def test_a_table_without_notes_has_a_row_for_each_row():
    frame = pd.DataFrame({"r": [1, 2]})
    assert len(BeautifulSoup(tables.show(frame).data, "html.parser").select("tbody > tr")) == 2
    assert tables.show(frame.iloc[:0]).data == "<p><em>There is nothing to show here yet.</em></p>"


@pytest.mark.parametrize(
    ("value", "low", "high", "shown"),
    [
        (0.31234, 0.28, 0.34, "0.312 [0.280, 0.340]"),
        (0.31234, 0.1, 0.6, "0.31 [0.10, 0.60]"),
        (3.14159, 0.0, 12.0, "3 [0, 12]"),
        (-0.0001, -1.2, 1.2, "0.0 [−1.2, 1.2]"),
        (0.5, np.nan, np.nan, "0.500"),
        (0.5, 0.5, 0.5, "0.500 [0.500, 0.500]"),
        (0.5, -np.inf, np.inf, "0.500 [−∞, ∞]"),
        (np.nan, np.nan, np.nan, ""),
    ],
)
def test_numbers_have_the_digits_that_their_interval_allows(value, low, high, shown):
    rows = pd.DataFrame({"x": [value], "x low": [low], "x high": [high]})
    (text,) = tables._format_spans(rows, "x", 3)
    assert text == shown
    assert numbers.format_field(text) == shown.replace(", ", ",\N{NO-BREAK SPACE}")  # a table shows it so


def test_an_error_that_no_cosine_can_have_is_not_shown_to_four_digits():
    rows = pd.DataFrame({"Model": "m", "Dataset": ["a", "b"] * 2, "Bins": "equal width"})
    rows = rows.assign(Curve=["constant", "constant", "free", "free"], error=[0.1, 0.2, 4468.06, np.nan])
    shown = tables.compare_curves(rows, "error", 4, most=2)
    assert shown["constant"].tolist() == [0.1, 0.2]
    assert shown["free"].tolist() == ["> 2", ""]


def describe_front(*bounds, top_p: float = 0.9) -> str:
    rows = [
        {
            "Model": "m",
            "Dataset": f"d{place}",
            "Spearman r": 0.3 if np.isnan(low) else (low + high) / 2,
            "Spearman low": low,
            "Spearman high": high,
        }
        | {"tokens with k > 1": 100 + place, "prompts": 2 + place}
        for place, (low, high) in enumerate(bounds)
    ]
    names = ["Model", "Dataset", "Spearman r", "Spearman low", "Spearman high", "tokens with k > 1", "prompts"]
    return tables.describe_answer(pd.DataFrame(rows, columns=names), top_p)


def test_a_front_page_without_variants_has_an_answer_with_a_number_and_its_interval():
    less = "**In this run, candidates are *less* similar when the model is less sure: Spearman's coefficient is −0.20 "
    assert describe_front((-0.3, -0.1)) == (
        f"{less}[−0.30, −0.10]** (m on d0, 2 prompts; candidates are the likeliest tokens that make up 90% of the "
        "probability; its 95% confidence interval is in brackets)."
    )
    for top_p, share in ((0.5, "50%"), (0.975, "97.5%"), (0.999, "99.9%"), (0.07, "7%")):
        assert f"; candidates are the likeliest tokens that make up {share} of" in describe_front((-1, 1), top_p=top_p)
    unsaid = describe_front((-0.3, -0.1), top_p=np.nan)
    assert unsaid == f"{less}[−0.30, −0.10]** (m on d0, 2 prompts; its 95% confidence interval is in brackets)."
    assert "candidates are *more* similar" in describe_front((0.1, 0.3))
    assert "are neither clearly more nor clearly less similar" in describe_front((-0.1, 0.3))
    several = describe_front((-0.3, -0.1), (-0.4, -0.2), (-0.1, 0.3))
    assert several.startswith("**In 2 of 3 runs, candidates are *less* similar when the model is less sure; in 1 of 3")
    assert several.endswith(
        "In the run with the most tokens, m on d2, Spearman's coefficient is 0.10 [−0.10, 0.30] "
        "(4 prompts; candidates are the likeliest tokens that make up 90% of the probability; "
        "its 95% confidence interval is in brackets)."
    )
    assert describe_front().startswith("There is no answer yet")
    few = describe_front((np.nan, np.nan))
    assert "neither" not in few
    assert "brackets" not in few


def write_info(folder: Path, **settings) -> None:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"settings": settings, "chat_template": True}))


def test_what_runs_lack_is_said_with_what_to_try(tmp_path, capsys):
    table = draw_full(0, prompts=4, length=5)
    write_info(tmp_path / "math" / "tiny", n_prompts=12, prompt_format="raw")
    write_info(tmp_path / "math" / "whole", n_prompts=4, prompt_format="chat")
    said = tables.describe_gaps(tmp_path, {("tiny", "math"): table, ("whole", "math"): table.assign(k=2)})
    assert said.startswith("* **tiny on math**: Warning: this model has a chat template, but prompt_format is raw: ")
    assert "the model may stop immediately or behave differently than in a chat" in said
    assert "8 of 12 texts are empty" in said
    write_info(tmp_path / "math" / "one", n_prompts=5, prompt_format="chat")
    assert "1 of 5 texts is empty, " in tables.describe_gaps(tmp_path, {("one", "math"): table})
    assert "prompt_format=chat may help" in said
    assert "whole" not in said
    assert tables.describe_gaps(tmp_path, {("whole", "math"): table.assign(k=2)}) == ""
    alone = tables.describe_gaps(tmp_path, {("whole", "math"): table.assign(k=1)})
    assert "20 of 20 tokens (100%) had only one candidate" in alone
    assert "a higher top_p or temperature" in alone
    assert tables.describe_gaps(tmp_path, {("theirs", "math"): table.assign(k=2)}) == ""  # without a run.json
    capsys.readouterr()
    (tmp_path / "math/whole/run.json").write_text('{"settings": ')
    assert tables.describe_gaps(tmp_path, {("whole", "math"): table.assign(k=2)}) == ""  # analysed all the same
    assert "run.json' is not valid JSON" in assert_one_line(capsys.readouterr().err)


def test_a_row_with_several_names_has_them_in_words_in_a_hidden_row_before_it():
    frame = pd.DataFrame(
        {"Model": ["m<a", "b"], "Dataset": "d", "top_p": ["0.9", ""], "r": [0.1, 0.2], "note": ["", "x"]}
    )
    soup = BeautifulSoup(tables.show(frame.set_index(["Model", "Dataset", "top_p"])).data, "html.parser")
    rows = soup.tbody.find_all("tr")
    assert [" ".join(row.get("class", ["plain"])) for row in rows] == ["names", "plain", "names", "plain", "note"]
    assert all(row.has_attr("hidden") for row in rows if "names" in row.get("class", []))
    assert [rows[place].get_text(strip=True) for place in (0, 2, 4)] == ["m<a, d, top_p 0.9", "b, d", "x"]
    assert "names-3" in soup.table["class"]
    assert not BeautifulSoup(tables.show(frame[["Model", "r"]].set_index("Model")).data, "html.parser").select(".names")


def test_a_long_word_may_break_and_is_still_the_same_word():
    assert tables.break_words("SmolLM2-135M-Instruct a<b") == "SmolLM2-135M-Instruct a&lt;b"
    broken = tables.break_words(f"sha256 {'<' * 40}")
    assert broken.replace("<wbr>", "").replace("&lt;", "<") == f"sha256 {'<' * 40}"
    assert broken.count("<wbr>") == 2


def test_names_in_the_index_of_a_table_stay_as_they_are():
    html = tables.show(pd.DataFrame({"r": [-1]}, index=pd.Index(["-1"], name="seed"))).data
    assert ">-1</td>" in html
    assert ">−1</td>" in html


def test_a_table_of_settings_has_a_row_for_each_also_for_those_of_a_nested_one():
    html = tables.show_settings({"top_p": 0.9, "seed": -1, "model": {"sha256": "f" * 64}, "text_column": None}).data
    for name, value in (("top_p", "0.9"), ("seed", "-1"), ("model sha256", "<wbr>"), ("text_column", "None")):
        row = html[html.index(f">{name}</td>") :].partition("</tr>")[0]
        assert value in row
