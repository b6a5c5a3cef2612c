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
# # Entropy and cosine similarity, across all models and data sets
#
# In this notebook we take every run, that is, every model on every data set that has been measured, and
#
# * correlate how spread out the choices were with how similar the candidates were,
# * plot the two against each other, run by run,
# * compare our coefficients with those of the published study, for the runs that both include,
# * write the tables and the figure for a paper.
#
# The notebook needs no model and no GPU.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/; correlation_eval/ is written here
resamples = 2000  # number of resamples of the bootstrap over prompts
seed = 0  # random seed of the bootstrap

# %%
import os
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.stats import correlation, random_effects
from nucleoscope.store import results
from nucleoscope.store.run_settings import list_run_columns
from nucleoscope.views import figures, panels, tables
from nucleoscope.wording import count

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## What has been measured
#
# A file that cannot be read is named and left out; all others are analysed.

# %%
measured = results.load_readable(results_dir)

# %%
statistics = correlation.compute_statistics(measured, resamples, seed, jobs=None)
total, compared = (statistics[name].sum() for name in ("tokens", "tokens with k > 1"))
Markdown(
    f"{count(len(statistics), 'run')} with {count(total, 'token')}. For {compared:,} of them the nucleus contained more "
    "than one candidate; only those have a cosine similarity, and all figures below use only them."
)

# %% [markdown]
# ## The coefficients
#
# Each coefficient has a 95% interval if there are prompts enough to compute one. Tokens of one text depend on each
# other, so the intervals come from resampling whole prompts (the cluster bootstrap), not tokens. With fewer than 30
# prompts such intervals are too short; then each prompt is left out once, and a note says so (jackknife t). Coefficients
# that compare only tokens of equal k always have intervals of this kind; more than 50 prompts are left out in 50 groups.

# %%
tables.show(tables.format_readable(statistics))

# %%
gaps = tables.describe_gaps(results_dir, measured)
Markdown(gaps) if gaps else None

# %% [markdown]
# A negative coefficient means that the candidates are less similar when the model is less sure.
# *Within-prompt* is the mean of the coefficients within each text: differences between texts do not affect it.
# *Design effect* says how much the tokens of a text depend on each other: divide the number of tokens by it to get the
# effective number of independent tokens.
#
# Two coefficients take the number of candidates k into account. *Partial* subtracts a straight line in the ranks of k
# from both quantities and correlates what remains, over all tokens. *Within-k* compares tokens only with tokens of
# exactly the same k, so it assumes no line; tokens whose k no other token has do not count. If they are near 0, the
# size of the nucleus explains the plain coefficient. If their sign is opposite, choices of equal size show the reverse
# of the overall relationship.
#
# Conditioning on k is not fixing k. The model decides which choices have k = 5: k and entropy come from the same
# probabilities, and among choices of equal k, more entropy only means more even probabilities. To ask whether the
# *five likeliest* tokens are more similar when the model is less sure, take five at every step, even where the nucleus
# has two or fifty. The two questions can have answers of opposite signs. `correlation.compute_fixed` answers the second,
# from sets of a fixed size.

# %%
varied = tables.describe_varied(statistics)
Markdown(varied) if varied else None

# %% [markdown]
# ## Over models
#
# The mean of the coefficients over the models of each data set, with random effects: the interval says what to expect of
# another model like these, not only of these. It needs two models on the same data set.

# %%
models = random_effects.combine_coefficients(statistics)
tables.show(tables.format_models(models)) if len(models) else Markdown(tables.describe_missing_means(statistics))

# %% [markdown]
# ## Run by run

# %%
bins = panels.bin_runs(measured, resamples=resamples, seed=seed, jobs=None)
panels.plot_grid(measured, bins, csv="correlation_bins.csv")

# %% [markdown]
# Each panel is one run: a row for each model with its settings, a column for each data set, all on the same axes. The
# line joins the medians (or means) of bins of equal width, the bars are their 95% intervals, and the band is one
# standard deviation of the tokens; point at a bin to see how many tokens it contains. A run with fewer than five
# prompts has neither bars nor band. A line through bins with few tokens is noisy and says little; *density* shows where
# the tokens are.

# %% [markdown]
# ## Other quantities
#
# The same coefficients with one of the two quantities replaced: the entropy of the whole
# distribution instead of the nucleus, cosine similarity weighted by the candidates' probabilities,
# and similarity-sensitive entropy, which counts similar candidates as nearly one.

# %% [markdown]
# Entropy of the whole distribution against cosine similarity:

# %%
tables.show(tables.format_readable(statistics, "full_entropy"))

# %% [markdown]
# Entropy against cosine similarity weighted by probability:

# %%
tables.show(tables.format_readable(statistics, "weighted_cosine"))

# %% [markdown]
# Similarity-sensitive entropy against cosine similarity. Part of this correlation is arithmetic, because that entropy
# contains the cosines.

# %%
tables.show(tables.format_readable(statistics, "similarity_entropy"))

# %% [markdown]
# If the first two agree with the table above, the result does not depend on the cut at the nucleus
# or on the weights. If they differ, it does.

# %% [markdown]
# ## The published study
#
# The study that this project repeats published 15 pairs of coefficients (itsmejul/llm-confidence).
# Its pipeline loads WritingPrompts whatever data set it is given, so its rows for gsm8k and xsum
# were very probably measured on WritingPrompts too. It also computed in float16.

# %%
published = correlation.match_published(statistics)
both = statistics.merge(published, on=list_run_columns(published), suffixes=("", " published"))
Markdown(tables.describe_comparison(len(both), len(correlation.load_published()), len(statistics)))

# %%
tables.show(tables.format_comparison(both)) if len(both) else None

# %% [markdown]
# Pearson's and Spearman's correlations between entropy and cosine similarity in one figure; each dot is a run, with its
# interval.

# %%
figures.plot_coefficients(statistics, published)

# %% [markdown]
# ## For a paper
#
# The next cell writes the results as files: the figure as `correlation.png` and `.pdf`, the complete table as
# `correlation_stats.csv` and its LaTeX versions as `correlation_stats.tex` and `correlation_stats_short.tex`, the means
# over models as `correlation_models.csv`, and the data of the figures as `correlation_bins.csv`.

# %%
folder = results.locate_folder(results_dir) / results.ANALYSES
tables.write(tables.format_csv(statistics), folder / "correlation_stats.csv")
tables.write(tables.format_csv(models), folder / "correlation_models.csv")
tables.write(tables.format_csv(bins), folder / "correlation_bins.csv")
tables.write(tables.format_correlation_tex(statistics), folder / "correlation_stats.tex")
tables.write(tables.format_correlation_short_tex(statistics), folder / "correlation_stats_short.tex")
figures.save(figures.plot_paper(measured), folder / "correlation.png", folder / "correlation.pdf")

# %% [markdown]
# ## Recap
#
# We correlated entropy with cosine similarity in every run: over all tokens, within prompts, and given the size of the
# nucleus in two ways. The intervals account for the tokens of one prompt being dependent. We also plotted every run.
# `fits.py` asks which curve describes the relationship.

# %%
Markdown(tables.describe_place("The files are", folder))
