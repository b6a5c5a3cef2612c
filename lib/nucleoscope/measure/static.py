"""The static path: padded decoding in which every step has the same shapes, so that a GPU can replay it as a graph.

Contract: the tokens and numbers of `decoding.PaddedDecoder`, up to the order of sums. Which models take this path is
found out by `checking`. On a GPU, a step of an eager forward pass takes as long as launching about a thousand
kernels, several times as long as reading the weights; a graph is launched at once.

* Keys and values are in one allocation per layer (`StaticMemory`), which serves all batches of a run. A step writes
  its own at an index that is a tensor.
* Attention reads a whole number of `COLUMNS`, not the whole capacity. A mask hides what is not written yet. The
  model makes the masks of its layers from it: sliding windows and position biases are those of the model's own code.
* What changes from step to step is in tensors, which are updated between steps. Ended rows stay in the batch until
  half of it has ended.

A step is captured once per number of rows and of columns (`capturing`). The graph contains the forward pass alone. What
follows it needs the sizes of the nuclei on the host, the one wait of a step; until then the device is still busy
with the graph, so that to capture the pass over the vocabulary as well would save no time. What follows that wait
is measured after the next step has been launched: see `sampling.Sampler`.
"""

from functools import partial

import torch
from transformers import PreTrainedModel

from nucleoscope.measure import capturing, decoding
from nucleoscope.measure.decoding import PADDED, Decoder, KeyValues, PaddedDecoder
from nucleoscope.measure.prefix import SharedPrefix

DYNAMIC, STATIC, CAPTURED = PATHS = ("dynamic", "static", "captured")
DEVICES = {"cuda"}  # types of device on which models are tried in this way
COLUMNS = 128  # a capture takes as long as some tens of steps; attention reads half as many columns too many on average


def suits(model: PreTrainedModel) -> bool:
    """Whether a model is tried in this way: it must be on one of `DEVICES`, as a whole."""
    places = {weight.device for weight in model.parameters()}
    return places == {model.device} and model.device.type in DEVICES


def round_columns(columns: int) -> int:
    """The number of columns that are read, or allocated, if ``columns`` are needed."""
    return -(-columns // COLUMNS) * COLUMNS


def name_path(memory: "StaticMemory | None", way: str) -> str:
    """Which of `PATHS` a batch takes with this ``memory``, if there is one, in one of `decoding.WAYS`."""
    return memory.path if memory is not None and way == PADDED else DYNAMIC


def report_failure(reason: str) -> None:
    """Says in one line that steps take longer than they could, and why."""
    print(f"decoding without CUDA graphs: {reason}", flush=True)


class StaticMemory:
    """What the steps of a run's batches read and write, and the graphs that were captured of them.

    Allocated by the first batch, and anew by one that needs more. Tensors are never replaced while there is a graph
    that uses them. Only one `StaticDecoder` may use it at a time. ``failure`` is why steps are no longer captured.
    """

    def __init__(self, model: PreTrainedModel):
        self.device = model.device
        self.release()

    def release(self) -> None:
        """Frees everything, and has steps captured again: there may be more memory for it."""
        self.failure = ""
        self.rows = self.columns = 0
        self.graphs: dict[tuple[int, int], capturing.StepFunction | None] = {}
        self.stores: dict[int, list[torch.Tensor]] = {}
        self.tokens = self.lengths = self.mask = self.column = torch.empty(0)
        self.recorder = capturing.Recorder(self.device)

    def reserve(self, rows: int, columns: int) -> None:
        """Makes room for a batch of ``rows`` and ``columns``. Decoders created before can no longer be used."""
        if rows > self.rows or columns > self.columns:
            rows, columns = max(rows, self.rows), max(columns, self.columns)
            self.release()
            self.rows, self.columns = rows, columns
            self.tokens, self.lengths, self.mask, self.column = (
                torch.zeros(shape, dtype=torch.long, device=self.device)
                for shape in ((rows,), (rows,), (rows, columns), (1,))
            )
        for store in (store for pair in self.stores.values() for store in pair):
            store.zero_()  # a NaN of an ended row would reach others through the mask: 0 * NaN is NaN

    def provide_stores(self, place: int, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        """Keys and values (rows, heads, columns, d) of the layer at ``place``, allocated like these if need be."""
        if place not in self.stores:
            shapes = [(self.rows, x.shape[1], self.columns, x.shape[3]) for x in (keys, values)]
            self.stores[place] = [x.new_zeros(shape) for x, shape in zip((keys, values), shapes, strict=True)]
        return self.stores[place]

    def run(self, rows: int, columns: int, step: capturing.StepFunction) -> torch.Tensor:
        """What ``step`` returns, which reads and writes the first ``rows`` and ``columns``: replayed if captured.

        If it cannot be captured, nor are others from then on, and a line says why.
        """
        if (rows, columns) not in self.graphs and not self.failure:
            try:
                self.graphs[rows, columns] = self.recorder.record(step)
            except Exception as error:  # models of all kinds raise anything; what is serious is raised again below
                self.failure = " ".join(str(error).split())[:160] or type(error).__name__
                report_failure(self.failure)
        return (self.graphs.get((rows, columns)) or step)()

    @property
    def path(self) -> str:
        """Which of `PATHS` its steps take."""
        return STATIC if self.failure or self.device.type != "cuda" else CAPTURED


class StaticKeyValues(KeyValues):
    """One layer's keys and values in a `StaticMemory`. Prefill fills them as in `KeyValues`."""

    is_compileable = True  # transformers then makes every mask, without first looking at whether it could do without

    def __init__(
        self,
        batch: int,
        prompt_length: int,
        prefix: tuple[torch.Tensor, torch.Tensor] | None,
        memory: StaticMemory,
        place: int,
    ):
        super().__init__(batch, prompt_length, memory.columns, prefix)
        self.memory, self.place = memory, place
        self.read = 0  # columns that a step reads

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        return [store[: self.batch] for store in self.memory.provide_stores(self.place, keys, values)]

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args, **kwargs):
        if self.rows is not None:
            return super().update(keys, values)
        column = self.memory.column
        for store, new in zip(self.store, (keys, values), strict=True):
            store.index_copy_(2, column, new)
        self.keys, self.values = (store[:, :, : self.read] for store in self.store)
        return self.keys, self.values

    def get_seq_length(self) -> int | torch.Tensor:
        # as a scalar tensor, as in transformers' own StaticLayer
        return super().get_seq_length() if self.rows is not None else self.memory.column[0]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return super().get_mask_sizes(query_length) if self.rows is not None else (self.read, 0)

    def keep(self, rows: torch.Tensor, parts: list[tuple[slice, int]]) -> None:
        """Moves these rows to the front, in place, because graphs know the addresses."""
        if not self.is_initialized:
            return
        for place, store in enumerate(self.store):
            store[: len(rows)] = store[rows]
            self.store[place] = store[: len(rows)]
        self.keys = self.values = None


class StaticDecoder(PaddedDecoder):
    """`PaddedDecoder` with steps of one shape. ``memory`` is that of the run."""

    def __init__(
        self,
        model: PreTrainedModel,
        ids: list[list[int]],
        max_tokens: int,
        prefix: SharedPrefix | None,
        memory: StaticMemory,
    ):
        self.memory = memory
        memory.reserve(len(ids), round_columns(max(map(len, ids)) + max_tokens))
        super().__init__(model, ids, max_tokens, prefix)

    def _create_layer(
        self, place: int, max_tokens: int, prefix: tuple[torch.Tensor, torch.Tensor] | None
    ) -> StaticKeyValues:
        return StaticKeyValues(len(self.ids), self.width, prefix, self.memory, place)

    def prefill(self) -> torch.Tensor:
        logits, memory, rows = super().prefill(), self.memory, len(self.ids)
        memory.mask.zero_()
        memory.mask[:rows, : self.width] = self.mask[:, : self.width]
        memory.lengths[:rows] = self.lengths
        memory.column.fill_(self.width)
        return logits

    def _choose_places(self, kept: list[int]) -> list[int]:
        """All places, or as many as the next of the halves of the batch that has room for those in ``kept``.

        Each number of rows needs graphs of its own, and with few rows a step takes as long as reading the weights.
        """
        count = len(self.rows)
        while -(-count // 2) >= len(kept) and count > 1:
            count = -(-count // 2)
        ended = [place for place in range(len(self.rows)) if place not in set(kept)]
        return sorted(kept + ended[: count - len(kept)])

    def _step(self, tokens: torch.Tensor) -> torch.Tensor:
        memory, rows = self.memory, len(self.rows)
        self.width += 1
        columns = round_columns(self.width)
        for layer in self._list_own():
            layer.read = columns
        memory.tokens[:rows] = tokens
        logits = memory.run(rows, columns, partial(self._read_step, rows, columns))
        # Not in the graph: it runs more than once before it is captured, always at the same place.
        memory.lengths[:rows] += 1
        memory.column += 1
        return logits

    def _read_step(self, rows: int, columns: int) -> torch.Tensor:
        """Reads the tokens in `memory`: everything in here is captured, see `capturing`."""
        memory = self.memory
        mask = memory.mask[:rows, :columns].index_fill_(1, memory.column, 1)
        return self._read(memory.tokens[:rows, None], mask, memory.lengths[:rows, None])

    def _keep(self, places: torch.Tensor) -> bool:
        for layer in self._list_own():
            layer.keep(places, [])
        for buffer in (self.memory.mask, self.memory.lengths):
            buffer[: len(places)] = buffer[places]
        return True


def create_decoder(
    model: PreTrainedModel,
    ids: list[list[int]],
    max_tokens: int,
    way: str,
    prefix: SharedPrefix | None = None,
    memory: StaticMemory | None = None,
) -> Decoder:
    """`decoding.create_decoder`, on the static path if there is a ``memory`` for it and the way is `PADDED`."""
    if memory is None or way != PADDED:
        return decoding.create_decoder(model, ids, max_tokens, way, prefix)
    return StaticDecoder(model, ids, max_tokens, prefix, memory)
