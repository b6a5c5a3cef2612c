"""The variants of a token's choice: which tokens count as its candidates, and in which geometry they are compared.

Contract: this is the only list of candidate sets and geometries. The setting `variants`, the columns of
variants.parquet and the reference table in the book are derived from it, by name; `measure.candidate_sets` and
`measure.geometry` compute them. Importing this module is fast.

A variant is one candidate set in one geometry.
"""

from dataclasses import dataclass
from typing import NamedTuple

from nucleoscope.names import advise, escape_line

NONE, DEFAULT = "none", "default"  # what the setting can be instead of a list of names
VALUES = ("mass", "entropy", "cosine", "weighted_cosine", "similarity_entropy")
COLUMNS = ("prompt", "step", "candidates", "geometry", "k", *VALUES)  # of variants.parquet
OF_SET, OF_VARIANT = ("k", *VALUES[:2]), VALUES[2:]  # what depends on the candidate set alone, and on both


@dataclass(frozen=True)
class CandidateSet:
    """One rule that says which tokens are candidates. ``rule`` is its kind, ``value`` its threshold."""

    name: str
    rule: str
    value: float
    definition: str
    source: str


@dataclass(frozen=True)
class Geometry:
    """One way to turn the rows of an embedding matrix into directions."""

    name: str
    definition: str
    source: str


class Selection(NamedTuple):
    """The variants to measure: every set in every geometry."""

    sets: tuple[CandidateSet, ...]
    geometries: tuple[Geometry, ...]


class Layout(NamedTuple):
    """The names of the candidate sets and geometries that were measured, in the order of the numbers of each token."""

    candidates: list[str]
    geometry: list[str]

    @property
    def width(self) -> int:
        """How many numbers there are for each candidate set."""
        return len(OF_SET) + len(OF_VARIANT) * len(self.geometry)


def _define_sets() -> tuple[CandidateSet, ...]:
    kinds = (
        ("top_p", (0.5, 0.7, 0.8, 0.9, 0.95, 0.99), "fewest likeliest tokens with mass >= {}", "Holtzman 2020"),
        ("top_k", (2, 5, 10, 50), "the {} likeliest tokens", "Fan 2018"),
        ("min_p", (0.05, 0.1), "p >= {} times the largest p", "Nguyen 2024"),
        ("epsilon", (0.0003,), "p >= {}", "Hewitt 2022"),
        ("eta", (0.0003,), "p >= min({0}, sqrt({0}) exp(-H(p)))", "Hewitt 2022"),
        ("top_n_sigma", (1,), "logit >= largest logit - {} x standard deviation of the finite logits", "Tang 2024"),
        ("typical", (0.9,), "fewest tokens with the smallest |-log p - H(p)| and mass >= {}", "Meister 2023"),
    )  # fmt: skip
    return tuple(
        CandidateSet(f"{rule}_{value:g}", rule, value, text.format(f"{value:g}"), source)
        for rule, values, text, source in kinds
        for value in values
    )


CANDIDATE_SETS = _define_sets()
GEOMETRIES = (
    Geometry("raw", "rows of the input embedding", "-"),
    Geometry("centred", "the same minus their mean over the vocabulary", "Mu and Viswanath 2018"),
    Geometry(
        "usage_centred",
        "the same minus their mean over the tokens of the run's prompts (and texts, if they are scored), each "
        "counted as often as it occurs, without what all prompts begin or end with",
        "-",
    ),
    Geometry("all_but_top_3", "centred, without the 3 leading principal components", "Mu and Viswanath 2018"),
    Geometry(
        "all_but_top_d100",
        "centred, without the d / 100 leading principal components (at least one)",
        "Mu and Viswanath 2018",
    ),
    Geometry(
        "whitened",
        "centred, with the covariance over the vocabulary made the identity; directions with less than 1e-6 of the "
        "largest variance are left out",
        "-",
    ),
    Geometry("output", "rows of the output layer, if they are not those of the input embedding", "-"),
)
SETS_BY_NAME = {each.name: each for each in CANDIDATE_SETS}
GEOMETRIES_BY_NAME = {each.name: each for each in GEOMETRIES}
NAMES = (*SETS_BY_NAME, *GEOMETRIES_BY_NAME)
# similarity_entropy, which needs every pair of candidates, is computed for sets within as many likeliest tokens.
MOST_PAIRS = 64
LONGEST_NAME = 40  # characters of an unknown name in a message


def parse(text: str) -> Selection | None:
    """The variants that a value of the setting stands for; None for "none".

    Names of candidate sets and of geometries may be in any order; all sets if none is named, and all geometries if
    none is. ValueError names what is unknown.
    """
    if text == NONE:
        return None
    names = [] if text == DEFAULT else [name.strip() for name in text.split(",")]
    if "" in names:
        raise ValueError("a name is empty: separate names with single commas")
    if several := [name for name in names if len(name.split()) > 1]:
        raise ValueError(f"'{escape_line(several[0][:LONGEST_NAME])}' is not a name: separate names with commas")
    if alone := [name for name in names if name in (NONE, DEFAULT)]:
        raise ValueError(f"'{alone[0]}' cannot be combined with other names: give it alone")
    if unknown := [name for name in names if name not in NAMES]:
        shown = escape_line(unknown[0][:LONGEST_NAME])
        rule = f": variants must be {DEFAULT}, {NONE}, or one or more of {', '.join(NAMES)}"
        raise ValueError(f"unknown candidate set or geometry '{shown}'{advise(unknown[0], NAMES, rule)}")
    return Selection(
        tuple(each for each in CANDIDATE_SETS if each.name in names) or CANDIDATE_SETS,
        tuple(each for each in GEOMETRIES if each.name in names) or GEOMETRIES,
    )


def normalise(text: str) -> str:
    """The same for every value of the setting that stands for the same variants: names in the order of this module."""
    selection = parse(text)
    if selection is None or selection == parse(DEFAULT):
        return DEFAULT if selection else NONE
    names = {name.strip() for name in text.split(",")}
    return ",".join(name for name in NAMES if name in names)


def format_reference() -> str:
    """The tables of candidate sets and geometries, in Markdown, for the book."""
    lines = ["| `candidates` | tokens in the set | source |", "|---|---|---|"]
    lines += [
        f"| `{each.name}` | {each.definition.replace('|', chr(92) + '|')} | {each.source} |" for each in CANDIDATE_SETS
    ]
    lines += ["", "| `geometry` | directions that are compared | source |", "|---|---|---|"]
    lines += [f"| `{each.name}` | {each.definition} | {each.source} |" for each in GEOMETRIES]
    return "\n".join(lines) + "\n"
