"""Runs that are pairs: a data set's texts that were measured, and a model's texts for the same prompts."""

from pathlib import Path
from typing import Any

import torch

import tiny
from nucleoscope import atomic
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import Settings
from nucleoscope.store import results, run_folder

PROMPTS = ["the cat ", "a sandwich ", "the rain in Spain ", "on the mat, "]
TEXTS = ["sat on the mat and ate", "is in the hand of the sender", "stays mainly in the plain", "there was another one"]
COMMON = {
    "model_name": "tiny",
    "dataset_name": "lines.jsonl",
    "model": {"source": "folder", "sha256": "m"},
    "dataset": {"source": "file", "sha256": "d"},
    "n_prompts": 3,
    "max_tokens": 20,
    "top_p": 0.9,
    "temperature": 1.0,
    "prompt_format": "raw",
    "template_date": "2024-07-26",
    "prompt_column": None,
    "variants": "none",
    "dtype": "float32",
}
EXISTING = {"mode": "score", "text_column": "answer"}
WRITTEN = {"seed": 0}


def write_run(folder: Path, settings: dict[str, Any], seed: int = 0, text: str = "the cat sat on the mat") -> Path:
    """A run whose numbers are made up, as `torch.save` writes it, with the given settings instead of `COMMON`."""
    folder.mkdir(parents=True)
    settings = COMMON | settings
    records = [tiny.create_record(text, f"prompt {i}", seed + i, most=20) for i in range(settings["n_prompts"])]
    torch.save(records, folder / results.MEASUREMENTS)
    atomic.write_json(folder / results.RUN_INFO, {"settings": settings})
    return folder


def measure_pair(results_dir: Path, model_name: str) -> None:
    """Measures `TEXTS` after their prompts, and what a tiny random model writes, as notebooks/measure.py does."""
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer(bos=False)
    identities = {"model": {"source": "folder", "sha256": "m"}, "dataset": {"source": "file", "sha256": "d"}}
    for mode, column, texts in (("generate", None, None), ("score", "answer", TEXTS)):
        chosen = Settings(model_name, "lines.jsonl", mode, column, n_prompts=len(PROMPTS), max_tokens=12).check()
        actual = identities | {"n_prompts": len(PROMPTS), "dtype": "float32"}
        folder = results.locate_run(results_dir, chosen.dataset_name, model_name, column)
        with run_folder.RunFolder(folder, chosen.describe_measurement(**actual)) as run:
            complete_run(run, model, tokenizer, PROMPTS, texts, progress=False, max_tokens=12, variants="none")
