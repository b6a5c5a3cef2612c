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
# # Measure one model on one data set
#
# In this notebook a language model continues some prompts, or reads existing texts, and we measure what it was
# choosing between at every token. We
#
# * load the prompts and the model,
# * generate, or read the texts, and measure the nucleus of each token: how spread out it is
#   (entropy) and how similar its candidates are (cosine similarity of their embeddings),
# * save the measurements in a folder of their own.
#
# Change the settings below and run all cells; an interrupted run resumes where it stopped. The notebook
# `run.py` then shows what was measured; it needs neither the model nor a GPU.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
dataset_name = "math"  # gsm8k, writingprompts, xsum; math, stories, articles (packaged); or a file
mode = "generate"  # generate: measure what the model writes; score: measure the texts in text_column
text_column = None  # in mode score, the column that contains the text to measure after each prompt
n_prompts = 100  # number of prompts, from the start of the data set
max_tokens = 100  # maximum number of tokens written or measured per prompt
top_p = 0.9  # probability mass that the nucleus must reach, in (0, 1]
temperature = 1.0  # value to divide the logits by before measuring and sampling
seed = 0  # random seed for sampling: the same seed draws the same tokens; not used in mode score
prompt_format = "chat"  # chat: in the model's chat template, as in make run; raw: unchanged, as in the study
template_date = "2024-07-26"  # the date to give the chat template as today's date
prompt_column = None  # column of a file that contains the prompts; None means "prompt"
variants = "none"  # also measure other candidate sets in other geometries: default (all), or names separated by commas
batch_size = "auto"  # prompts processed together, or auto
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., mps, xpu, balanced (all GPUs), or auto: the GPU with the most free memory, or several
results_dir = "results"  # where <dataset>/<model>/ is created, or <dataset>-<text_column>/<model>/
named_settings = None  # settings whose values are added to the name of the run's folder, such as "top_p,seed"
overwrite = False  # replace existing results that have other settings
model_revision = None  # commit from which to load all files of a model on the Hub; None means the latest
skip_check = False  # skip the trial on short prompts that determines how prompts can be batched
trust_remote_code = False  # run code that comes with the model; read it first
context = False  # for the command line: then execute context.py, which measures similarity in context
context_candidates = 8  # for context.py
context_threshold = 0.5  # for context.py
context_memory = "auto"  # for context.py
branches = False  # also continue texts from each candidate of some tokens (notebook branches.py)
branch_points = 4  # number of tokens per text to branch at, 1 to 1,000
branch_length = 20  # number of tokens of each branch
branch_replicates = 3  # how many times each candidate is continued, 1 to 64

# %%
import os
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from IPython.display import display

from nucleoscope.data import prompts
from nucleoscope.measure.runs import complete_run
from nucleoscope.models import loading
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder
from nucleoscope.wording import count

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## The prompts and the model
#
# Invalid settings, and a results folder that is not writable, are refused before the model is loaded.

# %%
chosen = Settings.collect(globals())
names = chosen.dataset_name, chosen.model_name, text_column
folder = results.locate_run(chosen.results_dir, *names, chosen.collect_named())
run_folder.check(folder, overwrite)
data = prompts.load(chosen.dataset_name, n_prompts, prompt_column, text_column)
if data.blank_lines:
    print(f"skipped {count(data.blank_lines, 'blank line')} in {dataset_name}")
if shortage := prompts.describe_shortage(dataset_name, len(data.texts), n_prompts):
    print(shortage)
model, tokenizer, identity = loading.load(chosen.model_name, dtype, device, trust_remote_code, model_revision)
if warning := results.warn_of_format(bool(tokenizer.chat_template), chosen.prompt_format):
    print(warning)

# %%
actual = {"model": identity, "dataset": data.identity, "n_prompts": len(data.texts)}
actual |= {"dtype": str(model.dtype).removeprefix("torch.")}
settings = chosen.describe_measurement(**actual)
pd.json_normalize(settings, sep=" ").T.set_axis(["setting"], axis="columns")

# %% [markdown]
# The settings above affect what is measured. They are saved with the results, so that
# results with different settings are never mixed. If a data set has fewer prompts than requested, all of them are used.

# %% [markdown]
# ## Generate or read, and measure
#
# The prompts are continued in batches. At each step the next token is drawn from the nucleus: the
# smallest set of likeliest tokens with a total probability of at least `top_p`. With `mode="score"` nothing is
# drawn: the model reads each prompt with its text once, and every token of the text is measured
# as if the model had just written it.

# %%
run = run_folder.RunFolder(folder, settings, overwrite, requested=n_prompts)
if run.finished:
    run.record_request()
    print("already measured with these settings: to measure again, remove the run's folder or use another results_dir")
    if not (folder / results.CANDIDATES).exists():
        print(f"{results.CANDIDATES} is missing: only a new measurement can write it")
else:
    with run:
        complete_run(run, model, tokenizer, data.texts, data.continuations, **asdict(chosen))

# %% [markdown]
# ## What was saved
#
# `measurements.pt` contains the measurements, `tokens.parquet` the same quantities as a table, with the tokens as text,
# `candidates.parquet` what each token was chosen from, `variants.parquet` what was measured of other candidate sets in
# other geometries, and `run.json` the settings and timings. `nulls.parquet` and `vocabulary.parquet` are from a second
# look at some of the tokens: what the candidates would be like if they had been chosen for another reason.

# %%
info = results.load_info(folder)
table = results.load_run(folder / results.MEASUREMENTS, folder.name, folder.parent.name, columns=["prompt", "k"])
print(results.describe_info(info), *results.describe_gaps(info, table, chat_model=False), sep="\n")
display({"text/plain": str(folder)}, raw=True)  # not printed: the command says it on the terminal
