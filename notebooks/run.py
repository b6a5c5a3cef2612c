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
# A language model has continued some prompts, or read existing texts, and at every token we measured what it was
# choosing between (notebook `measure.py`). In this notebook we
#
# * read the measurements: for each token, how spread out its nucleus is (entropy) and how similar the
#   candidates in it are (cosine similarity of their embeddings),
# * plot the two against each other, and read some of the texts with their tokens tinted by entropy.
#
# As a page of the book, it shows the results of one run, and its code can be unfolded. In JupyterLab (`make lab`) it
# shows any run that has been measured: enter the run's names below and run all cells. It needs the files of the run and
# the model's tokenizer; the model itself is not loaded.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # as in measure.py
dataset_name = "math"  # as in measure.py
text_column = None  # as in measure.py
results_dir = "results"  # contains <dataset>/<model>/, or <dataset>-<text_column>/<model>/
trust_remote_code = False  # run code that comes with the tokenizer; read it first

# %%
import os
from pathlib import Path

from IPython.display import HTML, Markdown, display

from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.stats import correlation
from nucleoscope.store import results
from nucleoscope.store.context import join_split
from nucleoscope.views import examples, figures, tables, texts
from nucleoscope.views.strip import compute_background

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## The run

# %%
folder = results.locate_run(results_dir, dataset_name, model_name, text_column)
info = results.load_info(folder)
settings = results.read_recorded(folder)
tokenizer = load_tokenizer(settings["model_name"], trust_remote_code, settings["model"].get("revision"))
tables.show_settings(settings)

# %%
display({"text/plain": results.describe_info(info)}, raw=True)  # not printed: measure.py has said it on the terminal

# %% [markdown]
# ## What was measured
#
# If the nucleus contains only one token, there is nothing to compare: such tokens are counted,
# and left out of the plots and coefficients. So are texts without a token.

# %%
results.add_texts(folder, tokenizer)  # to the files of earlier versions
table = results.load_run(folder / results.MEASUREMENTS, model=folder.name, dataset=folder.parent.name)
gaps = results.describe_gaps(info, table, chat_model=bool(tokenizer.chat_template))
Markdown("\n".join(f"* {line[0].upper()}{line[1:]}" for line in gaps)) if gaps else None

# %%
named = {(folder.name, folder.parent.name): table}
statistics = correlation.compute_statistics(named, pairs=correlation.PAIRS[:1])  # the analyses have the others
tables.show(tables.format_readable(statistics))

# %% [markdown]
# Each coefficient has a 95% interval from resampling or leaving out whole prompts, not tokens, if there are enough of
# them. *Within-prompt* is the mean of the coefficients within each text; *partial* removes a linear effect of the
# number of candidates; *within-k* compares only tokens with the same number of them.

# %%
figures.plot_scatter(table)

# %% [markdown]
# Each point is one token: further right, the model was less sure; further up, its candidates were more
# similar. The line joins the medians of bins of equal width: $\sqrt{n}$ bins for $n$ tokens, but at most 50. A bin with
# few tokens says little (point at it to see how many it has).

# %%
figures.plot_distributions(table)

# %% [markdown]
# The two distributions show where most tokens are, which the scatter plot cannot show where its points
# overlap.

# %% [markdown]
# ## Single texts, token by token
#
# These prompts are chosen by rule. For each prompt we compute Spearman's correlation between entropy and cosine
# similarity over its tokens with more than one candidate ($k > 1$), and show the prompt with the median
# coefficient, the one with the coefficient furthest from 0 and the one with the coefficient nearest to 0. Prompts with
# fewer than 20 such tokens are excluded (if all texts are short, the minimum is lower, as stated below). Each prompt is
# shown at most once. If only one or two prompts are left, these are shown.
#
# Each token is tinted by the entropy of its choice, or by another quantity that you select.
# Point at it, tap it, or reach it with the arrow keys: its card shows the likeliest candidates with
# their probabilities, and how the token compares with the others. If similarity in context was measured, another tab
# shows how similar the continuations of the candidates are.

# %%
split = join_split(table, folder)  # as it is, unless the run was measured in context
background, mode = compute_background(split), settings.get("mode", "generate")
picks = examples.choose_prompts(table)
strips = texts.render_strips(folder, tokenizer, [pick.prompt for pick in picks], background, mode)
for pick, html in zip(picks, strips, strict=True):
    display(Markdown(pick.sentence), HTML(html))

# %% [markdown]
# ## All texts
#
# Search the prompts of the run, sort them by what was measured, and pick one. The mean of a quantity is over the tokens
# of a text that have it; a coefficient is that of the text's tokens.

# %%
n_prompts = settings["n_prompts"]
display(
    Markdown(texts.describe_choice(n_prompts, texts.choose_texts(n_prompts))),
    HTML(texts.show_texts(folder, tokenizer, split, background, mode, n_prompts)),
)

# %% [markdown]
# ## Recap
#
# We plotted entropy against cosine similarity for every token that the model wrote or read, showed both
# distributions, and looked at single texts. In the folder of the run, `measurements.pt` contains the measurements,
# `tokens.parquet` the same quantities as a table, with the tokens as text, `candidates.parquet` what each token was
# chosen from, and `run.json` the settings and timings.

# %%
Markdown(tables.describe_place("These files are", folder))
