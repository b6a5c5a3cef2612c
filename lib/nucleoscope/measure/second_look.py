"""What null models need to know while the model is loaded: some measured texts are read a second time.

Contract: the measured tokens of a run in, the rows of nulls.parquet and vocabulary.parquet out, on the CPU. Nothing is
drawn from the model, and nothing of the measurements changes. All that is drawn depends on the seed alone.

A sample of the texts gives, at each measured token, the next-token distribution and the last hidden state. From them
follow the mean probability of each token of the vocabulary; for each candidate set (top-p alone) the cosine of null
sets of as many tokens (`null_sets`); and the candidates of hidden states drawn from a Gaussian (`gaussian_states`).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nucleoscope import variants
from nucleoscope.measure import gaussian_states
from nucleoscope.measure.batching import PASS_TOKENS
from nucleoscope.measure.candidate_sets import Windows, find_windows
from nucleoscope.measure.encoding import Inputs
from nucleoscope.measure.geometry import Space, build_spaces, select_spaces
from nucleoscope.measure.kept_states import KeptStates
from nucleoscope.measure.model_facts import find_embedding_matrix
from nucleoscope.measure.nucleus import scale_logits
from nucleoscope.measure.null_sets import Matching, create_generator, draw_donors, draw_random
from nucleoscope.measure.ragged import choose_sum_dtype
from nucleoscope.measure.scoring import BATCHED, TextForward, Texts
from nucleoscope.measure.segments import Segments
from nucleoscope.settings import Settings
from nucleoscope.variants import SETS_BY_NAME, CandidateSet, Geometry, Selection

# Tokens that are looked at: the covariance of 1,000 states has a standard error of 4.5% in each direction, and a
# coefficient one of about 0.03. Time is proportional to them: a tenth of a run's with 1,500.
MOST_TOKENS = 1000
# Tokens of one text at most, if the run has enough texts. Neighbours are similar, so that short sections of many texts
# say more than long ones of few: Pearson's coefficient of entropy and cosine has a standard error of 0.030 to 0.032
# with 1,000 tokens in sections of 10, of 0.033 to 0.035 in sections of 25, and of 0.027 to 0.028 with 1,500 in sections
# of 25, in samples drawn 1,500 times, texts with replacement, from runs of the packaged model on its three data sets.
SECTION = 10
# Tokens per Gaussian state. States are drawn independently, and tokens of one text are similar: with half as many
# states as tokens, Pearson's coefficient has a standard error of 0.02 to 0.03 (packaged model, data set math), and
# with the tokens' own null sets one of 0.02 to 0.05.
STATE_SHARE = 2
# Candidates of all tokens together, and of all Gaussian states: time and memory depend on them. On a CPU 1,000 tokens
# reach it if they have more than 1,000 candidates on average; then fewer tokens are looked at.
MOST_CANDIDATES = {"cpu": 2**20, "cuda": 2**24}
PIECE_ROWS, PIECE_CANDIDATES = 256, 2**20  # tokens, and candidates, that are processed at once
GROUP = 64  # texts whose tokens are read from the disk at once
TRIED = 256  # Gaussian states by which their factor is found

OTHER_STEP, RANDOM, FREQUENCY, NORM, GAUSSIAN = NULLS = (
    "other_step",
    "random",
    "frequency_matched",
    "norm_matched",
    "gaussian_states",
)
COMPARED = ("raw", "all_but_top_3")  # geometries in which null sets are compared


class SecondLook(NamedTuple):
    """What `look` found, on the CPU.

    ``columns`` are those of nulls.parquet, (R,) each; candidates, geometry and null are places in the lists of
    ``names``, and a cosine that has no value is NaN. The other four are about each row of the embedding, (V,): the
    token's text, whether it is special (or no token at all), the norm of the row, and the token's mean probability.
    ``info`` is part of what run.json says.
    """

    columns: dict[str, torch.Tensor]
    names: dict[str, list[str]]
    texts: list[str]
    special: list[bool]
    norms: torch.Tensor
    mean_probability: torch.Tensor
    seed: int
    info: dict[str, Any]


class Text(NamedTuple):
    """A text to read: ``ids`` from the prompt's first to the last token to look at.

    The first token to look at is ``ids[start]``, which was measured at ``step`` of the prompt.
    """

    prompt: int
    ids: list[int]
    start: int
    step: int


class VariantPlan(NamedTuple):
    """Which sets are compared in which geometries: ``pairs`` (P, 2) are their places in both lists."""

    sets: list[CandidateSet]
    geometries: list[Geometry]
    pairs: torch.Tensor


class Observed(NamedTuple):
    """What was read at T tokens. ``windows`` has int32 ids; ``k`` and ``entropy`` (nats) are those of the sets (T, N).

    ``places`` (T,) are those of the tokens in the reading; ``totals`` (V,) are sums of probabilities.
    """

    windows: Windows
    places: torch.Tensor
    k: torch.Tensor
    entropy: torch.Tensor
    totals: torch.Tensor


def look(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    folder: Any,
    settings: Settings,
    spaces: Sequence[Space] = (),
) -> tuple[SecondLook | None, dict[str, Any]]:
    """Looks at some tokens of a run whose prompts are all measured; also what run.json says of it.

    ``inputs`` are the prompts (in mode score with their texts), ``folder`` is the `store.run_folder.RunFolder` with the
    batches. Of ``settings``, top_p, temperature, seed (in mode generate) and variants are used. ``spaces`` are those
    that the run was measured in; what they lack is computed. Texts of which the folder has the states are not read
    again. Nothing is looked at if no variants are measured, or if the device's memory is too small, which must not cost
    the measurements.
    """
    selection = variants.parse(settings.variants)
    if selection is None:
        return None, {}
    seed = _choose_seed(inputs, settings)
    begin = time.perf_counter()
    try:
        chosen = choose_texts(inputs, folder, seed)
        kept = folder.load_states([text.prompt for text in chosen])
        found = _look(model, tokenizer, chosen, kept, settings, selection, seed, spaces)
    except torch.OutOfMemoryError:
        return None, {"second_look": "left out: the device ran out of memory"}
    return found, {"second_look": found.info | {"seconds": round(time.perf_counter() - begin, 3)}}


@torch.inference_mode()
def _look(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[Text],
    kept: dict[int, tuple[list[int], torch.Tensor]],
    settings: Settings,
    selection: Selection,
    seed: int,
    measured: Sequence[Space],
) -> SecondLook:
    plan, embedding = choose_variants(selection, settings.top_p), find_embedding_matrix(model)
    reading = Reading(model, chosen, settings, kept)
    observed = observe(reading, plan.sets)
    spaces = select_spaces(measured, plan.geometries)
    if spaces is None:
        spaces = build_spaces(plan.geometries, embedding, None, torch.ones(len(embedding)))
    norms, mean = measure_norms(embedding), _average(observed, len(embedding))
    parts = compare_null_sets(reading, observed, plan, spaces, mean, norms, seed)
    gaussian, said = compare_gaussian_states(reading, observed, plan, spaces, settings, seed)
    parts += gaussian
    texts, special = read_vocabulary(tokenizer, len(embedding))
    info = {
        "seed": seed,
        "texts": len(reading.prompts[observed.places].unique()),
        "tokens": len(observed.places),
        GAUSSIAN: said,
    }
    if reading.lost:
        info["tokens_not_finite"] = reading.lost
    names = {
        "candidates": [each.name for each in plan.sets],
        "geometry": [each.name for each in plan.geometries],
        "null": list(NULLS),
    }
    columns = {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}
    return SecondLook(columns, names, texts, special, norms, mean.float(), seed, info)


def choose_variants(selection: Selection, top_p: float) -> VariantPlan:
    """The top-p sets of a selection in its geometries among `COMPARED`, and the run's own set in the raw one."""
    name = f"top_p_{top_p:g}"
    own = SETS_BY_NAME.get(name) or CandidateSet(name, "top_p", top_p, "the run's own setting", "-")
    sets = [each for each in selection.sets if each.rule == "top_p"]
    chosen = [each.name for each in selection.geometries if each.name in COMPARED]
    wanted = [(each.name, other) for each in sets for other in chosen]
    if (name, "raw") not in wanted:
        wanted.append((name, "raw"))
    if own not in sets:
        sets.append(own)
    geometries = [variants.GEOMETRIES_BY_NAME[each] for each in COMPARED if each in {other for _, other in wanted}]
    places = [each.name for each in sets], [each.name for each in geometries]
    pairs = [[column.index(each) for column, each in zip(places, pair, strict=True)] for pair in wanted]
    return VariantPlan(sets, geometries, torch.tensor(pairs))


def keep_states(model: PreTrainedModel, inputs: Inputs, settings: Settings) -> KeptStates | None:
    """What keeps the states of the texts that `look` may look at, while they are measured; None if it will not.

    How many there will be depends on their lengths: twice as many as there are of texts that have their share.
    """
    if variants.parse(settings.variants) is None:
        return None
    order = _order_prompts(inputs, _choose_seed(inputs, settings))[0]
    number = 2 * -(-MOST_TOKENS // _find_share(len(order)))
    return KeptStates(model, order[:number], settings.max_tokens)


def _choose_seed(inputs: Inputs, settings: Settings) -> int:
    """The seed of all that is drawn here; in mode score the setting does not decide what is measured."""
    return Settings.seed if isinstance(inputs, Texts) else settings.seed


def _order_prompts(inputs: Inputs, seed: int) -> tuple[list[int], torch.Generator]:
    """All prompts in random order, and the generator of what is drawn of their texts next."""
    generator = create_generator(seed, "texts")
    return torch.randperm(len(inputs.ids), generator=generator).tolist(), generator


def _find_share(number: int) -> int:
    """How many tokens of each of a ``number`` of texts are looked at, if it has as many."""
    return max(SECTION, MOST_TOKENS // max(1, number))


def choose_texts(inputs: Inputs, folder: Any, seed: int) -> list[Text]:
    """Texts in random order, as many as have at most `MOST_TOKENS` measured tokens together.

    Of one that is longer than its share, a section is looked at that begins anywhere.
    """
    order, generator = _order_prompts(inputs, seed)
    share = _find_share(len(order))
    chosen: list[Text] = []
    left = MOST_TOKENS
    for group in range(0, len(order), GROUP):
        prompts = order[group : group + GROUP]
        tokens = folder.load_tokens(prompts)
        for prompt in prompts:
            own, before = tokens[prompt], _cut_prompt(inputs, prompt)
            n = min(len(own), share)
            if n > left:
                return chosen
            step = int(torch.randint(len(own) - n + 1, (1,), generator=generator))
            if n:
                chosen.append(Text(prompt, [*before, *own[: step + n]], len(before) + step, step))
            left -= n
    return chosen


def _cut_prompt(inputs: Inputs, index: int) -> list[int]:
    """The ids of a prompt, without the text that follows it in mode score."""
    return inputs.ids[index][: inputs.starts[index]] if isinstance(inputs, Texts) else inputs.ids[index]


class Reading:
    """The logits of some texts at the tokens to look at, which can be had again.

    ``prompts`` and ``steps`` (n,) say what the tokens are. ``states`` (T, d) are the last hidden states of those that
    `observe` has kept, and None if the model's logits cannot be shown to follow from them; ``layer`` makes logits of
    states. ``lost`` is the number of tokens whose logits are not finite. Of the prompts in ``kept``, as they are in a
    folder (`kept_states`), texts are not read: the attribute has the states (n, d) of their tokens to look at.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        texts: Sequence[Text],
        settings: Settings,
        kept: Mapping[int, tuple[list[int], torch.Tensor]] = MappingProxyType({}),
    ):
        self.texts, self.settings, self.lost = texts, settings, 0
        self.forward = TextForward(model)
        self.kept = self._choose_kept(kept)
        self.layer = gaussian_states.OutputLayer(self.forward)
        sizes = torch.tensor([len(text.ids) - text.start for text in texts], dtype=torch.long)
        self.prompts = torch.repeat_interleave(torch.tensor([text.prompt for text in texts], dtype=torch.long), sizes)
        first = torch.tensor([text.step for text in texts], dtype=torch.long) - (sizes.cumsum(0) - sizes)
        self.steps = torch.arange(len(self.prompts)) + torch.repeat_interleave(first, sizes)
        self.states: torch.Tensor | None = None

    def read(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """Pieces of the logits (n, V), divided by the temperature, and of the states (n, d), token by token."""
        reproduced = None
        for batch in self._plan_batches():
            for logits, states in self._compute_states(batch):
                if reproduced is None:
                    reproduced = states is not None and self.layer.reproduces(logits, states)
                rows = range(0, len(logits), PIECE_ROWS)
                for part in (slice(row, row + PIECE_ROWS) for row in rows):
                    kept = states[part].to(logits.device) if reproduced and states is not None else None
                    yield scale_logits(logits[part], self.settings), kept

    def _choose_kept(self, kept: Mapping[int, tuple[list[int], torch.Tensor]]) -> dict[int, torch.Tensor]:
        """Of states that were kept, those of the tokens to look at, if the output layer alone makes the logits."""
        chosen: dict[int, torch.Tensor] = {}
        for text in self.texts:
            tokens, states = kept.get(text.prompt, ([], None))
            drawn = text.ids[text.start - text.step :]
            if states is not None and tokens[: len(drawn)] == drawn:
                chosen[text.prompt] = states[text.step : len(drawn)]
        if chosen and len(chosen) == len(self.texts):
            # No text will be read, and the layer has given the model's logits when these states were kept.
            self.forward.reading = BATCHED
        elif chosen and self.forward.choose_reading(max((text.ids for text in self.texts), key=len)) != BATCHED:
            return {}
        return chosen

    def _compute_states(self, batch: list[Text]) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """As `scoring.TextForward.compute_states`; the states of all or of none of the texts were kept."""
        if batch[0].prompt not in self.kept:
            yield from self.forward.compute_states([text.ids for text in batch], [text.start for text in batch])
            return
        head = self.forward.head  # a packed layer that shares the embedding's weight has no parameters, only a buffer
        device = next(chain(head.parameters(), head.buffers())).device
        states = torch.cat([self.kept[text.prompt] for text in batch]).to(device)
        for piece in states.split(self.forward.rows):
            yield self.layer.compute_logits(piece), piece

    def _plan_batches(self) -> Iterator[list[Text]]:
        """Texts that are read together: small batches on any device, because those of a run fitted in its memory."""
        batch: list[Text] = []
        for text in self.texts:
            longest = max(len(each.ids) for each in [*batch, text])
            other = bool(batch) and (batch[0].prompt in self.kept) != (text.prompt in self.kept)
            if batch and (other or longest * (len(batch) + 1) > PASS_TOKENS["cpu"]):
                yield batch
                batch = []
            batch.append(text)
        if batch:
            yield batch

    def compute_logits(self, states: torch.Tensor) -> Iterator[torch.Tensor]:
        """Pieces (n, V) of the logits of some states, divided by the temperature."""
        for piece in states.split(min(self.forward.rows, PIECE_ROWS)):
            yield scale_logits(self.layer.compute_logits(piece), self.settings)

    def repeat(self, places: torch.Tensor, chosen: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Some of the kept tokens again: pieces of ``chosen`` (n,), and their logits (n, V).

        ``places`` (T,) are those of the kept tokens in the reading. Without states, all texts are read again.
        """
        done = 0
        if self.states is not None:
            for logits in self.compute_logits(self.states[chosen.to(self.states.device)]):
                yield chosen[done : done + len(logits)], logits
                done += len(logits)
            return
        wanted = {place: token for token, place in zip(chosen.tolist(), places[chosen].tolist(), strict=True)}
        for logits, _ in self.read():
            rows = [row for row in range(len(logits)) if done + row in wanted]
            if rows:
                yield torch.tensor([wanted[done + row] for row in rows]), logits[rows]
            done += len(logits)


def observe(reading: Reading, sets: Sequence[CandidateSet]) -> Observed:
    """The candidate sets at the tokens of a reading, up to `MOST_CANDIDATES`. Keeps the states in the reading."""
    device = reading.forward.device
    vocabulary = reading.forward.model.config.get_text_config().vocab_size
    parts: list[tuple[Windows, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    totals = torch.zeros(vocabulary, dtype=choose_sum_dtype(device), device=device)
    kept: list[torch.Tensor | None] = []
    done, candidates, most = 0, 0, _limit_candidates(device)
    for logits, states in reading.read():
        finite = _find_finite(logits)
        places = (done + torch.nonzero(finite)[:, 0]).cpu()
        reading.lost += int((~finite).sum())
        done += len(logits)
        if not len(places):
            continue
        if len(places) < len(logits):
            logits, states = logits[finite], None if states is None else states[finite]
        sums = torch.zeros(logits.shape[-1], dtype=totals.dtype, device=device)
        windows = find_prefixes(logits, sets, sums)
        room = int((windows.offsets[1:] <= most - candidates).sum())
        full = room < len(places)
        if full and not parts:
            room = max(1, room)
        if room:
            if full:
                find_prefixes(logits[:room], sets, sums.zero_())
            totals = totals + sums if len(totals) == len(sums) else sums
            windows = _slice_windows(windows, slice(0, room))
            k, _, values = Segments(windows).summarise()
            windows = windows._replace(ids=windows.ids.int())
            parts.append((windows, places[:room], k, values))
            kept.append(None if states is None else states[:room])
            candidates += int(windows.offsets[-1])
        if full:
            break
    if kept and all(states is not None for states in kept):
        reading.states = torch.cat(kept)
    return _join(parts, totals, len(sets))


def _find_finite(logits: torch.Tensor) -> torch.Tensor:
    """Which rows (B,) of logits (B, V) define a distribution: all of them finite or -inf, and not all -inf."""
    return logits.amax(-1).isfinite()  # of NaN it is NaN


def find_prefixes(logits: torch.Tensor, sets: Sequence[CandidateSet], totals: torch.Tensor | None = None) -> Windows:
    """As `find_windows`, for top-p and top-k sets, which do not need the entropies of the distributions."""
    return find_windows(logits, torch.zeros_like(logits[:, 0]), sets, totals)


def _limit_candidates(device: torch.device) -> int:
    return MOST_CANDIDATES.get(device.type, MOST_CANDIDATES["cpu"])


def _join(parts: list, totals: torch.Tensor, number: int) -> Observed:
    if not parts:
        empty = torch.zeros(0, number, device=totals.device)
        none = torch.zeros(0, dtype=torch.int32, device=totals.device)
        extents = torch.zeros(0, number, 4, dtype=torch.long, device=totals.device)
        windows = Windows(none, empty.flatten(), torch.zeros(1, dtype=torch.long, device=totals.device), extents)
        return Observed(windows, torch.zeros(0, dtype=torch.long), empty.long(), empty, totals)
    windows = [part[0] for part in parts]
    lengths = torch.cat([each.offsets.diff() for each in windows])
    ids, probs, extents = (torch.cat([getattr(each, name) for each in windows]) for name in ("ids", "probs", "extents"))
    joined = Windows(ids, probs, pad(lengths.cumsum(0), (1, 0)), extents)
    return Observed(joined, *(torch.cat([part[place] for part in parts]) for place in (1, 2, 3)), totals)


def _slice_windows(windows: Windows, rows: slice) -> Windows:
    """The windows of some consecutive tokens."""
    offsets = windows.offsets[rows.start : rows.stop + 1]
    part = slice(int(offsets[0]), int(offsets[-1]))
    return Windows(windows.ids[part].long(), windows.probs[part], offsets - offsets[0], windows.extents[rows])


def _average(observed: Observed, size: int) -> torch.Tensor:
    """Mean probabilities (V,) of the rows of the embedding, float64 on the CPU; 0 for a row without a logit."""
    found = torch.zeros(size, dtype=torch.float64)
    own = observed.totals.cpu().double()[:size] / max(1, len(observed.places))
    found[: len(own)] = own
    return found


def measure_norms(embedding: torch.Tensor) -> torch.Tensor:
    """The norms (V,) float32 of the rows of an embedding (V, d), on the CPU."""
    rows = max(1, 2**22 // embedding.shape[1])
    return torch.cat([torch.linalg.vector_norm(part.float(), dim=-1).cpu() for part in embedding.split(rows)])


def compare_null_sets(
    reading: Reading,
    observed: Observed,
    plan: VariantPlan,
    spaces: list[Space],
    mean: torch.Tensor,
    norms: torch.Tensor,
    seed: int,
) -> list[dict[str, torch.Tensor]]:
    """The rows of nulls.parquet for all null models but `GAUSSIAN`: parts of its columns."""
    device = observed.windows.ids.device
    size = min(len(norms), len(observed.totals))
    generators = {null: create_generator(seed, null) for null in NULLS}
    permuting = create_generator(seed, f"{RANDOM}/permutations")
    matchings = {
        FREQUENCY: Matching(-mean[:size], generators[FREQUENCY]),
        NORM: Matching(norms[:size], generators[NORM]),
    }
    donors = draw_donors(reading.prompts[observed.places], generators[OTHER_STEP])
    more = {} if donors is None else find_longer(reading, observed, donors)
    found: dict[str, list[torch.Tensor]] = {null: [] for null in NULLS if null != GAUSSIAN}
    for rows in _split_tokens(observed.windows.offsets.tolist()):
        windows = _slice_windows(observed.windows, rows)
        lengths = windows.offsets.diff()
        ids = windows.ids.cpu()
        index = torch.repeat_interleave(torch.arange(len(lengths)), lengths.cpu())
        nulls = {RANDOM: draw_random(lengths.tolist(), size, generators[RANDOM], permuting)}
        nulls |= {null: each.draw(ids, index, generators[null]) for null, each in matchings.items()}
        for null, drawn in nulls.items():
            found[null].append(compare(windows._replace(ids=drawn.to(device)), spaces))
        if donors is not None:
            drawn, enough = take_donors(observed.windows, more, donors[rows].to(device), lengths)
            cosine = compare(windows._replace(ids=drawn), spaces)
            known = windows.extents[..., 3] <= enough[:, None]
            found[OTHER_STEP].append(torch.where(known[..., None], cosine, torch.nan))
    prompts, steps = reading.prompts[observed.places], reading.steps[observed.places]
    return [
        _build_rows(plan, prompts, steps, NULLS.index(null), observed.k, observed.entropy, torch.cat(parts))
        for null, parts in found.items()
        if parts
    ] or [_build_rows(plan, prompts, steps, 0, observed.k, observed.entropy, _empty_cosines(plan))]


def _empty_cosines(plan: VariantPlan) -> torch.Tensor:
    return torch.zeros(0, len(plan.sets), len(plan.geometries))


def compare(windows: Windows, spaces: list[Space]) -> torch.Tensor:
    """The cosines (B, N, G) of the sets of some windows in all geometries; NaN where k = 1."""
    segments = Segments(windows, lead=0)
    return torch.cat([segments.compare_unweighted(space) for space in spaces], -1)


def _split_tokens(offsets: list[int]) -> Iterator[slice]:
    """Consecutive tokens that are processed at once: at most `PIECE_CANDIDATES` candidates, if it is not one token."""
    start, last = 0, len(offsets) - 1
    for end in range(1, last + 1):
        full = end - start == PIECE_ROWS or end == last
        if full or offsets[end + 1] - offsets[start] > PIECE_CANDIDATES:
            yield slice(start, end)
            start = end


def find_longer(reading: Reading, observed: Observed, donors: torch.Tensor) -> dict[int, torch.Tensor]:
    """The likeliest tokens (n,) of the donors whose windows are shorter than those they are exchanged for.

    n is the length of the longest of these, or the number of tokens that have a probability above 0.
    """
    lengths = observed.windows.offsets.diff().cpu()
    needed = torch.zeros_like(lengths).scatter_reduce(0, donors, lengths, "amax")
    short = torch.nonzero(needed > lengths)[:, 0]
    short = short[needed[short].argsort(stable=True)]  # together with others that need about as many
    found: dict[int, torch.Tensor] = {}
    for tokens, logits in reading.repeat(observed.places, short) if len(short) else ():
        likeliest = CandidateSet("", "top_k", int(needed[tokens].max()), "", "")
        windows = find_prefixes(logits, [likeliest])
        rows = zip(tokens.tolist(), windows.ids.int().split(windows.offsets.diff().tolist()), strict=True)
        # copies: a part of a tensor would keep all of it in memory
        found |= {token: ids[: needed[token]].clone() for token, ids in rows}
    return found


def take_donors(
    windows: Windows, more: dict[int, torch.Tensor], donors: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest tokens (K,) of the ``donors`` (B,), as many of each as ``lengths`` (B,) say.

    Also how many of them there are (B,), which is less only where the others have a probability of 0.
    """
    parts, enough = [], []
    for donor, length in zip(donors.tolist(), lengths.tolist(), strict=True):
        start, end = windows.offsets[donor], windows.offsets[donor + 1]
        ids = windows.ids[start:end]
        if len(ids) < length and donor in more:
            ids = more[donor]
        enough.append(min(len(ids), length))
        parts.append(pad(ids[:length], (0, length - enough[-1])))
    return torch.cat(parts).long(), torch.tensor(enough, device=lengths.device)


def compare_gaussian_states(
    reading: Reading, observed: Observed, plan: VariantPlan, spaces: list[Space], settings: Settings, seed: int
) -> tuple[list[dict[str, torch.Tensor]], dict[str, Any] | str]:
    """The rows of nulls.parquet for `GAUSSIAN`, if there are any, and what run.json says of them."""
    number = len(observed.places)
    if reading.states is None:
        reason = "the model's logits could not be computed from its last hidden states" if number else "no tokens"
        return [], f"left out: {reason}"
    if number < 2:
        return [], "left out: one token has no covariance"
    generator = create_generator(seed, GAUSSIAN)
    states = gaussian_states.draw_states(reading.states, -(-number // STATE_SHARE), generator)
    own = [each.name for each in plan.sets].index(f"top_p_{settings.top_p:g}")
    factor = _find_factor(reading, states[:TRIED], settings.top_p, float(observed.k[:, own].median()))
    if factor is None:
        return [], "left out: no factor gives the observed number of candidates"
    parts, candidates = [], 0
    for logits in reading.compute_logits((factor * states).to(reading.states.dtype)):
        windows = find_prefixes(logits[_find_finite(logits)], plan.sets)  # in float16 the largest states may overflow
        for rows in _split_tokens(windows.offsets.tolist()):
            piece = _slice_windows(windows, rows)
            k, _, entropy = Segments(piece).summarise()
            parts.append((k, entropy, compare(piece, spaces)))
        candidates += int(windows.offsets[-1])
        if candidates > _limit_candidates(logits.device):
            break
    k, entropy, cosine = (torch.cat(column) for column in zip(*parts, strict=True))
    numbers = torch.arange(len(k))
    rows = _build_rows(plan, torch.full_like(numbers, -1), numbers, NULLS.index(GAUSSIAN), k, entropy, cosine)
    return [rows], {"factor": round(factor, 4), "states": len(k)}


def _find_factor(reading: Reading, states: torch.Tensor, top_p: float, wanted: float) -> float | None:
    """The factor of ``states`` (n, d) with which the median size of their nuclei is the ``wanted`` one.

    Where a factor of states is one of their logits, these are computed once and kept until it is found.
    """
    dtype, known = reading.states.dtype, None
    nucleus = CandidateSet("", "top_p", top_p, "", "")
    if reading.layer.is_homogeneous(states[:1].to(dtype)):
        known = list(reading.compute_logits(states.to(dtype)))

    def compute_median(factor: float) -> float:
        if known is None:
            pieces = reading.compute_logits((factor * states).to(dtype))
        else:
            pieces = (factor * logits.float() for logits in known)
        sizes = []
        for logits in pieces:
            if not bool(_find_finite(logits).all()):
                return 0.0
            sizes.append(find_prefixes(logits, [nucleus]).offsets.diff())
        return float(torch.cat(sizes).median())

    return gaussian_states.find_factor(compute_median, wanted)


def _build_rows(
    plan: VariantPlan,
    prompts: torch.Tensor,
    steps: torch.Tensor,
    null: int,
    k: torch.Tensor,
    entropy: torch.Tensor,
    cosine: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Columns of nulls.parquet: token by token, and for each token the pairs of the plan."""
    n, (sets, geometries) = len(prompts), plan.pairs.unbind(1)
    total = n * len(sets)
    return {
        "prompt": prompts.repeat_interleave(len(sets)).int(),
        "step": steps.repeat_interleave(len(sets)).int(),
        "candidates": sets.repeat(n).to(torch.int8),
        "geometry": geometries.repeat(n).to(torch.int8),
        "null": torch.full((total,), null, dtype=torch.int8),
        "draw": torch.zeros(total, dtype=torch.int32),
        "k": k.cpu()[:, sets].flatten().int(),
        "entropy": entropy.cpu()[:, sets].flatten().float(),
        "cosine": cosine.cpu()[:, sets, geometries].flatten().float(),
    }


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, size: int) -> tuple[list[str], list[bool]]:
    """The text of each id below ``size``, and whether it is special: a role in prompts, or no token at all.

    A token is decoded after a word, because some tokenizers drop the space that a text begins with.
    """
    known = set(tokenizer.get_vocab().values())
    added = getattr(tokenizer, "added_tokens_decoder", {})
    roles = {token for token, content in added.items() if getattr(content, "special", True)}
    roles |= set(tokenizer.all_special_ids)
    ordinary = [token for token in range(size) if token in known and token not in roles]
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    decode = _find_decoder(tokenizer)
    before = len(decode(word))
    texts, special = [""] * size, [True] * size
    for token in ordinary:
        try:
            texts[token] = decode([*word, token])[before:]
        except Exception:  # a tokenizer may come with a model, and what it raises for a lone token depends on it
            texts[token] = _name_token(tokenizer, token)
        special[token] = False
    for token in roles:
        if token < size:
            texts[token] = _name_token(tokenizer, token)
    return texts, special


def _find_decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[int]], str]:
    """What decodes ids as the tokenizer does, without its clean-up of spaces.

    Most are only a shell around one of the tokenizers library, which takes a fifth of the time if it is called itself.
    """
    fast = PreTrainedTokenizerFast
    if isinstance(tokenizer, fast) and all(
        getattr(type(tokenizer), name) is getattr(fast, name) for name in ("decode", "_decode")
    ):
        return partial(tokenizer.backend_tokenizer.decode, skip_special_tokens=False)
    return partial(tokenizer.decode, clean_up_tokenization_spaces=False)


def _name_token(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    return str(tokenizer.convert_ids_to_tokens(token) or "")
