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
# For every token that a language model writes, Nucleoscope shows which tokens the model was choosing from, how widely
# the probability was spread over these candidates (**entropy**), and how similar they were (**cosine similarity** of
# their embeddings). Are candidates less similar when the model is less sure? This page covers all *runs*: a run is one
# model on one set of prompts.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/

# %% tags=["remove-input"]
from IPython.display import HTML, Markdown, display

from nucleoscope.stats import candidate_tables
from nucleoscope.store import results
from nucleoscope.views import figures, front, made_of_figures, made_of_text, tables
from nucleoscope.views.token_text import escape_name

measured = results.load_readable(results_dir)
statistics = tables.load_statistics(results_dir)
curve, nulls, ladder = made_of_text.load(results_dir)
runs = results.list_runs(results_dir)
usual, common = candidate_tables.find_usual_top_p(runs), candidate_tables.find_common_top_p(runs)

# %% tags=["remove-input"]
Markdown(made_of_text.describe_answer(curve, usual) if len(curve) else tables.describe_answer(statistics, common))

# %% [markdown]
# **Next:** [read what the coefficient is made of](/correlation_eval/made_of.ipynb), [open the texts](/runs/index.md), or
# [measure your own model](/use/run-one-model.md).

# %% tags=["remove-input"]
made_of_figures.plot_over_top_p(curve, made_of_figures.FRONT, ["Spearman"]) if len(curve) else None

# %% tags=["remove-input"]
gaps = tables.describe_gaps(results_dir, measured)
Markdown(gaps) if gaps else None

# %% tags=["remove-input"]
Markdown(made_of_text.explain_figure(curve, made_of_figures.FRONT)) if len(curve) else None

# %% tags=["remove-input"]
_, missing = candidate_tables.find_measured(results_dir, measured)
not_shown = made_of_text.describe_not_shown(missing) if len(curve) else ""
Markdown(not_shown) if not_shown else None

# %% [markdown]
# In short (details are on the page [What it is made of](/correlation_eval/made_of.ipynb)):

# %% tags=["remove-input"]
Markdown(made_of_text.describe_in_three(curve, nulls, ladder, usual))

# %% [markdown]
# ## An example sentence

# %% tags=["remove-input"]
said, sentence = front.show_sentence(results_dir, measured)
display(Markdown(said), HTML(sentence))

# %% [markdown]
# ## Where to go next
#
# * **Read** [what the coefficient is made of](/correlation_eval/made_of.ipynb), or open
#   [any text that was measured](/runs/index.md).
# * **Run Nucleoscope** on [your own model and texts](/use/run-one-model.md), or on
#   [a grid of models and data sets](/use/run-the-grid.md), once it is [installed](/use/install.md).
# * **Build on it**: [read the measurements](/use/read-measurements.md) with your own code, or add
#   [a quantity](/use/add-a-quantity.md).
#
# The [Theory](theory.ipynb) page derives what can be known before any measurement; the [Method](/method.md) page
# describes how the measurements were made. This project repeats and extends a student study
# ([itsmejul/llm-confidence](https://github.com/itsmejul/llm-confidence)) that measured entropy and cosine similarity
# for five models; the Method page explains what we do differently, and why.

# %% [markdown]
# ## Run by run

# %%
overlay = figures.plot_overlay(measured)
overlay

# %%
reading = figures.describe_overlay(overlay)
Markdown(reading) if reading else None

# %%
Markdown(
    f"Models: {', '.join(map(escape_name, dict.fromkeys(statistics['Model'])))}. Runs: {len(statistics)}, with "
    f"{statistics['tokens with k > 1'].sum():,} tokens that had more than one candidate."
    f"\n\n{tables.describe_coefficients(statistics)}\n\n{tables.describe_varied(statistics)}"
)

# %%
tables.show(tables.format_readable(statistics))

# %% [markdown]
# Each coefficient is followed by its 95% interval, computed by resampling prompts or by leaving out one prompt, or
# one group of prompts, at a time; with too few prompts there is none. *k* is the number of candidates. *Within-prompt*
# is the mean of the coefficients computed separately for each text; *partial* removes a linear effect of k; *within-k*
# compares only tokens with the same k. *Design effect* says how much the tokens of one text depend on each other; see
# [Method](/method.md).
