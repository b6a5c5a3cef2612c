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
# # Twelve tokens
#
# A scatter plot of thousands of tokens shows whether entropy and similarity are related. What does
# one of these tokens look like? In this notebook we go to the four corners of the plane, take three tokens from
# each, and look at what the model was choosing between.
#
# They are chosen by rule, from the numbers alone:
#
# * Entropy and cosine similarity are ranked among all tokens of the model that had more than one candidate, over
#   all data sets; percentile 0 is the lowest, 100 the highest.
# * A token's distance from a corner is the larger of its two rank distances, so it has to be extreme in both quantities.
#   A token belongs to a corner only if both percentiles are in the outer third: at most 33.3, or at least 66.7.
# * The three nearest tokens are taken, or fewer if no others belong to the corner. They must have at most 200
#   candidates, so that a list of them can be read, and eight tokens before them, so that there is some context. At most
#   one token comes from each prompt; the corners choose in turn.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/
model_name = "SmolLM2-135M-Instruct"  # the model, or the name of its folder; if it was not measured, the first one

# %%
from IPython.display import HTML, Markdown, display

from nucleoscope.views import twelve

found = twelve.load(results_dir, model_name)
Markdown(twelve.describe(found))


# %%
def show_corner(corner: str) -> None:
    """The tokens of one corner, each with its numbers, the text before it and its card."""
    for text, html in twelve.show_corner(found, corner):
        display(Markdown(text), *([HTML(html)] if html else []))


# %% [markdown]
# ## High entropy, high cosine similarity
#
# A wide choice among candidates that resemble each other more than those of most tokens. Words of one kind have similar
# embeddings: digits and numbers, names, months, words in upper case, pieces of words, adjectives that could
# take the same place. In such a choice the model knows what kind of thing comes next, but not which one.

# %%
show_corner("high entropy, high cosine similarity")

# %% [markdown]
# ## High entropy, low cosine similarity
#
# A choice that is as wide, among candidates that have less in common than those of most tokens. Even the kind of the
# next token may be open: a sentence may end, continue with a conjunction, or take a noun; punctuation competes
# with words, and pieces of words with whole ones.

# %%
show_corner("high entropy, low cosine similarity")

# %% [markdown]
# ## Low entropy, high cosine similarity
#
# The narrowest of all choices is one between two candidates: the first has just under `top_p` of the probability, and an
# unlikely one completes the nucleus. The more evenly the probability is divided, and the more candidates there are, the
# higher is entropy. In this corner the candidates are similar. Two digits, two forms of one word, or the same word with
# and without a capital have embeddings that are close together.
#
# Low entropy is partly an effect of the cut. A nucleus of two or more candidates means that the first
# alone does not reach `top_p`, so the model is never surer than that; entropy is low because the probabilities within
# the nucleus are so unequal. The rest of the probability, at most 1 - `top_p`, does not enter these numbers.

# %%
show_corner("low entropy, high cosine similarity")

# %% [markdown]
# ## Low entropy, low cosine similarity
#
# Again the choice is narrow, but the candidates have less in common than those of most tokens. With two or three
# candidates the similarity depends on one to three pairs, so it can take any value: single pairs vary far more than
# means over many. Nuclei of many candidates can hardly reach the lowest values.

# %%
show_corner("low entropy, low cosine similarity")

# %% [markdown]
# ## Recap
#
# The cards show what the two quantities consist of. Entropy counts candidates and weights them;
# cosine similarity says whether they are of one kind. Similar candidates do not necessarily mean the
# same: to the embeddings two digits are nearly the same; in a calculation they are not.
