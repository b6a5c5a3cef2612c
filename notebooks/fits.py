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
# # Which curve fits best?
#
# The published study saw cosine similarity rise and then fall with entropy, and fitted
# f(x) = a x exp(-b x) + c to it. In this notebook we
#
# * fit that curve, a decay and four baselines to every run,
# * measure whether cosine similarity rises at all before it falls,
# * pool runs by model and by data set,
# * ask how much of a single token's cosine similarity its entropy explains.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/; correlation_eval/ is written here
resamples = 2000  # number of resamples of the bootstrap over prompts
seed = 0  # random seed of the bootstrap and of the folds

# %%
import os
from pathlib import Path

from IPython.display import Markdown, display

from nucleoscope.stats import curves, fits
from nucleoscope.store import results
from nucleoscope.views import figures, tables

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %%
measured = results.load_readable(results_dir)

# %% [markdown]
# ## The curves
#
# All are fitted to the medians of bins, of equal width as in the study, and again of bins with equally many tokens.
# Empty bins are left out. A median is weighted by the inverse of its variance over resampled prompts: cosine similarity
# scatters far more where entropy is small, so medians of equally many tokens are not equally certain. The free curve
# may be anything that rises and then falls: no single-peaked curve can be closer to the medians. The spline may also
# fall and rise again. A curve that is no better than a constant is rejected and has no parameters; only the rise of the
# free curve is still shown. To be accepted, it must have the smaller AICc, and its error on held-out prompts must be
# smaller by more than two standard errors.

# %%
Markdown("\n".join(f"* {name}: {formula}" for name, formula in curves.FORMULAS.items()))

# %%
statistics = fits.fit_all(measured, resamples=resamples, seed=seed, jobs=None)
lines = fits.compute_lines(measured)
figures.plot_fitted(lines, csv="fit_lines.csv")

# %%
reading = (
    "Each dot is the median of a bin; larger dots have more weight. The menu selects a run or a pool of runs, and the "
    "bins. A good curve passes through the large dots. A single-peaked curve can rise once and fall once: if the dots "
    "do anything else, it misses them, and only the spline can follow."
)
Markdown(reading) if len(lines) else None

# %%
varied = tables.describe_varied(statistics)
Markdown(varied) if varied else None

# %% [markdown]
# ## The study's curve

# %%
digits = {"a": 2, "b": 2, "c": 3, "peak": 2}
display(
    *tables.show_section(
        tables.format_parameters(statistics, "unimodal", digits),
        "Its parameters a, b and c with 95% intervals from resampled prompts; the peak is at 1 / b. *(all)* marks a "
        "pool: the runs of one model, or on one data set.",
        "*before peak* is the share of the tokens left of the peak. A note says if a fit ended on a bound, and how "
        "many resamples do not determine the parameters, because their curve is flat, a straight line, or different "
        "from its level in the first bin alone. What could grow without limit there is infinite (∞), and what could "
        "become arbitrarily small is 0. Rows with the model *(random effects)* are means over the models of a data "
        "set.",
        tables.describe_missing_parameters(statistics, "unimodal", digits),
    )
)

# %% [markdown]
# ## Does it rise first?
#
# The study's curve rises from 0 whenever a is positive, so its peak does not show that cosine similarity rises at
# first. And the highest of many medians is above the first one by chance alone. So the free curve is fitted to nine
# tenths of the prompts, and the tokens of the others at its peak are compared with those at its start: *rise* is the
# mean difference over ten such tenths. It is 0 on average if nothing rises, and can be negative. A rise of 0 without an
# interval means that the free curve falls from the start, whichever tenth is left out.

# %%
digits = {"rise": 3, "peak": 2}
display(
    *tables.show_section(
        tables.format_parameters(statistics, "free", digits),
        after=tables.describe_rise(statistics),
        missing=tables.describe_missing_parameters(statistics, "free", digits),
    )
)

# %% [markdown]
# ## Which curve is closest?

# %%
number = "R2 (medians)"
display(
    *tables.show_section(
        tables.compare_curves(statistics, number, 2),
        "The share of the medians' variance that a curve explains, R2:",
        missing=tables.describe_missing_numbers(statistics, number),
    )
)

# %%
display(
    *tables.show_section(
        tables.compare_curves(statistics, "delta AICc", 1),
        "AICc, which penalises a curve for its parameters, as the difference from the best curve in the row. It "
        "assumes that the medians are independent, which is only roughly true: it ranks the curves on the same bins, "
        "and a small difference means nothing. A curve with almost as many parameters as there are bins has no AICc.",
        missing=tables.describe_missing_numbers(statistics, "delta AICc", but=number),
    )
)

# %%
display(
    *tables.show_section(
        tables.compare_curves(statistics, "held-out error", tables.choose_error_digits(statistics), most=2),
        "The mean absolute error on tokens of prompts that the curve was not fitted to:",
        "Single tokens scatter far more than good curves differ, so a small difference here is meaningful only if "
        "most runs show it. A curve with many parameters that wins by R2 but not by held-out error fits noise. If the "
        "spline wins by all three, the medians have more than one peak. Two cosine similarities differ by at most 2: "
        "a larger error is that of a curve that leaves their range where it was not fitted.",
        tables.describe_missing_numbers(statistics, "held-out error", but=number),
    )
)

# %% [markdown]
# ## What the curve says about single tokens
#
# The study announced this as its next step: cosine = alpha + beta f(entropy), by least squares over all tokens,
# with standard errors clustered by prompt; curves with bins of equal width.

# %%
explained = tables.format_explained(statistics)
display(
    *tables.show_section(
        explained,
        after="If beta is 1 and alpha is 0, the curve of the medians is also the curve of the tokens. *R2* is the "
        "share of the variance of single tokens that the curve explains. *of free* is its ratio to the R2 of "
        "the free curve, and is missing where that is not better than a constant. *of spline* is its ratio to "
        "the R2 of a spline fitted to the tokens themselves: the share of what any smooth function of entropy "
        "could explain that this curve explains.",
        missing="" if len(explained) else tables.describe_unexplained(statistics),
    )
)

# %% [markdown]
# ## For a paper
#
# The next cell writes the results as files: all curves as `fit_stats.csv`, the study's curve in LaTeX as `fit_stats.tex`, and
# the data of the figures as `fit_lines.csv`.

# %%
folder = results.locate_folder(results_dir) / results.ANALYSES
tables.write(tables.format_csv(statistics), folder / "fit_stats.csv")
tables.write(tables.format_csv(lines), folder / "fit_lines.csv")
tables.write(tables.format_fits_tex(statistics), folder / "fit_stats.tex")

# %% [markdown]
# ## Recap

# %%
Markdown(tables.describe_fits(statistics))

# %%
Markdown(tables.describe_place("The complete table, `fit_stats.csv`, is", folder))
