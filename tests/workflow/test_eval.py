"""The analyses as a user runs them: the command over a folder of runs, in a process of its own."""

import sys

import nbformat
import numpy as np
import pandas as pd
import torch
from test_pipeline import run_pipeline

from messages import assert_one_line
from nucleoscope.stats import correlation
from nucleoscope.store import results
from synthetic import draw_full, write_study_file

EVAL = [sys.executable, "scripts/correlation_eval.py"]


def write_run(folder, seed):
    """A run as our runs leave it, from a made table: what the analyses read of it."""
    columns = {"entropies": "entropy", "cosines": "cosine", "full_entropies": "full_entropy"}
    columns |= {"weighted_cosines": "weighted_cosine", "similarity_entropies": "similarity_entropy"}
    records = [
        {
            "prompt": f"prompt {index}",
            "top_p_tokens": [torch.zeros(k, dtype=torch.int64) for k in rows["k"]],
            **{name: rows[column].tolist() for name, column in columns.items()},
        }
        for index, rows in draw_full(seed, prompts=25).groupby("prompt")
    ]
    folder.mkdir(parents=True)
    torch.save(records, folder / results.MEASUREMENTS)


def test_every_run_is_analysed_whoever_measured_it_and_a_damaged_one_is_named(tmp_path):
    write_run(tmp_path / "xsum" / "Qwen3-8B", 1)
    write_run(tmp_path / "my_texts" / "Qwen3-8B", 2)
    write_study_file(tmp_path / "xsum" / "Llama-3.1-8B")
    damaged = write_study_file(tmp_path / "gsm8k" / "Llama-3.1-8B")
    damaged.write_bytes(damaged.read_bytes()[:500])
    done = run_pipeline(f"results_dir={tmp_path}", "resamples=100", command=EVAL)
    assert done.returncode == 0, done.stderr
    assert f"skipped: cannot read '{damaged}'" in done.stderr
    folder = tmp_path / results.ANALYSES
    assert done.stdout.rstrip().endswith(f"results: {folder}")
    assert done.stdout.count(str(folder)) == 1
    assert sorted(path.name for path in folder.iterdir()) == sorted(results.ANALYSIS_FILES)

    table = pd.read_csv(folder / "correlation_stats.csv", dtype={"Pearson p": str})
    assert list(table.columns[:6]) == correlation.PUBLISHED_COLUMNS
    runs = [("Llama-3.1-8B", "xsum"), ("Qwen3-8B", "my_texts"), ("Qwen3-8B", "xsum")]
    assert list(zip(table["Model"], table["Dataset"], strict=True)) == runs
    assert table["Pearson r"].between(-1, 1).all()
    assert list(table["full_entropy: Pearson r"].isna()) == [True, False, False]
    assert "no full_entropy" in table["note"][0]
    assert not (table["Pearson p"].astype(str) == "0.0").any()

    fits = pd.read_csv(folder / "fit_stats.csv")
    groups = set(zip(fits["Model"], fits["Dataset"], strict=True))
    assert groups == {*runs, ("Qwen3-8B", "(all)"), ("(all)", "xsum"), ("(random effects)", "xsum")}

    for name in ("correlation", "fits"):  # made_of.ipynb has no figure, because these runs have no variants
        notebook = nbformat.read(folder / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert any("application/vnd.plotly.v1+json" in output.get("data", {}) for output in outputs)
        assert not any(output.output_type == "error" for output in outputs)
    text = "".join(output["data"].get("text/markdown", "") for output in read_outputs(folder / "correlation.ipynb"))
    assert "2 of the 15 published runs are among the 3 measured here" in text


def read_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    return [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]


def test_the_same_measurements_give_the_same_files(tmp_path):
    for place, forked in (("one", False), ("other", True)):  # these have different hash seeds
        for seed in (1, 2):
            write_run(tmp_path / place / f"data{seed}" / "model", seed)
        done = run_pipeline(f"results_dir={tmp_path / place}", "resamples=100", command=EVAL, forked=forked)
        assert done.returncode == 0, done.stderr
    for name in results.ANALYSIS_FILES:
        if not name.endswith(".ipynb"):  # a notebook records when it ran
            one, other = ((tmp_path / place / results.ANALYSES / name).read_bytes() for place in ("one", "other"))
            assert one == other, name


def test_nothing_to_analyse_is_said_in_one_line(tmp_path):
    for folder, words in ((tmp_path, "no measurements under"), (tmp_path / "nowhere", "nowhere")):
        done = run_pipeline(f"results_dir={folder}", command=EVAL)
        assert done.returncode == 1
        assert words in assert_one_line(done.stderr)
        assert not (folder / results.ANALYSES).exists()


def test_where_every_file_is_damaged_nothing_is_written_and_each_is_named(tmp_path):
    path = write_study_file(tmp_path / "gsm8k" / "Llama-3.1-8B")
    path.write_bytes(b"no measurements")
    done = run_pipeline(f"results_dir={tmp_path}", command=EVAL)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 2, done.stderr
    skipped, error = done.stderr.strip().splitlines()
    assert skipped.startswith(f"skipped: cannot read '{path}'")
    assert error.startswith("error: no readable measurements")
    assert not (tmp_path / results.ANALYSES).exists()


def test_wrong_options_are_refused_in_one_line():
    for option in ("resamples=many", "resamples=0", "resamples=-1", "resamples=99", "results=there"):
        done = run_pipeline(option, command=EVAL)
        assert done.returncode == 2
        assert option.partition("=")[2] in assert_one_line(done.stderr)


def test_a_run_of_the_study_with_numbers_that_float16_lost_is_analysed(tmp_path):
    path = write_study_file(tmp_path / "xsum" / "Llama-3.1-8B")
    records = torch.load(path, weights_only=True)
    records[0]["entropies"][:5] = [float("nan")] * 5
    torch.save(records, path)
    tables, _ = results.load_runs(tmp_path)
    row = correlation.compute_statistics(tables, resamples=20).iloc[0]
    lost = int((np.array([len(ids) for ids in records[0]["top_p_tokens"][:5]]) > 1).sum())
    assert f"{lost} tokens left out: entropy or cosine is not finite" in row["note"]
    assert np.isfinite(row["Pearson r"])
