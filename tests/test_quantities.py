"""The registry of quantities, and the worked example of the page "Add a quantity"."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tiny
from nucleoscope import quantities
from nucleoscope.quantities import Quantity
from nucleoscope.store import results
from nucleoscope.views import cards, strip
from nucleoscope.views.token_text import Reader

ROOT = Path(__file__).parents[1]


@pytest.fixture
def novelty():
    yield quantities.register(Quantity.from_function("novelty", len, label="novelty", unit="nats"))
    quantities.unregister("novelty")


@pytest.fixture
def record():
    found = tiny.create_record("the rain in Spain")
    return found | {"novelty": np.linspace(0, 1, len(found["tokens"])).tolist()}


def test_names_plurals_and_columns_are_all_different():
    names = [quantity.name for quantity in quantities.BUILT_IN]
    plurals = [quantity.plural for quantity in quantities.list_recorded()]
    assert len({*names, *plurals}) == len(names) + len(plurals)


def test_every_quantity_has_a_label_a_range_and_a_definition():
    assert all(q.label and q.range and q.formula for q in quantities.BUILT_IN)
    assert all(f"| `{q.name}` |" in quantities.format_reference() for q in quantities.BUILT_IN)


def test_a_registered_quantity_is_in_tables_tints_and_titles(novelty, record):
    table = results.tabulate([record], "tiny", "math")
    assert table["novelty"].tolist() == record["novelty"]
    assert quantities.find_title("novelty") == "novelty (nats)"
    assert quantities.list_titles()["novelty"] == "novelty (nats)"
    assert '"novelty"' in strip.render_strip(record, Reader(tiny.create_tokenizer(bos=False)))
    token = cards.Token(1, record["top_p_tokens"][0], record["top_p_probs"][0], {"novelty": 0.25})
    assert cards.find_value(token, "novelty") == 0.25


def test_a_quantity_that_is_not_registered_here_keeps_its_column(record):
    table = results.tabulate([record], "tiny", "math")
    assert table["novelty"].tolist() == record["novelty"]
    assert quantities.find_title("novelty") == "novelty"


def test_the_worked_example_of_the_page_runs_as_written():
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "book/use/add-a-quantity.md").read_text(), re.DOTALL)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # two tests run side by side
    done = subprocess.run([sys.executable, "-c", example], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(printed) == 2
    assert all(0 < value <= 1 for values in printed for value in values)


def test_a_quantity_without_a_plural_has_its_name_in_a_record_and_no_two_share_one():
    quantities.register(Quantity("mine", "mine", lambda step: step.entropy))
    try:
        assert quantities.find_columns()["mine"] == "mine"
        with pytest.raises(ValueError, match="already used by another column"):
            quantities.register(Quantity("other", "other", lambda step: step.entropy, plural="mine"))
        quantities.register(Quantity("mine", "mine again", lambda step: step.entropy))  # replaced
    finally:
        quantities.unregister("mine")
