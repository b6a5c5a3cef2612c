"""The geometries of `nucleoscope.variants`: linear maps after which embedding rows are compared, computed once.

Contract: embedding matrices in, one `Space` for each matrix out. A geometry is a centre, a linear map and the inverse
norms (V,) of the rows after both, so that sums of directions follow from weighted sums of raw rows, and products of
pairs from those of raw rows with a correction of low rank. A second copy of a matrix is created only of whitened rows,
which have no such correction, and only if it is not too large.
"""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from nucleoscope.measure.ragged import choose_sum_dtype, widen
from nucleoscope.measure.row_memory import RowMemory
from nucleoscope.variants import Geometry

# Numbers of an embedding matrix that are processed at once: on a CPU, more would not fit in its cache.
PIECE_CPU, PIECE_GPU = 2**19, 2**22
MOST_KEPT = 2**26  # numbers of whitened rows that are kept, at most: 256 MiB
# The largest |e|^2 / |Ae|^2 of a row e: if less is left of it by the map A, too few digits would remain of its products
# after a subtraction.
LARGEST_LOSS = 32
LEAST_NORM = 1e-5  # of the largest norm: a shorter row has no direction, only rounding errors
LEAST_VARIANCE = 1e-6  # of the largest: whitening leaves out directions with less, because they are rounding errors too


@dataclass
class Map:
    """One geometry of a space: directions u_i = scale_i A (e_i - mean - centre), where ``mean`` is the space's.

    ``centre`` (d,) is None where it is 0. A is the identity, or removes the columns of ``basis`` (d, D), or is the
    symmetric matrix ``whitening`` (d, d); ``rows`` (V, d) are those after it, None if they are too many to be kept.
    ``scale`` (V,) is 0 for a row that has no direction. ``expected`` is the mean cosine of two different rows of the
    vocabulary. Products (e_i - mean - centre).A'A.(e_j - mean - centre) are those of e_i - mean minus left_i.right_j,
    (V, r) each, which are None if there is nothing to subtract or if there is ``whitening``. For the tokens in
    ``inexact`` (V,), None if there are none, that would be too inexact: see `LARGEST_LOSS`.
    """

    geometry: Geometry
    scale: torch.Tensor
    expected: float
    centre: torch.Tensor | None = None
    basis: torch.Tensor | None = None
    whitening: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    left: torch.Tensor | None = None
    right: torch.Tensor | None = None
    inexact: torch.Tensor | None = None
    is_complete: bool = True  # every row has a direction

    def move(self, rows: torch.Tensor) -> torch.Tensor:
        """A (e_i - mean - centre) of rows e_i - mean (..., d)."""
        return self.apply(rows if self.centre is None else rows - self.centre)

    def apply(self, rows: torch.Tensor) -> torch.Tensor:
        """A times each of the rows (..., d), which are centred already."""
        if self.whitening is not None:
            return rows @ self.whitening
        if self.basis is None:
            return rows
        flat = rows.reshape(-1, rows.shape[-1])
        return torch.addmm(flat, flat @ self.basis, self.basis.T, alpha=-1).view(rows.shape)


@dataclass
class Space:
    """One embedding matrix (V, d) of any floating type, the mean (d,) of its rows, and the geometries on it.

    ``scales`` (V, G) are the scales of all ``maps``, ``expected`` (G,) their expected cosines, and ``centres`` (G, d)
    what each map subtracts from centred rows, 0 if it has no centre.
    """

    embedding: torch.Tensor
    mean: torch.Tensor
    maps: list[Map]
    scales: torch.Tensor
    expected: torch.Tensor
    centres: torch.Tensor

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (..., d) of the matrix minus their mean, in float32, on the device of the mean."""
        rows = self.gather_raw(ids)
        return rows.sub_(self.mean)

    def gather_raw(self, ids: torch.Tensor, memory: RowMemory | None = None) -> torch.Tensor:
        """The rows as they are, in the ``memory`` if it is given."""
        return (self.allocate(ids.numel()) if memory is None else memory).gather(ids)

    def allocate(self, number: int) -> RowMemory:
        """Memory for a ``number`` of rows."""
        return RowMemory(self.embedding, number, self.mean.device)


def build_spaces(
    geometries: Sequence[Geometry], embedding: torch.Tensor, output: torch.Tensor | None, usage: torch.Tensor
) -> list[Space]:
    """The spaces of some geometries. ``usage`` (V,) are weights of the tokens, for the usage-centred geometry.

    ``output`` (V, d') are the rows of the output layer, None if there are none of their own: then the geometry that
    needs them is left out.
    """
    inner = [each for each in geometries if each.name != "output"]
    outer = [each for each in geometries if each.name == "output" and output is not None]
    device = embedding.device
    pairs = ((inner, embedding), (outer, output))
    return [_build_space(wanted, matrix, usage, device) for wanted, matrix in pairs if wanted]


def select_spaces(spaces: Sequence[Space], geometries: Sequence[Geometry]) -> list[Space] | None:
    """The ``spaces`` with the maps of these geometries alone; None if there is none for one of them."""
    found, names = list[Space](), {each.name for each in geometries}
    for space in spaces:
        maps = [each for each in space.maps if each.geometry.name in names]
        if maps:
            found.append(_join_maps(space, maps))
            names -= {each.geometry.name for each in maps}
    return None if names else found


def count_usage(texts: Iterable[list[int]], size: int) -> torch.Tensor:
    """How often each of ``size`` tokens occurs in some texts (ids), without what all of them begin or end with.

    A chat template's tokens are the same in each prompt, and say nothing of what is used. With one text, or if
    nothing is left, all tokens count. ``texts`` are iterated over several times.
    """
    head = tail = 0
    if sum(1 for _ in texts) > 1:
        head, tail = (len(functools.reduce(_find_common, (text[::way] for text in texts))) for way in (1, -1))
    counts = torch.zeros(size, dtype=torch.double)
    for text in texts:
        tokens = torch.tensor(text[head : len(text) - tail], dtype=torch.long)
        tokens = tokens[tokens < size]  # others are refused before they are measured
        counts.index_add_(0, tokens, torch.ones(len(tokens), dtype=torch.double))
    return counts if counts.any() or not (head or tail) else sum(count_usage([text], size) for text in texts)


def _find_common(one: list[int], other: list[int]) -> list[int]:
    """The beginning that two texts have in common."""
    n = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:n]


def _build_space(geometries: Sequence[Geometry], matrix: torch.Tensor, usage: torch.Tensor, device) -> Space:
    size, width = matrix.shape
    total = sum(widen(rows).sum(0) for _, rows in _split(matrix, device))
    nothing = torch.empty(0)  # until the maps are known
    space = Space(matrix, (total / size).float(), [], scales=nothing, expected=nothing, centres=nothing)
    needed = {each.name for each in geometries}
    vectors = values = centre = None
    if needed & {"whitened", "all_but_top_3", "all_but_top_d100"}:
        covariance = sum(widen(part.T @ part) for _, part in _split_centred(space)) / size
        values, vectors = torch.linalg.eigh(covariance)
    if "usage_centred" in needed:
        weights = usage.to(device, torch.float32) / usage.sum().clamp_min(1).float().to(device)
        centre = sum(part.T @ weights[rows] for rows, part in _split_centred(space))
    for geometry in geometries:
        found = Map(geometry, torch.empty(0), 0.0)
        if geometry.name in ("raw", "output"):
            found.centre = -space.mean
        elif geometry.name == "usage_centred":
            found.centre = centre
        elif geometry.name == "whitened":
            kept = values > LEAST_VARIANCE * values[-1].clamp_min(1e-300)
            found.whitening = ((vectors * torch.where(kept, values.clamp_min(1e-300).rsqrt(), 0)) @ vectors.T).float()
            if matrix.numel() <= MOST_KEPT:
                found.rows = space.mean.new_empty(matrix.shape)
        elif geometry.name != "centred":
            number = 3 if geometry.name == "all_but_top_3" else max(1, width // 100)
            found.basis = vectors[:, -number:].float()
        space.maps.append(found)
    _measure_rows(space)
    return _join_maps(space, space.maps)


def _join_maps(space: Space, maps: list[Map]) -> Space:
    """The space with these of its maps, and what is read of all of them at once."""
    expected = torch.tensor([each.expected for each in maps], device=space.mean.device)
    scales = torch.stack([each.scale for each in maps], 1)
    centres = torch.stack([torch.zeros_like(space.mean) if each.centre is None else each.centre for each in maps])
    return Space(space.embedding, space.mean, maps, scales, expected, centres)


def _measure_rows(space: Space) -> None:
    """Adds to the maps of a space what depends on the rows, which are read twice for all maps: first their scales and
    the products for pairs, and then the expected cosines, which need the scales."""
    found = [_measure_part(space, rows, part) for rows, part in _split_centred(space)]
    for each, pieces in zip(space.maps, zip(*found, strict=True), strict=True):
        norm, length, products = (torch.cat(column) for column in zip(*pieces, strict=True))
        _set_scale(each, norm, length)
        if each.centre is not None:
            own, one = products, torch.ones_like(norm, dtype=torch.float32)
            own = own - each.centre.square().sum() / 2
            each.left, each.right = torch.stack((own, one), 1), torch.stack((one, own), 1)
        elif each.basis is not None:
            each.left = each.right = products
    scales = torch.stack([each.scale for each in space.maps], 1)
    totals = sum(widen(scales[rows].T @ part) for rows, part in _split_centred(space))  # (G, d)
    for each, total in zip(space.maps, totals, strict=True):
        if each.centre is not None:
            total = total - widen(each.scale).sum() * widen(each.centre)
        square, size = widen(each.apply(total.float())).square().sum(), len(each.scale)
        each.expected = float((square - (each.scale > 0).sum()) / (size * (size - 1))) if size > 1 else 0.0


def _measure_part(
    space: Space, rows: slice, part: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Of some centred rows (n, d), for each map: their norms after it, their own, and their products with what it
    subtracts, (n,) or (n, D). Keeps the rows after it if the map does."""
    length = torch.linalg.vector_norm(part, dim=-1)
    found = []
    for each in space.maps:
        moved = each.move(part)
        if each.rows is not None:
            each.rows[rows] = moved
        norm = torch.linalg.vector_norm(moved, dim=-1, dtype=choose_sum_dtype(part.device))
        subtracted = each.basis if each.centre is None else each.centre
        found.append((norm, length, length if subtracted is None else part @ subtracted))
    return found


def _set_scale(found: Map, norm: torch.Tensor, length: torch.Tensor) -> None:
    """Sets the scale of a map, and what follows from it, by the norms (V,) of the rows after it and before it."""
    found.scale = torch.where(norm > LEAST_NORM * norm.amax(), norm.reciprocal(), 0).float()
    if found.basis is not None:
        # On what the basis leaves nothing of, only rounding errors are left.
        found.scale = torch.where(norm > LEAST_NORM * length.amax(), found.scale, 0)
    found.is_complete = bool((found.scale > 0).all())
    inexact = (length * found.scale).square() > LARGEST_LOSS
    found.inexact = inexact if found.whitening is None and bool(inexact.any()) else None


def _split(matrix: torch.Tensor, device: torch.device) -> Iterator[tuple[slice, torch.Tensor]]:
    """The places and the rows of each piece, in float32."""
    number = max(1, (PIECE_CPU if device.type == "cpu" else PIECE_GPU) // matrix.shape[1])
    for start in range(0, len(matrix), number):
        rows = slice(start, start + number)
        yield rows, matrix[rows].to(device, torch.float32)


def _split_centred(space: Space) -> Iterator[tuple[slice, torch.Tensor]]:
    for rows, part in _split(space.embedding, space.mean.device):
        yield rows, part - space.mean
