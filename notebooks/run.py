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
# # One model on one data set
#
# In this notebook we let a language model continue some prompts, or read existing texts, and look at what it was
# choosing between at every token. We
#
# * load the model and the prompts,
# * generate, or read the texts, and measure the nucleus of each token: how spread out it is
#   (entropy) and how similar its candidates are (cosine similarity of their embeddings),
# * plot the two against each other, and read some of the texts with their tokens tinted by entropy.
#
# Change the settings below and run all cells; an interrupted run resumes at its first unfinished batch.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
dataset_name = "math"  # gsm8k, writingprompts, xsum; math, stories, articles (packaged); or a file
mode = "generate"  # generate: measure what the model writes; score: measure the texts in text_column
text_column = None  # in mode score, the column with the text to measure after each prompt
n_prompts = 100  # number of prompts, from the start of the data set
max_tokens = 100  # maximum number of tokens written or measured per prompt
top_p = 0.9  # mass of the nucleus, in (0, 1]
temperature = 1.0  # what the logits are divided by before they are measured and sampled from
seed = 0  # seed of the sampling; the same seed draws the same tokens; mode score draws none
prompt_format = "chat"  # chat: in the model's chat template, as in make run; raw: unchanged, as in the study
prompt_column = None  # column of a file that contains the prompts; None means "prompt"
batch_size = "auto"  # prompts processed together, or auto
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., balanced (all GPUs), or auto: the freest GPU, or several if needed
results_dir = "results"  # where <dataset>/<model>/ is created, or <dataset>-<text_column>/<model>/
overwrite = False  # replace results in that folder that have other settings
model_revision = None  # commit of a model on the Hub from which all its files are taken; None means the newest
trust_remote_code = False  # run code that comes with the model; read it first

# %%
import os
from pathlib import Path

import pandas as pd
from IPython.display import HTML, Markdown, display

from nucleoscope.data import prompts
from nucleoscope.measure import batching, generation, scoring
from nucleoscope.models import loading
from nucleoscope.stats import correlation
from nucleoscope.store import results, run_folder
from nucleoscope.views import examples, figures, tables
from nucleoscope.views.strip import background, strip

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## The model and the prompts

# %%
batching.check(max_tokens=max_tokens, top_p=top_p, temperature=temperature)
batching.check(prompt_format=prompt_format, batch_size=batch_size)
batching.check_mode(mode, text_column)
folder = results.cell_folder(results_dir, dataset_name, model_name, text_column)
run_folder.check(folder, overwrite)
data = prompts.load(dataset_name, n_prompts, prompt_column, text_column)
model, tokenizer, identity = loading.load(model_name, dtype, device, trust_remote_code, model_revision)

# %%
settings = {"model_name": model_name, "model": identity, "dataset_name": dataset_name, "dataset": data.identity}
settings |= {"n_prompts": len(data.texts), "prompt_format": prompt_format, "prompt_column": prompt_column}
settings |= {"max_tokens": max_tokens, "top_p": top_p, "temperature": temperature}
settings |= {"dtype": str(model.dtype).removeprefix("torch.")}
settings |= {"seed": seed} if mode == "generate" else {"mode": mode, "text_column": text_column}
pd.Series(settings, name="setting").to_frame()

# %% [markdown]
# The settings above decide which tokens are measured. They are saved with the results, so that
# results with different settings are never mixed. If a data set has fewer prompts than requested, all of them are used.

# %% [markdown]
# ## Generate or read, and measure
#
# The prompts are continued in batches. At each step the next token is drawn from the nucleus: the
# smallest set of likeliest tokens with a total probability of at least `top_p`. With `mode="score"` nothing is
# drawn: the model reads each prompt with its text once, and every token of the text is measured
# as if the model had just written it.

# %%
cell = run_folder.Cell(folder, settings, overwrite)
parameters = {"max_tokens": max_tokens, "top_p": top_p, "temperature": temperature}
parameters |= {"prompt_format": prompt_format, "batch_size": batch_size}
if not cell.finished:
    with cell:
        if mode == "generate":
            generation.fill(cell, model, tokenizer, data.texts, seed=seed, **parameters)
        else:
            scoring.fill(cell, model, tokenizer, data.texts, data.continuations, **parameters)
info = results.load_info(folder)

# %%
print(
    f"{info['settings']['n_prompts']} prompts, {info['tokens']:,} tokens, {info['tokens_per_second']} tokens/s on {info['device']}"
)
if info["prompts_truncated"]:
    print(f"{info['prompts_truncated']} prompts were longer than the model's context; their beginnings were cut off")
if info.get("texts_truncated"):
    print(f"{info['texts_truncated']} texts were longer than max_tokens; their ends were cut off")

# %% [markdown]
# ## What was measured
#
# If the nucleus contains only one token, there is nothing to compare: such tokens are counted,
# and left out of the plots and coefficients.

# %%
table = results.load_cell(folder / results.MEASUREMENTS, model=folder.name, dataset=folder.parent.name)
statistics = correlation.statistics({(folder.name, folder.parent.name): table})
tables.show(tables.readable(statistics))

# %% [markdown]
# Each coefficient has a 95 % interval, from resampling whole prompts. *Within-prompt*
# is the mean of the coefficients inside each text; *partial* is given the number of candidates.

# %%
figures.scatter(table)

# %% [markdown]
# Each point is one token: further right, the model was less sure; further up, its candidates were more
# similar. The line joins the medians of 50 bins of equal width; a bin with few tokens says little (point
# at it to see how many it has).

# %%
figures.distributions(table)

# %% [markdown]
# The two distributions show where most tokens are, which the scatter plot hides where its points
# overlap.

# %% [markdown]
# ## Single texts, token by token
#
# These prompts are chosen by rule. For each prompt we compute Spearman's coefficient of entropy and cosine
# similarity over its tokens with more than one candidate ($k > 1$), and show the prompt with the median
# coefficient, the one with the coefficient furthest from 0 and the one with the coefficient nearest to 0. Prompts with
# fewer than 20 such tokens are excluded (if all texts are short the bound is lower, as stated below). Each prompt is
# shown at most once, so fewer than three texts appear if there are fewer than three prompts.
#
# Each token is tinted by the entropy of its choice, or by another quantity that you select.
# Point at it, tap it, or reach it with the arrow keys: its card shows the likeliest candidates with
# their probabilities, and where the token is among the others.

# %%
behind, whose = background(table), "drawn" if mode == "generate" else "the text's"
picks = examples.chosen(table)
records = results.load_records(folder, [pick.prompt for pick in picks])
for pick in picks:
    html = strip(records[pick.prompt], tokenizer, table=behind, whose=whose)
    display(Markdown(pick.sentence), HTML(html))

# %% [markdown]
# ## Recap
#
# We measured every token that the model wrote or read, plotted entropy against cosine similarity, showed both
# distributions, and looked at single texts. In the folder below, `measurements.pt` contains the measurements,
# `tokens.parquet` the same quantities as a table, and `run.json` the settings and timings.

# %%
folder
