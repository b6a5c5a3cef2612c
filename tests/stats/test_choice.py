"""What predicts how far branches diverge: coefficients against plain definitions, and where the answer is known."""

import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import tiny
from messages import assert_one_line
from nucleoscope.measure.branching import complete_branches
from nucleoscope.settings import Settings
from nucleoscope.stats import choice, replicates
from nucleoscope.store import branches, results

rng = np.random.default_rng


def create_run(seed: int = 0, prompts: int = 20, per_prompt: int = 6, effect: float = 1.0) -> choice.BranchedRun:
    """A run whose divergence falls with similarity in context by ``effect``, and rises with k; cosine is noise."""
    draw, n = rng(seed), prompts * per_prompt
    prompt, step = np.repeat(np.arange(prompts), per_prompt), np.tile(np.arange(per_prompt), prompts)
    k = draw.integers(2, 9, n)
    similar, cosine = draw.uniform(size=n), draw.uniform(size=n)
    divergence = 0.1 * k - effect * similar + draw.normal(0, 0.1, n)
    points = pd.DataFrame(
        {"prompt": prompt, "step": step, "m": k, "k": k, "candidate_cosine": cosine, "mean_similarity": similar}
    )
    points["entropy"] = np.log(k) + draw.normal(0, 0.1, n)
    points["divergence"], points["equal_tokens"], points["met"] = divergence, draw.uniform(size=n), draw.uniform(size=n)
    for name in ("divergence", "equal_tokens", "met"):
        points[f"baseline_{name}"] = draw.uniform(size=n)
    pairs = points.loc[points.index.repeat(5), ["prompt", "step", "equal_tokens", "met"]].reset_index(drop=True)
    pairs["cosine"], pairs["similarity"] = draw.uniform(size=(2, len(pairs)))
    pairs["divergence"] = -effect * pairs["similarity"] + draw.normal(0, 0.1, len(pairs))
    return choice.BranchedRun(choice.turn(points), choice.turn(pairs), {})


@pytest.fixture(scope="module")
def coefficients() -> pd.DataFrame:
    return choice.compute_coefficients({("m", "a"): create_run(0), ("m", "b"): create_run(1)}, draws=200)


def pick(table: pd.DataFrame, predictor: str, statistic: str, dataset: str, outcome: str = "divergence") -> pd.Series:
    (row,) = table[
        (table["predictor"] == predictor)
        & (table["statistic"] == statistic)
        & (table["Dataset"] == dataset)
        & (table["outcome"] == outcome)
    ].to_dict("records")
    return row


def test_coefficients_are_spearmans_and_partial_ones_those_of_residuals_of_ranks(coefficients):
    points = create_run(0).points
    ranks = points[["divergence", "mean_similarity", "k", "entropy"]].rank().to_numpy()
    plain = stats.spearmanr(points["divergence"], points["mean_similarity"]).statistic
    assert pick(coefficients, "similarity in context", choice.ALL, "a")["r"] == pytest.approx(plain)
    design = np.column_stack([np.ones(len(ranks)), ranks[:, 2:]])
    left = [column - design @ np.linalg.lstsq(design, column)[0] for column in ranks[:, :2].T]
    partial = np.corrcoef(*left)[0, 1]
    row = pick(coefficients, "similarity in context", choice.GIVEN, "a")
    assert row["r"] == pytest.approx(partial)
    assert row["given"] == "k and entropy"


def test_what_predicts_is_found_and_noise_is_not(coefficients):
    for dataset in ("a", "b", "(all)"):
        for statistic in choice.STATISTICS:
            assert pick(coefficients, "similarity in context", statistic, dataset)["high"] < 0
        row = pick(coefficients, "cosine of embeddings", choice.GIVEN, dataset)
        assert row["low"] < 0 < row["high"]
    row = pick(coefficients, "number of candidates k", choice.ALL, "(all)")
    assert row["low"] > 0
    assert row["observations"] == 240
    assert row["runs"] == 2


def test_exchanging_outcomes_among_points_of_equal_k_keeps_what_k_explains_and_nothing_else(coefficients):
    k = pick(coefficients, "number of candidates k", choice.ALL, "a")
    assert k["null low"] == pytest.approx(k["r"], abs=0.02)
    similar = pick(coefficients, "similarity in context", choice.ALL, "a")
    assert similar["r"] < similar["null low"] < 0 < similar["null high"]
    assert np.isnan(pick(coefficients, "similarity in context", choice.WITHIN, "a")["null low"])


def test_the_pairs_of_a_point_are_compared_with_each_other_only():
    run = create_run(0)
    pairs = run.pairs.assign(divergence=run.pairs["divergence"] + 100 * run.pairs["step"])  # differs between points
    shifted = choice.compute_coefficients({("m", "a"): run._replace(pairs=pairs)}, draws=10)
    plain = choice.compute_coefficients({("m", "a"): run}, draws=10)
    rows = [pick(table, "similarity in context", choice.WITHIN, "a") for table in (plain, shifted)]
    assert rows[0]["r"] == pytest.approx(rows[1]["r"])
    each = [
        stats.spearmanr(part["divergence"], part["similarity"]).statistic
        for _, part in run.pairs.groupby(["prompt", "step"])
    ]
    assert rows[0]["r"] == pytest.approx(np.mean(each))


def test_the_answer_does_not_depend_on_the_number_of_draws_and_is_the_same_each_time():
    run = {("m", "a"): create_run(0)}
    one, other = (choice.compute_coefficients(run, seed=0, draws=draws) for draws in (20, 30))
    columns = [name for name in one if not name.startswith("null")]
    pd.testing.assert_frame_equal(one[columns], other[columns])
    pd.testing.assert_frame_equal(one, choice.compute_coefficients(run, seed=0, draws=20))


@pytest.mark.parametrize("prompts", [0, 1, 2])
def test_too_few_points_give_notes_and_no_errors(prompts):
    found = choice.compute_coefficients({("m", "a"): create_run(0, prompts, 1)}, draws=5)
    assert len(found) == len(choice.PREDICTORS) * len(choice.OUTCOMES) * 2 + 6
    points = found[found["statistic"] != choice.WITHIN]
    assert points["r"].isna().all()
    assert (points["note"] != "").all()
    assert len(choice.summarise({("m", "a"): create_run(0, prompts, 1)})) == len(choice.MEANS)


def test_no_runs_are_an_empty_table_with_all_columns():
    assert list(choice.compute_coefficients({}).columns) == choice.list_columns()
    assert choice.summarise({}).empty


def test_an_outcome_that_does_not_vary_has_no_coefficient():
    run = create_run(0)
    run.points["never meet"] = 1.0
    found = choice.compute_coefficients({("m", "a"): run}, draws=5)
    row = pick(found, "entropy", choice.ALL, "a", "never meet")
    assert np.isnan(row["r"])
    assert row["note"]


def test_means_and_their_difference_have_intervals_over_prompts():
    run = create_run(0)
    row = choice.summarise({("m", "a"): run}).iloc[0]
    assert row["candidates"] == pytest.approx(run.points["divergence"].mean())
    assert row["difference"] == pytest.approx((run.points["divergence"] - run.points["baseline_divergence"]).mean())
    means = run.points.groupby("prompt")["divergence"].mean().to_numpy()
    margin = stats.t.ppf(0.975, 19) * means.std(ddof=1) / np.sqrt(20)
    assert row["candidates high"] - row["candidates"] == pytest.approx(margin)


def test_intervals_of_shares_end_where_their_range_does():
    run = create_run(0, prompts=8, per_prompt=2)
    for table in (run.points, run.pairs):
        for name in choice.MEANS:
            table[name] = (np.arange(len(table)) > 0).astype(float)
    run.points[[f"baseline {name}" for name in choice.MEANS]] = 0.0
    found = choice.summarise({("m", "a"): run})
    assert found["candidates high"].tolist() == found["difference high"].tolist() == [1.0] * len(choice.MEANS)
    assert (found["candidates low"] < found["candidates"]).all()
    assert (found[["same candidate low", "same candidate high"]] == 0).all(axis=None)


def test_partial_coefficients_mark_groups_without_tokens_and_columns_that_say_the_same():
    values = rng(0).normal(size=(30, 4))
    values[:, 3] = values[:, 2]
    matrices = replicates.compute_matrices(values, np.arange(30) % 10)
    partial = choice.compute_partial(matrices, 1, [2])
    assert np.isfinite(partial[:11]).all()
    assert np.isinf(partial[11:]).all()
    assert np.isnan(choice.compute_partial(matrices, 1, [2, 3])[:11]).all()


def test_the_first_step_which_is_similarity_in_context_is_no_part_of_the_divergence():
    later = np.array([0.2, 0.6])
    table = pd.DataFrame({"similarity": [0.9, 0.3], "divergence": ([0.1, 0.7] + 4 * later) / 5})
    np.testing.assert_allclose(choice.leave_out_first(table, 5)["divergence"], later)
    points = table.rename(columns={"similarity": "mean_similarity"}).assign(baseline_divergence=[0.4, 0.8])
    found = choice.leave_out_first(points, 5)
    np.testing.assert_allclose(found["divergence"], later)
    np.testing.assert_allclose(found["baseline_divergence"], [0.5, 1.0])
    assert choice.leave_out_first(table, 1) is table


# Examples


@pytest.mark.parametrize(("n", "expected"), [(0, {}), (1, {"only": 0}), (2, {"most": 1, "least": 0})])
def test_examples_of_few_points_are_each_shown_once(n, expected):
    points = pd.DataFrame({"prompt": range(n), "step": 0, "divergence": np.arange(n) / 10})
    found = choice.choose_examples(points)
    assert {name: int(row["prompt"]) for name, row in found.items()} == expected


def test_examples_are_the_most_the_median_and_the_least_consequential_point():
    points = pd.DataFrame({"prompt": range(5), "step": 0, "divergence": [0.3, 0.9, 0.1, np.nan, 0.5]})
    found = {name: int(row["prompt"]) for name, row in choice.choose_examples(points).items()}
    assert found == {"most": 1, "median": 0, "least": 2}


# Files


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A results folder with one run that has branches and one that has none."""
    model, root = (tiny.create_model(eos_token_id=None), tiny.create_tokenizer(eos=False)), tmp_path_factory.mktemp("r")
    settings = {"model_name": "tiny", "dataset_name": "cats", "max_tokens": 6, "prompt_format": "raw", "seed": 0}
    for dataset in ("cats", "dogs"):
        tiny.measure(root / dataset / "tiny", model, ["the cat", "a long road"], settings)
    chosen = {"context_candidates": 3, "branch_points": 2, "branch_length": 4, "branch_replicates": 2}
    with branches.BranchFolder(root / "cats" / "tiny", chosen) as folder:
        info = results.load_info(root / "cats" / "tiny")
        complete_branches(folder, lambda: model, info, Settings(**chosen), progress=False)
    return root


def test_runs_with_branches_are_collected_with_the_quantities_of_their_tokens(measured):
    runs, problems = choice.collect(measured)
    assert problems == {}
    assert list(runs) == [("tiny", "cats")]
    run = runs["tiny", "cats"]
    assert len(run.points) == 4
    assert (run.points["k"] > 1).all()
    assert (run.points["entropy"] > 0).all()
    assert run.about["branch_length"] == 4


def test_a_damaged_file_is_named_in_one_line_and_the_other_runs_are_read(measured, tmp_path):
    copy = shutil.copytree(measured, tmp_path / "copy")
    shutil.copytree(copy / "cats", copy / "birds")
    (copy / "birds" / "tiny" / results.BRANCH_PAIRS).write_bytes(b"PAR1")
    runs, problems = choice.collect(copy)
    assert list(runs) == [("tiny", "cats")]
    ((name, problem),) = problems.items()
    assert name == "tiny on birds"
    assert_one_line(problem)
