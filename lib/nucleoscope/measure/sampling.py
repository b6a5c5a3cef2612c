"""Draws the tokens of a generated text: from the nuclei, with numbers that depend on seed, prompt and step alone.

Contract: this module does not know models; it gets logits and returns tokens, which it also measures.
"""

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from nucleoscope.measure.cosine import Directions
from nucleoscope.measure.distribution import Distribution, describe_distribution
from nucleoscope.measure.nucleus import NotFinite, Nucleus, scale_logits
from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.recording import Token, build_record, measure_step, unpack
from nucleoscope.measure.step import Step, list_ends
from nucleoscope.measure.variants import Variants
from nucleoscope.quantities import Quantity
from nucleoscope.settings import Settings


def list_uniforms(seed: int, index: int, n: int, replicate: int = 0) -> list[float]:
    """The first n uniform numbers in [0, 1) of prompt ``index``: step t always uses the same one.

    Each ``replicate`` has numbers of its own; those of replicate 0 are the run's. Python's generator seeded with a
    string (its SHA-512) is documented to stay the same across versions.
    """
    stream = random.Random(f"{seed}/{index}/{replicate}" if replicate else f"{seed}/{index}")
    return [stream.random() for _ in range(n)]


def draw_uniforms(
    seed: int, indices: Iterable[int], max_tokens: int, device: torch.device, replicate: int = 0
) -> torch.Tensor:
    """The uniform numbers (B, max_tokens) of some prompts, on the device; float64 except on Apple's GPUs."""
    numbers = [list_uniforms(seed, index, max_tokens, replicate) for index in indices]
    return torch.tensor(numbers, dtype=choose_sum_dtype(device), device=device)


def sample(nucleus: Nucleus, uniforms: torch.Tensor) -> torch.Tensor:
    """Draws one token per row by inverse transform, from ``uniforms`` (B,) in [0, 1).

    Returns positions (B,) int64 in ``nucleus.ids`` and ``nucleus.probs``: the first token of each
    nucleus whose cumulative share of the mass exceeds the uniform number. No copy to the host.
    """
    cumulative = torch.nn.functional.pad(nucleus.probs.cumsum(0, dtype=choose_sum_dtype(nucleus.probs.device)), (1, 0))
    start, end = cumulative[nucleus.offsets[:-1]], cumulative[nucleus.offsets[1:]]
    targets = start + uniforms.to(cumulative.dtype) * (end - start)
    index = torch.searchsorted(cumulative[1:], targets, right=True)
    return index.clamp(nucleus.offsets[:-1], nucleus.offsets[1:] - 1)


class Drawn(NamedTuple):
    """One step: the ``rows`` it was drawn for, their ``tokens`` (B',), ``candidates`` and quantities (n, B').

    The ids of the candidates are int32, which is enough. ``variants`` (B', N, 3 + 3 G) are on the host, as
    `variants.Variants.measure` orders them; None if they are not measured.
    """

    rows: list[int]
    tokens: torch.Tensor
    candidates: Nucleus
    values: torch.Tensor
    variants: torch.Tensor | None = None


# Types of device that compute on their own: a step is measured there after the model's next step has been launched, so
# that the device is busy while the host launches the measuring.
DEFERRED = {"cuda"}


class Sampler:
    """Draws the next tokens of one batch from their nuclei and measures them.

    ``uniforms`` (B, max_tokens) on the model's device, ``ends`` the ids that end a text, ``quantities``
    the quantities to measure for each token; of ``settings`` it uses top_p and temperature. ``variants`` measures
    other candidate sets of each token, unless it is None.
    """

    def __init__(
        self,
        directions: Directions,
        settings: Settings,
        uniforms: torch.Tensor,
        ends: set[int],
        quantities: Sequence[Quantity],
        variants: Variants | None = None,
    ):
        self.directions, self.settings, self.variants = directions, settings, variants
        # Where measuring is deferred, so is finding the sets; elsewhere they use what is computed to draw a token.
        self.sets = variants.sets if variants and uniforms.device.type not in DEFERRED else ()
        self.uniforms, self.quantities = uniforms, quantities
        self.ends = list_ends(ends, uniforms.device)
        self.measured: list[Drawn] = []
        self.drawn: tuple[list[int], Step] | None = None  # the last step's rows, and the step, if it is to be measured
        self.ended: set[int] = set()
        self.flags: tuple[list[int], torch.Tensor] | None = None  # which rows ended at the last step, on the host
        self.rows: list[int] | None = None  # the rows that the uniform numbers were last reduced to

    @property
    def steps(self) -> list[Drawn]:
        """All steps, measured. Raises what `measure_step` raises."""
        self._measure_drawn()
        return self.measured

    def draw(self, logits: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, set[int]]:
        """The next tokens (B',) from logits (B', V) of ``rows``, and the rows known to have ended.

        They are measured at once, or on the devices in `DEFERRED` when they are asked for, or with the next ones.
        """
        self._measure_drawn()  # before the wait in `_describe`
        logits = scale_logits(logits, self.settings)
        logits, distribution = self._describe(logits, rows)
        candidates = distribution.candidates
        if rows != self.rows:  # rows are only ever removed
            kept = [place for place, row in enumerate(self.rows or range(len(self.uniforms))) if row in set(rows)]
            self.uniforms, self.rows = self.uniforms[torch.tensor(kept, device=logits.device)], list(rows)
        places = sample(candidates, self.uniforms[:, len(self.measured)])
        tokens = candidates.ids[places]
        self.drawn = self.rows, Step(logits, distribution, tokens, self.directions, places, self.ends)
        if logits.device.type not in DEFERRED:
            self._measure_drawn()
        self.flags = self.rows, torch.isin(tokens, self.ends).to("cpu", non_blocking=True)
        return tokens, self.ended

    def _measure_drawn(self) -> None:
        if self.drawn is None:
            return
        (rows, step), self.drawn = self.drawn, None
        values = measure_step(step, self.quantities)  # (n, B')
        # A batch's nuclei stay on the device until the batch ends: ids need no more than 32 bits.
        candidates = step.candidates._replace(ids=step.candidates.ids.int())
        # Variants of a token are about a thousand numbers, so they do not stay on the device.
        self.measured.append(Drawn(rows, step.tokens, candidates, values, self._measure_variants(step)))

    def _measure_variants(self, step: Step) -> torch.Tensor | None:
        if self.variants is None:
            return None
        if step.windows is not None:
            return self.variants.measure_windows(step.windows).cpu()
        return self.variants.measure(step.logits, step.full_entropy).cpu()

    def _describe(self, logits: torch.Tensor, rows: list[int]) -> tuple[torch.Tensor, Distribution]:
        """Logits and what they say; rows that have ended may contain anything, NotFinite names only the others."""
        try:
            found = describe_distribution(logits, self.settings.top_p, self.sets)
        except NotFinite as error:
            self._read_flags()
            broken = [rows[place] for place in error.rows if rows[place] not in self.ended]
            if broken:
                raise NotFinite(broken) from None
            over = torch.tensor(error.rows, device=logits.device)
            logits = logits.index_fill(0, over, 0)
            return logits, describe_distribution(logits, self.settings.top_p, self.sets)
        self._read_flags()  # finding the nuclei has waited for the device, so the copy is complete
        return logits, found

    def _read_flags(self) -> None:
        if self.flags is not None:
            rows, flags = self.flags
            self.ended.update(row for row, flag in zip(rows, flags.tolist(), strict=True) if flag)

    def resume(self, steps: list[Drawn]) -> None:
        """Continues after ``steps``, which an interrupted process drew, as if they had been drawn here.

        ValueError, and nothing is changed, if they cannot be the next ones: each has all rows that had not ended before
        and none that was dropped, and its ids are in the vocabulary.
        """
        n, longest = self.uniforms.shape
        rows = self.steps[-1].rows if self.steps else list(range(n))
        ends, ended = set(self.ends.tolist()), set(self.ended)
        for step in steps:
            given = set(step.rows)
            if len(ended) == n or step.rows != [row for row in rows if row in given] or not set(rows) - ended <= given:
                raise ValueError("the rows of a step do not match those of the batch")
            for ids in (step.tokens, step.candidates.ids):
                if int(ids.min()) < 0 or int(ids.max()) >= len(self.directions.embedding):
                    raise ValueError("a token is not in the vocabulary")
            rows = step.rows
            ended.update(row for row, token in zip(rows, step.tokens.tolist(), strict=True) if token in ends)
        if len(self.steps) + len(steps) > longest:
            raise ValueError(f"a batch has at most {longest} steps")
        self.measured, self.ended = self.steps + steps, ended

    def list_drawn(self) -> list[tuple[dict[int, int], set[int]]]:
        """For each step the token of each row, and the rows that had ended before: their tokens are not recorded."""
        ends, over = set(self.ends.tolist()), set[int]()
        found = []
        for step in self.steps:
            drawn = dict(zip(step.rows, step.tokens.tolist(), strict=True))
            found.append((drawn, set(over)))
            over.update(row for row, token in drawn.items() if token in ends)
        return found

    def read_latest(self) -> list[Token]:
        """The tokens of the last step, on the host."""
        _, tokens, candidates, values, _ = self.steps[-1]
        return unpack(tokens, candidates, values, self.quantities)

    def build_records(self, prompts: list[str]) -> list[dict]:
        """The batch's records, without end-of-text tokens and anything after them."""
        ends, over = set(self.ends.tolist()), set()
        kept: list[list[Token]] = [[] for _ in prompts]
        for rows, tokens, candidates, values, _ in self.steps:
            for row, token in zip(rows, unpack(tokens, candidates, values, self.quantities), strict=True):
                if token.id in ends:
                    over.add(row)
                if row not in over:
                    kept[row].append(token)
        return [build_record(prompt, tokens, self.quantities) for prompt, tokens in zip(prompts, kept, strict=True)]

    def collect_variants(self, n: int) -> list[torch.Tensor]:
        """For each of the batch's n rows the variants (T, N, 3 + 3 G) of the tokens that `build_records` has.

        An empty list if they are not measured.
        """
        if self.variants is None:
            return []
        kept: list[list[torch.Tensor]] = [[] for _ in range(n)]
        ends = set(self.ends.tolist())
        for step, (drawn, over) in zip(self.steps, self.list_drawn(), strict=True):
            for values, (row, token) in zip(step.variants, drawn.items(), strict=True):
                if row not in over and token not in ends:
                    kept[row].append(values)
        return [torch.stack(found) if found else self.variants.create_empty() for found in kept]
