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
# A scatter plot of thousands of tokens says that entropy and likeness go together, or do not. What
# is such a token? In this notebook we go to the four corners of the plane, take three tokens from
# each, and look at what the model was choosing between.
#
# They are chosen by rule, from the numbers alone:
#
# * Entropy and cosine similarity are ranked among all tokens of the model that had a choice, over
#   all data sets, from 0 (the lowest) to 1 (the highest).
# * A token is as far from a corner as the larger of its two ranks' distances from there, so it has
#   to lie far out in both.
# * The three nearest are taken. They must have at most 200 candidates, so that a list of them can be
#   read, and eight tokens before them, so that there is a context; no prompt gives two.
#
# Nothing below was written by somebody who had seen these tokens: another run brings others.

# %% tags=["parameters"]
results_dir = "results"  # where <dataset>/<model>/ are
model_name = "SmolLM2-135M-Instruct"  # whose tokens; where it was not measured, the first model that was

# %%
from IPython.display import HTML, Markdown, display

from nucleoscope import models, picks, results
from nucleoscope.strip import strip
from nucleoscope.text import Reader

measured = {
    names: table for names, table in results.load_cells(results_dir)[0].items() if (table["token"] >= 0).any()
}  # files of the published study hold no tokens
if not measured:
    raise ValueError(f"no measurements with their tokens under '{results_dir}': measure a model first")
wanted = model_name.rstrip("/").rsplit("/", 1)[-1]
model = wanted if wanted in {name for name, _ in measured} else min(measured)[0]
tables = {names: table for names, table in measured.items() if names[0] == model}
corners = picks.corners(tables)

# %%
folders = {dataset: results.cell_folder(results_dir, dataset, model) for _, dataset in tables}
records = {dataset: results.load(results.measurements(folder)) for dataset, folder in folders.items()}
settings = results.load_info(next(iter(folders.values())))["settings"]
reader = Reader(models.tokenizer(settings["model_name"], revision=settings["model"].get("revision")))
everything = picks.pooled(tables)


def show(corner: str) -> None:
    """The tokens of one corner, each with its numbers, the text before it and its card."""
    for token in corners[corners["corner"] == corner].itertuples():
        start, end = max(token.step - 40, 0), token.step + 1
        record = records[token.dataset][token.prompt]
        html = strip(record, reader, table=everything, first=start, last=end, shown=token.step, most=20)
        display(Markdown(picks.numbers(token)), HTML(html))


Markdown(f"The model is {model}, on {', '.join(sorted(folders))}: {len(everything):,} tokens.")

# %% [markdown]
# ## High entropy, high cosine similarity
#
# Many candidates, and they resemble each other. To the embeddings, words of one kind are alike:
# digits and numbers, names, months, words in upper case, pieces of words, adjectives that could
# stand in the same place. The model knows what kind of thing comes next, and not which one.

# %%
show("high entropy, high cosine similarity")

# %% [markdown]
# ## High entropy, low cosine similarity
#
# Many candidates, and they have little in common. This is what a choice looks like that is open in
# kind as well: a sentence may end, go on with a conjunction, or take a noun; signs stand beside
# words, and pieces of words beside whole ones.

# %%
show("high entropy, low cosine similarity")

# %% [markdown]
# ## Low entropy, high cosine similarity
#
# Few candidates, one of them nearly certain, and the others like it. Two digits, two forms of one
# word, or the same word with and without a capital have embeddings that lie close together.

# %%
show("low entropy, high cosine similarity")

# %% [markdown]
# ## Low entropy, low cosine similarity
#
# One candidate nearly certain, and another that has nothing to do with it. With two or three
# candidates the similarity rests on one to three pairs, so it takes any value: single pairs spread
# far more than means over many. Nuclei of many candidates can hardly reach this far down.

# %%
show("low entropy, low cosine similarity")

# %% [markdown]
# ## Recap
#
# The cards show what the two quantities are made of. Entropy counts candidates and weighs them;
# cosine similarity says whether they are of one kind. Candidates that are alike need not mean the
# same: two digits are, to the embeddings, nearly the same thing, and to a sum they are not.
