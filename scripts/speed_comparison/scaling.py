"""The comparison of run lengths behind scripts/benchmark.py --scale: 100 prompts and many, in alternation."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nucleoscope.wording import count
from speed_comparison.comparison import create_random_model
from speed_comparison.tables import ComparisonRow, collect, format_table
from speed_comparison.workers import get_own_checkout, order_pairs, run_job

SMALL = 100  # prompts of the run that the other is compared with
SHAPE = "hidden_size=64,intermediate_size=128,num_hidden_layers=2,num_attention_heads=4,vocab_size=1000"
BATCH = 25  # "auto" would not be the same for 100 prompts and for 10,000
LENGTHS = (60, 180)  # letters of a prompt, each of which is a token


def create_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are bytes, without special ones: nothing ends early."""
    core = Tokenizer(
        models.BPE({piece: id for id, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, [])
    )
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core)


def save_model(folder: Path, shape: str) -> None:
    """Saves a random model of this shape, as `comparison.create_random_model` takes it, and its tokenizer."""
    model = create_random_model(shape, torch.device("cpu"), torch.float32)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    model.save_pretrained(folder)
    create_tokenizer().save_pretrained(folder)


def save_prompts(path: Path, n: int) -> None:
    """Saves prompts of random letters, the first of which are the same for every ``n``."""
    generator = torch.Generator().manual_seed(0)
    with path.open("w", encoding="utf-8") as stream:
        for _ in range(n):
            length = int(torch.randint(*LENGTHS, (), generator=generator))
            letters = torch.randint(ord("a"), ord("z") + 1, (length,), generator=generator).tolist()
            stream.write(json.dumps({"prompt": "".join(map(chr, letters))}) + "\n")


def compare(options: argparse.Namespace) -> None:
    """Prints speed and memory of runs of `SMALL` and of ``options.scale`` prompts of a small random model."""
    sizes, found = (options.scale, SMALL), []
    with tempfile.TemporaryDirectory() as place:
        model, data = Path(place, "model"), Path(place, "prompts.jsonl")
        save_model(model, options.random_weights or SHAPE)
        save_prompts(data, max(sizes))
        settings = {name: getattr(options, name) for name in ("max_tokens", "top_p", "device", "dtype")}
        settings |= {"batch_size": BATCH if options.batch_size == "auto" else options.batch_size}
        settings |= {"model_name": str(model), "dataset_name": str(data), "prompt_format": "raw"}
        texts = [json.loads(line)["prompt"] for line in data.read_text(encoding="utf-8").splitlines()[:4]]
        for order in order_pairs(options.repeats):
            pair: list[dict] = [{}, {}]
            for side in order:
                with tempfile.TemporaryDirectory(dir=place) as folder:
                    job = settings | {"n_prompts": sizes[side], "folder": f"{folder}/data/model"}
                    done = run_job(get_own_checkout(), parts=["run"], texts=texts, **job)
                build, pair[side] = done["build"], done["run"]
                print(f"{count(sizes[side], 'prompt')}: {pair[side]['seconds']:.1f} s", file=sys.stderr, flush=True)
            found.append(pair)
    print(
        f"A random model ({options.random_weights or SHAPE}), {build['dtype']} on {build['device']}, "
        f"{count(build['threads'], 'thread')}; {settings['max_tokens']} tokens per prompt, "
        f"batches of {settings['batch_size']}; "
        f"{count(options.repeats, 'pair')}, alternating which run goes first\n"
    )
    print(format_scaling(found, sizes))


def format_scaling(found: list[list[dict]], sizes: tuple[int, int]) -> str:
    """The tables; each of ``found`` is one pair: a run of ``sizes[0]`` prompts and one of ``sizes[1]``."""
    rates = {"while measuring": "measuring_seconds", "from prompts to files": "seconds"}
    speed = [
        ComparisonRow(text, *collect(found, lambda run, key=key: run["tokens"] / run[key]))
        for text, key in rates.items()
    ]
    cores = ComparisonRow("user and system", *collect(found, lambda run: 1000 * run["core_seconds"] / run["tokens"]))
    moments = {"before the run": "before", "peak": "peak"}
    memory = [ComparisonRow(text, *collect(found, lambda run, key=key: run[key])) for text, key in moments.items()]
    sides = (count(sizes[0], "prompt"), count(sizes[1], "prompt"))
    tables = [("Speed, tokens/s", speed, 1), ("Core seconds per 1,000 tokens", [cores], 3)]
    tables.append(("Memory of the process, MiB", memory, 0))
    return "\n".join(format_table(title, rows, digits, sides) for title, rows, digits in tables)
