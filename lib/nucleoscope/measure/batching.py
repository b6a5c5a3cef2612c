"""What generating and scoring many prompts have in common.

The planning of batches, a queue that splits batches that do not fit in memory,
resuming, and the contents of `run.json`. This module does not depend on how a batch is measured.
"""

import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass
class Batch:
    """The records of some prompts, with the prompts' indices and the seconds they took."""

    indices: list[int]
    records: list[dict]
    seconds: float


def sort_by_length(inputs: Inputs, indices: list[int] | None = None) -> list[int]:
    """Indices, longest first, so that running out of memory happens early."""
    return sorted(range(len(inputs.ids)) if indices is None else indices, key=lambda i: (-len(inputs.ids[i]), i))


def split_batches(
    inputs: Inputs, batch_size: int, indices: list[int] | None = None, equal_lengths: bool = False
) -> list[list[int]]:
    """Batches of prompt indices of similar length, longest first.

    ``equal_lengths`` puts only prompts of equal length into a batch, so that there is no padding.
    """
    order = sort_by_length(inputs, indices)
    groups = [list(group) for _, group in groupby(order, lambda i: len(inputs.ids[i]) if equal_lengths else 0)]
    return [group[start : start + batch_size] for group in groups for start in range(0, len(group), batch_size)]


class Attempt:
    """One batch being measured, as a context manager: `records` and `seconds` are set if it succeeds.

    Assign the records to ``records`` inside the block. If the device runs out of memory, the block ends
    without an error, ``records`` stays None, and the batch is halved. NotFinite becomes a ValueError that
    names the prompts.
    """

    def __init__(self, queue: "BatchQueue", indices: list[int]):
        self.queue, self.indices = queue, indices
        self.records: list[dict] | None = None
        self.seconds = 0.0

    def __enter__(self) -> "Attempt":
        self.begin, self.shown = time.perf_counter(), (self.queue.bar.n, self.queue.bar.total)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> bool:
        self.seconds = time.perf_counter() - self.begin
        if isinstance(error, NotFinite):
            prompts = self.queue.prompts
            names = ", ".join(f"{self.indices[row]} ({prompts[self.indices[row]][:40]!r})" for row in error.rows)
            raise ValueError(f"the model's logits contain NaN or inf for prompt {names}: try dtype=float32") from None
        if not isinstance(error, torch.OutOfMemoryError):
            return False
        self.queue.bar.n, self.queue.bar.total = self.shown
        self.queue.halve(self.indices)
        return True


class BatchQueue:
    """Batches of prompt indices, each an `Attempt`; a batch that runs out of memory is retried in two halves.

    ``bar`` is reset when a batch is halved. Raises MemoryError if a single prompt does not fit.
    """

    def __init__(self, batches: list[list[int]], prompts: list[str], device: torch.device, bar: tqdm):
        self.left, self.prompts, self.device, self.bar = list(batches), prompts, device, bar
        self.halved = False

    def __iter__(self) -> Iterator[Attempt]:
        while self.left:
            if self.halved and self.device.type == "cuda":
                torch.cuda.empty_cache()  # not in the except block, whose traceback still holds the tensors
            self.halved = False
            yield Attempt(self, self.left.pop(0))

    def halve(self, indices: list[int]) -> None:
        """Puts the two halves of a batch at the front."""
        if len(indices) == 1:
            raise MemoryError(f"prompt {indices[0]} alone does not fit in the device's memory: reduce max_tokens")
        half = (len(indices) + 1) // 2
        self.left[:0] = [indices[:half], indices[half:]]
        self.halved = True


def list_unmeasured(folder: Any, n_prompts: int) -> list[int]:
    """The prompts that are in no finished batch of a `run_folder.RunFolder`."""
    done = {index for batch in folder.load_batches() for index in batch["indices"]}
    return [index for index in range(n_prompts) if index not in done]


def resume_plan(batches: list[list[int]], unmeasured: list[int]) -> list[list[int]]:
    """The remaining batches of a run; they are planned once and saved, so that a resumed run has the same ones."""
    left = set(unmeasured)
    todo = [[index for index in batch if index in left] for batch in batches]
    return [batch for batch in todo if batch]


def describe_run(model: PreTrainedModel, inputs: Inputs, batches: list[dict], batch_size: int | str) -> dict[str, Any]:
    """What `run.json` contains besides the settings; ``batches`` as `run_folder.RunFolder` saves them.

    Seconds are those of the finished batches; peak memory is that of the process that finished the run.
    """
    tokens = sum(len(record["tokens"]) for batch in batches for record in batch["records"])
    seconds = sum(batch["seconds"] for batch in batches)
    devices = model_facts.describe_devices(model)
    gpus = [device for device in model_facts.count_weight_bytes(model) if device.type == "cuda"]
    names = Counter(device["name"] for device in devices)
    return {
        "device": ", ".join(name if n == 1 else f"{n} x {name}" for name, n in names.items()),
        "devices": devices,
        "threads": torch.get_num_threads(),
        "batch_size": batch_size,
        "batches": sorted((len(batch["indices"]) for batch in batches), reverse=True),
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
