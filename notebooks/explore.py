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
# # Look inside one generation
#
# In this notebook we let a language model write one text, or read an existing one, and look at the candidates
# for every token. Run all cells (Run > Run All Cells), then
#
# * type a prompt and press Run: the text appears token by token, tinted by the quantity you select,
# * or switch to "measure a text" and paste one: the model reads it after the prompt, and writes nothing,
# * point at a token: its card shows the candidates it was drawn from,
# * click it: a heat map shows how similar those candidates are, with similar ones next to each other,
# * click one of its candidates: the text is cut there, and the model continues from that candidate,
# * drag over points in the scatter plot: their tokens are underlined in the text.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
mode = "generate"  # generate: the model writes; score: measure an existing text
prompt = "Tell me a short story about a lighthouse."  # initial content of the prompt field
text = ""  # initial content of the text field in mode score; it directly follows the prompt
max_tokens = 100  # maximum number of tokens written or measured
top_p = 0.9  # probability mass that the nucleus must reach, in (0, 1]
temperature = 1.0  # value to divide the logits by before measuring and sampling
seed = 0  # random seed for sampling: the same seed draws the same tokens
prompt_format = "chat"  # chat: in the model's chat template; raw: unchanged
template_date = "2024-07-26"  # the date to give the chat template as today's date
quantity = "entropy"  # initial tint of the tokens
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., or auto
results_dir = "results"  # measured runs whose prompts can be selected
model_revision = None  # commit of a model on the Hub from which all its files are taken; None means the newest
trust_remote_code = False  # run code that comes with the model; read it first

# %%
import os
from pathlib import Path

from nucleoscope.explorer import Explorer
from nucleoscope.settings import FIELDS

if Path.cwd().name in ("notebooks", "scratch"):  # JupyterLab starts there; paths are relative to the project's folder
    os.chdir("..")

# %% [markdown]
# ## Generate or measure, point, click, select
#
# The model is loaded as soon as the cell below has run, and stays in memory; a model that would have to be downloaded
# is loaded at the first Run. With the keyboard, Tab moves into the text, the arrow keys move from token to token,
# Enter acts as a click, and Tab moves on to the candidates on the card.

# %%
settings = {name: value for name, value in globals().items() if name in FIELDS}
explorer = Explorer(prompt, quantity=quantity, text=text, **settings)
explorer.view

# %% [markdown]
# On a card, the bars are the candidates' probabilities. The column "similar to ✓" shows how similar each candidate is to
# the token that was drawn, or to the one in the text: the cosine similarity of their input embeddings. A token of an
# existing text may be outside the nucleus; its card says so. Spaces are shown as `·`, line breaks as `↵`,
# and a lone byte of a longer character as `⟨E2⟩`. In the text, `▫` marks a token that shows
# nothing of its own: it begins a character that a later token completes.
#
# A candidate that you click is put in the place of its token, and the model continues with the same random numbers: each
# step has its own. The tokens before it are kept, not drawn again. The two texts are side by side from there on, in rows
# with tokens of the same steps. The line above them names all texts up to the latest one and leads back to each; a
# candidate of either text can be clicked next. Two more tabs of a card show what the model expects after each
# candidate: how similar that is, with similar candidates in groups, and the three likeliest next tokens. They need the
# model, or a run that was measured in context, whose texts can also be tinted by both parts of the entropy: uncertainty
# about what follows, and about how it is put.
#
# A prompt of a measured run brings the run's settings with it, including the revision of its model, and Run measures
# the tokens of the run again. If you change a setting or the prompt, new tokens are drawn. In bfloat16 and float16 they
# may differ even if nothing that matters has changed: a prompt alone is rounded differently than in a batch, and its
# text is then a different sample, as valid as the first. A model's own code never runs unless you tick
# `trust_remote_code`; entering another model or revision clears the tick.
#
# ## Recap
#
# We looked at one text token by token: which candidates each token had, how certain the choice was, and how similar the
# candidates were. `measure.py` measures many texts.
