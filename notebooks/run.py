# ---
# jupyter:
#   jupytext:
#     formats: py:percent
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
# In this notebook we let a language model continue some prompts, and look at what it was choosing
# between at every token. We
#
# * load the model and the prompts,
# * generate, and measure the nucleus of each token: how spread out it is (entropy) and how alike
#   its candidates are (cosine similarity of their embeddings),
# * plot the two against each other, and read one text with its tokens tinted by entropy.
#
# Change the settings below and run all cells; a run that was interrupted goes on where it was.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
dataset_name = "math"  # gsm8k, writingprompts, xsum; math, stories, articles (packaged); or a file
n_prompts = 100  # the first so many prompts of the data set
max_tokens = 100  # tokens written for each prompt, at most
top_p = 0.9  # mass of the nucleus, in (0, 1]
seed = 0  # of the sampling; the same seed draws the same tokens
prompt_format = "chat"  # chat: in the model's own template, as make run does; raw: as it is, as in the study
prompt_column = None  # column of a file that holds the prompts; None means "prompt"
batch_size = "auto"  # prompts generated together, or auto
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., or auto
results_dir = "results"  # where <dataset>/<model>/ is made
overwrite = False  # replace results in that folder that were made with other settings
trust_remote_code = False  # run code that comes with the model; read it first

# %%
import os
from pathlib import Path

import pandas as pd
from IPython.display import HTML

from nucleoscope import correlation, figures, generation, models, prompts, results, tables, text

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths count from the project's folder
    os.chdir("..")

# %% [markdown]
# ## The model and the prompts

# %%
generation.check(max_tokens, top_p, prompt_format, batch_size)
data = prompts.load(dataset_name, n_prompts, prompt_column)
model, tokenizer, identity = models.load(model_name, dtype, device, trust_remote_code)

# %%
settings = {"model_name": model_name, "model": identity, "dataset_name": dataset_name, "dataset": data.identity}
settings |= {"n_prompts": len(data.texts), "prompt_format": prompt_format, "prompt_column": prompt_column}
settings |= {"max_tokens": max_tokens, "top_p": top_p, "seed": seed, "dtype": str(model.dtype).removeprefix("torch.")}
pd.Series(settings, name="setting").to_frame()

# %% [markdown]
# The settings above decide which tokens are written. They are kept with the results, so that
# results of different settings never mix. A data set with fewer prompts than asked for is used whole.

# %% [markdown]
# ## Generate and measure
#
# The prompts are continued in batches. At each step the next token is drawn from the nucleus: the
# likeliest tokens that together hold `top_p` of the probability.

# %%
folder = results.cell_folder(results_dir, dataset_name, model_name)
cell = results.Cell(folder, settings, overwrite)
parameters = {"max_tokens": max_tokens, "top_p": top_p, "seed": seed, "prompt_format": prompt_format}
if not cell.finished:
    with cell:
        generation.fill(cell, model, tokenizer, data.texts, batch_size=batch_size, **parameters)
records, info = results.load(folder / results.MEASUREMENTS), results.load_info(folder)

# %%
print(f"{len(records)} prompts, {info['tokens']:,} tokens, {info['tokens_per_second']} tokens/s on {info['device']}")
if info["prompts_truncated"]:
    print(f"{info['prompts_truncated']} prompts were longer than the model's context and lost their beginning")

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
# ## One text, token by token
#
# The first prompt with a continuation, each token tinted by the entropy of the choice it came from.
# Point at a token to see the number.

# %%
record = next((record for record in records if len(record["tokens"])), records[0])
pieces = text.pieces_of(tokenizer, record["tokens"].tolist())
HTML(text.tinted_text(record["prompt"], pieces, record["entropies"]))

# %% [markdown]
# ## Recap
#
# We measured every token that the model wrote, and saw entropy against cosine similarity, both
# distributions, and one text. The measurements are in `measurements.pt` in the folder below, the
# settings and timings beside it in `run.json`.

# %%
folder
