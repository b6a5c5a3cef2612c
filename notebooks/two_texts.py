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
# # The data set's texts and the model's
#
# A data set can have texts of its own: answers, stories, summaries. A model can read such a text after its prompt, and it
# can write one for the same prompt. In this notebook we put the two side by side and ask:
#
# * Does the data set's text surprise the model more than its own, and is the model as sure of what comes next?
# * How often does the text take a token that is outside the nucleus, and how often should it?
# * Does the model expect as much surprise as it gets?
#
# The two runs of a pair have the same model, data set, prompts, prompt format, temperature and `top_p`. The
# notebook needs no model and no GPU.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>[-<text_column>]/<model>/; correlation_eval/ is written here

# %%
import os
from pathlib import Path

from IPython.display import HTML, Markdown, display

from nucleoscope.store import results, text_pairs
from nucleoscope.views import calibration_figures, calibration_text, tables, two_texts

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %%
found = text_pairs.find_pairs(results_dir)
measured = two_texts.load(found.pairs)
Markdown(calibration_text.describe_found(found, measured, results_dir))

# %% [markdown]
# ## Surprisal and entropy
#
# Surprisal, $-\log p$ of the token taken, says how unexpected the token was; full entropy, $H(p)$, is the surprisal that
# the model expects on average before it sees the token. Both are in nats. Texts are compared over the prompts for which
# both exist, and over as many tokens of each as both runs measured.

# %%
comparison = two_texts.compare_pairs(measured)
for name, rows in comparison.groupby("pair", sort=False):
    display(Markdown(calibration_text.describe_text_difference(name, rows)))
    display(tables.show(calibration_text.format_text_means(rows)))

# %%
Markdown(calibration_text.describe_interval(comparison) if measured else tables.NOTHING_YET)

# %% [markdown]
# ## Outside the nucleus
#
# The nucleus leaves out the unlikely tokens: if it has the mass $m$, all others together have the probability $1 - m$.
# If the tokens of a text were drawn from the model's distribution $p$, a share of $1 - m$ of them would be outside, and
# the model would be *calibrated* on that text. A text that is outside more often takes tokens that the model
# believes to be less likely than they are. Calibration is about a model and a kind of text, at the temperature of the
# run; it does not say whether the text is good.
#
# End-of-text tokens are a special case. They are never recorded, because a text that ends has no further token, but $p$
# gives them a probability $e$ at each step. What was recorded is therefore compared with $p$ *given that the text
# continues*. If the ends in the nucleus have the probability $e_N$, then, given no end,
#
# $$\begin{gathered}
# m' = \frac{m - e_N}{1 - e}, \\
# -\log p' = -\log p + \log(1 - e), \\
# H' = \frac{H(p) - h(e)}{1 - e}
# \end{gathered}$$
#
# are the mass of the nucleus, the surprisal of a token, and the full entropy, with
# $h(e) = -e \log e - (1 - e) \log(1 - e)$ by the chain rule of entropy {cite:p}`shannon1948`. Without this correction, the model would look miscalibrated
# even on texts that were drawn from it.

# %%
bins = two_texts.calibrate_pairs(measured)
Markdown(calibration_text.describe_ends(bins)) if len(bins) else None

# %%
Markdown(calibration_text.describe_outside(bins) if measured else tables.NOTHING_YET)

# %%
calibration_figures.plot_outside(bins) if len(bins) else None

# %%
Markdown(calibration_text.explain_outside(bins)) if len(bins) else None

# %% [markdown]
# ## Expected and measured surprisal
#
# A token drawn from $p$ has an expected surprisal of $H(p)$, the full entropy {cite:p}`braverman2020`. What the model
# wrote was not drawn from $p$ but from its nucleus, with the probabilities $q = p / m$. Such a token has the expected
# surprisal $-\sum q \log p = H(q) - \log m$, the cross entropy of $q$ and $p$, which is lower, because the most
# surprising tokens cannot be drawn. Both are taken given that the text continues, as above: for the second, the ends
# are removed from the nucleus, and $m$ and $q$ are those of what is left.

# %%
Markdown(calibration_text.describe_surprisal(bins) if measured else tables.NOTHING_YET)

# %%
calibration_figures.plot_surprisal(bins) if len(bins) else None

# %%
Markdown(calibration_text.EXPLAIN_SURPRISAL) if len(bins) else None

# %% [markdown]
# ## Both texts, token by token
#
# Three prompts are chosen by rule: those with the median, the highest and the lowest difference of mean surprisal
# between the two texts. Tokens are tinted by surprisal, on one scale for both. Point at a token, tap it, or reach it
# with the arrow keys: its card shows what it was chosen from, and whether it is in the nucleus.

# %%
for text, html in two_texts.show_texts(measured) if measured else [(tables.NOTHING_YET, "")]:
    display(Markdown(text), *([HTML(html)] if html else []))

# %% [markdown]
# ## Recap
#
# The texts of a data set are compared with what a model wrote for the same prompts, and both with what the
# model's own probabilities would lead one to expect. The docstrings of `calibration.compare_texts` and
# `calibration.calibrate` describe the columns of the two tables.

# %%
folder = results.locate_folder(results_dir) / results.ANALYSES
tables.write(tables.format_csv(comparison), folder / "two_texts.csv")
tables.write(tables.format_csv(bins), folder / "two_texts_bins.csv")
Markdown(tables.describe_place("`two_texts.csv` and `two_texts_bins.csv`, with the numbers of all pairs, are", folder))
