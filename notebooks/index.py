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
# For every token that a language model writes, Nucleoscope shows which other tokens it could have chosen.
# The model has a probability distribution over its vocabulary and draws each token from a few candidates. Two
# properties of these candidates are measured: how spread out the choice is, its **entropy**, and how similar
# the candidates are, the **cosine similarity** of their embeddings.
#
# Are the two related? A model that hesitates between *nine* and *ten* is unsure in a different way from
# one that hesitates between *Because* and a full stop. In the first choice the candidates are used in
# similar ways; in the second they are not. When a model is unsure, which kind of choice is it?

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/

# %%
from IPython.display import Markdown

from nucleoscope.store import results
from nucleoscope.views import figures, made_of_figures, made_of_text, tables
from nucleoscope.views.token_text import escape_name

measured = results.load_readable(results_dir)
statistics = tables.load_statistics(results_dir)
curve, nulls, ladder = made_of_text.load(results_dir)

# %%
Markdown(made_of_text.describe_answer(curve) if len(curve) else tables.describe_coefficients(statistics))

# %%
made_of_figures.plot_over_top_p(curve, ["raw", "all_but_top_3"], ["Spearman"]) if len(curve) else None

# %%
gaps = tables.describe_gaps(results_dir, measured)
Markdown(gaps) if gaps else None

# %% [markdown]
# The coefficient depends on which tokens count as candidates (`top_p`) and on how embeddings are compared: as they are
# (`raw`), or without their mean and the three directions in which they vary most (`all_but_top_3`). A band is what is left of
# it if the candidate sets are exchanged among tokens with equally many candidates.
# [What it is made of](/correlation_eval/made_of.ipynb) says more:

# %%
Markdown(made_of_text.describe_in_three(curve, nulls, ladder))

# %% [markdown]
# ## Where to go next
#
# * **Read.** The [theory](theory.ipynb) says what can be known before any measurement, and the
#   [method](/method.md) says how the measurements were made. The results are the
#   [coefficients](/correlation_eval/correlation.ipynb), [what they are made of](/correlation_eval/made_of.ipynb),
#   the [curves](/correlation_eval/fits.ipynb) and [every single run](/runs/index.md).
# * **Run.** [Install](/use/install.md) the software and measure
#   [your own model on your own texts](/use/run-one-model.md), on a laptop or
#   [as a grid](/use/run-the-grid.md).
# * **Extend.** Add [a model](/use/add-a-model.md), [a data set](/use/add-a-data-set.md) or
#   [a quantity](/use/add-a-quantity.md), read [the measurements](/use/read-measurements.md) with your
#   own code, or call the [modules](/use/api.md).
#
# This project repeats a student study ([itsmejul/llm-confidence](https://github.com/itsmejul/llm-confidence))
# that measured both quantities for five models; [the method](/method.md) says what we do differently,
# and why.

# %% [markdown]
# ## Run by run

# %%
figures.plot_overlay(measured)

# %% [markdown]
# One line per run, a model on a data set: the median cosine similarity of the candidates in every entropy bin with at least
# 20 tokens. Further right, the model was less sure; further up, its candidates were more similar. If a line falls,
# the candidates are less similar when the model is less sure; if it rises, they are more similar.

# %%
Markdown(
    f"Models: {', '.join(map(escape_name, dict.fromkeys(statistics['Model'])))}. Runs: {len(statistics)}, with "
    f"{statistics['tokens with k > 1'].sum():,} tokens that had more than one candidate. "
    f"{tables.describe_coefficients(statistics)} {tables.describe_varied(statistics)}"
)

# %%
tables.show(tables.format_readable(statistics))

# %% [markdown]
# Each coefficient is followed by its 95 % interval, over whole prompts. *Within-prompt* is the mean of the
# coefficients inside each text; *partial* subtracts a line in the number of candidates, *within-k* compares only
# tokens with equally many of them.
