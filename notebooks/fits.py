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
# # Which curve is it?
#
# The published study saw cosine similarity rise and then fall with entropy, and fitted
# f(x) = a x exp(-b x) + c to it. In this notebook we
#
# * fit that curve, two other bumps, and what they must be held against, to every cell,
# * pool cells by model and by data set,
# * ask how much of a single token's cosine similarity its entropy explains.

# %% tags=["parameters"]
results_dir = "results"  # where <dataset>/<model>/ are, and correlation_eval/ is made
resamples = 2000  # of the bootstrap over prompts
seed = 0  # of the bootstrap and of the folds

# %%
import os
from pathlib import Path

from IPython.display import Markdown

from nucleoscope.stats import curves, fits
from nucleoscope.store import results
from nucleoscope.views import figures, tables

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths count from the project's folder
    os.chdir("..")

# %%
measured = results.load_readable(results_dir)

# %% [markdown]
# ## The curves
#
# All are fitted to the medians of bins of equal width. Empty bins are left out, and a bin weighs
# by its tokens. The free curve may be anything that rises and then falls: no bump can be closer to
# the medians. The spline may also fall and rise again. A curve that is no better than a constant is
# refused, and has no parameters: it must have the smaller AICc, and on prompts that it was not
# fitted to its error must be smaller by more than two standard errors.

# %%
Markdown("\n".join(f"* {name}: {formula}" for name, formula in curves.FORMULAS.items()))

# %%
statistics = fits.statistics(measured, resamples=resamples, seed=seed, jobs=None)
lines = fits.lines(measured)
figures.fitted(lines, csv="fit_lines.csv")

# %% [markdown]
# Each dot is the median of a bin, the larger the more tokens it holds; the menu picks a cell or a
# pool of cells. A good curve passes through the large dots. A bump can rise once and fall once: where
# the dots do anything else, it lies off them, and only the spline can follow.

# %% [markdown]
# ## The study's curve
#
# a, b and c with 95 % intervals from resampled prompts; the peak lies at 1 / b. *(all)* marks a pool:
# the cells of one model, or of one data set.

# %%
tables.show(tables.parameters(statistics, "unimodal", {"a": 2, "b": 2, "c": 3, "peak": 2}))

# %% [markdown]
# *before peak* is the share of the tokens left of the peak. This curve rises from 0 wherever a is
# positive, so a peak does not by itself show that cosine similarity rises at first: few tokens may lie
# there. Compare the free curve above, whose rise can have any length, also none. A note says when a
# fit did not converge, or ended on a bound.

# %% [markdown]
# ## Which curve is closest
#
# The share of the medians' variance that a curve explains, R2:

# %%
tables.show(tables.compared(statistics, "R2 (medians)", 3))

# %% [markdown]
# AICc, which counts a curve's parameters against it, as the distance from the best curve of the
# row. It takes the medians for independent and equally uncertain but for their tokens, which they are
# only roughly: it ranks the curves, and a small difference means nothing.

# %%
tables.show(tables.compared(statistics, "delta AICc", 1))

# %% [markdown]
# The mean absolute error on tokens of prompts that the curve was not fitted to:

# %%
tables.show(tables.compared(statistics, "held-out error", 4))

# %% [markdown]
# Single tokens scatter far more than good curves differ, so small differences here are real only if
# they are so for most cells. A curve with many parameters that wins by R2 and not by held-out error
# fits chance. Where the spline wins by all three, the medians are not one bump.

# %% [markdown]
# ## What the curve says about single tokens
#
# The study's announced next step: cosine = alpha + beta f(entropy), by least squares over all tokens,
# with standard errors clustered by prompt.

# %%
tables.show(tables.explained(statistics))

# %% [markdown]
# With beta at 1 and alpha at 0 the curve of the medians is the curve of the tokens. *R2* is what the
# curve explains of single tokens. *of free* is that over the R2 of the free curve, and *of spline*
# over that of a spline which is fitted to the tokens themselves: how much of what any smooth function
# of entropy could explain, the curve does.

# %% [markdown]
# ## For a paper

# %%
folder = Path(results_dir) / results.ANALYSES
tables.write(tables.csv(statistics), folder / "fit_stats.csv")
tables.write(tables.csv(lines), folder / "fit_lines.csv")
tables.write(tables.fits_tex(statistics), folder / "fit_stats.tex")

# %% [markdown]
# ## Recap
#
# We fitted all these curves to the medians of every cell and pool, with intervals from resampled prompts,
# compared them by AICc and on prompts held out, and saw how much of single tokens they explain. The
# table in full is `fit_stats.csv` in the folder below.

# %%
folder
