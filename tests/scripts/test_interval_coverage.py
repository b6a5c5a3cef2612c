"""The table of coverage: what a share counts, and that the book has the script's table."""

import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

import interval_coverage
from nucleoscope.stats import bootstrap

METHOD = (Path(__file__).parents[2] / "book/method.md").read_text(encoding="utf-8")


def test_the_truth_is_that_of_a_very_large_table():
    values, _, k = interval_coverage.draw_table(40_000, 0)
    assert stats.pearsonr(*values.T).statistic == pytest.approx(interval_coverage.TRUTH["Pearson"], abs=0.01)
    assert stats.spearmanr(*values.T).statistic == pytest.approx(interval_coverage.TRUTH["Spearman"], abs=0.01)
    common = k == 5
    within = stats.spearmanr(*values[common].T).statistic
    assert within == pytest.approx(interval_coverage.TRUTH["Spearman within k"], abs=0.02)


def test_a_share_counts_the_tables_whose_interval_contains_the_truth(monkeypatch):
    bounds = {("Pearson", "percentile"): [(-0.6, -0.4), (-0.4, -0.2)], ("Spearman", "jackknife t"): [(-1, 0), (-1, 1)]}
    monkeypatch.setattr(
        interval_coverage,
        "compute_intervals",
        lambda prompts, seed: {name: rows[seed] for name, rows in bounds.items()},
    )
    covered = interval_coverage.count_covered(12, 2)
    assert {name: share for name, (share, _) in covered.items()} == dict(zip(bounds, [0.5, 1.0], strict=True))
    table = interval_coverage.format_table({12: covered}, 2)
    assert table.splitlines()[-1] == "| 12 | 0.500 (0.354) | 1.000 (0.000) |"


def test_the_intervals_are_those_of_the_library():
    values, prompt, k = interval_coverage.draw_table(8, 3)
    found = interval_coverage.compute_intervals(8, 3)
    once = np.ones((1, 8), dtype=np.int32)
    counts = np.concatenate([once, bootstrap.leave_out_groups(8)])
    estimate, *without = bootstrap.compute_spearman(values, prompt, counts, k)[:, 0, 1]
    expected = bootstrap.compute_jackknife_interval(estimate, np.array(without))
    assert found["Spearman within k", bootstrap.JACKKNIFE] == pytest.approx(
        expected, rel=1e-9
    )  # whatever the shift by k


def test_the_books_table_is_the_scripts_and_covers_with_12_prompts_where_percentiles_do_not():
    lines = METHOD[METHOD.index("| prompts | Pearson") :].split("\n\n")[0].splitlines()
    names = [name.strip() for name in lines[0].strip("|").split("|")][1:]
    rows = {int(line.split("|")[1]): re.findall(r"(\d\.\d+) \(", line) for line in lines[2:]}
    assert tuple(rows) == interval_coverage.PROMPTS
    covered = interval_coverage.count_covered(12, 60)
    header = interval_coverage.format_table({12: covered}, 60).splitlines()[0]
    assert lines[0] == header
    for name, share in zip(names, rows[12], strict=True):
        coefficient, kind = name.split(", ")
        assert (0.94 <= float(share) <= 0.965) == (kind == bootstrap.JACKKNIFE), name
        assert covered[coefficient, kind][0] == pytest.approx(float(share), abs=0.12)  # 60 tables: four errors
