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
# # What was the model choosing between?
#
# Nucleoscope looks at what a language model was choosing between, token by token. At every token it
# writes, a language model holds a probability distribution over its vocabulary.
# Two things can be said of the candidates that it draws from. One is how spread out the choice is:
# its **entropy**. The other is how alike the candidates are: the **cosine similarity** of their
# embeddings.
#
# Do the two go together? A model that wavers between *nine* and *ten* is unsure in another way than
# one that wavers between *Because* and a full stop. In the first choice the candidates are used alike
# wherever they stand, in the second they are not. Which kind is it, where a model is unsure?

# %% tags=["parameters"]
results_dir = "results"  # where <dataset>/<model>/ are

# %%
from IPython.display import Markdown

from nucleoscope.stats import correlation
from nucleoscope.store import results
from nucleoscope.views import figures

measured = results.load_readable(results_dir)

# %%
figures.overlay(measured)

# %% [markdown]
# One line for each model and data set: the median cosine similarity of the candidates in those bins of
# entropy that hold enough tokens to tell. Further right the model was less sure; further up its
# candidates were more alike. Where a line falls, doubt goes with unlike candidates, and where it rises,
# with alike ones.

# %%
statistics = correlation.statistics(measured, resamples=200, jobs=None)
spearman, given = (
    " and ".join(f"{statistics[name].agg(end):.2f}".replace("-", "\N{MINUS SIGN}") for end in ("min", "max"))
    for name in ("Spearman r", "partial Spearman r")
)
Markdown(
    f"Models: {', '.join(dict.fromkeys(statistics['Model']))}. Over {statistics['tokens with k > 1'].sum():,} tokens "
    f"with more than one candidate, in {len(statistics)} runs, Spearman's coefficient of the two lies between "
    f"{spearman}; given the number of candidates, between {given}. Where the two differ, the size of the choice has "
    "a part in it; where even the sign does, choices among equally many candidates go the other way."
)

# %% [markdown]
# ## Three ways on
#
# * **Read.** What can be known before any measurement is in the [theory](theory.ipynb), how it was
#   measured in the [method](/method.md), and what came out in the
#   [coefficients](/correlation_eval/correlation.ipynb), the [curves](/correlation_eval/fits.ipynb)
#   and [each single run](/cells/index.md).
# * **Run.** [Install](/use/install.md) the software and measure
#   [your own model on your own texts](/use/run-one-model.md), on a laptop or
#   [as a grid](/use/run-the-grid.md).
# * **Extend.** Add [a model](/use/add-a-model.md) or [a data set](/use/add-a-data-set.md), read
#   [the measurements](/use/read-measurements.md) with your own code, or call the
#   [modules](/use/api.md).
#
# This project redoes a student study ([itsmejul/llm-confidence](https://github.com/itsmejul/llm-confidence))
# that measured both quantities for five models; [the method](/method.md) says what we do otherwise,
# and why.
