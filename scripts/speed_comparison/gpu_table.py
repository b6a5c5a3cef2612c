"""The table behind scripts/benchmark.py --gpu_table: three shapes of models on one GPU, with random weights.

Contract: nothing is downloaded. Prompts are random tokens, as many as those of gsm8k and xsum have. A step is timed in
a batch of its own, after all captures; tokens/s are those of a whole run, with prefill and captures.
"""

import argparse
import gc
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config

from cost_simulation.assumptions import DATA
from nucleoscope.measure import checking, cosine, generation, model_facts, static
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.sampling import Sampler, draw_uniforms
from nucleoscope.measure.static import StaticMemory
from nucleoscope.quantities import list_recorded
from nucleoscope.settings import Settings
from nucleoscope.wording import count
from speed_comparison.comparison import Clock, create_random_model, measure_bandwidth

COMMON = {"hidden_size": 4096, "num_attention_heads": 32, "tie_word_embeddings": False, "eos_token_id": None}
LLAMA = {"intermediate_size": 14336, "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256}
QWEN = {"intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8, "vocab_size": 151936}
DEEPSEEK = {"intermediate_size": 11008, "num_hidden_layers": 30, "num_key_value_heads": 32, "vocab_size": 102400}
SHAPES: dict[str, PreTrainedConfig] = {  # as in their config.json
    "Llama-3.1-8B": LlamaConfig(**COMMON, **LLAMA, max_position_embeddings=131072, bos_token_id=None),
    "Qwen3-8B": Qwen3Config(**COMMON, **QWEN, head_dim=128, max_position_embeddings=40960, bos_token_id=None),
    "deepseek-llm-7b": LlamaConfig(**COMMON, **DEEPSEEK, max_position_embeddings=4096, bos_token_id=None),
}
SPREAD = {"gsm8k": 0.4, "xsum": 0.6}  # standard deviation of the logarithm of a prompt's length: an estimate
BATCHES = (1, 16, 100)
COLUMNS = (
    "model",
    "prompts",
    "batch",
    "path",
    "tokens/s",
    "step, ms",
    "share of limit",
    "measuring",
    "dynamic step, ms",
)


class Figures(NamedTuple):
    """One row: tokens/s of a run; of a step its milliseconds, the share that reading the weights takes, and the share
    of measuring; and its milliseconds on the dynamic path. ``batch`` is that of the largest batch which fitted.
    """

    model: str
    prompts: str
    batch: int
    path: str
    tokens_per_second: float
    step: float
    limit: float
    measuring: float
    dynamic: float


def choose_lengths(name: str, count: int) -> list[int]:
    """The lengths of ``count`` prompts of a data set: quantiles of a log-normal distribution with its mean."""
    (data,) = [data for data in DATA if data.name == name]
    quantiles = [NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)]
    exponents = [SPREAD[name] * z - SPREAD[name] ** 2 / 2 for z in quantiles]
    return [max(1, min(data.longest, round(data.prompt * math.exp(x)))) for x in exponents]


def draw_prompts(lengths: Sequence[int], vocabulary: int) -> list[list[int]]:
    """Random tokens, the same for the same arguments."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]


def time_run(model: PreTrainedModel, ids: list[list[int]], batch: int, max_tokens: int) -> tuple[float, int, str]:
    """Tokens/s of a whole run, the size of its largest batch, and the path of all."""
    options = {"inputs": Inputs(ids), "batch_size": batch, "max_tokens": max_tokens, "progress": False}
    with Clock(model.device)() as taken:
        batches = list(generation.measure(model, SimpleNamespace(eos_token_id=None), [""] * len(ids), **options))
    tokens = sum(len(record["tokens"]) for done in batches for record in done.records)
    largest = max(len(done.indices) for done in batches)  # halved until they fit in memory
    return tokens / taken.seconds, largest, ", ".join(sorted({done.path for done in batches}))


@torch.inference_mode()
def time_steps(
    model: PreTrainedModel, ids: list[list[int]], max_tokens: int, memory: StaticMemory | None
) -> tuple[float, float]:
    """Median milliseconds of a step of one batch with measuring, and of its forward pass alone.

    In the second, the same tokens are read as in the first; each time from the end of one step to that of the next.
    Measured twice, of which the second counts: by then everything has been captured.
    """
    way, settings = checking.find_way(model), Settings(max_tokens=max_tokens)
    directions = cosine.find_directions(model_facts.find_embedding_matrix(model))
    for _ in range(2):
        numbers = draw_uniforms(0, range(len(ids)), max_tokens, model.device)
        sampler = Sampler(directions, settings, numbers, set(), list_recorded())
        ends = []
        for _ in generation.generate(model, ids, max_tokens, sampler, way, None, memory):
            ends.append(time.perf_counter())  # a draw waits for the device
        decoder, passes = static.create_decoder(model, ids, max_tokens, way, None, memory), []
        logits = decoder.prefill()
        for drawn in sampler.steps:
            logits = decoder.advance(drawn.tokens)
            if logits is not None:
                logits.sum().item()
                passes.append(time.perf_counter())
    return _find_median(ends), _find_median(passes)


def _find_median(ends: Sequence[float]) -> float:
    """Milliseconds between moments."""
    return 1e3 * statistics.median(after - before for before, after in pairwise(ends))


def measure_shape(
    name: str, model: PreTrainedModel, bandwidth: float, n_prompts: int, max_tokens: int, batches: Sequence[int]
) -> Iterator[Figures]:
    """The rows of one model; ``bandwidth`` in bytes per second."""
    embedding = model_facts.find_embedding_matrix(model)
    weights = sum(weight.nbytes for weight in model.parameters())
    if embedding.data_ptr() != model.get_output_embeddings().weight.data_ptr():
        weights -= embedding.nbytes  # of which a step reads a few rows
    for prompts in SPREAD:
        ids = draw_prompts(choose_lengths(prompts, n_prompts), model.config.vocab_size)
        for batch in batches:
            speed, size, path = time_run(model, ids, batch, max_tokens)
            middle = (len(ids) - size) // 2
            rows = sorted(ids, key=len, reverse=True)[middle : middle + size]
            step, forward = time_steps(model, rows, max_tokens, checking.create_memory(model))
            dynamic, _ = time_steps(model, rows, min(max_tokens, 20), None)
            limit, measuring = 1e3 * weights / bandwidth / step, 1 - forward / step
            yield Figures(name, prompts, size, path, speed, step, limit, measuring, dynamic)


def format_row(row: Figures) -> str:
    """One line of the table."""
    cells = [row.model, row.prompts, row.batch, row.path, f"{row.tokens_per_second:,.0f}", f"{row.step:.2f}"]
    cells += [f"{row.limit:.0%}", f"{row.measuring:.1%}", f"{row.dynamic:.2f}"]
    return f"| {' | '.join(map(str, cells))} |"


def compare(options: argparse.Namespace, shapes: Mapping[str, Any] = SHAPES) -> None:
    """Prints the table for the GPU that ``options.device`` names."""
    device = torch.device("cuda" if options.device == "auto" else options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("--gpu_table needs an NVIDIA GPU, but PyTorch finds none on this machine")
    bandwidth = measure_bandwidth(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    print(f"{name}, {bandwidth / 1e9:,.0f} GB/s measured; torch {torch.__version__}; random weights in bfloat16; ")
    print(
        f"{options.n_prompts} prompts, {count(options.max_tokens, 'token')} each. share of limit: time to read the "
        "weights / step.\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    for label, config in shapes.items():
        model = create_random_model(config, device, torch.bfloat16)
        model.generation_config.eos_token_id = None
        for row in measure_shape(label, model, bandwidth, options.n_prompts, options.max_tokens, BATCHES):
            print(format_row(row), flush=True)
        del model
        gc.collect()  # the next one must fit
        if device.type == "cuda":
            torch.cuda.empty_cache()
