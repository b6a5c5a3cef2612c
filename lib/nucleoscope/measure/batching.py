"""Batches in, batches of records out: what generating and scoring share as runs over many prompts.

Contract: how a batch is measured is decided by a function that this module is given. Here are the
checks of the parameters, the plan of the batches, halving what does not fit the memory, going on
where a run was cut off, and what `run.json` says.
"""

import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from nucleoscope import __version__
from nucleoscope.measure import model_facts
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.nucleus import NotFinite

MODES = ("generate", "score")


@dataclass
class Batch:
    """The records of some prompts, with their indices and the seconds spent."""

    indices: list[int]
    records: list[dict]
    seconds: float


def check(max_tokens: int, top_p: float, prompt_format: str, batch_size: int | str) -> None:
    """Raises ValueError with one line for a parameter that no model could work with."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}: it must be at least 1")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: it must lie in (0, 1]")
    if prompt_format not in ("raw", "chat"):
        raise ValueError(f"prompt_format is '{prompt_format}': it must be raw or chat")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size is {batch_size!r}: it must be auto or at least 1")


def check_mode(mode: str, text_column: str | None) -> None:
    """Raises ValueError for an unknown mode, and where mode and text_column do not go together."""
    if mode not in MODES:
        raise ValueError(f"mode is '{mode}': it must be {' or '.join(MODES)}")
    if mode == "score" and not text_column:
        raise ValueError("mode=score needs text_column: the data set's column with the texts to measure")
    if mode != "score" and text_column:
        raise ValueError(f"text_column is '{text_column}', but only mode=score measures texts: the model would write")


def by_length(inputs: Inputs, indices: list[int] | None = None) -> list[int]:
    """Indices, longest first: what runs out of memory, does so early."""
    return sorted(range(len(inputs.ids)) if indices is None else indices, key=lambda i: (-len(inputs.ids[i]), i))


def plan(
    inputs: Inputs, batch_size: int, indices: list[int] | None = None, equal_lengths: bool = False
) -> list[list[int]]:
    """Batches of prompt indices of similar length, longest first.

    ``equal_lengths`` allows no padding at all within a batch.
    """
    order = by_length(inputs, indices)
    groups = [list(group) for _, group in groupby(order, lambda i: len(inputs.ids[i]) if equal_lengths else 0)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def work_through(
    batches: list[list[int]],
    records_of: Callable[[list[int]], list[dict]],
    prompts: list[str],
    device: torch.device,
    bar: tqdm,
) -> Iterator[Batch]:
    """Each batch as ``records_of(indices)`` measures it. Running out of a device's memory halves the batch.

    ``bar`` is moved by ``records_of`` and put back when a batch is halved. Raises ValueError, naming
    the prompts, for logits that are not finite; the batches before are out by then.
    """
    queue = list(batches)
    while queue:
        indices = queue.pop(0)
        begin, before, records = time.perf_counter(), (bar.n, bar.total), None
        try:
            records = records_of(indices)
        except NotFinite as error:
            names = ", ".join(f"{indices[row]} ({prompts[indices[row]][:40]!r})" for row in error.rows)
            raise ValueError(f"the model's logits are not finite (NaN or inf) for prompt {names}") from None
        except torch.OutOfMemoryError:
            bar.n, bar.total = before
        if records is None:  # out of the except block, whose traceback holds on to the tensors
            queue[:0] = _halves(indices)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            continue
        yield Batch(indices, records, time.perf_counter() - begin)


def _halves(indices: list[int]) -> list[list[int]]:
    if len(indices) == 1:
        raise MemoryError(f"prompt {indices[0]} alone does not fit the device's memory")
    half = (len(indices) + 1) // 2
    return [indices[:half], indices[half:]]


def fill(
    cell,
    n_prompts: int,
    batch_size: int | str,
    planned: Callable[[list[int]], list[list[int]]],
    measured: Callable[[list[list[int]]], Iterable[Batch]],
    described: Callable[[list[dict]], dict],
) -> None:
    """Measures into a `cells.Cell`, in its ``with`` block, what it lacks, and finishes it.

    ``planned(indices)`` makes batches of what is left, ``measured(batches)`` measures them, and
    ``described(batches as kept)`` gives what `run.json` says. The batches are planned once and kept
    with the cell, so that a run that was cut off goes on with the same ones. Another
    ``batch_size`` plans anew what is left.
    """
    done = {index for batch in cell.load_batches() for index in batch["indices"]}
    batches = cell.load_plan(batch_size)
    if batches is None:
        batches = planned([index for index in range(n_prompts) if index not in done])
        cell.save_plan(batch_size, batches)
    todo = [[index for index in batch if index not in done] for batch in batches]
    for batch in measured([batch for batch in todo if batch]):
        cell.save_batch(batch.indices, batch.records, batch.seconds)
    cell.finish(n_prompts, described(cell.load_batches()))


def run_info(model: PreTrainedModel, inputs: Inputs, batches: list[dict], batch_size: int | str, mode: str) -> dict:
    """What `run.json` says of a finished run beside its settings; ``batches`` as `cells.Cell` keeps them.

    Seconds are those of the finished batches; the peak memory is that of the process that finished.
    """
    tokens = sum(len(record["tokens"]) for batch in batches for record in batch["records"])
    seconds = sum(batch["seconds"] for batch in batches)
    devices = model_facts.describe(model)
    gpus = [device for device in model_facts.shares(model) if device.type == "cuda"]
    names = Counter(device["name"] for device in devices)
    return {
        "mode": mode,
        "device": ", ".join(name if n == 1 else f"{n} x {name}" for name, n in names.items()),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "batches": sorted((len(batch["indices"]) for batch in batches), reverse=True),
        "prompts_truncated": len(inputs.truncated),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_mib": round((sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else _peak_memory()) / 2**20),
        "versions": {"python": platform.python_version()}
        | {"nucleoscope": __version__}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def _peak_memory() -> int:
    """Bytes this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
