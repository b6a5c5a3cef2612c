"""What is drawn of a batch is kept: a kill at any step costs no more than the steps since the last save."""

import copy
import inspect
import io
import zipfile
from types import SimpleNamespace

import pytest
import torch
from test_checking import create_longrope

import tiny
from model_families import configurations
from nucleoscope import quantities
from nucleoscope.measure import checking, decoding, generation, journal, model_facts, runs, sampling
from nucleoscope.measure.runs import complete_run
from nucleoscope.quantities import Quantity
from nucleoscope.store import results, run_folder

TEXTS = ["the cat sat on the", "in", "a long and winding road that leads to the other end", "she said", "of the", "it"]
EQUAL = [f"number {n} of the list" for n in range(6)]
NAMES = {"model_name": "tiny", "dataset_name": "cats"}
MAX_TOKENS = 9
OPTIONS = {"max_tokens": MAX_TOKENS, "batch_size": 6, "seed": 3, "variants": "none", "progress": False}


class Draws:
    """What `Sampler.draw` draws: (step, rows) each time; the process is "killed" right after the step ``fatal``."""

    def __init__(self, monkeypatch):
        self.steps, self.fatal, self.now, self.pace = [], None, 0.0, 0.0
        original = sampling.Sampler.draw

        def draw(sampler, logits, rows):
            step, found = len(sampler.steps), original(sampler, logits, rows)
            self.steps.append((step, list(rows)))
            self.now += self.pace
            if step == self.fatal:
                self.fatal = None
                raise tiny.Stopped
            return found

        monkeypatch.setattr(sampling.Sampler, "draw", draw)
        monkeypatch.setattr(journal, "read_clock", lambda: self.now)


@pytest.fixture
def draws(monkeypatch):
    return Draws(monkeypatch)


def complete(folder, model, texts=TEXTS, **options):
    """A run to its end: its records, and its run.json."""
    run = run_folder.RunFolder(folder, NAMES)
    with run:
        complete_run(run, model, tiny.create_tokenizer(), texts, **OPTIONS | options)
    assert not run.batches.exists()
    return results.load(folder / "measurements.pt"), results.load_info(folder)


def kill(draws, folder, model, step, pace, texts=TEXTS, **options):
    """A run that is killed right after it has drawn a step; each takes ``pace`` seconds. The steps that were drawn."""
    draws.fatal, draws.pace = step, pace
    draws.steps.clear()
    with pytest.raises(tiny.Stopped), run_folder.RunFolder(folder, NAMES) as run:
        complete_run(run, model, tiny.create_tokenizer(), texts, **OPTIONS | options)
    found = list(draws.steps)
    draws.steps.clear()
    return found


def end_some(model, texts=TEXTS):
    """Gives the model end-of-text tokens such that one row ends at its second token, and one at its fifth."""
    options = {name: value for name, value in OPTIONS.items() if name != "progress"}
    (batch,) = generation.measure(model, tiny.create_tokenizer(), texts, progress=False, **options)
    one, other = [record["tokens"].tolist() for record in batch.records if len(record["tokens"]) > 4][:2]
    model.generation_config.eos_token_id = [one[1], other[4]]
    return model


def assert_same(records, expected, exact=False):
    for one, other in zip(records, expected, strict=True):
        assert one["prompt"] == other["prompt"]
        assert one["tokens"].tolist() == other["tokens"].tolist()
        assert [ids.tolist() for ids in one["top_p_tokens"]] == [ids.tolist() for ids in other["top_p_tokens"]]
        for probs, wanted in zip(one["top_p_probs"], other["top_p_probs"], strict=True):
            assert torch.equal(probs, wanted) if exact else torch.allclose(probs, wanted, atol=1e-5)
        for name in quantities.find_columns():
            assert one[name] == (other[name] if exact else pytest.approx(other[name], rel=1e-5, abs=1e-5))


THOROUGH = ("float32", "bfloat16")
CASES = {
    "float32": (lambda: tiny.create_model(), None, TEXTS),
    "float64": (lambda: tiny.create_model().double(), None, TEXTS),
    "bfloat16": (lambda: tiny.create_model().bfloat16(), None, TEXTS),
    "float16": (lambda: tiny.create_model().half(), None, TEXTS),
    "sliding window": (lambda: tiny.create_model("mistral", sliding_window=4), None, TEXTS),
    "learned positions": (lambda: tiny.create_model("gpt2", n_positions=64).double(), None, TEXTS),
    "own cache": (lambda: tiny.create_model(), decoding.OWN_CACHE, TEXTS),
    "own cache, bfloat16": (lambda: tiny.create_model().bfloat16(), decoding.OWN_CACHE, TEXTS),
    "equal lengths": (lambda: tiny.create_model(), decoding.EQUAL_LENGTHS, EQUAL),
    "equal lengths, bfloat16": (lambda: tiny.create_model().bfloat16(), decoding.EQUAL_LENGTHS, EQUAL),
    "whole prefixes": (lambda: tiny.create_model(), decoding.WHOLE_PREFIXES, EQUAL),
    "whole prefixes, bfloat16": (lambda: tiny.create_model().bfloat16(), decoding.WHOLE_PREFIXES, EQUAL),
    "state in its modules": (lambda: configurations.build_model("recurrent_gemma"), decoding.EQUAL_LENGTHS, EQUAL),
    "state-space": (lambda: configurations.build_model("mamba"), None, EQUAL),
    "another position code beyond a length": (lambda: create_longrope(16), None, EQUAL),
}


@pytest.mark.parametrize(
    ("case", "pace"),
    [(case, 6) for case in CASES] + [(case, 2) for case in THOROUGH],
)
def test_a_kill_at_any_step_loses_the_steps_since_the_last_save_and_changes_nothing(
    tmp_path, draws, monkeypatch, case, pace
):
    """At 6 s a step each is saved, at 2 s every third; in half precision every bit is the same.

    At any step in `THOROUGH`, at some in the other cases.
    """
    create, way, texts = CASES[case]
    model = create()
    if way is not None:
        monkeypatch.setattr(generation.checking, "find_way", lambda *_: way)
    end_some(model, texts)
    draws.steps.clear()
    expected, _ = complete(tmp_path / "straight", model, texts)
    steps = [step for step, _ in draws.steps]
    assert steps == list(range(MAX_TOKENS))
    assert len({len(record["tokens"]) for record in expected}) > 2  # rows end early
    every = 1 if pace == 6 else 3
    for fatal in steps if case in THOROUGH else (2, 5, 8):
        folder = tmp_path / str(fatal)
        kill(draws, folder, model, fatal, pace, texts)
        found, info = complete(folder, model, texts)
        saved = fatal // every * every
        assert [step for step, _ in draws.steps] == steps[saved:]
        assert fatal + 1 - saved <= every
        assert info["continued_at_steps"] == ([[saved]] if saved else [])
        assert info["batches_continued"] == (1 if saved else 0)
        assert_same(found, expected, exact=model.dtype not in generation.EXACT)


def test_the_cases_need_what_they_are_named_for():
    assert model_facts.find_length_limit(create_longrope(16)) == 16
    lengths = {len(tiny.create_tokenizer()(text)["input_ids"]) for text in EQUAL}
    assert len(lengths) == 1
    (length,) = lengths
    assert length < 16 < length + MAX_TOKENS - 1
    assert checking.find_way(configurations.build_model("recurrent_gemma")) == decoding.EQUAL_LENGTHS
    assert checking.find_way(configurations.build_model("mamba")) == decoding.OWN_CACHE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_that_is_killed_again_and_again_is_measured_once(tmp_path, draws, dtype):
    model = end_some(tiny.create_model().to(dtype))
    expected, _ = complete(tmp_path / "straight", model)
    drawn = [kill(draws, tmp_path / "run", model, step, 6) for step in (1, 2, 5, 7)]
    found, info = complete(tmp_path / "run", model)
    drawn.append(list(draws.steps))
    assert [[step for step, _ in steps] for steps in drawn] == [[0, 1], [1, 2], [2, 3, 4, 5], [5, 6, 7], [7, 8]]
    assert info["continued_at_steps"] == [[1, 2, 5, 7]]
    assert_same(found, expected, exact=dtype == torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bar_says_when_steps_are_repeated(tmp_path, draws, capsys, dtype):
    model = end_some(tiny.create_model().to(dtype))
    kill(draws, tmp_path, model, 5, 6)
    capsys.readouterr()
    complete(tmp_path, model, progress=True)
    shown = capsys.readouterr().err
    assert ("repeating 5 steps" in shown) == (dtype == torch.bfloat16)
    assert "repeating" not in shown.split("\r")[-1]


def test_only_the_batch_in_progress_has_parts_and_a_finished_one_replaces_them(tmp_path, draws):
    model = end_some(tiny.create_model())
    expected, _ = complete(tmp_path / "straight", model, batch_size=2)
    run = run_folder.RunFolder(tmp_path / "run", NAMES)
    draws.pace = 6
    with tiny.stop_after(run, 1), run:
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, **OPTIONS | {"batch_size": 2})
    assert sorted(path.suffix for path in run.batches.iterdir()) == [".json", ".json", ".pt"]
    kill(draws, tmp_path / "run", model, 4, 6, batch_size=2)
    (done,) = run.batches.glob("*.pt")
    parts = sorted(path.name for path in run.batches.glob("*.steps"))
    assert parts == [f"{parts[0][:6]}-2-{step:06d}.steps" for step in range(4)]
    assert parts[0][:6] != done.stem
    assert_same(complete(tmp_path / "run", model, batch_size=2)[0], expected)


def test_nothing_is_saved_of_a_batch_that_takes_less_than_five_seconds(tmp_path, draws):
    kill(draws, tmp_path, tiny.create_model(), 4, 0.99)
    assert not list(tmp_path.glob("batches/*.steps"))
    kill(draws, tmp_path, tiny.create_model(), 6, 0.99)
    assert [path.name for path in tmp_path.glob("batches/*.steps")] == ["000000-6-000000.steps"]
    assert journal.SAVE_SECONDS == 5


def test_seconds_are_those_of_all_steps_that_were_kept(tmp_path, draws, monkeypatch):
    """Steps 0 to 3 take 24 s and are saved; the fifth is lost."""
    kill(draws, tmp_path, tiny.create_model(), 4, 6)
    monkeypatch.setattr("nucleoscope.measure.batching.time.perf_counter", lambda: draws.now)
    begun = draws.now
    _, info = complete(tmp_path, tiny.create_model())
    assert draws.now - begun == 5 * 6
    assert info["seconds"] == 24 + 30


# Parts that are not those of this batch


def list_parts(folder):
    return sorted(folder.glob("batches/*.steps"))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def rewrite(path, change):
    part = torch.load(path, weights_only=True)
    change(part)
    torch.save(part, path)


def exchange_bytes(path):
    """Turns over a bit of the largest tensor, the values: torch does not notice."""
    with zipfile.ZipFile(path) as archive:
        values = archive.read(
            max((part for part in archive.infolist() if "/data/" in part.filename), key=lambda part: part.file_size)
        )
    content = bytearray(path.read_bytes())
    content[content.index(values)] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)


DAMAGE = {
    "truncated": truncate,
    "empty": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"a part"),
    "changed bytes": exchange_bytes,
    "gone": lambda path: path.unlink(),
    "a list": lambda path: torch.save([1, 2], path),
    "nothing in it": lambda path: torch.save({}, path),
    "other prompts": lambda path: rewrite(path, lambda part: part.update(indices=[5, 4, 3, 2, 1, 0])),
    "another beginning": lambda path: rewrite(path, lambda part: part.update(start=1)),
    "another end": lambda path: rewrite(path, lambda part: part.update(end=part["end"] + 1)),
    "fewer rows": lambda path: rewrite(path, lambda part: part["rows"][0].pop()),
    "rows of another order": lambda path: rewrite(path, lambda part: part["rows"][0].reverse()),
    "a row that is a name": lambda path: rewrite(path, lambda part: part["rows"][0].__setitem__(0, "a")),
    "no rows": lambda path: rewrite(path, lambda part: part.update(rows=[[]])),
    "a token beyond the vocabulary": lambda path: rewrite(path, lambda part: part["tokens"].fill_(10**6)),
    "a candidate below the vocabulary": lambda path: rewrite(path, lambda part: part["ids"].fill_(-1)),
    "an empty nucleus": lambda path: rewrite(path, lambda part: part["sizes"].fill_(0)),
    "fewer probabilities": lambda path: rewrite(path, lambda part: part.update(probs=part["probs"][1:])),
    "a quantity less": lambda path: rewrite(path, lambda part: part.update(values=part["values"][1:])),
    "indices of another type": lambda path: rewrite(path, lambda part: part.update(indices=part["tokens"])),
    "sparse probabilities": lambda path: rewrite(path, lambda part: part.update(probs=part["probs"].to_sparse())),
    "tokens of another type": lambda path: rewrite(path, lambda part: part.update(tokens=part["tokens"].double())),
    "columns of another type": lambda path: rewrite(path, lambda part: part.update(columns=[["a"]])),
    "seconds that are no number": lambda path: rewrite(path, lambda part: part.update(seconds=float("nan"))),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("place", [0, 2])
def test_a_damaged_part_and_all_after_it_count_as_not_drawn(tmp_path, draws, damage, place):
    model = end_some(tiny.create_model())
    expected, _ = complete(tmp_path / "straight", model)
    kill(draws, tmp_path / "run", model, 5, 6)
    parts = list_parts(tmp_path / "run")
    assert len(parts) == 5
    DAMAGE[damage](parts[place])
    kill(draws, tmp_path / "run", model, place + 1, 6)  # the second look must not find what is left of the first
    assert len(list_parts(tmp_path / "run")) == place + 1
    found, info = complete(tmp_path / "run", model)
    assert [step for step, _ in draws.steps] == list(range(place + 1, MAX_TOKENS))
    assert info["continued_at_steps"] == [[*([place] if place else []), place + 1]]
    assert_same(found, expected)


@pytest.mark.parametrize("later", [2, 5, "auto"])
def test_parts_of_another_batch_size_are_removed(tmp_path, draws, later):
    model = end_some(tiny.create_model())
    expected, _ = complete(tmp_path / "straight", model)
    kill(draws, tmp_path / "run", model, 5, 6)
    found, info = complete(tmp_path / "run", model, batch_size=later)
    assert draws.steps[0][0] == 0
    assert info["batches_continued"] == 0
    assert_same(found, expected)


def test_parts_of_other_settings_are_removed_with_overwrite_and_never_without(tmp_path, draws):
    model = end_some(tiny.create_model())
    kill(draws, tmp_path, model, 5, 6)
    with pytest.raises(FileExistsError, match="has results with different settings"):
        run_folder.RunFolder(tmp_path, NAMES | {"seed": 4})
    assert len(list_parts(tmp_path)) == 5
    with run_folder.RunFolder(tmp_path, NAMES | {"seed": 4}, overwrite=True) as run:
        assert list_parts(tmp_path) == []
        assert run.load_parts([0, 1, 2, 3, 4, 5]) == []


def test_parts_with_other_quantities_are_measured_again(tmp_path, draws, capsys):
    model = end_some(tiny.create_model())
    kill(draws, tmp_path, model, 5, 6)
    late = Quantity.from_function("late", lambda logits, candidates, embedding: logits.max(-1).values)
    quantities.register(late)
    try:
        records, info = complete(tmp_path, model)
        assert [len(record["late"]) for record in records] == [len(record["tokens"]) for record in records]
    finally:
        quantities.unregister("late")
    assert draws.steps[0][0] == 0
    assert info["batches_continued"] == 0
    assert "discarded 1 batch with different quantities, to be measured again" in capsys.readouterr().out


def test_quantities_in_another_order_are_the_same(tmp_path, draws, monkeypatch):
    model = end_some(tiny.create_model())
    expected, _ = complete(tmp_path / "straight", model)
    kill(draws, tmp_path / "run", model, 5, 6)
    monkeypatch.setattr(quantities, "REGISTRY", dict(reversed(quantities.REGISTRY.items())))
    found, info = complete(tmp_path / "run", model)
    assert info["continued_at_steps"] == [[5]]
    assert_same(found, expected)


def test_a_batch_that_was_halved_continues_in_the_half_that_was_in_progress(tmp_path, draws):
    """From the sixth step on, no more than three rows fit. The halves' parts are not taken for the whole's."""
    model = tiny.create_model()
    expected, _ = complete(tmp_path / "straight", model)
    limited, original = copy.copy(model), model.forward

    def forward(*args, **kwargs):
        mask = kwargs["attention_mask"]
        if len(kwargs["input_ids"]) > 3 and mask.shape[1] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(*args, **kwargs)

    limit = max(len(tiny.create_tokenizer()(text)["input_ids"]) for text in TEXTS) + 4
    forward.__signature__ = inspect.signature(original)
    limited.forward = forward
    drawn = kill(draws, tmp_path / "run", limited, 7, 6, skip_check=True)
    halved = [place for place, (step, _) in enumerate(drawn) if step == 0]
    assert len(halved) == 2  # the whole, then its first half
    assert len({path.name.rpartition("-")[0] for path in list_parts(tmp_path / "run")}) == 2
    found, info = complete(tmp_path / "run", limited, skip_check=True)
    assert info["batches"] == [3, 3]
    assert info["continued_at_steps"] == [[7]]
    assert_same(found, expected)


def test_a_part_holds_its_steps_to_the_bit(draws, tmp_path):
    model = end_some(tiny.create_model())
    kept = []
    original = journal.pack_steps

    def pack(steps, columns, layout):
        part = original(steps, columns, layout)
        stream = io.BytesIO()
        torch.save(part, stream)
        stream.seek(0)
        kept.append((steps, torch.load(stream, weights_only=True) | {"start": 0, "end": len(steps)}, columns))
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "pack_steps", pack)
        kill(draws, tmp_path, model, 8, 2)
    assert len(kept) == 2
    for steps, part, columns in kept:
        for one, other in zip(
            steps, journal.unpack_steps(part | {"seconds": 1.0, "continued": []}, columns), strict=True
        ):
            assert one.rows == other.rows
            assert torch.equal(one.tokens, other.tokens)
            assert all(map(torch.equal, one.candidates, other.candidates))
            assert torch.equal(one.values, other.values)


# Without a folder, and what is seen


def test_without_a_folder_nothing_is_saved(draws, tmp_path, monkeypatch):
    draws.pace = 6
    monkeypatch.chdir(tmp_path)
    (batch,) = generation.measure(tiny.create_model(), tiny.create_tokenizer(), TEXTS, **OPTIONS)
    assert len(batch.records) == 6
    assert batch.continued == []
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_starts_at_what_is_there_and_ends_at_the_tokens_written(tmp_path, draws, monkeypatch):
    model = end_some(tiny.create_model())
    bars = []
    original = generation.begin_at

    def begin(bar, *change):
        original(bar, *change)
        bars.append((bar, bar.n, bar.initial, bar.total))

    monkeypatch.setattr(generation, "begin_at", begin)
    complete(tmp_path / "straight", model, progress=True)
    kill(draws, tmp_path / "run", model, 6, 6, progress=True)
    records, _ = complete(tmp_path / "run", model, progress=True)
    assert bars[0][1:] == (0, 0, 6 * MAX_TOKENS)
    bar, n, initial, total = bars[-1]
    lengths = [len(record["tokens"]) for record in records]
    there = sum(min(6, length + 1) for length in lengths)  # with the tokens that ended rows
    assert n == initial == there
    assert total == sum(MAX_TOKENS if length > 5 else length + 1 for length in lengths)
    assert bar.n == bar.total == bars[0][0].n == sum(lengths)  # as the summary says


def test_a_resumed_run_says_what_was_there(tmp_path, draws, capsys):
    model = tiny.create_model()
    complete(tmp_path / "straight", model)
    assert "resuming" not in capsys.readouterr().out
    kill(draws, tmp_path / "run", model, 6, 6)
    complete(tmp_path / "run", model)
    assert (
        "resuming: 0 of 6 prompts are finished, and the batch in progress (6 prompts) has reached step 6\n"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("measured", "n_prompts", "end", "line"),
    [
        (0, 5, 0, ""),
        (2, 5, 0, "resuming: 2 of 5 prompts are finished"),
        (1, 5, 0, "resuming: 1 of 5 prompts is finished"),
        (1, 2, 3, "resuming: 1 of 2 prompts is finished, and the batch in progress (1 prompt) has reached step 3"),
        (0, 1, 1, "resuming: 0 of 1 prompt is finished, and the batch in progress (1 prompt) has reached step 1"),
    ],
)
def test_what_was_there_is_said_in_grammatical_words(measured, n_prompts, end, line):
    folder = SimpleNamespace(load_parts=lambda _: [{"end": end}] if end else [])
    assert runs._describe_begun(folder, measured, n_prompts, [[0]]) == line


# Folders and disks


def test_a_run_whose_folder_was_taken_over_writes_no_part(tmp_path, draws, monkeypatch):
    taken = SimpleNamespace(done=False)
    original = generation.Journal.save_if_due

    def save(keeper):
        if keeper.saved == 3 and not taken.done:
            (tmp_path / ".lock").write_text("process 7 on another-node\n")
            taken.done = True
        original(keeper)

    monkeypatch.setattr(generation.Journal, "save_if_due", save)
    draws.pace = 6
    with (
        pytest.raises(BlockingIOError, match="was taken over by process 7 on another-node"),
        run_folder.RunFolder(tmp_path, NAMES) as run,
    ):
        complete_run(run, tiny.create_model(), tiny.create_tokenizer(), TEXTS, **OPTIONS)
    assert len(list_parts(tmp_path)) == 3


def test_a_disk_that_is_full_ends_the_run_and_what_was_saved_is_kept(small_disk, draws, monkeypatch, tmp_path):
    model = end_some(tiny.create_model())
    expected, _ = complete(tmp_path / "straight", model)
    original, filler = generation.Journal.save_if_due, small_disk / "filler"

    def save(keeper):
        if keeper.saved == 3 and not filler.exists():
            with pytest.raises(OSError, match="No space"):
                filler.write_bytes(b"x" * 2**20)
        original(keeper)

    monkeypatch.setattr(generation.Journal, "save_if_due", save)
    draws.pace = 6
    folder = small_disk / "cats" / "tiny"
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*\.steps'"),
        run_folder.RunFolder(folder, NAMES) as run,
    ):
        complete_run(run, model, tiny.create_tokenizer(), TEXTS, **OPTIONS)
    assert len(list_parts(folder)) == 3
    assert not list(folder.rglob("*.part"))
    monkeypatch.setattr(generation.Journal, "save_if_due", original)
    filler.unlink()
    draws.steps.clear()
    found, info = complete(folder, model)
    assert draws.steps[0][0] == 3
    assert info["continued_at_steps"] == [[3]]
    assert_same(found, expected)
