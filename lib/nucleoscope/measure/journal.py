"""What was drawn of a batch in progress, on its way to a run's folder and back, so that an interruption loses seconds.

Contract: this module does not know models, and the folder is a `store.run_folder.RunFolder` that was passed in. A
part is a dict that torch reads without this package: some consecutive steps of one batch, the tensors of which are
concatenated.

* ``indices``: the batch's prompts; ``start``, ``end``: its first step and the one after its last
* ``rows``: for each step, the rows it was drawn for
* ``tokens`` and ``sizes`` (T,) int64: of each of them the token and its number of candidates, step by step
* ``ids`` (K,) int32 and ``probs`` (K,) float32: the candidates
* ``columns``: the quantities by their plurals; ``values`` (n, T) float64: theirs
* ``variants``: the names of the candidate sets and geometries measured, or None; ``variant_values`` (T, N, 3 + 3 G)
  float32: what was measured in them, if it was
* ``seconds``: the time they took; ``continued``: the steps at which the batch was continued before them
"""

import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from nucleoscope.measure.nucleus import Nucleus
from nucleoscope.measure.sampling import Drawn, Sampler
from nucleoscope.measure.variants import find_layout
from nucleoscope.variants import Layout

# At most this much of a batch is drawn again after an interruption. Writing a part takes some hundredths of a second.
SAVE_SECONDS = 5
read_clock = time.perf_counter


class Journal:
    """Saves what a batch's ``sampler`` draws, and gives it first what an interrupted process has drawn and saved.

    ``indices`` are the batch's prompts. ``folder`` is the run's, or None: nothing is saved or read. ``seconds`` are
    those that the steps before this process took, ``continued`` lists the steps at which the batch was
    continued, including the one at which this process continues.
    """

    def __init__(self, folder: Any, indices: list[int], sampler: Sampler):
        self.folder, self.indices, self.sampler = folder, indices, sampler
        self.seconds, self.continued = 0.0, list[int]()
        if folder is not None:
            self._resume()
        self.saved = len(sampler.steps)
        self.begun = read_clock()
        self.due = self.begun + SAVE_SECONDS

    def _resume(self) -> None:
        columns, layout = [quantity.plural for quantity in self.sampler.quantities], find_layout(self.sampler.variants)
        for part in self.folder.load_parts(self.indices):
            try:
                self.sampler.resume(unpack_steps(part, columns, layout))
            except (ValueError, RuntimeError):  # torch's, for tensors of an odd kind
                break  # what follows it has lost its beginning
            self.seconds, self.continued = self.seconds + part["seconds"], part["continued"]
        start = len(self.sampler.steps)
        self.folder.discard_parts(self.indices, start)
        self.continued = [*self.continued, start] if start else []

    def save_if_due(self) -> None:
        """Saves the steps since the last time as a part, if that was `SAVE_SECONDS` ago. OSError if it cannot.

        A full disk ends the run, which could otherwise lose all that it draws from here on.
        """
        if self.folder is None or (now := read_clock()) < self.due:
            return
        steps = self.sampler.steps[self.saved :]
        part = {"indices": self.indices, "start": self.saved, "end": self.saved + len(steps)}
        columns = [quantity.plural for quantity in self.sampler.quantities]
        part |= pack_steps(steps, columns, find_layout(self.sampler.variants))
        part |= {"seconds": now - self.begun, "continued": self.continued}
        self.folder.save_part(part)
        self.saved, self.begun, self.due = part["end"], now, read_clock() + SAVE_SECONDS


def pack_steps(steps: Sequence[Drawn], columns: list[str], layout: Layout | None = None) -> dict[str, Any]:
    """The tensors of ``steps`` as they are in a part, on the host; ``layout`` is that of their variants."""
    nuclei = [step.candidates for step in steps]
    variants = {"variants": None}
    if layout is not None:
        variants = {"variants": [*layout], "variant_values": torch.cat([step.variants for step in steps])}
    return variants | {
        "rows": [step.rows for step in steps],
        "tokens": torch.cat([step.tokens for step in steps]).cpu(),
        "sizes": torch.cat([nucleus.offsets.diff() for nucleus in nuclei]).cpu(),
        "ids": torch.cat([nucleus.ids for nucleus in nuclei]).cpu(),
        "probs": torch.cat([nucleus.probs for nucleus in nuclei]).cpu(),
        "columns": columns,
        "values": torch.cat([step.values for step in steps], 1).cpu(),
    }


def unpack_steps(part: dict[str, Any], columns: list[str], layout: Layout | None = None) -> list[Drawn]:
    """The steps of a part, on the host, with the quantities in the order of ``columns`` and the variants of ``layout``.

    ValueError if it is no such part, or has other quantities or variants: a file that can be read need not contain one.
    """
    _check(part, columns, layout)
    counts = [len(rows) for rows in part["rows"]]
    sizes = part["sizes"].split(counts)
    totals = [int(found.sum()) for found in sizes]
    values = part["values"][[part["columns"].index(column) for column in columns]]
    split = (part["tokens"].split(counts), sizes, part["ids"].split(totals), part["probs"].split(totals))
    variants = [None] * len(counts) if layout is None else part["variant_values"].split(counts)
    return [
        Drawn(rows, tokens, Nucleus(ids, probs, torch.nn.functional.pad(found.cumsum(0), (1, 0))), each, more)
        for rows, tokens, found, ids, probs, each, more in zip(
            part["rows"], *split, values.split(counts, 1), variants, strict=True
        )
    ]


def _check(part: dict[str, Any], columns: list[str], layout: Layout | None) -> None:
    kinds = {"rows": list, "columns": list, "continued": list, "seconds": float}
    tensors = {"tokens": torch.int64, "sizes": torch.int64, "ids": torch.int32, "probs": torch.float32}
    sound = (
        all(isinstance(part.get(name), kind) for name, kind in kinds.items())
        and all(isinstance(part.get(name), torch.Tensor) for name in (*tensors, "values"))
        and all(part[name].dtype == dtype and part[name].dim() == 1 for name, dtype in tensors.items())
        and part["values"].is_floating_point()
        and all(isinstance(rows, list) and rows for rows in part["rows"])
        and all(isinstance(number, int) for numbers in (*part["rows"], part["continued"]) for number in numbers)
        and part["end"] - part["start"] == len(part["rows"])
        and math.isfinite(part["seconds"])
        and sorted(part["columns"], key=str) == sorted(columns)
        and part.get("variants") == (None if layout is None else [*layout])
        and (layout is None or getattr(part.get("variant_values"), "dtype", None) == torch.float32)
    )
    if not sound:
        raise ValueError("this is not a valid part of a batch with these quantities")
    drawn, total = sum(map(len, part["rows"])), int(part["sizes"].sum())
    shapes = [tuple(part[name].shape) for name in ("tokens", "sizes", "ids", "probs", "values")]
    if shapes != [(drawn,), (drawn,), (total,), (total,), (len(columns), drawn)] or int(part["sizes"].min()) < 1:
        raise ValueError("the tensors of a part do not match")
    if layout is not None and part["variant_values"].shape != (drawn, len(layout.candidates), layout.width):
        raise ValueError("the variants of a part do not match")
