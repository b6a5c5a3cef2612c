"""The page about a data set's texts and the model's: its figures, its sentences whatever comes out, and its texts."""

import json
import os
import re
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import pytest

import forks
import sources
import tiny
from nucleoscope.stats import calibration
from nucleoscope.stats.calibration import EXISTING, OUTSIDE, SURPRISAL, WRITTEN
from nucleoscope.store import text_pairs
from nucleoscope.store.text_pairs import Pair, Run
from nucleoscope.views import calibration_figures, calibration_text, commands, tables, two_texts
from nucleoscope.views.token_text import escape_name
from nucleoscope.workflow import notebooks
from pair_files import COMMON, measure_pair, write_run
from pair_files import EXISTING as SCORED

MINUS = "\N{MINUS SIGN}"


def create_pair(existing=None, written=None) -> Pair:
    one = COMMON | SCORED | (existing or {})
    return Pair(Run("existing", one), Run("written", COMMON | {"mode": "generate", "seed": 0} | (written or {})))


def create_measured(names=("one",), **options) -> dict[str, two_texts.Measured]:
    found = {}
    for seed, name in enumerate(names):
        tables = (
            sources.draw_text(2 * seed, **options),
            sources.draw_text(2 * seed + 1, "written", known=options.get("known", True)),
        )
        found[name] = two_texts.Measured(create_pair(), *tables)
    return found


@pytest.fixture(scope="module")
def bins() -> pd.DataFrame:
    return two_texts.calibrate_pairs(create_measured(("one", "two_a")))


@pytest.fixture(scope="module")
def comparison() -> pd.DataFrame:
    return two_texts.compare_pairs(create_measured(("one", "two_a")))


# Figures


def find_trace(figure, name: str):
    (trace,) = [trace for trace in figure.data if trace.name == name]
    return trace


@pytest.mark.parametrize(
    ("plot", "quantity", "unit"),
    [(calibration_figures.plot_outside, OUTSIDE, 100), (calibration_figures.plot_surprisal, SURPRISAL, 1)],
)
def test_a_figure_shows_the_numbers_of_the_bins_with_their_intervals_and_expectations(bins, plot, quantity, unit):
    figure = plot(bins)
    own = bins[(bins["pair"] == "one") & (bins["bin"] != "all")]
    names = [name for name in own if name.startswith(quantity) and pd.api.types.is_float_dtype(own[name])]
    own = own.assign(**{name: unit * own[name] for name in names})
    for text, (label, _, _, line) in calibration_figures.LOOKS.items():
        part, points = own[own["text"] == text], find_trace(figure, label)
        assert points.y == pytest.approx(part[quantity].tolist(), abs=1e-4)
        assert points.x == pytest.approx(part["full entropy"].tolist(), abs=1e-4)
        high = np.add(points.y, points.error_y.array)
        assert high == pytest.approx(part[f"{quantity} high"].tolist(), abs=2e-4)
        if quantity == SURPRISAL or text == EXISTING:
            expected = part[f"{quantity} expected"].tolist()
            assert find_trace(figure, line).y == pytest.approx(expected, abs=1e-4)
            band = find_trace(figure, f"{line}, band").y
            assert band[: len(part)] == pytest.approx(part[f"{quantity} expected low"].tolist(), abs=1e-4)
    assert quantity in figure.layout.meta["alt"].lower()


def test_what_is_expected_in_a_single_bin_is_a_short_stroke(bins):
    single = bins[(bins["pair"] == "one") & (bins["text"] == EXISTING) & (bins["bin"] != "all")].iloc[:1]
    figure = calibration_figures.plot_surprisal(single)
    line = find_trace(figure, calibration_figures.LOOKS[EXISTING][3])
    assert line.x[0] < single["full entropy"].item() < line.x[1]
    assert line.y == pytest.approx(2 * single[f"{SURPRISAL} expected"].tolist(), abs=1e-4)
    assert len(find_trace(figure, f"{line.name}, band").x) == 4


def test_a_menu_selects_the_pair_if_there_are_several(bins):
    (menu,) = calibration_figures.plot_surprisal(bins).layout.updatemenus
    assert [button.label for button in menu.buttons] == ["one", "two_a"]
    last = menu.buttons[1].args[0]["y"][-1]
    rows = bins[(bins["pair"] == "two_a") & (bins["text"] == WRITTEN) & (bins["bin"] != "all")]
    assert last == pytest.approx(rows[SURPRISAL].tolist(), abs=1e-4)
    assert not calibration_figures.plot_surprisal(bins[bins["pair"] == "one"]).layout.updatemenus


# The table and the sentences


def test_the_table_has_both_texts_and_their_difference_in_points_where_it_is_of_shares(comparison):
    one = comparison[comparison["pair"] == "one"]
    table = calibration_text.format_text_means(one)
    assert list(table.columns) == ["data set's text", "model's text", "difference"]
    row = one.set_index("quantity").loc["outside"]
    shown = table.loc["tokens outside the nucleus"]
    assert shown["data set's text"].startswith(f"{100 * row['existing']:.1f}% [")
    assert shown["difference"].startswith(f"{100 * row['difference']:.1f} points [")
    assert table.loc["surprisal (nats)", "model's text"].endswith("]")
    assert table.loc["probability that the text ends", "data set's text"].startswith("0.0% [")
    older = calibration_text.format_text_means(two_texts.compare_pairs(create_measured(known=False)))
    assert "probability that the text ends" not in older.index
    assert "surprisal minus full entropy (nats)" in older.index


def create_comparison(surprisal: tuple, entropy: tuple, prompts: int = 9) -> pd.DataFrame:
    """Rows of two quantities: (existing, written, half the width of the difference's interval)."""
    rows = []
    for name, (existing, written, margin) in {"surprisal": surprisal, "full_entropy": entropy}.items():
        row = dict.fromkeys(calibration.list_comparison_columns(), np.nan)
        row |= {"quantity": name, "existing": existing, "written": written, "difference": existing - written}
        row |= {"difference low": existing - written - margin, "difference high": existing - written + margin}
        rows.append(row | {"prompts": prompts, "interval": "jackknife t", "pair": "m on d, answer"})
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("surprisal", "entropy", "words"),
    [
        (
            (2, 1, 0.5),
            (1, 2, 0.5),
            ["surprises the model more than its own (difference 1.00 [0.50, 1.50])", "surer about what"],
        ),
        (
            (1, 2, 0.5),
            (2, 1, 0.5),
            ["surprises the model less than its own", "is less sure about what comes next in the data"],
        ),
        (
            (1, 2, 3),
            (1, 1, 1),
            [
                "neither text clearly surprises the model more",
                "it is not clearly surer about what comes next in either text",
            ],
        ),
        ((1, 2, np.nan), (1, 1, 1), [f"too few prompts for an interval (difference {MINUS}1.00)."]),
        ((np.nan, 2, 1), (1, 1, 1), ["the mean surprisal is unknown in one of the texts."]),
    ],
)
def test_the_comparison_is_right_whatever_the_difference(surprisal, entropy, words):
    text = calibration_text.describe_text_difference("m on d, answer", create_comparison(surprisal, entropy))
    assert text.startswith("**m on d, answer**: over 9 prompts, ")
    for word in words:
        assert word in text


def test_a_pair_without_a_common_prompt_says_so_and_one_prompt_is_singular():
    nothing = (np.nan, np.nan, np.nan)
    assert "no prompt has both texts." in calibration_text.describe_text_difference(
        "m", create_comparison(nothing, nothing, 0)
    )
    assert "over 1 prompt, " in calibration_text.describe_text_difference(
        "m", create_comparison((1, 1, 1), (1, 1, 1), 1)
    )


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (["jackknife t"], "from leaving out each prompt in turn; "),
        (["percentile"], "from resampling prompts; "),
        (
            ["percentile", "jackknife t"],
            "from resampling prompts, or leaving out one prompt at a time if there are fewer than 30; ",
        ),
    ],
)
def test_the_kind_of_interval_is_said(kinds, words):
    assert words in calibration_text.describe_interval(pd.DataFrame({"interval": kinds}))


def describe(believed: float, **options) -> tuple[str, str]:
    bins = two_texts.calibrate_pairs(create_measured(believed=believed, **options))
    return calibration_text.describe_outside(bins), calibration_text.describe_surprisal(bins)


@pytest.mark.parametrize(
    ("believed", "outside", "surprisal"),
    [
        (1.8, "leaves the nucleus more often than", "the text is more surprising than the model expects"),
        (0.6, "leaves the nucleus less often than", "the text is less surprising than the model expects"),
        (
            1.0,
            "does not show whether the nucleus is too narrow or too wide",
            "does not show whether the model is too sure or not sure enough",
        ),
    ],
)
def test_the_judgement_of_a_text_is_right_for_every_source(believed, outside, surprisal):
    found = describe(believed, prompts=60)
    assert outside in found[0]
    assert surprisal in found[1]
    assert "None of the 1,000 tokens of the model's text is outside, by construction" in found[0]
    assert "which is not clearly different from 0, as it should be" in found[1]
    assert "Of the 10 bins of full entropy, " in found[0]
    for text in found:
        assert text.startswith("**one**: ")
        assert "end-of-text" not in text
        assert "given that the text continues" in text
        assert "nan" not in text


@pytest.mark.parametrize("believed", [1.0, 1.8])
def test_without_the_probability_of_ends_a_judgement_names_them_as_what_a_difference_may_come_from(believed):
    for text in describe(believed, prompts=60, ending=0.04, known=False):
        assert "given that the text continues" not in text
        judged = "or the difference comes from the end-of-text token" in text
        assert judged or "and a difference may be hidden by the end-of-text token" in text


def test_tokens_that_take_no_part_are_counted():
    measured = create_measured(ending=0.04)
    table = measured["one"].existing.copy()
    table.loc[:2, ["end_probability", "end_mass"]] = 0.9999
    bins = two_texts.calibrate_pairs({"one": measured["one"]._replace(existing=table)})
    said = "Left out: 3 tokens, because an end of the text was all but certain (above 0.999), the token is one, or"
    assert calibration_text.describe_outside(bins).count(said) == 1
    assert said not in calibration_text.describe_surprisal(bins)  # the model's text has all
    older = measured["one"].existing.assign(
        end_probability=np.nan, rank=lambda rows: rows["rank"].where(rows.index > 0)
    )
    bins = two_texts.calibrate_pairs({"one": measured["one"]._replace(existing=older)})
    assert "Left out: 1 token, because a number is unknown." in calibration_text.describe_outside(bins)


def test_what_expectations_are_given_is_said_of_each_pair():
    new, old = (create_measured([name], known=known) for name, known in (("new", True), ("old_a", False)))
    for measured, given, older in (
        (new, True, None),
        (old, False, "texts without"),
        (new | old, True, f"of **{escape_name('old_a')}**"),
    ):
        bins = two_texts.calibrate_pairs(measured)
        text = calibration_text.describe_ends(bins)
        assert ("given that the text continues" in text) == given
        assert ("measure them again" in text) == bool(older)
        assert (older or "") in text
        title = calibration_figures.plot_surprisal(bins).layout.xaxis.title.text
        assert ("given no end" in title) == (older is None)


def test_the_kind_of_interval_of_a_share_without_a_token_outside_is_said():
    measured = create_measured()
    inside = measured["one"].existing.query("rank <= k")
    bins = two_texts.calibrate_pairs({"one": measured["one"]._replace(existing=inside)})
    assert "The interval is that of Clopper and Pearson" in calibration_text.describe_outside(bins)
    assert calibration_text.CERTAIN in calibration_text.explain_outside(bins)
    bins["outside interval"] = "percentile"
    assert calibration_text.CERTAIN not in calibration_text.explain_outside(bins)
    assert calibration_text.explain_outside(bins).endswith("Here m is the mass given that the text continues.")
    bins["given no end"] = False
    assert calibration_text.explain_outside(bins) == f"{calibration_text.EXPLAIN_OUTSIDE} {calibration_text.AT_ZERO}"
    bins.loc[bins["text"] == WRITTEN, OUTSIDE] = 0.01  # of a run whose tokens were not all drawn from the nucleus
    assert calibration_text.explain_outside(bins) == calibration_text.EXPLAIN_OUTSIDE


def test_one_prompt_and_one_bin_have_no_judgement_and_no_bins():
    for text in describe(1.0, prompts=1, length=20):
        assert "too few prompts for an interval" in text
        assert "bins" not in text
        assert "nan" not in text


def test_a_nucleus_of_all_tokens_judges_nothing():
    measured = create_measured()
    every = measured["one"].existing.assign(mass=1.0, k=sources.VOCABULARY)
    bins = two_texts.calibrate_pairs({"one": measured["one"]._replace(existing=every)})
    assert "no token of the data set's text can be outside" in calibration_text.describe_outside(bins)


def test_measurements_without_ranks_are_named(bins):
    only = bins[bins["text"] == WRITTEN]
    assert "of the data set's text are unknown: measure it again." in calibration_text.describe_outside(only)
    assert "measure again with this version" in calibration_text.describe_surprisal(bins[:0])


def test_without_pairs_the_text_says_how_to_get_one_and_why_a_run_has_no_partner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # commands name the runs that are in results/
    nothing = text_pairs.FoundPairs([], [], [])
    text = calibration_text.describe_found(nothing, [])
    assert "nothing to compare yet" in text
    assert text.count("correlation_pipeline.py") == 2
    assert "mode: score, text_column: answer" in text
    assert max(map(len, re.findall(r"```bash\n(.*?)```", text, re.DOTALL)[0].splitlines())) <= commands.WIDE
    pair = create_pair(written={"temperature": 0.5})
    text = calibration_text.describe_found(text_pairs.FoundPairs([], [pair.existing], [pair.written]), [])
    assert "tiny on lines, answer: the nearest run" in text
    assert "because `temperature` is 1.0 for it and 0.5 there." in text
    text = calibration_text.describe_found(text_pairs.FoundPairs([], [pair.existing], []), [])
    assert "run the command that measured it again without `mode` and `text_column`." in text


def test_a_pair_is_described_with_its_settings_and_what_differs():
    pair = create_pair({"n_prompts": 5}, {"n_prompts": 4, "dtype": "bfloat16"})
    text = calibration_text.describe_found(text_pairs.FoundPairs([pair], [], []), ["tiny on lines, answer"])
    assert "1 pair was measured." in text
    assert "tiny on lines, answer: 4 prompts, up to 20 tokens of each text" in text
    assert "`n_prompts` is 5 and 4 in the two runs, and only what both have is compared" in text
    assert "read in float32 and written in bfloat16" in text


# The texts


def create_means(differences: dict[int, float], tokens: int = 20) -> tuple[pd.DataFrame, pd.DataFrame]:
    prompt = np.repeat(list(differences), tokens)
    written = pd.DataFrame({"prompt": prompt, "surprisal": 1.0})
    return written.assign(surprisal=1 + np.repeat(list(differences.values()), tokens)), written


def test_prompts_are_picked_by_the_difference_of_mean_surprisal():
    picks = two_texts.choose_texts(*create_means({0: 0.3, 1: -0.5, 2: 0.1, 3: 2.0, 4: 0.0}))
    assert [pick.prompt for pick in picks] == [2, 3, 1]
    assert picks[1].sentence == (
        "**The highest difference**, prompt 3: of the 5 prompts with at least 10 tokens in both texts, it has the "
        "highest difference of mean surprisal, 2.00 nats: 3.00 in the data set's text, 1.00 in the model's."
    )
    assert f"{MINUS}0.50 nats" in picks[2].sentence


def test_no_prompt_is_picked_twice_and_short_texts_do_not_take_part():
    picks = two_texts.choose_texts(*create_means({0: 1.0, 1: 2.0, 2: 3.0}))
    assert [pick.prompt for pick in picks] == [1, 2, 0]
    long, short = create_means({0: 1.0}, 60), create_means({5: 9.0}, 3)
    both = (pd.concat(parts) for parts in zip(long, short, strict=True))
    assert [pick.prompt for pick in two_texts.choose_texts(*both)] == [0]
    assert two_texts.choose_texts(long[0], short[1]) == []


def test_one_or_two_prompts_are_shown_without_calling_them_the_median_or_the_highest():
    (only,) = two_texts.choose_texts(*create_means({4: 1.0}))
    assert only.sentence == (
        "**The only prompt to choose from**, prompt 4: no other has at least 10 tokens in both texts. The difference "
        "of mean surprisal is 1.00 nats: 2.00 in the data set's text, 1.00 in the model's."
    )
    picks = two_texts.choose_texts(*create_means({0: 2.0, 1: -0.5}))
    assert [pick.prompt for pick in picks] == [1, 0]
    assert picks[0].sentence.startswith("**Prompt 1**, one of the only two prompts with at least 10 tokens")
    assert "median" not in "".join(pick.sentence for pick in picks)


# The page


def execute(folder, forked: bool = True) -> tuple[list[str], list[str], int]:
    """The notebook on the results in ``folder``: its strips, its lines of Markdown, and how many figures it has."""
    with mock.patch.dict(os.environ, forks.create_environment() if forked else {}):
        notebooks.execute("two_texts", folder / "page.ipynb", {"results_dir": str(folder / "results")})
    cells = nbformat.read(folder / "page.ipynb", as_version=4).cells
    data = [output.data for cell in cells for output in cell.get("outputs", []) if "data" in output]
    strips = [each["text/html"] for each in data if "nucleoscope-strip" in each.get("text/html", "")]
    figures = sum("application/vnd.plotly.v1+json" in each for each in data)
    return strips, [each["text/markdown"] for each in data if "text/markdown" in each], figures


def test_the_page_of_a_measured_pair_has_figures_tables_and_both_texts(tmp_path):
    name = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer(bos=False))
    measure_pair(tmp_path / "results", name)
    strips, lines, figures = execute(tmp_path, forked=False)
    assert figures == 2
    assert len(strips) == 6
    modes = [
        json.loads(html.split('<script type="application/json">')[1].split("</script>")[0])["mode"] for html in strips
    ]
    assert modes == ["score", "generate"] * 3
    assert ["<summary>Prompt</summary>" in html for html in strips] == [True, False] * 3
    assert "1 pair was measured." in lines[0]
    said = " ".join(lines)
    assert all(f"**The {rule} difference**" in said for rule in ("median", "highest", "lowest"))
    table = pd.read_csv(tmp_path / "results/correlation_eval/two_texts.csv")
    assert set(table["quantity"]) == set(calibration.MEASURES) - {calibration.EXCESS} | {calibration.EXCESS_GIVEN}
    assert calibration_text.EXPLAIN_GIVEN in lines
    assert set(pd.read_csv(tmp_path / "results/correlation_eval/two_texts_bins.csv")["text"]) == {EXISTING, WRITTEN}


def test_the_page_without_a_pair_says_how_to_get_one_and_has_no_figure(tmp_path):
    write_run(tmp_path / "results" / "lines-answer" / "tiny", SCORED)
    strips, lines, figures = execute(tmp_path)
    assert (strips, figures) == ([], 0)
    line = lines[0]
    assert lines[1:] == [*[tables.NOTHING_YET] * 4, lines[-1]]  # below each heading
    assert "No data set was measured both ways" in line
    assert "tiny on lines, answer" in line
    written = {path.name: path.read_text() for path in (tmp_path / "results").rglob("*.csv")}
    assert set(written) == {"two_texts.csv", "two_texts_bins.csv"}
    assert {text.count("\n") for text in written.values()} == {1}  # headings
    assert line.count(f" --results_dir={tmp_path / 'results'}\n") == 2
    assert lines[-1].endswith(f" are in `{tmp_path / 'results/correlation_eval'}`.")


def test_a_pair_whose_files_cannot_be_read_is_named_and_the_others_are_shown(tmp_path, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no such model")

    monkeypatch.setattr(two_texts, "load_tokenizer", refuse)
    for place in ("a", "b"):
        write_run(tmp_path / place / "tiny", SCORED | {"text_column": place})
    write_run(tmp_path / "w" / "tiny", {"seed": 0})
    (tmp_path / "a" / "tiny" / "measurements.pt").write_bytes(b"damaged")
    found = text_pairs.find_pairs(tmp_path)
    measured = two_texts.load(found.pairs)
    assert list(measured) == ["tiny on lines, b"]
    assert capsys.readouterr().err.startswith("left out: tiny on lines, a: ")
    assert "1 pair was measured" in calibration_text.describe_found(found, measured)
    pieces = list(two_texts.show_texts(measured))
    assert pieces == [("The texts cannot be shown here: their records or the model's tokenizer cannot be read.", "")]
    assert capsys.readouterr().err == "left out: the texts of tiny on lines, b: no such model\n"


def test_the_texts_of_further_pairs_are_named(monkeypatch):
    monkeypatch.setattr(two_texts, "load_tokenizer", lambda *_, **__: tiny.create_tokenizer())
    monkeypatch.setattr(two_texts, "choose_texts", lambda *_: [])
    monkeypatch.setattr(two_texts, "_load_strips", lambda *_: None)
    pieces = list(two_texts.show_texts(create_measured(("one", "two", "three", "four")), most=2))
    assert [text for text, _ in pieces[:2]] == [f"#### {name}\n\nNo prompt has both texts." for name in ("one", "two")]
    assert pieces[2][0] == "The texts of these pairs are on the pages of their runs: three; four."
