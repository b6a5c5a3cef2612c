"""What generating and scoring many prompts have in common.

The planning of batches, measuring them one by one and in halves if they do not fit in memory,
resuming, and the contents of `run.json`. This module does not depend on how a batch is measured.
"""

import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from nucleoscope import __version__
from nucleoscope.measure import model_facts
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.nucleus import NotFinite

# Tokens, by type of device. On a CPU, more would not fit in its cache, and another pass costs as much as about 48 more.
# What another pass costs on a GPU has not been measured, so padding has no limit of its own there.
PASS_TOKENS, MOST_PADDING = {"cpu": 1024, "cuda": 32768}, {"cpu": 48, "cuda": 32768}


@dataclass
class Batch:
    """The records of some prompts, with the prompts' indices and the seconds they took.

    ``continued`` lists the steps at which the batch was continued after an interruption, ``path`` is that of
    `static.PATHS` which its steps took, or how its texts were read (`scoring.TextForward`); "" if it had none.
    ``variants`` has the numbers of each prompt's tokens in other candidate sets, (T, N, 3 + 3 G) each, unless they were
    not measured.
    """

    indices: list[int]
    records: list[dict]
    seconds: float = 0.0
    continued: list[int] = field(default_factory=list)
    path: str = ""
    variants: list[torch.Tensor] = field(default_factory=list)


def sort_by_length(inputs: Inputs, indices: list[int] | None = None) -> list[int]:
    """Indices, longest first, so that running out of memory happens early."""
    return sorted(range(len(inputs.ids)) if indices is None else indices, key=lambda i: (-len(inputs.ids[i]), i))


def form_passes(lengths: Iterable[int], device: torch.device) -> list[slice]:
    """Consecutive rows to process in one forward pass, in which each is padded to the longest.

    A pass has at most `PASS_TOKENS` with its padding, unless it is a single row, and at most `MOST_PADDING` of padding.
    """
    most, padding = (limits.get(device.type, limits["cpu"]) for limits in (PASS_TOKENS, MOST_PADDING))
    passes, start, end, longest, total = [], 0, 0, 0, 0
    for length in lengths:
        longer = max(longest, length)
        size = (end + 1 - start) * longer
        if end > start and (size > most or size - total - length > padding):
            passes.append(slice(start, end))
            start, longer, total = end, length, 0
        end, longest, total = end + 1, longer, total + length
    return [*passes, slice(start, end)] if end else []


def split_batches(
    inputs: Inputs, batch_size: int, indices: list[int] | None = None, most: int | None = None
) -> list[list[int]]:
    """Batches of prompt indices of similar length, longest first.

    Of prompts with more than ``most`` tokens (None: no limit), only those of equal length are put into one batch.
    """
    order = sort_by_length(inputs, indices)
    lengths = [len(inputs.ids[index]) for index in order]
    keys = dict(zip(order, (n if most is not None and n > most else 0 for n in lengths), strict=True))
    groups = [list(group) for _, group in groupby(order, keys.__getitem__)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


def measure_batches(
    batches: list[list[int]],
    prompts: list[str],
    measure: Callable[[list[int], tqdm], Batch],
    model: PreTrainedModel,
    total: int,
    progress: bool = True,
) -> Iterator[Batch]:
    """Measures one batch of prompt indices after another, and yields each as soon as it is measured.

    ``measure(indices, bar)`` returns one batch, with the seconds that an interrupted process has spent on it;
    ``bar`` counts tokens, ``total`` of them are expected at most. If the ``model``'s device runs out of memory,
    the batch is measured in two halves. Raises ValueError, naming the prompts, for logits with NaN, MemoryError if a
    single prompt does not fit.
    """
    left = list(batches)
    with tqdm(total=total, unit="tok", disable=not (progress and batches), mininterval=0.5) as bar:
        while left:
            indices, begin = left.pop(0), time.perf_counter()
            shown = bar.n, bar.total, getattr(bar, "initial", 0)  # a bar that is not shown has no beginning
            try:
                batch = measure(indices, bar)
            except NotFinite as error:
                rows = [indices[row] for row in error.rows]
                names = ", ".join(f"{index} ({prompts[index][:40]!r})" for index in rows)
                raise explain_not_finite(f"for prompt {names}", model) from None
            except torch.OutOfMemoryError:
                batch = None
            if batch is not None:
                batch.seconds += time.perf_counter() - begin
                yield batch
                continue
            if model.device.type == "cuda":
                torch.cuda.empty_cache()  # not in the except block, whose traceback still holds the tensors
            bar.n, bar.total, bar.initial = shown
            left[:0] = _halve(indices)


def begin_at(bar: tqdm, n: int, change: int) -> None:
    """Has ``bar`` show ``n`` more tokens, which were there before this process, and ``change`` more in total."""
    bar.n, bar.total = bar.n + n, bar.total + change
    if n and not bar.disable:
        bar.initial, bar.last_print_n = bar.initial + n, bar.n  # they say nothing about this process's speed
        bar.refresh()


def explain_not_finite(where: str, model: PreTrainedModel) -> ValueError:
    """The error for logits that do not define a distribution; ``where`` says for which prompt or token."""
    advice = "" if model.dtype == torch.float32 else ": try dtype=float32"
    return ValueError(f"the model's logits contain NaN or inf {where}{advice}")


def _halve(indices: list[int]) -> list[list[int]]:
    if len(indices) == 1:
        raise MemoryError(f"prompt {indices[0]} does not fit in the device's memory even on its own: reduce max_tokens")
    half = (len(indices) + 1) // 2
    return [indices[:half], indices[half:]]


def list_unmeasured(folder: Any, n_prompts: int) -> list[int]:
    """The prompts that are in no finished batch of a `run_folder.RunFolder`."""
    done = {index for batch in folder.list_batches() for index in batch["indices"]}
    return [index for index in range(n_prompts) if index not in done]


def resume_plan(batches: list[list[int]], unmeasured: list[int]) -> list[list[int]]:
    """The remaining batches of a run; they are planned once and saved, so that a resumed run has the same ones."""
    left = set(unmeasured)
    todo = [[index for index in batch if index in left] for batch in batches]
    return [batch for batch in todo if batch]


def collect_run_info(
    model: PreTrainedModel, inputs: Inputs, batches: list[dict], batch_size: int | str
) -> dict[str, Any]:
    """What `run.json` contains besides the settings; ``batches`` as `run_folder.RunFolder.list_batches` has them.

    Seconds are those of the finished batches, with what interrupted processes spent on steps that were kept; peak
    memory is that of the process that finished the run. ``continued_at_steps`` has a list for each batch that
    was continued in the middle: the steps at which it was.
    """
    tokens = sum(batch["tokens"] for batch in batches)
    seconds = sum(batch["seconds"] for batch in batches)
    devices = model_facts.describe_devices(model)
    gpus = [device for device in model_facts.count_weight_bytes(model) if device.type == "cuda"]
    continued = [batch["continued"] for batch in batches if batch.get("continued")]
    names = Counter(device["name"] for device in devices)
    return {
        "device": ", ".join(name if n == 1 else f"{n} x {name}" for name, n in names.items()),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "batches": sorted((len(batch["indices"]) for batch in batches), reverse=True),
        "batches_continued": len(continued),
        "continued_at_steps": continued,
        "prompts_truncated": len(inputs.truncated),
        "tokens": tokens,
        "seconds": round(seconds, 3),
        "tokens_per_second": round(tokens / seconds, 1) if seconds else None,
        "peak_memory_mib": round(
            (sum(map(torch.cuda.max_memory_allocated, gpus)) if gpus else _measure_peak_memory()) / 2**20
        ),
        "versions": {"python": platform.python_version()}
        | {"nucleoscope": __version__}
        | {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }


def _measure_peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
