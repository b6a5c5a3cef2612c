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
# * The three nearest tokens are taken. They must have at most 200 candidates, so that a list of them can be
#   read, and eight tokens before them, so that there is some context. At most one token comes from each prompt; the
#   corners take turns.

# %% tags=["parameters"]
results_dir = "results"  # contains <dataset>/<model>/
model_name = "SmolLM2-135M-Instruct"  # the model, or the name of its folder; if it was not measured, the first one

# %%
import sys
from functools import cache
from pathlib import Path

from IPython.display import HTML, Markdown, display

from nucleoscope.models.tokenizers import load_tokenizer
from nucleoscope.names import escape_line
from nucleoscope.store import results, run_names
from nucleoscope.views import examples
from nucleoscope.views.strip import compute_background, render_strip
from nucleoscope.views.token_text import Reader, escape_name
from nucleoscope.wording import count

readable = results.load_readable(results_dir)
# Files of the published study contain no tokens.
measured = [names for names, tokens in readable.select(columns=["token"]).items() if (tokens["token"] >= 0).any()]
if not measured:
    raise ValueError(f"no measurements with their tokens in '{results_dir}': measure a model first")
model = run_names.choose_model(model_name, {name for name, _ in measured})


# %%
@cache
def load_reader(name: str, revision: str | None) -> Reader:
    """The reader of a model's tokens, loaded once for all its runs."""
    return Reader(load_tokenizer(name, revision=revision))


def open_run(folder: Path) -> tuple[dict, Reader] | None:
    """The settings of a run and the reader of its tokens; None if they are unavailable, with the reason on stderr."""
    try:
        settings = results.load_info(folder)["settings"]
        found = settings["model"].get("revision")
        results.load_records(folder, [])  # whether they can be read at all
        return settings, load_reader(settings["model_name"], found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print("left out:", escape_line(f"{folder}: {error}"), file=sys.stderr)
        return None


folders = {data: results.locate_measured(results_dir, name, data) for name, data in measured if name == model}
runs = {dataset: open_run(folder) for dataset, folder in sorted(folders.items())}
settings = {dataset: run[0] for dataset, run in runs.items() if run}
tables = {(model, dataset): readable[model, dataset] for dataset in settings}
corners, background = examples.find_corners(tables), compute_background(examples.pool(tables))
shown = {dataset: corners.loc[corners["dataset"] == dataset, "prompt"] for dataset in settings}
records = {dataset: results.load_records(folders[dataset], prompts) for dataset, prompts in shown.items()}
similar = {dataset: results.load_similarities(folders[dataset], prompts) for dataset, prompts in shown.items()}
modes = {name: found.get("mode", "generate") for name, found in settings.items()}


# %%
def show_corner(corner: str) -> None:
    """The tokens of one corner, each with its numbers, the text before it and its card."""
    tokens = corners[corners["corner"] == corner]
    for token in tokens.itertuples():
        options = {"first": max(token.step - 40, 0), "last": token.step + 1, "shown": token.step, "most": 20}
        if known := similar[token.dataset].get(token.prompt):
            options["similarities"] = known.keep(token.step)  # only those of the card: a page of forty would be heavy
        (_, reader), record = runs[token.dataset], records[token.dataset][token.prompt]
        html = render_strip(record, reader, table=background, mode=modes[token.dataset], **options)
        display(Markdown(examples.format_numbers(token)), HTML(html))
    if tokens.empty:
        display(Markdown("No token is left for this corner."))


def list_names(names) -> str:
    return ", ".join(map(escape_name, sorted(names)))


total, long, highest = examples.compute_reach(tables)
lines = [f"The tokenizer of {escape_name(model)} is not available here, so its tokens cannot be shown."]
if tables:
    names = list_names({str(found["model_name"]) for found in settings.values()})
    which = ", ".join(filter(None, (names, escape_name(run_names.divide_model(model)[1]))))
    lines = [f"The model is {which}, on {list_names(settings)}: {count(total, 'token')} with more than one candidate."]
    lines += [escape_name(run_names.describe_others(model, {name for name, _ in measured}))]
if long > 0:
    lines += [f"The {100 * long:.1f} % of them with more than {examples.READABLE} candidates are ranked but not shown:"]
    lines += [f"none of the tokens below is above percentile {100 * highest:.1f} of entropy."]
if read := [name for name in modes if modes[name] == "score"]:
    lines += [f"The model read the texts of {list_names(read)}; it did not write them."]
if any(similar.values()):
    lines += ["The open cards say how similar candidates are; for all other tokens, the pages of the runs do."]
if left_out := [name for name, run in runs.items() if not run]:
    lines += [f"Left out because their settings, records or tokenizer cannot be read here: {list_names(left_out)}."]
Markdown(" ".join(filter(None, lines)))

# %% [markdown]
# ## High entropy, high cosine similarity
#
# Many candidates, and they resemble each other. Words of one kind have similar embeddings:
# digits and numbers, names, months, words in upper case, pieces of words, adjectives that could
# take the same place. The model knows what kind of thing comes next, but not which one.

# %%
show_corner("high entropy, high cosine similarity")

# %% [markdown]
# ## High entropy, low cosine similarity
#
# Many candidates, and they have little in common. In such a choice even the
# kind of the next token is open: a sentence may end, continue with a conjunction, or take a noun; punctuation competes
# with words, and pieces of words with whole ones.

# %%
show_corner("high entropy, low cosine similarity")

# %% [markdown]
# ## Low entropy, high cosine similarity
#
# The first candidate has just under `top_p` of the probability, and one unlikely candidate that is similar to it
# completes the nucleus. Two digits, two forms of one word, or the same word with and without a capital have
# embeddings that are close together.
#
# Low entropy is partly an effect of the cut. A nucleus of two or more candidates means that the first
# alone does not reach `top_p` (0.9, unless it was set to another value), so the model is never surer than
# that; entropy is low because the probabilities within the nucleus are so unequal. The rest, about
# a tenth of the probability, does not enter these numbers.

# %%
show_corner("low entropy, high cosine similarity")

# %% [markdown]
# ## Low entropy, low cosine similarity
#
# Again the first candidate has just under `top_p`, and the unlikely candidate that completes the
# nucleus has nothing to do with it. With two or three candidates the similarity depends on one to
# three pairs, so it can take any value: single pairs vary far more than means over many. Nuclei of
# many candidates can hardly reach such low values.

# %%
show_corner("low entropy, low cosine similarity")

# %% [markdown]
# ## Recap
#
# The cards show what the two quantities consist of. Entropy counts candidates and weights them;
# cosine similarity says whether they are of one kind. Similar candidates do not necessarily mean the
# same: to the embeddings two digits are nearly the same; in a calculation they are not.
