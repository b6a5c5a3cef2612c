"""The theory page's figure of measurements: what it shows, and a sentence that is true of it."""

import numpy as np
import pandas as pd
import pytest

from nucleoscope.views import theory_figures


def draw_nuclei(*sizes: tuple[int, int]) -> pd.DataFrame:
    """Nuclei of several (k, number)."""
    k = np.concatenate([np.full(number, k) for k, number in sizes])
    return pd.DataFrame({"k": k, "cosine": np.random.default_rng(0).uniform(0, 1, len(k))})


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([(2, 3)], "Each point is a measured nucleus, for all runs together"),
        ([(2, 30), (9, 19)], "Each point is a measured nucleus, for all runs together"),
        ([(2, 3000)], "Each point is a measured nucleus, 1 of 2, for all runs together"),
    ],
)
def test_a_few_measured_nuclei_are_points_and_not_lines_without_points(sizes, said):
    nuclei = draw_nuclei(*sizes)
    (dots,) = theory_figures.plot_measured(nuclei).data
    assert dots.mode == "markers"
    assert 0 < len(dots.x) == len(nuclei) // (2 if len(nuclei) > theory_figures.MOST else 1)
    text = theory_figures.describe_measured(nuclei)
    assert text.startswith(said)
    assert "lines" not in text


def test_quantiles_of_several_sizes_are_lines():
    nuclei = draw_nuclei((2, 20), (4, 20))
    figure = theory_figures.plot_measured(nuclei)
    assert [(trace.mode, list(trace.x)) for trace in figure.data] == [("lines", [2, 4])] * 3
    assert theory_figures.describe_measured(nuclei).startswith("At each size the lines mark")


def test_without_a_measured_nucleus_there_is_a_sentence_and_no_figure(tmp_path):
    nuclei = theory_figures.load_measured(tmp_path)
    assert theory_figures.plot_measured(nuclei) is None
    assert theory_figures.describe_measured(nuclei).startswith("No nucleus with more than one candidate was measured")


def test_a_single_nucleus_is_singular():
    figure = theory_figures.plot_measured(draw_nuclei((2, 1)))
    assert figure.layout.title.text == "Mean cosine of 1 measured nucleus"
