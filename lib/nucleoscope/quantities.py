"""All per-token quantities: name, label, unit, range, formula, source, and the function that computes each.

Contract: this is the only list of quantities. Records, tables, tints, tooltips, axes and the reference
page are derived from it, by name. Importing this module is fast: a quantity is a function of one step
(`measure.step.Step`), and the step does the computation.

To add your own quantity, make one of your function::

    label = "mass of the top three"
    own = Quantity.from_function("top_three", mass_of_top_three, label=label)
    quantities.register(own)
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any


@dataclass(frozen=True)
class Quantity:
    """One number for each token.

    ``name`` is the column in tables; ``plural`` names the list in a record (None: not stored there,
    because it follows from the candidates). ``label`` and ``unit`` are for readers, ``range`` and ``formula``
    for the reference page, ``source`` cites the formula. ``compute`` takes a `measure.step.Step` of B
    tokens and returns (B,). ``needs_pair``: undefined for a token with one candidate; its value is
    missing in tables. ``is_count``: an integer from 1 up, with a logarithmic colour scale.
    """

    name: str
    label: str
    compute: Callable[[Any], Any]
    plural: str | None = None
    unit: str = ""
    range: str = ""
    formula: str = ""
    source: str = ""
    needs_pair: bool = False
    is_count: bool = False

    @classmethod
    def from_function(cls, name: str, function: Callable[[Any, Any, Any], Any], **facts: Any) -> "Quantity":
        """A quantity from ``function(logits, candidates, embedding)``, which returns one number per token (B,).

        ``logits`` (B, V) float32, divided by the temperature; ``candidates`` a `measure.nucleus.Nucleus`;
        ``embedding`` (V, d). ``facts`` are the other fields; by default the list in a record has the quantity's
        name. Raises ValueError if the name is not an identifier.
        """
        if not name.isidentifier():
            raise ValueError(f"quantity name is {name!r}: it must be a Python identifier, such as top_three_mass")
        facts = {"label": name.replace("_", " "), "plural": name} | facts
        return cls(name, compute=lambda step: function(step.logits.float(), step.candidates, step.embedding), **facts)

    @property
    def title(self) -> str:
        """The label with its unit, for axes and menus."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


BUILT_IN = (
    Quantity(
        "entropy", "entropy", attrgetter("entropy"), "entropies", "nats", "[0, log k]",
        "H(q) = -sum q log q", "Shannon 1948",
    ),
    Quantity(
        "full_entropy", "full entropy", attrgetter("full_entropy"), "full_entropies", "nats", "[0, log V]",
        "H(p) = -sum p log p", "Shannon 1948",
    ),
    Quantity(
        "varentropy", "varentropy", attrgetter("varentropy"), "varentropies", "nats²", ">= 0",
        "variance of -log q under q", "Kontoyiannis and Verdú 2014",
    ),
    Quantity(
        "full_varentropy", "full varentropy", attrgetter("full_varentropy"), "full_varentropies", "nats²", ">= 0",
        "variance of -log p under p", "Kontoyiannis and Verdú 2014",
    ),
    Quantity(
        "collision_entropy", "collision entropy", attrgetter("collision_entropy"), "collision_entropies", "nats",
        "[0, entropy]", "-log sum q^2", "Rényi 1961, order 2",
    ),
    Quantity(
        "surprisal", "surprisal", attrgetter("surprisal"), "surprisals", "nats", ">= 0",
        "-log p(token taken)", "Shannon 1948",
    ),
    Quantity(
        "rank", "rank of the token", attrgetter("rank"), "ranks", "", "1, 2, ...",
        "1 + the number of tokens ranked above the one taken; ties: lower id first", "",
        is_count=True,
    ),
    Quantity(
        "margin", "margin", attrgetter("margin"), "margins", "", "[0, 1]",
        "p1 - p2, the two largest probabilities", "",
    ),
    Quantity(
        "end_probability", "probability that the text ends",
        attrgetter("end_probability"), "end_probabilities", "", "[0, 1]",
        "sum of p over the tokens that end a text in generation", "",
    ),
    Quantity(
        "cosine", "cosine similarity", attrgetter("cosine"), "cosines", "", "[-1, 1]",
        "mean of u_i.u_j over pairs of candidates; if k = 1, 1 in `.pt`, missing in tables", "", needs_pair=True,
    ),
    Quantity(
        "weighted_cosine", "weighted cosine similarity", attrgetter("weighted_cosine"), "weighted_cosines", "",
        "[-1, 1]", "sum over i != j of q_i q_j u_i.u_j / sum of q_i q_j; if k = 1, as `cosine`", "", needs_pair=True,
    ),
    Quantity(
        "similarity_entropy", "similarity-sensitive entropy", attrgetter("similarity_entropy"),
        "similarity_entropies", "nats", "[0, min(H, log 2)]",
        "-sum q_i log (Zq)_i, Z_ij = (1 + u_i.u_j) / 2", "Leinster and Cobbold 2012",
    ),
    Quantity("k", "candidates (k)", attrgetter("k"), None, "", "1, 2, ...", "number of candidates", "", is_count=True),
)  # fmt: skip

# Of tokens whose candidates were compared in context, in a second pass: their columns are in context.parquet, and
# `stats.what_or_how` computes them from the candidates' similarities, not from a step.
IN_CONTEXT = (
    Quantity(
        "entropy_what", "uncertainty about what follows", attrgetter("entropy_what"), None, "nats", "[0, H(q)]",
        "H(groups): groups of candidates with similar continuations", "Shannon 1948", needs_pair=True,
    ),
    Quantity(
        "entropy_how", "uncertainty about how it is put", attrgetter("entropy_how"), None, "nats", "[0, H(q)]",
        "sum over groups of q_g H(q given g), so that the two add up to H(q)", "Shannon 1948", needs_pair=True,
    ),
)  # fmt: skip

REGISTRY: dict[str, Quantity] = {quantity.name: quantity for quantity in BUILT_IN}
NOT_QUANTITIES = ("prompt", "tokens", "top_p_tokens", "top_p_probs")  # the other keys of a record


def register(quantity: Quantity) -> Quantity:
    """Adds a quantity, which is then measured and shown with the others; replaces one with the same name.

    Without a plural, its list in a record has its name. Raises ValueError if the name is that of a
    built-in quantity, or one of both that of another column.
    """
    quantity = quantity if quantity.plural else replace(quantity, plural=quantity.name)
    others = [*BUILT_IN, *IN_CONTEXT, *(each for each in REGISTRY.values() if each.name != quantity.name)]
    taken = {"model", "dataset", "prompt", "step", "token", "text", *NOT_QUANTITIES}
    taken |= {name for each in others for name in (each.name, each.plural) if name}
    if {quantity.name, quantity.plural} & taken:
        raise ValueError(f"quantity name '{quantity.name}' is already used by another column: choose a different name")
    REGISTRY[quantity.name] = quantity
    return quantity


def unregister(name: str) -> None:
    """Removes a quantity that `register` added."""
    if name not in {quantity.name for quantity in BUILT_IN}:
        REGISTRY.pop(name, None)


def list_recorded() -> list[Quantity]:
    """The quantities that a record stores, in the order in which tables list them."""
    return [quantity for quantity in REGISTRY.values() if quantity.plural]


def find_columns(record_keys: Iterable[str] = ()) -> dict[str, str]:
    """Maps the lists of a record to the columns of a table: {plural: name}.

    ``record_keys`` are the keys of a record that was read: the list of a quantity that is not registered
    in this process keeps its own name.
    """
    columns = {quantity.plural: quantity.name for quantity in list_recorded()}
    return columns | {key: key for key in record_keys if key not in columns and key not in NOT_QUANTITIES}


def describe(name: str) -> Quantity:
    """The quantity of a column; if it is not registered here, it has only its name."""
    known = REGISTRY.get(name) or next((each for each in IN_CONTEXT if each.name == name), None)
    return known or Quantity(name, name.replace("_", " "), attrgetter(name), name)


def find_title(name: str) -> str:
    """A column's label with its unit, for axes and menus."""
    return describe(name).title


def is_count(name: str) -> bool:
    """Whether a quantity is an integer from 1 up."""
    return describe(name).is_count


def list_titles() -> dict[str, str]:
    """{name: label with unit} of all quantities that are measured with a text."""
    return {name: quantity.title for name, quantity in REGISTRY.items()}


def list_tints() -> dict[str, str]:
    """`list_titles`, and the same of quantities that a second pass may add: what tokens can be tinted by, in order."""
    return list_titles() | {quantity.name: quantity.title for quantity in IN_CONTEXT}


def is_in_context(name: str) -> bool:
    """Whether a quantity is one of `IN_CONTEXT`."""
    return any(quantity.name == name for quantity in IN_CONTEXT)


def needs_pair(name: str) -> bool:
    """Whether a quantity is undefined for a token with one candidate."""
    return describe(name).needs_pair


def format_reference() -> str:
    """The table of all quantities that are measured with a text, in Markdown, for the book."""
    head = "| column | list in a record | unit | range | definition | source |\n|---|---|---|---|---|---|\n"
    rows = (
        f"| `{q.name}` | {f'`{q.plural}`' if q.plural else 'from `top_p_tokens`'} | {q.unit or '-'} "
        f"| {q.range or '-'} | {q.formula} | {q.source or '-'} |"
        for q in REGISTRY.values()
    )
    return head + "\n".join(rows) + "\n"
