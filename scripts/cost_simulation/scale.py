"""Computes the cost of a grid of runs from assumptions: a roofline for one batch, a queue of runs over GPUs.

Contract: numbers only, and no torch; the inputs and their sources are in `cost_simulation.assumptions`. A
step of generation takes the longest of three times (Williams, Waterman and Patterson 2009, with a third
roof): reading weights and cache from memory, computing, and the framework's overhead for each layer.
Times are in seconds, sizes in bytes.
"""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

BYTES = 2  # per weight or number in the cache: bfloat16
LIMIT = 128  # maximum rows of a batch on a GPU; `generation.BATCH_LIMIT`


@dataclass(frozen=True)
class ModelSize:
    """The sizes of a Llama-like model, named as in its config.json."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Parameters of the matrices; norms and biases are a thousandth of them."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate
        return self.layers * layer + self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but the embedding table, which is only looked up."""
        return self.parameters - (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def weights(self) -> int:
        return BYTES * self.parameters

    @property
    def cache(self) -> int:
        """Bytes of keys and values for one token."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES


@dataclass(frozen=True)
class Data:
    """Prompts and the texts that follow: mean and longest prompt in tokens, and how far texts get."""

    name: str
    prompt: float
    longest: float
    full: float  # the share of texts that reach the last step
    ended: float  # mean share of the steps that the other texts reach

    @property
    def reached(self) -> float:
        """The mean share of the steps that a text reaches."""
        return self.full + (1 - self.full) * self.ended


class Work(NamedTuple):
    """The work of one run for a GPU: bytes to load, then seconds; ``batches`` are saved one by one."""

    load: float
    batches: tuple[float, ...]
    finish: float


def compute_batch_size(model: ModelSize, longest: float, steps: int, memory: float, prompts: int) -> int:
    """Rows of a batch on one GPU with this much free memory; the rule of `generation.choose_batch_size`.

    All batches of the ``prompts`` have about the same size.
    """
    row = model.cache * (longest + steps) + 8 * 4 * model.vocabulary
    limit = max(1, min(LIMIT, int(memory // 2 // row)))
    return math.ceil(prompts / math.ceil(prompts / limit)) if prompts else limit


def compute_peak(model: ModelSize, longest: float, steps: int, rows: int) -> float:
    """Bytes on the GPU: weights, the cache of a batch, the logits and intermediate results."""
    return model.weights + rows * (model.cache * (longest + steps) + 8 * 4 * model.vocabulary)


def compute_roof(model: ModelSize, rows: float, context: float, a: Mapping[str, float]) -> tuple[float, float]:
    """Seconds of one step of generation, limited by memory and by computing."""
    read = model.weights - (0 if model.tied else BYTES * model.vocabulary * model.hidden) + rows * context * model.cache
    return read / (a["bandwidth"] * a["bandwidth share"]), 2 * model.multiplied * rows / (a["flops"] * a["flops share"])


def compute_batch(model: ModelSize, data: Data, rows: int, steps: int, a: Mapping[str, float]) -> float:
    """Seconds of one batch: prefill, then steps, with fewer rows as texts end."""
    reading = 2 * model.multiplied * rows * data.prompt / (a["flops"] * a["flops share"])
    alive = rows * data.reached
    step = max(*compute_roof(model, alive, data.prompt + steps / 2, a), model.layers * a["layer"])
    gathered = alive * a["candidates"] * model.hidden * BYTES + a["passes"] * 4 * alive * model.vocabulary
    measuring = a["measuring"] + gathered / (a["bandwidth"] * a["bandwidth share"])
    return reading + steps * (step + measuring) + alive * steps * a["unpacking"]


def compute_work(
    model: ModelSize, data: Data, prompts: int, steps: int, a: Mapping[str, float], rng: np.random.Generator
) -> Work:
    """The work of one run. Batch times vary by a few percent, because texts have different lengths."""
    rows = compute_batch_size(model, data.longest, steps, a["memory"] - model.weights, prompts)
    sizes = [rows] * (prompts // rows) + ([prompts % rows] if prompts % rows else [])
    seconds = {size: compute_batch(model, data, size, steps, a) for size in set(sizes)}
    spread = rng.lognormal(0, 0.05, len(sizes))
    times = tuple(seconds[size] * by for size, by in zip(sizes, spread, strict=True))
    tokens = prompts * steps * data.reached
    return Work(model.weights, times, a["notebook"] + tokens * a["finishing"])


@dataclass
class Cluster:
    """GPUs that share one file system; ``lost`` preemptions or failures per GPU hour."""

    gpus: int
    disk: float  # bytes per second for all GPUs together
    link: float  # bytes per second for one GPU
    start: float  # seconds until the model begins to load
    lost: float
    again: float  # seconds until a lost run is queued again


@dataclass
class QueueOutcome:
    """The cost of processing a queue: wall time, seconds that GPUs were held, runs restarted."""

    wall: float = 0.0
    held: float = 0.0
    losses: int = 0


@dataclass
class _QueuedRun:
    work: Work
    done: int = 0  # batches saved
    begun: float = 0.0
    left: float = field(default=0.0)  # bytes still to load


def simulate_queue(runs: Sequence[Work], cluster: Cluster, rng: np.random.Generator) -> QueueOutcome:
    """Simulates the runs, first come, first served, and returns what it cost.

    Loading shares the file system evenly, up to each GPU's own link. A lost run goes back into the queue
    and starts again, including loading, after the last batch that it saved.
    """
    return _Simulation(runs, cluster, rng).compute_outcome()


class _Simulation:
    """One simulation: ``events`` are (time, number, what, run); ``loading`` advances from event to event."""

    def __init__(self, runs: Sequence[Work], cluster: Cluster, rng: np.random.Generator):
        self.cluster, self.rng, self.result = cluster, rng, QueueOutcome()
        self.waiting = [_QueuedRun(work) for work in reversed(runs)]
        self.free, self.now, self.number = cluster.gpus, 0.0, 0
        self.events: list[tuple[float, int, str, _QueuedRun]] = []
        self.loading: list[_QueuedRun] = []

    def compute_outcome(self) -> QueueOutcome:
        self._fill()
        while self.events or self.loading:
            rate = min(self.cluster.link, self.cluster.disk / max(len(self.loading), 1))
            first = min(self.loading, key=lambda run: run.left, default=None)
            loaded = self.now + first.left / rate if first else math.inf
            at = min(loaded, self.events[0][0] if self.events else math.inf)
            for run in self.loading:
                run.left -= (at - self.now) * rate
            self.now = at
            if at == loaded:
                self.loading.remove(first)
                self._compute(first)
            else:
                _, _, what, run = heapq.heappop(self.events)
                getattr(self, what)(run)
        self.result.wall = self.now
        return self.result

    def _schedule(self, seconds: float, what: str, run: _QueuedRun) -> None:
        self.number += 1  # events at the same time keep the order in which they were added
        heapq.heappush(self.events, (self.now + seconds, self.number, what, run))

    def _fill(self) -> None:
        while self.free and self.waiting:
            run = self.waiting.pop()
            self.free, run.begun = self.free - 1, self.now
            self._schedule(self.cluster.start, "_load", run)

    def _load(self, run: _QueuedRun) -> None:
        run.left = run.work.load
        self.loading.append(run)

    def _compute(self, run: _QueuedRun) -> None:
        """Draws whether the run is lost before it ends, and how far it gets."""
        begun = self.now - run.begun  # losses before the first batch count at its start
        lost = self.rng.exponential(3600 / self.cluster.lost) - begun if self.cluster.lost else math.inf
        times = np.cumsum([*run.work.batches[run.done :], run.work.finish])
        if lost >= times[-1]:
            self._schedule(times[-1], "_end", run)
        else:
            run.done += int(np.searchsorted(times[:-1], max(lost, 0)))
            self._schedule(max(lost, 0), "_lose", run)

    def _end(self, run: _QueuedRun) -> None:
        self.result.held += self.now - run.begun
        self.free += 1
        self._fill()

    def _lose(self, run: _QueuedRun) -> None:
        self.result.losses += 1
        self._schedule(self.cluster.again, "_return", run)
        self._end(run)

    def _return(self, run: _QueuedRun) -> None:
        self.waiting.insert(0, run)
        self._fill()
