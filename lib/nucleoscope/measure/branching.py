"""Does the choice matter? Continues a text from each candidate of some of its tokens, and measures how outcomes part.

Contract: a model and the records of its run in, one `Branching` per text out. This module does not know files. At a
branch point, each of the m likeliest candidates is put in the place of the token that was taken, and continued by L
tokens, R times. Replicate r of all candidates uses the same random numbers, which depend on (seed, prompt, step in the
text, replicate) and on nothing else: branches differ by their candidate alone (common random numbers: Glasserman and
Yao, "Some guidelines and guarantees for common random numbers", Management Science 38, 1992). Replicate 0 has those of
the run itself, so that the branch of the token that was taken is the text that was measured.

Of two branches, three things are measured: the Jensen-Shannon divergence of their next-token distributions, the share
of equal tokens, and the step at which they meet, from which on their last `MEETING` tokens are the same. A branch that
has ended stays as it is: two that have ended are equal, one that has ended and one that has not have nothing in common.

All branches of several points of a text are the rows of a batch, whose keys and values are those of the text, read
once. A model that cannot be read like this is decoded in the way of its run, with one point per batch.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleoscope.measure import batching, checking, cosine, decoding, encoding, generation
from nucleoscope.measure.context import Fork, find_forks, read_settings
from nucleoscope.measure.model_facts import find_context_length, find_embedding_matrix, find_end_tokens
from nucleoscope.measure.nucleus import NotFinite, find_piece, join_nuclei, scale_logits
from nucleoscope.measure.pairs import find_units
from nucleoscope.measure.prefix import SharedPrefix
from nucleoscope.measure.sampling import draw_uniforms, sample
from nucleoscope.measure.softmax import PIECE_CPU, PIECE_GPU, exponentiate
from nucleoscope.settings import Settings, list_deciding

MEETING = 5  # last tokens that two branches must have in common to have met
ENDED = -1  # in place of the tokens after a branch's end
OUTCOMES = ("divergence", "equal_tokens", "met", "meeting_step")


class Branching(NamedTuple):
    """The N branch points of one text, with K candidates in all, P pairs of these, and R L tokens per candidate.

    ``steps`` and ``sizes`` (N,) int32: which token each is, and its number m of candidates. ``ids`` (K,) int32 and
    ``shares`` (K,) float32: the candidates, one point after another, with their probabilities among each other.
    ``tokens`` (K, R, L) int32: the branches, with `ENDED` after their end. ``pairs``: {name: (P,) float32}, of each
    point the pairs (0, 1), (0, 2), ..., (1, 2), ...: cosine and similarity, before anything is drawn, and the
    `OUTCOMES`, means over replicates. ``baseline``: {name: (N,) float32}, the `OUTCOMES` of the same candidate
    with other random numbers, means over candidates and pairs of replicates; NaN with one replicate. ``seconds`` and
    ``way`` say how it was done.
    """

    steps: torch.Tensor
    sizes: torch.Tensor
    ids: torch.Tensor
    shares: torch.Tensor
    tokens: torch.Tensor
    pairs: dict[str, torch.Tensor]
    baseline: dict[str, torch.Tensor]
    seconds: float
    way: str


# Which tokens


def choose_points(
    forks: Sequence[Fork], entropies: Sequence[float], cosines: Sequence[float], most: int, seed: int, index: int
) -> list[Fork]:
    """At most ``most`` of a text's ``forks``, of all kinds: one from each stratum of entropy and cosine, in order.

    The tokens are split into about the square root of ``most`` groups of rising entropy, of equal size, and each group
    by rising cosine, so that there are as many strata as points. ``entropies`` and ``cosines`` are those of all steps.
    The draw depends on ``seed`` and on the prompt's ``index``; a text with fewer forks has all of them.
    """
    if len(forks) <= most:
        return list(forks)
    generator, groups = random.Random(f"{seed}/{index}/points"), math.ceil(math.sqrt(most))
    bounds = [most * group // groups for group in range(groups + 1)]
    by_entropy = _split_evenly(sorted(forks, key=lambda fork: (entropies[fork.step], fork.step)), groups)
    chosen = []
    for part, begin, end in zip(by_entropy, bounds, bounds[1:], strict=False):
        by_cosine = _split_evenly(sorted(part, key=lambda fork: (cosines[fork.step], fork.step)), end - begin)
        chosen += [generator.choice(stratum) for stratum in by_cosine if stratum]
    return sorted(chosen, key=lambda fork: fork.step)


def _split_evenly(items: list[Fork], parts: int) -> list[list[Fork]]:
    bounds = [len(items) * part // parts for part in range(parts + 1)]
    return [items[begin:end] for begin, end in pairwise(bounds)]


# Reading branches


class BranchDecoder(decoding.PaddedDecoder):
    """Rows that begin with the same text, up to different places; its keys and values are copied, not computed.

    ``trunk`` is the text, ``groups`` are consecutive rows with the number of tokens that they have of it. `prefill` has
    no logits: the candidates are the first tokens to `advance` by, at most ``length`` times.
    """

    def __init__(self, model: PreTrainedModel, trunk: SharedPrefix, groups: list[tuple[slice, int]], length: int):
        rows = [trunk.ids[:tokens] for part, tokens in groups for _ in range(part.start, part.stop)]
        super().__init__(model, rows, length + 1)
        self.trunk, self.beginnings = trunk, groups

    def prefill(self) -> None:
        for layer, pair in zip(self.layers, self.trunk.layers, strict=True):
            if pair is None:
                continue
            layer.lazy_initialization(*pair)
            for store, read in zip(layer.store, pair, strict=True):
                for rows, tokens in self.beginnings:
                    store[rows, :, self.width - tokens : self.width] = read[:, :, :tokens]
            layer.finish_prefill()


class BranchPlan(NamedTuple):
    """How the branches of a text are read: the ``way`` of `decoding`, if it ``shares`` the text, and rows per batch."""

    way: str
    shares: bool
    rows: int


def plan_text(model: PreTrainedModel, length: int, points: Sequence[Fork], settings: Settings) -> BranchPlan:
    """The plan for a text with ``length`` tokens before its last point. ``settings``: branch_length, batch_size, ..."""
    longest = [[0] * length]
    way = decoding.adapt_way(model, longest, settings.branch_length + 1, checking.find_way(model, settings.skip_check))
    shares = way == decoding.PADDED and checking.can_share(model, settings.skip_check)
    count = sum(len(point.candidates) for point in points) * settings.branch_replicates
    inputs = encoding.Inputs(longest * count)
    return BranchPlan(
        way, shares, generation.choose_batch_size(settings.batch_size, model, inputs, settings.branch_length + 1)
    )


def split_points(points: Sequence[Fork], replicates: int, plan: BranchPlan) -> Iterator[list[Fork]]:
    """The points of each batch, last ones first: about as many as there is room for, or one that is too large."""
    group: list[Fork] = []
    size = 0
    for point in sorted(points, key=lambda point: -point.position):
        rows = len(point.candidates) * replicates
        if group and (not plan.shares or size + rows > plan.rows):
            yield group
            group, size = [], 0
        group.append(point)
        size += rows
    if group:
        yield group


def _begin(
    model: PreTrainedModel,
    ids: list[int],
    group: list[Fork],
    settings: Settings,
    plan: BranchPlan,
    trunk: SharedPrefix | None,
) -> tuple[decoding.Decoder, torch.Tensor]:
    """A decoder that has read the candidates of some points, each ``branch_replicates`` times, and the logits."""
    rows = [token for point in group for token in point.candidates for _ in range(settings.branch_replicates)]
    if trunk is None:
        texts = [[*ids[: group[0].position], token] for token in rows]
        decoder = decoding.create_decoder(model, texts, settings.branch_length, plan.way)
        return decoder, decoder.prefill()
    parts, begin = [], 0
    for point in group:
        end = begin + len(point.candidates) * settings.branch_replicates
        parts.append((slice(begin, end), point.position))
        begin = end
    decoder = BranchDecoder(model, trunk, parts, settings.branch_length)
    decoder.prefill()
    return decoder, decoder.advance(torch.tensor(rows, device=model.device))


# What is measured of one point


class _Point:
    """The branches of one point while they are drawn: row c R + r is replicate r of candidate c."""

    def __init__(self, fork: Fork, begin: int, uniforms: torch.Tensor, ends: torch.Tensor):
        """``begin`` is its first row in the batch; ``uniforms`` (R, L)."""
        self.fork, self.begin, self.ends = fork, begin, ends
        m, (replicates, length) = len(fork.candidates), uniforms.shape
        self.uniforms = uniforms.repeat(m, 1)  # (m R, L)
        self.tokens = torch.full((m * replicates, length), ENDED)
        self.live = torch.ones(m * replicates, dtype=torch.bool)
        place = torch.arange(m * replicates).view(m, replicates)
        candidates, again = list(combinations(range(m), 2)), list(combinations(range(replicates), 2))
        self.pairs = _join_pairs([(place[i], place[j]) for i, j in candidates])  # (2, P R)
        self.same = _join_pairs([(place[:, r], place[:, s]) for r, s in again])  # (2, R (R - 1) / 2 m)
        self.first, self.last = torch.cat((self.pairs, self.same), 1)
        self.total = torch.zeros(len(self.first), dtype=torch.float64)
        self.similarities = torch.empty(0)

    def draw(self, logits: torch.Tensor, step: int, settings: Settings) -> torch.Tensor:
        """Draws the next token of each live row from its logits (n, V), and compares rows. NotFinite has the step."""
        found = exponentiate(scale_logits(logits, settings))
        try:
            nuclei = join_nuclei([find_piece(found, settings.top_p)])
        except NotFinite:
            raise NotFinite([self.fork.step]) from None
        uniforms = self.uniforms[:, step][self.live.to(self.uniforms.device)]
        tokens = nuclei.ids[sample(nuclei, uniforms)]
        divergences = self._compare(found.compute_probabilities())
        self.total += divergences
        if not step:  # of replicate 0 the candidates in pairs, before anything is drawn
            replicates = len(self.live) // len(self.fork.candidates)
            self.similarities = 1 - divergences[: self.pairs.shape[1]][::replicates]
        ended = torch.isin(tokens, self.ends).cpu()
        self.tokens[self.live, step] = torch.where(ended, ENDED, tokens.cpu())
        self.live[self.live.clone()] = ~ended
        return tokens

    def _compare(self, probs: torch.Tensor) -> torch.Tensor:
        """JS / log 2 of each pair of rows, in [0, 1], from the distributions (n, V) of those that live."""
        rows = torch.full((len(self.live),), -1)
        rows[self.live] = torch.arange(len(probs))
        one, other = self.live[self.first], self.live[self.last]
        found = (one ^ other).double()  # one that has ended and one that has not have nothing in common
        both = one & other
        if bool(both.any()):
            first, last = (rows[side[both]].to(probs.device) for side in (self.first, self.last))
            found[both] = compare_rows(probs, first, last).double().cpu()
        return found

    def finish(self, units: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The ``pairs`` and the ``baseline`` of `Branching` for this point; ``units`` (m, d) are the candidates'."""
        m = len(self.fork.candidates)
        length, replicates, parted = self.tokens.shape[1], len(self.live) // m, self.pairs.shape[1]
        equal = self.tokens[self.first] == self.tokens[self.last]
        steps = find_meeting(equal)
        values = torch.stack((self.total / length, equal.double().mean(1), (steps > 0).double()))
        found = average(
            values[:, :parted].unflatten(1, (-1, replicates)), steps[:parted].unflatten(0, (-1, replicates))
        )
        i, j = torch.triu_indices(m, m, 1)
        cosines = (units @ units.mT).clamp(-1, 1)[i, j].cpu()
        pairs = {"cosine": cosines.float(), "similarity": self.similarities.float(), **found}
        return pairs, average(values[:, parted:].unsqueeze(1), steps[parted:].unsqueeze(0))


def compare_rows(probs: torch.Tensor, first: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
    """JS / log 2, in [0, 1], of pairs of distributions ``probs`` (n, V), float32: rows ``first`` and ``last``, (P,).

    As `context.compute_similarities`, with sums over the vocabulary in pieces that stay in the cache.
    """
    size = PIECE_CPU if probs.device.type == "cpu" else PIECE_GPU
    own, joint = probs.new_zeros(len(probs)), probs.new_zeros(len(first))
    for piece in probs.split(max(1, size // len(first)), 1):
        piece = piece.clamp_min(torch.finfo(probs.dtype).tiny)  # so that 0 log 0 is 0
        own += _sum_information(2 * piece)
        joint += _sum_information(piece[first].add_(piece[last]))
    return (((own[first] + own[last]) / 4 - joint / 2) / math.log(2)).clamp(0, 1)


def _sum_information(rows: torch.Tensor) -> torch.Tensor:
    """sum x log x of each row (n, V) of positive numbers."""
    return torch.linalg.vecdot(rows, rows.log())


def _join_pairs(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([torch.stack(pair) for pair in pairs], 1) if pairs else torch.empty((2, 0), dtype=torch.long)


def find_meeting(equal: torch.Tensor) -> torch.Tensor:
    """After how many tokens (n,) branches meet, or 0 if never: which tokens are equal (n, L) -> (n,).

    They have met when their last `MEETING` tokens are the same, or in shorter branches all of them.
    """
    width = min(MEETING, equal.shape[1])
    same = equal.unfold(1, width, 1).all(-1)
    return torch.where(same.any(1), same.int().argmax(1) + width, 0)


def average(values: torch.Tensor, steps: torch.Tensor) -> dict[str, torch.Tensor]:
    """The `OUTCOMES` (n,) as means over the last dimension: of three values (3, n, R), and of the steps (n, R).

    The step of meeting is the mean of those that met, and NaN if none did.
    """
    count = (steps > 0).sum(-1)
    step = torch.where(count > 0, steps.sum(-1) / count, torch.nan)
    found = values.mean(-1) if values.shape[-1] else torch.full(values.shape[:-1], torch.nan)
    return dict(zip(OUTCOMES, (*found.float(), step.float()), strict=True))


# Texts


@torch.inference_mode()
def branch_text(
    model: PreTrainedModel,
    ids: list[int],
    points: list[Fork],
    index: int,
    settings: Settings,
    ends: set[int],
    directions: cosine.Directions,
    plan: BranchPlan,
    bar: tqdm | None = None,
) -> Branching:
    """Branches at each of the ``points`` of text ``index``.

    Of ``settings``, top_p, temperature, seed and those of branches are used. ``bar`` advances by the number of tokens.
    NotFinite has the step of a point with logits that define no distribution.
    """
    begin, finished = time.perf_counter(), {}
    trunk = decoding.read_prefix(model, ids[: points[-1].position]) if points and plan.shares else None
    for group in split_points(points, settings.branch_replicates, plan):
        for point in _draw_group(model, ids, group, index, settings, ends, plan, trunk, bar):
            units = find_units(directions, torch.tensor(point.fork.candidates, device=directions.embedding.device))
            finished[point.fork.step] = (point.tokens, *point.finish(units))
    done = [finished[point.step] for point in points]
    shape = (-1, settings.branch_replicates, settings.branch_length)
    names = ("cosine", "similarity", *OUTCOMES)
    return Branching(
        steps=torch.tensor([point.step for point in points], dtype=torch.int32),
        sizes=torch.tensor([len(point.candidates) for point in points], dtype=torch.int32),
        ids=torch.tensor([token for point in points for token in point.candidates], dtype=torch.int32),
        shares=torch.cat([torch.empty(0), *(point.shares for point in points)]).float(),
        tokens=torch.cat([torch.empty(0, shape[-1]), *(tokens for tokens, *_ in done)]).int().view(-1, *shape[1:]),
        pairs={name: torch.cat([torch.empty(0), *(pairs[name] for _, pairs, _ in done)]) for name in names},
        baseline={name: torch.cat([torch.empty(0), *(base[name] for *_, base in done)]) for name in OUTCOMES},
        seconds=time.perf_counter() - begin,
        way=f"{plan.way}, text read once" if plan.shares else plan.way,
    )


def _draw_group(
    model: PreTrainedModel,
    ids: list[int],
    group: list[Fork],
    index: int,
    settings: Settings,
    ends: set[int],
    plan: BranchPlan,
    trunk: SharedPrefix | None,
    bar: tqdm | None,
) -> list[_Point]:
    """The points of one batch, with all their branches."""
    length, replicates, points, begin = settings.branch_length, settings.branch_replicates, [], 0
    listed = torch.tensor(sorted(ends), dtype=torch.long, device=model.device)
    last = max(fork.step for fork in group) + 1 + length
    numbers = torch.cat([draw_uniforms(settings.seed, [index], last, model.device, each) for each in range(replicates)])
    for fork in group:
        points.append(_Point(fork, begin, numbers[:, fork.step + 1 : fork.step + 1 + length], listed))
        begin += len(fork.candidates) * replicates
    decoder, logits = _begin(model, ids, group, settings, plan, trunk)
    for step in range(length):
        place = {row: at for at, row in enumerate(decoder.rows)}
        tokens = torch.zeros(len(decoder.rows), dtype=torch.long, device=model.device)
        ended = set[int]()
        for point in points:
            if bool(point.live.any()):
                live = [place[point.begin + row] for row in point.live.nonzero()[:, 0].tolist()]
                where = torch.tensor(live, device=model.device)
                tokens[where] = point.draw(logits[where], step, settings)
            ended.update(point.begin + row for row in (~point.live).nonzero()[:, 0].tolist())
        if bar is not None:
            bar.update(begin)
        logits = decoder.advance(tokens, ended) if step < length - 1 else None
        if logits is None:  # all tokens are drawn, or all branches have ended
            if bar is not None:
                bar.update((length - 1 - step) * begin)
            return points
    raise AssertionError("a decoder has more steps than branches have tokens")


def branch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    records: Iterable[tuple[int, Mapping[str, Any]]],
    settings: Settings,
    total: int | None = None,
    progress: bool = True,
) -> Iterator[tuple[int, Branching]]:
    """Branches at some tokens of each of the ``records``, by their numbers, and yields one text after another.

    ``records`` have ``prompt``, ``tokens``, ``top_p_tokens``, ``top_p_probs``, ``entropies`` and ``cosines`` as a run
    saves them; ``settings`` are those of the run, which say how its prompts were encoded, and those of branches:
    branch_points, branch_length, branch_replicates and context_candidates. A token so late in the text that its
    branches would exceed the model's context is not chosen. ``total`` is the number of tokens, for the progress bar.
    Raises ValueError, in one line, if the model cannot be used, or gives NaN, and MemoryError if it does not fit.
    """
    limit = find_context_length(model)
    options = encoding.list_options(settings, limit)
    embedding, ends = find_embedding_matrix(model), find_end_tokens(model, tokenizer)
    directions = cosine.find_directions(embedding)
    with tqdm(total=total, unit="tok", disable=not progress, mininterval=0.5) as bar:
        for index, record in records:
            inputs = encoding.encode(tokenizer, [record["prompt"]], **options)
            ids = [*inputs.ids[0], *torch.as_tensor(record["tokens"]).tolist()]
            encoding.check_ids(encoding.Inputs([ids]), len(embedding))
            forks = find_forks(record, len(inputs.ids[0]), settings.context_candidates)
            if limit is not None:
                forks = [fork for fork in forks if fork.position + 1 + settings.branch_length <= limit]
            chosen = (settings.branch_points, settings.seed, index)
            points = choose_points(forks, record["entropies"], record["cosines"], *chosen)
            plan = plan_text(model, points[-1].position if points else 1, points, settings)
            yield index, _branch_or_halve(model, ids, points, index, settings, ends, directions, plan, bar)


def _branch_or_halve(
    model: PreTrainedModel,
    ids: list[int],
    points: list[Fork],
    index: int,
    settings: Settings,
    ends: set[int],
    directions: cosine.Directions,
    plan: BranchPlan,
    bar: tqdm,
) -> Branching:
    """`branch_text`, in smaller batches if need be; its errors name the prompt ``index``."""
    shown = bar.n
    while True:
        try:
            return branch_text(model, ids, points, index, settings, ends, directions, plan, bar)
        except NotFinite as error:
            raise batching.explain_not_finite(f"in a branch of prompt {index}, token {error.rows[0]}", model) from None
        except torch.OutOfMemoryError:
            pass
        if model.device.type == "cuda":
            torch.cuda.empty_cache()  # not in the except block, whose traceback still holds the tensors
        largest = max(len(point.candidates) for point in points) * settings.branch_replicates
        if plan.rows < largest:  # each point had a batch of its own
            raise MemoryError(
                f"the branches of one token of prompt {index} do not fit in the device's memory: reduce "
                "context_candidates or branch_replicates"
            )
        plan, bar.n = plan._replace(rows=plan.rows // 2), shown


def complete_branches(
    folder: Any,
    load: Callable[[], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    info: Mapping[str, Any],
    chosen: Settings,
    progress: bool = True,
) -> None:
    """Branches at what is missing in a `store.branches.BranchFolder` that is open in a ``with`` block; finishes it.

    ``load`` loads the run's model and tokenizer. ``info`` is the run's run.json, whose settings say how its texts were
    drawn; ``chosen`` are the settings of branches, with batch_size and skip_check.
    """
    if folder.finished:  # another process finished it while this one waited
        return
    settings = combine_settings(info, chosen)
    sizes = [size.candidates for size in folder.list_sizes()]
    model, tokenizer = load()
    left = [index for index in range(len(sizes)) if not folder.has_part(index)]
    if len(left) < len(sizes):
        print(f"resuming: {len(sizes) - len(left)} of {len(sizes)} texts have been branched")
    total = sum(_count_tokens(sizes[index], settings) for index in left)
    for index, found in branch(model, tokenizer, folder.stream_texts(left), settings, total, progress):
        folder.save_part(index, found._asdict())
    folder.finish(len(sizes), {"device": str(model.device), "dtype": str(model.dtype).removeprefix("torch.")})


def combine_settings(info: Mapping[str, Any], chosen: Settings) -> Settings:
    """What was measured as the run's run.json says; all other settings, such as those of branches, as ``chosen``."""
    run = read_settings(info)
    return replace(chosen, **{name: getattr(run, name) for name in list_deciding()}).check()


def _count_tokens(candidates: list[int], settings: Settings) -> int:
    """About how many tokens the branches of a text have; ``candidates`` are the numbers of its tokens' candidates."""
    sizes = [min(k, settings.context_candidates) for k in candidates if k > 1]
    mean = sum(sizes) / max(len(sizes), 1)
    points = min(len(sizes), settings.branch_points)
    return round(points * mean * settings.branch_replicates * settings.branch_length)
