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
# In this notebook we let a language model continue some prompts, or read texts that are already
# there, and look at what it was choosing between at every token. We
#
# * load the model and the prompts,
# * generate, or read the texts, and measure the nucleus of each token: how spread out it is
#   (entropy) and how alike its candidates are (cosine similarity of their embeddings),
# * plot the two against each other, and read some of the texts with their tokens tinted by entropy.
#
# Change the settings below and run all cells; a run that was interrupted goes on where it was.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
dataset_name = "math"  # gsm8k, writingprompts, xsum; math, stories, articles (packaged); or a file
mode = "generate"  # generate: measure what the model writes; score: measure the texts in text_column
text_column = None  # in mode score the column that holds a text to measure behind each prompt
n_prompts = 100  # the first so many prompts of the data set
max_tokens = 100  # tokens written, or measured, for each prompt, at most
top_p = 0.9  # mass of the nucleus, in (0, 1]
temperature = 1.0  # what the logits are divided by before they are measured and sampled from
seed = 0  # of the sampling; the same seed draws the same tokens; mode score draws none
prompt_format = "chat"  # chat: in the model's own template, as make run does; raw: as it is, as in the study
prompt_column = None  # column of a file that holds the prompts; None means "prompt"
batch_size = "auto"  # prompts worked on together, or auto
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., balanced (all GPUs), or auto: the freest GPU, more if need be
results_dir = "results"  # where <dataset>/<model>/ is made, or <dataset>-<text_column>/<model>/
overwrite = False  # replace results in that folder that were made with other settings
model_revision = None  # commit of a model on the Hub that all its files are taken from; None means the newest
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

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths count from the project's folder
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
# The settings above decide which tokens are measured. They are kept with the results, so that
# results of different settings never mix. A data set with fewer prompts than asked for is used whole.

# %% [markdown]
# ## Generate or read, and measure
#
# The prompts are continued in batches. At each step the next token is drawn from the nucleus: the
# likeliest tokens that together hold `top_p` of the probability. With `mode="score"` nothing is
# drawn: the model reads each prompt with its text once, and every token of the text is measured
# as if it had been the one to come.

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
records, info = results.load(folder / results.MEASUREMENTS), results.load_info(folder)

# %%
print(f"{len(records)} prompts, {info['tokens']:,} tokens, {info['tokens_per_second']} tokens/s on {info['device']}")
if info["prompts_truncated"]:
    print(f"{info['prompts_truncated']} prompts were longer than the model's context and lost their beginning")
if info.get("texts_truncated"):
    print(f"{info['texts_truncated']} texts were longer than max_tokens and lost their end")

# %% [markdown]
# ## What was measured
#
# Where only one token makes up the nucleus there is nothing to compare: those tokens are counted,
# and left out of the plots and coefficients.

# %%
table = results.table(records, model=folder.name, dataset=folder.parent.name)
statistics = correlation.statistics({(folder.name, folder.parent.name): table})
tables.show(tables.readable(statistics))

# %% [markdown]
# Each coefficient comes with its 95 % interval, from drawing whole prompts again and again; *within-prompt*
# is the mean of the coefficients inside each text, *partial* is given the number of candidates.

# %%
figures.scatter(table)

# %% [markdown]
# Each point is one token: to the right the model was less sure, upwards its candidates were more
# alike. The line joins the medians of 50 bins of equal width; where a bin holds few tokens (point
# at it to see how many) it says little.

# %%
figures.distributions(table)

# %% [markdown]
# The two distributions show where most tokens lie, which the scatter plot hides where points
# overlap.

# %% [markdown]
# ## Single texts, token by token
#
# Chosen by rule, not by taste: in each prompt we take Spearman's coefficient of entropy and cosine
# similarity over those of its tokens that had a choice ($k > 1$), and show the prompt with the middle
# coefficient, the one furthest from 0 and the one nearest to 0. Prompts with fewer than 20 such
# tokens take no part (where all texts are short the bound is lower, as said below), and none is
# shown twice: with one or two prompts there are only as many texts.
#
# Each token is tinted by the entropy of the choice at its place, or by the quantity that you pick.
# Point at it, tap it, or go there with the arrow keys: its card shows the likeliest candidates with
# their probabilities, and where it lies among the others.

# %%
behind, whose = background(table), "drawn" if mode == "generate" else "the text's"
for pick in examples.chosen(records):
    html = strip(records[pick.prompt], tokenizer, table=behind, whose=whose)
    display(Markdown(pick.sentence), HTML(html))

# %% [markdown]
# ## Recap
#
# We measured every token that the model wrote or read, and saw entropy against cosine similarity, both
# distributions, and single texts. The measurements are in `measurements.pt` in the folder below, the
# settings and timings beside it in `run.json`.

# %%
folder
