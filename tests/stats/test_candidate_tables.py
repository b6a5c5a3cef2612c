"""Which runs have variants, and which nucleus they were drawn from."""

import numpy as np
import pytest

from nucleoscope.settings import Settings
from nucleoscope.stats import candidate_tables
from nucleoscope.store import variants
from variant_files import draw_run, write_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs with a top_p each; the last has no variants."""
    results, table = tmp_path_factory.mktemp("results"), draw_run(0, 2, 3)
    found = {name: write_run(results, table, name, top_p=top_p) for name, top_p in
             (("half", 0.5), ("other half", 0.5), ("more", 0.7), ("without", 0.95))}  # fmt: skip
    (found["without"] / variants.VARIANTS).unlink()
    return found


@pytest.mark.parametrize(
    ("names", "usual"),
    [
        (["half", "other half"], 0.5),
        (["half", "other half", "without"], 0.5),
        (["half", "more"], Settings.top_p),
        (["without"], Settings.top_p),
        ([], Settings.top_p),
    ],
)
def test_the_usual_top_p_is_that_of_all_runs_with_variants_or_the_default(folders, names, usual):
    assert candidate_tables.find_usual_top_p([folders[name] for name in names]) == usual


def test_a_run_that_does_not_say_its_top_p_leaves_the_default(tmp_path):
    folder = write_run(tmp_path, draw_run(0, 2, 3), "half", top_p=0.5)
    (folder / "run.json").unlink()
    assert candidate_tables.find_usual_top_p([folder]) == Settings.top_p
    assert np.isnan(candidate_tables.find_common_top_p([folder]))


def test_the_common_top_p_is_that_of_all_runs_with_or_without_variants(folders):
    assert candidate_tables.find_common_top_p([folders["half"]]) == 0.5
    assert np.isnan(candidate_tables.find_common_top_p([folders["half"], folders["without"]]))
    assert candidate_tables.find_common_top_p([folders["without"]]) == 0.95
    assert np.isnan(candidate_tables.find_common_top_p([]))


def test_a_run_without_variants_is_told_from_one_whose_variants_cannot_be_read(folders, tmp_path, capsys):
    found, missing = candidate_tables.find_measured(folders["half"].parents[1], [("half", "data"), ("without", "data")])
    assert found == {("half", "data"): folders["half"]}
    assert list(missing) == [("without", "data")]
    assert missing["without", "data"] == ""
    torn = write_run(tmp_path, draw_run(0, 2, 3), "torn", top_p=0.5)
    path = torn / variants.VARIANTS
    path.write_bytes(path.read_bytes()[:-9])
    found, missing = candidate_tables.find_measured(tmp_path, [("torn", "data")])
    assert not found
    assert missing["torn", "data"] == f"'{path}' is damaged (truncated): repeat the run's command with --overwrite"
    assert capsys.readouterr().err == f"skipped: {missing['torn', 'data']}\n"
