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
# # Does the choice matter?
#
# Two candidates with similar embeddings, or after which the model expects the same to follow: does it matter which of
# them is taken? At some tokens of each text we continue from each of the likeliest candidates, several times, with the
# same random numbers for all, so that branches differ by their candidate alone. The further the branches diverge, the
# more the choice matters. Then we ask what predicts that: the cosine similarity of the candidates' embeddings, their
# similarity in context, or entropy?

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/
seed = 0  # random seed of the null model

# %%
from IPython.display import Markdown

from nucleoscope.stats import choice
from nucleoscope.views import choice_figures, choice_text, fork_trees, tables

runs, problems = choice.collect(results_dir)
coefficients, means = choice.compute_coefficients(runs, seed), choice.summarise(runs)
Markdown(choice_text.describe_runs(runs, problems, results_dir))

# %% [markdown]
# ## The answer

# %%
Markdown(choice_text.describe_answer(coefficients) if runs else tables.NOTHING_YET)

# %%
choice_figures.plot_coefficients(coefficients) if runs else None

# %% [markdown]
# A point is Spearman's coefficient with its 95% interval over texts. *All points* compares branch points; *given k and
# entropy* controls for both, or for the one of them that is not the predictor itself; *within points* compares the
# pairs of candidates of one branch point, which have k and entropy in common. A grey bar shows what is left if outcomes
# are exchanged among points with the same number of candidates: a coefficient inside it says no more than k does. The
# menu selects the run and the outcome; of every outcome, a larger number means that the choice matters more. The
# divergence leaves out the first step, at which nothing is drawn yet and which is similarity in context itself.

# %% [markdown]
# ## How far texts diverge anyway
#
# Even two branches of the same candidate diverge if their random numbers differ. The table compares branches of different
# candidates with the same random numbers with branches of the same candidate with other ones. *never meet* is the share
# of pairs whose last five tokens are never the same.

# %%
Markdown(choice_text.describe_means(means) if runs else tables.NOTHING_YET)

# %%
tables.show(choice_figures.format_means(means)) if runs else None

# %% [markdown]
# ## Three forks
#
# By rule: of all branch points, the one whose branches diverge the most, the median, and the one whose branches diverge
# the least, by divergence. A candidate is followed by its probability among the candidates; what its continuations
# begin with in common is shown once.

# %%
fork_trees.show_examples(results_dir, runs) if runs else Markdown(tables.NOTHING_YET)

# %% [markdown]
# ## Run by run
#
# All coefficients with the divergence. Those with the other outcomes are in the figure's menu; pointing at one shows its
# interval.

# %%
tables.show(choice_figures.format_coefficients(coefficients)) if runs else Markdown(tables.NOTHING_YET)

# %% [markdown]
# ## Recap
#
# Branches of texts share their random numbers, so that what differs is due to the candidate. A short branch says
# whether the words differ, not whether the meaning does: two texts that never share five tokens in a row can say the
# same. [Method](/method.md) has the definitions, and [Branch at selected tokens](/use/branch.md) how to measure your own
# runs.
