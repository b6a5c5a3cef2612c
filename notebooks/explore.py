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
# In this notebook we let a language model write one text, or read one that is there, and look at what
# it was choosing between at every token. Run all cells (Run > Run All Cells), then
#
# * type a prompt and press Run: the text appears token by token, tinted by the quantity you pick,
# * or switch to "measure a text" and paste one: the model reads it behind the prompt, and writes nothing,
# * point at a token: its card shows the candidates it was drawn from,
# * click it: a heat map shows how alike those candidates are, like beside like,
# * drag over points in the scatter: their tokens are underlined in the text.

# %% tags=["parameters"]
model_name = "SmolLM2-135M-Instruct"  # Hub id, folder, .gguf file, or the packaged SmolLM2-135M-Instruct
mode = "generate"  # generate: the model writes; score: measure a text that is there
prompt = "Tell me a short story about a lighthouse."  # what the prompt's field holds at first
text = ""  # in mode score what the text's field holds at first; it stands right behind the prompt
max_tokens = 100  # tokens written or measured, at most
top_p = 0.9  # mass of the nucleus, in (0, 1]
temperature = 1.0  # what the logits are divided by before they are measured and sampled from
seed = 0  # of the sampling; the same seed draws the same tokens
prompt_format = "chat"  # chat: in the model's own template; raw: as it is
quantity = "entropy"  # what tints the tokens at first
dtype = "auto"  # float32, bfloat16, float16, or auto
device = "auto"  # cpu, cuda, cuda:1, ..., or auto
results_dir = "results"  # where measured cells lie, whose prompts can be picked

# %%
import os
from pathlib import Path

from nucleoscope.explorer import Explorer

if Path.cwd().name == "notebooks":  # JupyterLab starts here; paths count from the project's folder
    os.chdir("..")

# %% [markdown]
# ## Write or read, point, click, select
#
# The model is loaded at the first Run, and kept. With the keyboard: Tab leads into the text, the
# arrow keys from token to token, and Enter is a click.

# %%
settings = {"max_tokens": max_tokens, "top_p": top_p, "temperature": temperature}
settings |= {"seed": seed, "prompt_format": prompt_format}
settings |= {"dtype": dtype, "device": device, "results_dir": results_dir}
explorer = Explorer(prompt, model_name, quantity=quantity, mode=mode, text=text, **settings)
explorer.view

# %% [markdown]
# On a card, the bars are the candidates' probabilities, and the last column says how alike each one
# is to the token that was drawn, or that the text has (the cosine of their input embeddings). A text's
# token may lie outside the nucleus: then its card says so. Spaces are shown as `·`, line breaks as `↵`,
# and a lone byte of a longer character as `⟨E2⟩`. In the text, `▫` stands for a token that shows
# nothing of its own: it begins a character which a later token completes.
#
# A measured cell's prompt brings the cell's settings with it, so that Run writes, or reads, its text
# again. In low precision one prompt alone is rounded otherwise than in a batch, so that a written text
# may part from the measured one at some token.
#
# ## Recap
#
# We saw one text, what else could have stood at each of its places, and where each choice lies
# between sure and unsure, alike and different. `notebooks/run.py` measures a hundred texts like it.
