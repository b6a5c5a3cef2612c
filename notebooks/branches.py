# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#     notebook_metadata_filter: jupytext,kernelspec,-jupytext.text_representation.jupytext_version,-jupytext.text_representation.format_version
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Branches
#
# At a few tokens of each text, each of the likeliest candidates is put in the place of the token that was taken, and the
# model continues from there, several times with other random numbers. All candidates get the same random numbers, so that
# branches differ by their candidate alone. We measure
#
# * how far the next-token distributions diverge: their mean Jensen-Shannon divergence along the branches, divided by
#   log 2,
# * the share of tokens that are equal,
# * whether branches meet again: whether their last five tokens are the same, and after how many tokens.
#
# The run must have been measured (notebook `measure.py`). If this is interrupted, it resumes after the last text. What
# was branched before is only shown. Whether the choice matters, and what predicts that, is the subject of `choice.py`.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # as in measure.py
dataset_name = "math"  # as in measure.py
text_column = None  # as in measure.py
results_dir = "results"  # contains <dataset>/<model>/, or <dataset>-<text_column>/<model>/
context_candidates = 8  # number of likeliest candidates of a token to continue from, 2 to 64
branch_points = 4  # number of tokens per text to branch at, 1 to 1,000
branch_length = 20  # number of tokens of each branch
branch_replicates = 3  # how many times each candidate is continued, 1 to 64
batch_size = "auto"  # number of branches per batch
device = "auto"  # as in measure.py
overwrite = False  # replace branches with other settings
skip_check = False  # do not try on short prompts first how the model can be read
trust_remote_code = False  # run code that comes with the model; read it first

# %%
import os
from dataclasses import asdict
from functools import partial
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.measure.branching import complete_branches
from nucleoscope.models.loading import load_measured
from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.settings import Settings
from nucleoscope.store import results
from nucleoscope.store.branches import BranchFolder, load_rows
from nucleoscope.views import choice_figures, fork_trees, tables

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## Continue
#
# Tokens are chosen by rule: those of a text with more than one candidate are divided by entropy, and each part by
# cosine similarity, into as many groups of equal size as there are branch points, and one token is drawn from each. The
# model, its data type, the temperature and `top_p` are those of the run.

# %% tags=["remove-output"]
chosen = Settings.collect(globals() | {"mode": "score" if text_column else "generate"})
folder = results.locate_run(chosen.results_dir, chosen.dataset_name, chosen.model_name, text_column)
run = BranchFolder(folder, asdict(chosen), overwrite)
info = results.load_info(folder)
load = partial(load_measured, info["settings"], device, trust_remote_code)
if run.finished:
    print("branches were measured before with these settings")
else:
    with run:
        complete_branches(run, load, info, chosen)

# %%
about = results.read_json(folder / results.BRANCH_INFO)
tables.show_settings({name: about[name] for name in about if name != "measurements"})

# %% [markdown]
# ## How far branches diverge
#
# Each row is a mean over pairs of branches: of different candidates with the same random numbers, and, as a baseline, of
# the same candidate with other random numbers, which shows how far texts diverge anyway. `met` is the share of pairs that
# meet again.

# %%
points = load_rows(folder)
tables.show(choice_figures.summarise_outcomes(points))

# %% [markdown]
# ## Three forks
#
# By rule: the branch point whose branches diverge the most, the median one, and the one whose branches diverge the
# least. Below each candidate, with its probability among the candidates, are its continuations; what they begin with in
# common is shown once.

# %%
identity = info["settings"]["model"]
tokenizer = load_tokenizer(info["settings"]["model_name"], trust_remote_code, identity.get("revision"))
fork_trees.show_forks(folder, points, tokenizer)

# %% [markdown]
# ## Recap
#
# `branch_points.parquet` has a row for each branch point, `branch_pairs.parquet` one for each pair of candidates, and
# `branches.parquet` one for each branch, with its tokens.

# %%
Markdown(tables.describe_place("These files are", folder))
