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
# # Similarity in context
#
# The cosine of two candidates says how similar they are out of context. Here the model itself says how similar they are
# at their place in the text: for each token with a choice, we
#
# * put each of the likeliest candidates in its place, and compute what the model expects to follow,
# * compare these distributions in pairs: a similarity of 1 means that both candidates have the same continuations, 0
#   that they have none in common,
# * group candidates with similar continuations, which splits the entropy of the choice into uncertainty about *what*
#   follows and about *how* it is put.
#
# The run must have been measured (notebook `measure.py`). The model reads its texts again; if it is interrupted, the
# notebook resumes after the last text. What was compared before is only shown.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # as in measure.py
dataset_name = "math"  # as in measure.py
text_column = None  # as in measure.py
results_dir = "results"  # contains <dataset>/<model>/, or <dataset>-<text_column>/<model>/
context_candidates = 8  # number of likeliest candidates of each token to compare, 2 to 64
context_threshold = 0.5  # mean similarity that two groups of candidates must have to be one group, in (0, 1]
context_memory = "auto"  # MiB that arrays over the whole vocabulary may take at once; auto: 64 on a CPU, 1024 on a GPU
device = "auto"  # as in measure.py
overwrite = False  # replace what was compared with another number of candidates
skip_check = False  # do not try on a short text first how the model can read candidates
trust_remote_code = False  # run code that comes with the model; read it first

# %%
import os
from functools import partial
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.measure.context import complete_context
from nucleoscope.models.loading import load_measured
from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.settings import Settings
from nucleoscope.stats import what_or_how
from nucleoscope.store import results
from nucleoscope.store.context import ContextFolder, load_matrices, load_rows
from nucleoscope.views import context_figures, tables

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## Compare
#
# The text is read once. The candidates of all its tokens are branches of a tree, each of which sees the text before its
# place, and itself. The model, its data type and the temperature are those of the run.

# %% tags=["remove-output"]
chosen = Settings.collect(globals() | {"mode": "score" if text_column else "generate"})
folder = results.locate_run(chosen.results_dir, chosen.dataset_name, chosen.model_name, text_column)
run = ContextFolder(folder, context_candidates, context_threshold, overwrite)
info = results.load_info(folder)
load = partial(load_measured, info["settings"], device, trust_remote_code)
if run.finished:
    print("similarity in context was measured before with these settings")
else:
    with run:
        complete_context(run, load, info, what_or_how.tabulate, skip_check, context_memory)

# %%
about = results.read_json(folder / results.CONTEXT_INFO)
tables.show_settings({name: about[name] for name in about if name != "measurements"})

# %% [markdown]
# ## Similar here, or similar in general
#
# For each token with more than one candidate, `context.parquet` has the mean similarity of its candidates in context.
# `tokens.parquet` has the mean cosine of the embeddings of its whole nucleus. If the two agree, the embeddings already
# show which candidates are interchangeable.

# %%
table = results.load_run(folder / results.MEASUREMENTS, model=folder.name, dataset=folder.parent.name)
compared = context_figures.join(load_rows(folder), table)
context_figures.plot_similarities(compared)

# %%
tables.show(context_figures.summarise(compared))

# %% [markdown]
# *continuations* is the effective number of different continuations: $\exp$ of the similarity-sensitive entropy, from 1
# (whichever candidate is taken, the same follows) to the number of candidates. The last column is Spearman's coefficient
# of mean similarity in context with each quantity.

# %% [markdown]
# ## What or how
#
# Two groups of candidates become one if their mean similarity is at least the threshold. The entropy of the choice is
# then the sum of the entropy over groups (*what*) and the mean entropy within groups (*how*). Groups of the same sizes,
# drawn at random, show how much of that follows from the sizes alone.

# %%
matrices = load_matrices(folder)
context_figures.plot_thresholds(what_or_how.compute_curve(matrices), context_threshold)

# %% [markdown]
# ## Three choices
#
# By rule: of the tokens with the median entropy or more, those whose candidates are the least similar in context, have
# the median similarity, and are the most similar. The candidates are below each row, with their probabilities; those of
# a group are joined by "/".

# %%
identity = info["settings"]["model"]
tokenizer = load_tokenizer(info["settings"]["model_name"], trust_remote_code, identity.get("revision"))
tables.show(context_figures.show_choices(compared, matrices, tokenizer, context_threshold))

# %% [markdown]
# ## Recap
#
# `context.parquet` has a row for each of these tokens, and `context.pt` the similarities of each pair of candidates.

# %%
Markdown(tables.describe_place("These files are", folder))
