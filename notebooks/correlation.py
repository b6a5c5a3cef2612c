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
# # Entropy and cosine similarity, over all models and data sets
#
# In this notebook we take every cell that has been measured, one model on one data set each, and
#
# * correlate how spread out the choices were with how alike the candidates were,
# * draw the two against each other, cell by cell,
# * set our coefficients beside the published ones,
# * write the tables and the figure for a paper.
#
# It needs no model and no GPU.

# %% tags=["parameters"]
results_dir = "results"  # where <dataset>/<model>/ are, and correlation_eval/ is made
resamples = 2000  # of the bootstrap over prompts
seed = 0  # of the bootstrap

# %%
import os
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.stats import correlation
from nucleoscope.store import results
from nucleoscope.views import figures, panels, tables

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths count from the project's folder
    os.chdir("..")

# %% [markdown]
# ## What has been measured
#
# A file that cannot be read is named and left out; all others are analysed.

# %%
measured = results.load_readable(results_dir)

# %%
statistics = correlation.statistics(measured, resamples, seed, jobs=None)
total, compared = (statistics[name].sum() for name in ("tokens", "tokens with k > 1"))
Markdown(
    f"{len(statistics)} cells with {total:,} tokens. In {compared:,} of them the nucleus held more than one "
    f"candidate; only those have a cosine similarity to speak of, and all figures below rest on them."
)

# %% [markdown]
# ## The coefficients
#
# Each coefficient comes with its 95 % interval. Tokens of one text depend on each other, so the
# intervals come from drawing whole prompts again and again (the cluster bootstrap), not tokens.

# %%
tables.show(tables.readable(statistics))

# %% [markdown]
# A negative coefficient says that the candidates are less alike where the model is less sure.
# *Within-prompt* is the mean of the coefficients inside each text: it does not count differences
# between texts.
#
# *Partial* is Spearman's coefficient given the number of candidates k: what is left when a straight
# line in the ranks of k has been taken from both. Where it lies near 0, the size of the nucleus
# accounts for the plain coefficient. Where its sign is the other one, tokens with nuclei of about one
# size say the opposite of what all tokens together say.
#
# The p-values in the table in full are the study's kind: they take all tokens for independent, and
# are usually far too small.

# %% [markdown]
# ## Cell by cell

# %%
bins = panels.binned(measured, resamples=resamples, seed=seed)
panels.grid(measured, bins, csv="correlation_bins.csv")

# %% [markdown]
# Each panel is one cell: models down, data sets across, all on the same axes. The line joins the
# medians (or means) of bins of equal width, the bars are their 95 % intervals, and the band is
# one standard deviation of the tokens; point at a bin to see how many tokens it holds. Where a bin
# holds few tokens the line wanders and says little; *density* shows where the tokens are.

# %% [markdown]
# ## Other quantities
#
# The same coefficients with one of the two quantities replaced: the entropy of the whole
# distribution instead of the nucleus, cosine similarity weighted by the candidates' probabilities,
# and the similarity-sensitive entropy, which counts alike candidates as nearly one.

# %% [markdown]
# Entropy of the whole distribution against cosine similarity:

# %%
tables.show(tables.readable(statistics, "full_entropy"))

# %% [markdown]
# Entropy against cosine similarity weighted by probability:

# %%
tables.show(tables.readable(statistics, "weighted_cosine"))

# %% [markdown]
# Similarity-sensitive entropy against cosine similarity. Part of this one is arithmetic: that entropy
# contains the cosines.

# %%
tables.show(tables.readable(statistics, "similarity_entropy"))

# %% [markdown]
# Where the first two agree with the table above, the finding does not hang on the cut at the nucleus,
# or on the weights. Where they differ, it does.

# %% [markdown]
# ## Beside the published study
#
# The study that these measurements redo published 15 pairs of coefficients (itsmejul/llm-confidence).
# Its pipeline loads WritingPrompts whatever data set it is asked for, so its rows for gsm8k and xsum
# were very probably measured on WritingPrompts too. It also computed in float16.

# %%
published = correlation.published()
both = statistics.merge(published, on=["Model", "Dataset"], suffixes=("", " published"))
Markdown(f"{len(both)} of the {len(published)} published cells are among the {len(statistics)} measured here.")

# %%
figures.coefficients(statistics, published)

# %% [markdown]
# A dot is our coefficient with its interval; a diamond, where the same cell was published, is the
# study's. The published figures came without intervals, and they vary with the choice of prompts as
# ours do: two intervals' width apart is no difference yet.

# %%
columns = ["Model", "Dataset", "Pearson r", "Pearson r published", "Spearman r", "Spearman r published"]
tables.show(both[columns].round(4).set_index("Model")) if len(both) else Markdown(
    "No cell in common, so there is nothing to compare here."
)

# %% [markdown]
# ## For a paper
#
# The same as files: the figure as a picture and as vectors, the table in full and for LaTeX.

# %%
folder = Path(results_dir) / results.ANALYSES
tables.write(tables.csv(statistics), folder / "correlation_stats.csv")
tables.write(tables.csv(bins), folder / "correlation_bins.csv")
tables.write(tables.correlation_tex(statistics), folder / "correlation_stats.tex")
tables.write(tables.correlation_short_tex(statistics), folder / "correlation_stats_short.tex")
figures.save(figures.paper(measured), folder / "correlation.png", folder / "correlation.pdf")

# %% [markdown]
# ## Recap
#
# We correlated entropy with cosine similarity in every cell, with intervals that know about prompts,
# within prompts and given the size of the nucleus; saw every cell; and compared with the published
# study. The files lie in the folder below. How the curve itself may be described is the subject of
# the next notebook, `fits.py`.

# %%
folder
