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
# # What it is made of
#
# A correlation between entropy and cosine similarity belongs to one way of choosing candidates, one way of comparing their
# embeddings, and one statistic. In this notebook we ask what it is made of:
#
# * Does its sign depend on where the nucleus is cut, and on the geometry of the embedding?
# * Do candidates that have nothing to do with the text give the same coefficient?
# * Does entropy say anything about cosine similarity that the number and the kind of the candidates do not?
# * What do all combinations of these choices say together?
#
# The notebook needs no model and no GPU.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/; correlation_eval/ is written here
resamples = 2000  # number of resamples of the bootstrap over prompts
seed = 0  # random seed of the bootstrap and of the null tables

# %%
import os
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.stats import candidate_tables, explained, null_models, specification
from nucleoscope.store import results
from nucleoscope.views import made_of_figures, made_of_text, tables

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %%
measured = results.load_readable(results_dir)
runs, missing = candidate_tables.find_measured(results_dir, measured)
usual = candidate_tables.find_usual_top_p(results.list_runs(results_dir))
Markdown(made_of_text.describe_left_out(runs, missing))

# %% [markdown]
# ## 1. Does its sign depend on the cut and the geometry?
#
# Each run measures several candidate sets of every token, in several geometries. *raw* is the input embedding as it is;
# *centred* subtracts the mean of its rows, *usage_centred* the mean weighted by use, and *all_but_top_3* subtracts the
# mean and removes the three directions in which the rows vary most, as {cite:t}`mu2018` propose. The
# [Method](/method.md) page lists all geometries.
#
# All intervals on this page are 95% jackknife-t intervals: prompts are left out in up to 50 groups, each in turn,
# because tokens of one text depend on each other. Where there are several runs, their mean gives each equal weight, and
# its interval is about these runs only.

# %%
curve, tests = specification.compute_specifications(runs, seed, jobs=None)
made_of_figures.plot_over_top_p(curve, csv="specification.csv") if runs else Markdown(tables.NOTHING_YET)

# %%
varied = made_of_text.explain_varied(curve)
Markdown(varied) if varied else None

# %% [markdown]
# A band shows the coefficient after candidate sets were exchanged among tokens with the same number of candidates. The
# nearer a line is to its band, the more of the coefficient comes from the number of candidates, whichever they are.
# Section 2 tests the difference. Its interval is narrower than the band and the line's interval suggest, because both
# coefficients are of the same tokens.

# %%
Markdown(made_of_text.describe_over_top_p(curve))

# %% [markdown]
# Conditioning on k and fixing k are different questions. *Given k* compares tokens to which the model gave the same
# number of candidates: the model decides which tokens these are, and among them more entropy only means more even
# probabilities. *Fixed k* takes the k likeliest candidates of every token and asks whether they are more similar when
# the model is less sure by its whole distribution. A large nucleus is a different choice from a small one even if both
# are cut to five candidates, so the two can have opposite signs, and neither is a correction of the other.

# %% [markdown]
# ## 2. Null models
#
# Most null models have the entropies and numbers of candidates of the measurements, and other candidates: those of
# another token with equal k; the likeliest ones of another step; random tokens of the vocabulary; or for each candidate
# a token that is about as frequent, or whose embedding is about as long. *Gaussian states* has no text at all: hidden
# states are drawn from a normal distribution with the model's mean and covariance, and pass through its output layer;
# their entropies and numbers of candidates are their own.

# %%
null_statistics = null_models.compute_null_statistics(runs, jobs=None)
made_of_figures.plot_nulls(null_statistics, csv="null_stats.csv", usual=usual) if runs else None

# %% [markdown]
# If a null model has the coefficient of the measurements, what it preserves is enough to produce that coefficient.

# %%
Markdown(
    f"{made_of_text.describe_nulls(null_statistics, usual=usual)}\n\n"
    f"{made_of_text.describe_same_k(null_statistics, usual=usual)}\n\n"
    f"{made_of_text.describe_nulls(null_statistics, 'all_but_top_3', usual=usual)}"
)

# %% [markdown]
# ## 3. What explains it
#
# Cosine similarity is predicted for prompts that the predictor has not seen, first from entropy alone, then from the
# number of candidates k, and from k and the candidates' *kind*: the shares of words, pieces of words, digits,
# punctuation and so on, their mean log frequency, and the mean length of their embeddings. If entropy adds nothing,
# what it has in common with cosine similarity is in k and in the kind. By chance, a regression can gain up to 0.01,
# which is one percentage point.

# %%
ladder, pairs = explained.compute_explained(runs, resamples, seed, jobs=None)
made_of_figures.plot_ladder(ladder, csv="explained.csv") if runs else None

# %%
Markdown(made_of_text.describe_ladder(ladder))

# %% [markdown]
# The covariance of entropy and cosine similarity is a mean over tokens, so it can be split by what a token chose between.
# Here tokens are grouped by the classes of their two likeliest candidates; a negative share goes against the whole. This
# says which tokens the covariance is made of, not which pairs of candidates within a token. A covariance whose sign is
# not clear has no shares.

# %%
tables.show(tables.format_covariance(pairs)) if len(pairs) else None

# %% [markdown]
# ## All combinations at once
#
# The specification curve {cite:p}`simonsohn2020` shows the coefficients of every candidate set, in every geometry, by
# every statistic, sorted. Below each coefficient are the choices that it comes from, and pointing at it names them.

# %%
made_of_figures.plot_specifications(curve, csv="specification.csv") if runs else None

# %%
uncounted = made_of_text.describe_uncounted(curve)
Markdown(uncounted) if uncounted else None

# %%
Markdown(made_of_text.describe_specifications(tests))

# %% [markdown]
# The table compares the median coefficient with *its median*, that of the mean coefficients of tables in which cosines
# are exchanged, among all tokens (*all* in the column *null*) or among those of equal k (*same_k*), in all
# specifications at once. Exchanging treats the tokens of a text as independent, and so does p; the interval of the
# difference does not.

# %%
tables.show(tables.format_counts(tests)) if runs else None

# %% [markdown]
# ## For a paper
#
# The next cell writes every number of this page, with its interval, to files: the coefficients as `specification.csv`, their
# joint tests as `specification_tests.csv`, the null models as `null_stats.csv`, the explained variance as
# `explained.csv`, and the pairs of classes as `explained_pairs.csv`.

# %%
folder = results.locate_folder(results_dir) / results.ANALYSES
tables.write(tables.format_csv(curve), folder / "specification.csv")
tables.write(tables.format_csv(tests), folder / "specification_tests.csv")
tables.write(tables.format_csv(null_statistics), folder / "null_stats.csv")
tables.write(tables.format_csv(ladder), folder / "explained.csv")
tables.write(tables.format_csv(pairs), folder / "explained_pairs.csv")

# %% [markdown]
# ## Recap
#
# We computed the coefficient for every candidate set in every geometry, compared it with null models, and asked what
# predicts cosine similarity on new prompts. The docstrings of `specification.compute_specifications`,
# `null_models.compute_null_statistics` and `explained.compute_explained` describe the columns of the files.

# %%
Markdown(tables.describe_place("The files are", folder))
