"""`Step` and `measure_step`: what is measured of the token taken, and quantities of one's own."""

import pytest
import torch

import oracle
import tiny
from messages import assert_one_line
from nucleoscope import quantities
from nucleoscope.measure import cosine, generation, scoring
from nucleoscope.measure.distribution import describe_distribution
from nucleoscope.measure.recording import measure_step
from nucleoscope.measure.runs import complete_run
from nucleoscope.measure.sampling import sample
from nucleoscope.measure.step import Step, list_ends
from nucleoscope.quantities import Quantity
from nucleoscope.store import results, run_folder

ROWS, VOCABULARY = 20, 300


def make_step(tokens=None, places=None, ties=False, ends=None) -> Step:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(ROWS, VOCABULARY, generator=generator)
    logits = logits.round() if ties else logits
    embedding = torch.randn(VOCABULARY, 8, generator=generator)
    distribution = describe_distribution(logits, 0.9)
    if tokens is None:
        places = sample(distribution.candidates, torch.rand(ROWS, generator=generator))
        tokens = distribution.candidates.ids[places]
    return Step(logits, distribution, tokens, cosine.find_directions(embedding), places, ends)


def compute_rank(p, token: int) -> int:
    return sorted(range(len(p)), key=lambda i: (-p[i], i)).index(token) + 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("drawn", [True, False])
def test_the_rank_of_a_token_counts_the_likelier_ones_and_equal_ones_of_lower_id(drawn, ties):
    step = make_step(ties=ties) if drawn else make_step(torch.arange(ROWS) * 7, ties=ties)
    for row, p in enumerate(oracle.compute_softmax(step.logits)):
        assert step.rank[row] == compute_rank(p.tolist(), int(step.tokens[row]))


def test_the_margin_is_the_difference_of_the_two_largest_probabilities():
    step = make_step()
    for found, p in zip(step.margin.tolist(), oracle.compute_softmax(step.logits), strict=True):
        first, second = sorted(p.tolist())[-2:][::-1]
        assert found == pytest.approx(first - second, rel=1e-5, abs=1e-7)


def test_the_margin_of_equal_tokens_is_0_and_that_of_a_single_token_1():
    for logits, expected in ((torch.zeros(1, 5), 0), (torch.tensor([[0.5]]), 1), (torch.tensor([[0.0, -200]]), 1)):
        directions = cosine.find_directions(torch.ones(logits.shape[1], 2))
        step = Step(logits, describe_distribution(logits, 0.9), torch.tensor([0]), directions)
        assert step.margin.tolist() == [expected]


def test_the_surprisal_of_a_drawn_token_is_that_of_the_same_token_read():
    drawn = make_step()
    read = make_step(drawn.tokens)
    assert torch.allclose(drawn.surprisal, read.surprisal, atol=1e-5)
    assert (drawn.rank == read.rank).all()


CPU = torch.device("cpu")


@pytest.mark.parametrize("ends", [[7], [0, 7, 299, 7], [], [-1, 7, VOCABULARY, 10**6]])
def test_the_probability_of_an_end_is_that_of_all_tokens_that_end_a_text_and_exist(ends):
    step = make_step(ends=list_ends(ends, CPU))
    known = sorted({end for end in ends if 0 <= end < VOCABULARY})
    expected = [float(p[known].sum()) for p in oracle.compute_softmax(step.logits)]
    assert step.end_probability.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-12)


def test_the_probability_of_an_end_in_the_nucleus_is_that_of_the_candidate():
    step = make_step()
    offsets = step.candidates.offsets.tolist()
    for row, start in enumerate(offsets[:-1]):
        ends = list_ends([int(step.candidates.ids[start])], CPU)
        assert make_step(ends=ends).end_probability[row] == pytest.approx(float(step.candidates.probs[start]), rel=1e-6)


def test_the_probability_of_an_end_is_1_at_most_and_unknown_if_the_ends_are():
    assert (make_step(ends=torch.arange(VOCABULARY)).end_probability <= 1).all()
    assert make_step().end_probability.isnan().all()


@pytest.mark.parametrize("mode", ["generate", "score"])
def test_the_probability_of_an_end_changes_no_other_number(mode):
    model, tokenizer, found = tiny.create_model(), tiny.create_tokenizer(), []
    every = quantities.list_recorded()
    for chosen in (every, [each for each in every if each.name != "end_probability"]):
        options = {"max_tokens": 8, "quantities": chosen, "progress": False}
        if mode == "score":
            (batch,) = scoring.measure(model, tokenizer, ["the"], [" cat sat on the mat"], **options)
        else:
            (batch,) = generation.measure(model, tokenizer, ["the"], **options)
        found.append(batch.records[0])
    assert len(found[0].pop("end_probabilities")) == len(found[0]["tokens"]) > 0
    assert found[0].keys() == found[1].keys()
    for name, one in found[0].items():
        pairs = zip(one, found[1][name], strict=True) if name.startswith("top_p") else [(one, found[1][name])]
        assert all(torch.equal(*pair) if isinstance(pair[0], torch.Tensor) else pair[0] == pair[1] for pair in pairs)


# A quantity of one's own


def find_likeliest(logits, candidates, embedding):
    """The largest probability of each token."""
    return logits.softmax(-1).amax(-1)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda *_: None, "cannot be computed: "),
        (lambda *_: 1 / 0, "cannot be computed: ZeroDivisionError: division by zero"),
        (lambda *_: "x", "cannot be computed: "),
        (lambda logits, *_: logits[:, 0] * 1j, "has complex values: they must be real numbers"),
    ],
)
def test_a_quantity_that_fails_is_named(function, reason):
    mine = Quantity.from_function("mine", function)
    with pytest.raises(ValueError, match=f"^quantity 'mine' {reason}") as caught:
        list(
            generation.measure(tiny.create_model(), tiny.create_tokenizer(), ["the"], quantities=[mine], progress=False)
        )
    assert_one_line(str(caught.value))


@pytest.fixture
def own():
    yield quantities.register(Quantity.from_function("largest", find_likeliest, label="largest probability"))
    quantities.unregister("largest")


def test_a_registered_quantity_is_in_records_with_the_built_in_ones(own):
    batches = generation.measure(
        tiny.create_model("llama"), tiny.create_tokenizer(), ["the", "a"], max_tokens=5, progress=False
    )
    for batch in batches:
        for record in batch.records:
            assert set(record) >= {"largest", "entropies", "ranks", "margins"}
            for largest, probs in zip(record["largest"], record["top_p_probs"], strict=True):
                assert largest == pytest.approx(float(probs[0]), rel=1e-5)


def test_a_quantity_may_be_passed_to_measure_alone():
    only = [Quantity.from_function("largest", find_likeliest)]
    for measured in (
        generation.measure(
            tiny.create_model("llama"), tiny.create_tokenizer(), ["the"], max_tokens=3, quantities=only, progress=False
        ),
        scoring.measure(
            tiny.create_model("llama"),
            tiny.create_tokenizer(),
            ["the"],
            [" cat"],
            max_tokens=3,
            quantities=only,
            progress=False,
        ),
    ):
        ((record,),) = [batch.records for batch in measured]
        assert set(record) == {"prompt", "tokens", "top_p_tokens", "top_p_probs", "largest"}
        assert len(record["largest"]) == len(record["tokens"])


def test_a_quantity_of_the_wrong_shape_is_named():
    wrong = Quantity.from_function("whole_row", lambda logits, candidates, embedding: logits)
    with pytest.raises(ValueError, match=r"quantity 'whole_row' has shape \(20, 300\): it must be \(20,\)"):
        measure_step(make_step(), [wrong])


@pytest.mark.parametrize("name", ["entropy", "prompt", "tokens", "entropies"])
def test_a_name_that_is_taken_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' is already used by another column"):
        quantities.register(Quantity.from_function(name, find_likeliest))


def test_a_name_that_is_no_identifier_is_refused():
    with pytest.raises(ValueError, match="must be a Python identifier"):
        Quantity.from_function("top three", find_likeliest)


def test_batches_that_lack_a_quantity_are_measured_again(tmp_path, capsys):
    model, tokenizer, texts = tiny.create_model(), tiny.create_tokenizer(), ["the", "in", "she said", "a"]
    options = {"max_tokens": 4, "batch_size": 2, "variants": "none", "progress": False}
    run = run_folder.RunFolder(tmp_path, {})
    with tiny.stop_after(run, 1), run:
        complete_run(run, model, tokenizer, texts, **options)
    quantities.register(Quantity.from_function("late", find_likeliest))
    try:
        run = run_folder.RunFolder(tmp_path, {})
        with run:
            complete_run(run, model, tokenizer, texts, **options)
        records = results.load(tmp_path / "measurements.pt")
        assert [len(record["late"]) for record in records] == [len(record["tokens"]) for record in records]
    finally:
        quantities.unregister("late")
    assert "discarded 1 batch with different quantities, to be measured again" in capsys.readouterr().out
