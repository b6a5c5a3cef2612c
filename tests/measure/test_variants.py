"""Candidate sets and geometries against their definitions in float64, and against transformers' logits processors."""

import math

import numpy as np
import pytest
import torch
from transformers.generation import logits_process

import oracle
from nucleoscope import variants
from nucleoscope.measure import geometry, segments
from nucleoscope.measure.candidate_sets import find_windows
from nucleoscope.measure.entropy import compute_full_entropies
from nucleoscope.measure.geometry import count_usage
from nucleoscope.measure.segments import Segments
from nucleoscope.measure.variants import Variants
from nucleoscope.variants import SETS_BY_NAME, CandidateSet

TOLERANCE = {"cosine": 2e-5, "weighted_cosine": 2e-5, "similarity_entropy": 2e-5}  # of float32 sums
EVERYTHING = variants.parse("default")


def find_set(each, p, logits):
    """The tokens of a set, from its definition: ``p`` float64 (V,) of the float32 probabilities."""
    order = sorted((i for i in range(len(p)) if p[i] > 0), key=lambda i: (-p[i], i))
    entropy = oracle.compute_entropy(list(p))
    if each.rule == "top_p":
        return oracle.find_nucleus(p, each.value)
    if each.rule == "top_k":
        return order[: int(each.value)]
    if each.rule == "typical":
        shift = {i: abs(np.float32(-np.log(np.float32(p[i]))) - np.float32(entropy)) for i in order}
        chosen, mass = [], 0.0
        for i in sorted(order, key=lambda i: (shift[i], -p[i], i)):
            if mass >= each.value:
                break
            chosen.append(i)
            mass += p[i]
        return sorted(chosen, key=order.index)
    if each.rule == "top_n_sigma":
        finite = logits[np.isfinite(logits)]
        kept = {i for i in order if logits[i] >= finite.max() - each.value * finite.std()}
    else:
        threshold = {"min_p": each.value * max(p), "epsilon": each.value}.get(each.rule)
        if threshold is None:
            threshold = min(each.value, math.sqrt(each.value) * math.exp(-entropy))
        kept = {i for i in order if p[i] >= threshold}
    return [i for i in order if i in kept] or order[:1]


def build_directions(name, embedding, usage):
    """The unit rows (V, d) of a geometry in float64, from its definition; rows of zeros where there is no direction."""
    rows = embedding.double().numpy()
    if name in ("raw", "output"):
        return oracle.normalise(torch.from_numpy(rows))
    weights = usage.double().numpy() if name == "usage_centred" else np.ones(len(rows))
    centred = rows - (weights @ rows) / weights.sum()
    if name.startswith("all_but_top"):
        number = 3 if name.endswith("_3") else max(1, rows.shape[1] // 100)
        _, _, axes = np.linalg.svd(centred, full_matrices=True)
        longest = np.linalg.norm(centred, axis=1).max()
        centred = centred - centred @ axes[:number].T @ axes[:number]
        centred[np.linalg.norm(centred, axis=1) <= 1e-5 * longest] = 0
    if name == "whitened":
        values, axes = np.linalg.eigh(centred.T @ centred / len(rows))
        kept = values > 1e-6 * values.max()
        centred = centred @ axes[:, kept] / np.sqrt(values[kept]) @ axes[:, kept].T
    return oracle.normalise(torch.from_numpy(centred))


def compute_values(u, q, ids):
    """cosine, weighted_cosine and similarity_entropy of some tokens among directions (V, d), from all pairs."""
    size = len(u)
    c = ((u @ u.T).sum() - (u * u).sum()) / (size * (size - 1)) if size > 1 else 0
    found = math.nan  # 0 / 0 if all directions are the same
    if 1 - c > 1e-6:
        z = np.maximum(0, (u[ids] @ u[ids].T - c) / (1 - c))
        np.fill_diagonal(z, 1)
        found = -float(np.sum(q * np.log(z @ q)))
    if len(ids) == 1:
        return math.nan, math.nan, found
    return oracle.compute_cosine(u[ids]), oracle.compute_weighted_cosine(u[ids], np.array(q)), found


def check(logits, embedding, output=None, usage=None, selection=EVERYTHING):
    """Compares every number of every token with its definition."""
    usage = torch.ones(len(embedding)) if usage is None else usage
    measured = Variants(selection, embedding, output, usage)
    values = measured.measure(logits, compute_full_entropies(logits).entropy).double().numpy()
    cosines = compare_unweighted(measured, logits).double().numpy()  # the same by sums alone
    spaces = {
        name: build_directions(name, output if name == "output" else embedding, usage)
        for name in measured.layout.geometry
    }
    assert values.shape == (len(logits), len(selection.sets), 3 + 3 * len(spaces))
    for row, p in enumerate(oracle.compute_softmax(logits)):
        for number, each in enumerate(selection.sets):
            ids = find_set(each, p, logits[row].float().numpy())
            k, mass, entropy, *rest = values[row, number]
            assert k == len(ids), (each.name, row)
            q = oracle.compute_q(p[ids])
            assert mass == pytest.approx(p[ids].sum(), rel=1e-6), each.name
            assert entropy == pytest.approx(oracle.compute_entropy(q), rel=1e-6, abs=1e-9), each.name
            for place, (name, u) in enumerate(spaces.items()):
                expected = compute_values(u, q, ids)
                found = rest[3 * place : 3 * place + 3]
                assert cosines[row, number, place] == pytest.approx(expected[0], abs=2e-5, nan_ok=True), (
                    each.name,
                    name,
                )
                if len(ids) > variants.MOST_PAIRS:
                    assert math.isnan(found[2]), (each.name, name)
                    found, expected = found[:2], expected[:2]
                for kind, one, other in zip(TOLERANCE, found, expected, strict=False):
                    assert one == pytest.approx(other, abs=TOLERANCE[kind], nan_ok=True), (each.name, name, kind, row)


def compare_unweighted(measured, logits):
    """cosine (B, N, G) as null sets are compared."""
    windows = find_windows(logits, compute_full_entropies(logits).entropy, measured.sets)
    return torch.cat([Segments(windows, lead=0).compare_unweighted(space) for space in measured.spaces], -1)


def draw(rows, size, width, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    # like those of real models, the rows have a common direction and some strong ones
    strength = torch.linspace(2, 0.3, width)
    embedding = torch.randn(size, width, generator=generator) * strength + 0.7
    return scale * torch.randn(rows, size, generator=generator), embedding


@pytest.mark.parametrize("scale", [0, 0.3, 1, 3, 10, 60])
def test_every_variant_is_what_its_definition_says(scale):
    logits, embedding = draw(8, 200, 24, scale)
    usage = torch.randint(0, 9, (200,), generator=torch.Generator().manual_seed(1))
    check(logits, embedding, draw(1, 200, 16, seed=5)[1], usage)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 49])
def test_small_vocabularies_have_every_variant(size):
    logits, embedding = draw(5, size, 12)
    check(logits, embedding)


def test_among_equal_probabilities_the_lower_id_is_a_candidate():
    logits, embedding = draw(12, 130, 8, 1.5)
    check(logits.round(), embedding)
    check(torch.zeros(2, 64), draw(1, 64, 8)[1])


def test_one_token_with_all_the_mass_is_alone_in_sets_of_a_mass():
    logits, embedding = draw(3, 90, 8)
    logits[:, 17] = 300
    check(logits, embedding)
    logits[:, 1:] = -torch.inf
    check(logits, embedding)


def test_tokens_that_cannot_follow_are_in_no_set():
    logits, embedding = draw(6, 90, 8)
    logits[torch.rand(6, 90, generator=torch.Generator().manual_seed(3)) < 0.4] = -torch.inf
    check(logits, embedding)


def test_a_nearly_certain_token_does_not_hide_the_others():
    logits, embedding = draw(6, 90, 8, 1)
    logits[:, 5] = torch.tensor([8.0, 10, 12, 14, 16, 18])
    check(logits, embedding)


def test_rows_without_a_direction_are_orthogonal_to_all():
    logits, embedding = draw(6, 90, 8)
    embedding[::3] = 0
    check(logits, embedding)
    check(logits, torch.ones(90, 8))


def test_several_sets_that_are_not_prefixes_are_compared_each_by_its_own_tokens():
    sets = [SETS_BY_NAME["top_k_2"], SETS_BY_NAME["top_p_0.95"]]
    sets += [CandidateSet(f"typical_{mass}", "typical", mass, "", "") for mass in (0.2, 0.6, 0.9, 0.97)]
    selection = variants.Selection(tuple(sets), EVERYTHING.geometries)
    for scale in (0.3, 1, 2):
        check(*draw(8, 600, 24, scale), selection=selection)


def test_segments_are_compared_only_as_they_were_cut():
    logits, embedding = draw(3, 200, 8, 1)
    measured = Variants(EVERYTHING, embedding, None, torch.ones(200))
    windows = find_windows(logits, compute_full_entropies(logits).entropy, measured.sets)
    with pytest.raises(ValueError, match="64 are single"):
        Segments(windows).compare_unweighted(measured.spaces[0])
    with pytest.raises(ValueError, match="not 0"):
        Segments(windows, lead=0).compare(measured.spaces[0])


def test_a_geometry_that_leaves_little_of_a_row_is_as_exact():
    """Products of whole rows, from which those of a strong direction are subtracted, would have few digits left."""
    logits, embedding = draw(8, 200, 24, 1)
    embedding[:, :3] *= 300
    check(logits, embedding)
    (space,) = Variants(EVERYTHING, embedding, None, torch.ones(200)).spaces
    inexact = {each.geometry.name: int(each.inexact.sum()) for each in space.maps if each.inexact is not None}
    assert set(inexact) == {"all_but_top_3", "all_but_top_d100"}
    assert inexact["all_but_top_3"] > 190


def test_a_single_row_of_which_little_is_left_is_exact_and_changes_no_other():
    logits, embedding = draw(8, 200, 24, 1)
    embedding[7] += 60 * torch.linalg.eigh(torch.cov(embedding.T)).eigenvectors[:, -1]
    logits[:3, 7] = 4
    check(logits, embedding)
    (space,) = Variants(EVERYTHING, embedding, None, torch.ones(200)).spaces
    assert {int(each.inexact.sum()) for each in space.maps if each.inexact is not None} == {1}


def test_rows_that_are_not_kept_are_whitened_at_each_step(monkeypatch):
    logits, embedding = draw(6, 200, 24, 1)
    found = []
    for most in (geometry.MOST_KEPT, 0):
        monkeypatch.setattr(geometry, "MOST_KEPT", most)
        measured = Variants(EVERYTHING, embedding, None, torch.ones(200))
        assert [each.rows is None for each in measured.spaces[0].maps if each.whitening is not None] == [most == 0]
        found.append(measured.measure(logits, compute_full_entropies(logits).entropy))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6, equal_nan=True)


def test_pieces_change_nothing(monkeypatch):
    logits, embedding = draw(9, 3000, 32, 1.5)
    measured = Variants(EVERYTHING, embedding, None, torch.ones(3000))
    entropy = compute_full_entropies(logits).entropy
    whole = measured.measure(logits, entropy)
    cosines = compare_unweighted(measured, logits)
    smaller = ("PIECE_CPU", "SUMS_CPU", "WEIGHTS_CPU")
    for names in (*((name,) for name in smaller), smaller):
        with monkeypatch.context() as patched:
            for name in names:
                patched.setattr(segments, name, 3000)
            found = measured.measure(logits, entropy), compare_unweighted(measured, logits)
        torch.testing.assert_close(found, (whole, cosines), rtol=0, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_type_are_measured_as_they_are(dtype):
    logits, embedding = draw(4, 120, 16)
    check(logits, embedding.to(dtype))
    check(logits.to(dtype), embedding)


def list_sets(logits, selection=EVERYTHING):
    """{set: list of ids of each row}, as `find_windows` gives them."""
    windows = find_windows(logits, compute_full_entropies(logits).entropy, selection.sets)
    rows = oracle.split(windows.ids, windows.offsets)
    return {
        each.name: [
            [*ids[one:two].tolist(), *([] if (one, two) == (three, four) else ids[three:four].tolist())]
            for ids, (one, two, three, four) in zip(rows, windows.extents[:, place].tolist(), strict=True)
        ]
        for place, each in enumerate(selection.sets)
    }


WARPERS = {
    "top_p": logits_process.TopPLogitsWarper,
    "top_k": lambda value: logits_process.TopKLogitsWarper(int(value)),
    "min_p": logits_process.MinPLogitsWarper,
    "epsilon": logits_process.EpsilonLogitsWarper,
    "eta": logits_process.EtaLogitsWarper,
    "typical": logits_process.TypicalLogitsWarper,
}


@pytest.mark.parametrize("scale", [0.5, 2, 5])
def test_without_ties_the_sets_are_those_of_transformers(scale):
    logits = draw(24, 5000, 1, scale, seed=7)[0]
    found = list_sets(logits)
    for each in EVERYTHING.sets:
        if each.rule in WARPERS:
            kept = WARPERS[each.rule](each.value)(None, logits.clone()).isfinite()
            for row in range(len(logits)):
                expected = set(kept[row].nonzero()[:, 0].tolist())
                assert set(found[each.name][row]) == expected, (each.name, row, set(found[each.name][row]) ^ expected)


def test_a_token_has_the_same_numbers_in_every_batch():
    logits, embedding = draw(9, 3000, 32, 2)
    measured = Variants(EVERYTHING, embedding, None, torch.ones(3000))
    entropy = compute_full_entropies(logits).entropy
    together = measured.measure(logits, entropy)
    apart = torch.cat([measured.measure(logits[i : i + 1], entropy[i : i + 1]) for i in range(9)])
    assert torch.allclose(together, apart, atol=1e-5, equal_nan=True)


def test_large_sets_are_summed_exactly():
    logits, embedding = draw(2, 1500, 16, 0.5)
    check(logits, embedding)


def test_usage_counts_what_prompts_do_not_share():
    assert count_usage([[7, 1, 2, 9], [7, 3, 9], [7, 1, 9]], 10).tolist() == [0, 2, 1, 1, 0, 0, 0, 0, 0, 0]
    assert count_usage([[7, 1]], 8).tolist() == [0, 1, 0, 0, 0, 0, 0, 1]


def test_names_of_sets_and_geometries_select_variants():
    chosen = variants.parse("top_k_10, centred,top_p_0.9")
    assert [each.name for each in chosen.sets] == ["top_p_0.9", "top_k_10"]
    assert [each.name for each in chosen.geometries] == ["centred"]
    assert variants.parse("none") is None
    with pytest.raises(ValueError, match="'top_q'"):
        variants.parse("top_q")
    check(*draw(3, 50, 8), selection=chosen)
