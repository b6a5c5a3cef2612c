"""Hidden states that are kept while a run is measured: those that its logits followed from, or none."""

import pytest
import torch
from test_scoring import create_capped_model
from test_second_look import CONTINUED, OPTIONS, TEXTS, complete

import tiny
from nucleoscope.measure import generation, kept_states, scoring, second_look
from nucleoscope.measure.encoding import encode
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import Settings
from nucleoscope.store import nulls, results, run_folder


def run(folder, model, continued=None, **options):
    """A run to the end of its measuring, and the states that it has kept: {prompt: (tokens, states)}."""
    found = {}
    original = run_folder.RunFolder.load_states

    def load(self, prompts):
        found.update(original(self, range(len(TEXTS))))
        return original(self, prompts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "load_states", load)
        complete(folder, model, continued=continued, **options)
    return found


def read_states(model, ids, tokens):
    """The states (T, d) before each of a text's tokens, read by the base model on its own."""
    with torch.no_grad():
        return model.base_model(input_ids=torch.tensor([[*ids, *tokens]]))[0][0, len(ids) - 1 : -1]


@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
@pytest.mark.parametrize("continued", [None, CONTINUED], ids=["generate", "score"])
def test_states_are_those_before_each_token_in_any_batch(tmp_path, continued, batch_size):
    model = tiny.create_model()
    kept = run(tmp_path, model, continued, batch_size=batch_size)
    records = results.load(tmp_path / "measurements.pt")
    assert sorted(kept) == list(range(len(TEXTS)))
    for prompt, ids in enumerate(encode(tiny.create_tokenizer(), TEXTS).ids):
        tokens, states = kept[prompt]
        assert tokens == records[prompt]["tokens"].tolist()
        torch.testing.assert_close(states, read_states(model, ids, tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("continued", [None, CONTINUED], ids=["generate", "score"])
def test_no_text_is_read_again_and_what_is_found_is_the_same(tmp_path, monkeypatch, continued):
    again, _, info = complete(tmp_path / "kept", continued=continued)
    read = []
    original = scoring.TextForward.compute_states

    def compute(self, ids, starts):
        read.extend(ids)
        return original(self, ids, starts)

    monkeypatch.setattr(run_folder.RunFolder, "load_states", lambda *_: {})
    monkeypatch.setattr(second_look.TextForward, "compute_states", compute)
    whole, _, other = complete(tmp_path / "read", continued=continued)
    assert len(read) == (len(TEXTS) if continued is None else 2 * len(TEXTS))
    read.clear()
    monkeypatch.undo()
    monkeypatch.setattr(second_look.TextForward, "compute_states", compute)
    complete(tmp_path / "third", continued=continued)
    assert len(read) == (0 if continued is None else len(TEXTS))
    assert info["tokens"] == other["tokens"]
    assert (again["k"] == whole["k"]).all()
    assert again["entropy"].to_numpy() == pytest.approx(whole["entropy"].to_numpy(), abs=1e-4)
    drawn = again["null"] != "gaussian_states"
    for name in ("prompt", "step", "null", "candidates", "geometry"):
        assert (again[name] == whole[name]).all()
    assert again["cosine"][drawn].to_numpy() == pytest.approx(whole["cosine"][drawn].to_numpy(), abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("lost", [{0}, {1, 3}, {0, 1, 2, 3}])
def test_only_what_was_not_kept_is_read(tmp_path, monkeypatch, lost):
    whole, _, _ = complete(tmp_path / "whole")
    original, read = run_folder.RunFolder.load_states, []

    def load(self, prompts):
        return {prompt: each for prompt, each in original(self, prompts).items() if prompt not in lost}

    def compute(self, ids, starts):
        read.extend(ids)
        return original_states(self, ids, starts)

    original_states = scoring.TextForward.compute_states
    monkeypatch.setattr(run_folder.RunFolder, "load_states", load)
    monkeypatch.setattr(second_look.TextForward, "compute_states", compute)
    part, _, _ = complete(tmp_path / "part")
    assert len(read) == len(lost)
    assert (part["k"] == whole["k"]).all()
    assert (part["prompt"] == whole["prompt"]).all()


def test_states_of_other_tokens_are_not_used(tmp_path, monkeypatch):
    whole, _, _ = complete(tmp_path / "whole")
    original = run_folder.RunFolder.load_states

    def load(self, prompts):
        return {
            prompt: ([tokens[0] + 1, *tokens[1:]], states + 1)
            for prompt, (tokens, states) in original(self, prompts).items()
        }

    monkeypatch.setattr(run_folder.RunFolder, "load_states", load)
    other, _, _ = complete(tmp_path / "other")
    assert (other["k"] == whole["k"]).all()


def test_of_a_model_whose_output_layer_alone_does_not_make_its_logits_texts_are_read_again(tmp_path, monkeypatch):
    model = create_capped_model()
    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "load_states", lambda *_: {})
        expected, _, _ = complete(tmp_path / "read", model, max_tokens=5, skip_check=True)
    found, _, _ = complete(tmp_path / "kept", model, max_tokens=5, skip_check=True)
    assert found.equals(expected)


def test_only_prompts_that_may_be_looked_at_are_kept_and_their_bytes_are_bounded(monkeypatch):
    model = tiny.create_model()
    inputs = encode(tiny.create_tokenizer(), ["a"] * 300)
    settings = Settings(variants="default", max_tokens=50).check()
    kept = second_look.keep_states(model, inputs, settings)
    order = [text.prompt for text in second_look.choose_texts(inputs, Texts(), settings.seed)]
    assert len(order) == 100
    assert set(order) < kept.wanted
    assert len(kept.wanted) == 200
    monkeypatch.setattr(kept_states, "MOST_BYTES", 10 * 50 * model.config.hidden_size * 4)
    assert second_look.keep_states(model, inputs, settings).wanted == set(order[:10])
    assert second_look.keep_states(model, inputs, Settings(variants="none").check()) is None


class Texts:
    """A folder whose prompts all have 50 tokens."""

    def load_tokens(self, prompts):
        return {prompt: [0] * 50 for prompt in prompts}


def test_no_hook_is_left_and_a_plain_run_has_none(tmp_path, monkeypatch):
    model = tiny.create_model()
    complete(tmp_path / "run", model)
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    monkeypatch.setattr(head, "register_forward_pre_hook", lambda *_: pytest.fail("a hook in a plain run"))
    with run_folder.RunFolder(tmp_path / "plain", {}) as folder:
        complete_run(folder, model, tiny.create_tokenizer(), TEXTS, **OPTIONS | {"variants": "none"})


def test_a_model_whose_output_layer_is_called_otherwise_keeps_nothing():
    model = tiny.create_model()
    kept = kept_states.KeptStates(model, [0, 1], 3)
    kept.begin([0, 1])
    with torch.inference_mode(), kept.catch():
        logits = model(input_ids=torch.tensor([[5, 6], [7, 8]])).logits[:, -1]
        model(input_ids=torch.tensor([[5, 6]]))  # a third row
    kept.add(logits, [0, 1])
    kept.finish([[9], [9]])
    assert kept.take() == {}
    kept.begin([0, 1])
    with torch.inference_mode(), kept.catch():
        logits = model(input_ids=torch.tensor([[5, 6], [7, 8]])).logits[:, -1]
    with torch.inference_mode():
        kept.add(logits.flip(0), [0, 1])  # in another order than the states
    kept.finish([[9], [9]])
    assert kept.take() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_was_killed_in_a_batch_looks_at_the_same_tokens(tmp_path, monkeypatch, dtype):
    """In bfloat16 the steps are repeated, and the files are the same to the bit."""
    monkeypatch.setattr(generation, "Journal", EagerJournal)
    model = tiny.create_model().to(dtype)
    complete(tmp_path / "straight", model)

    def stop(self, indices, states):
        raise tiny.Stopped

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.RunFolder, "save_states", stop)
        with pytest.raises(tiny.Stopped):
            complete(tmp_path / "killed", model)
    complete(tmp_path / "killed", model)
    assert any(results.load_info(tmp_path / "killed")["continued_at_steps"])
    if dtype == torch.bfloat16:
        names = ("straight", "killed")
        assert len({(tmp_path / name / nulls.NULLS).read_bytes() for name in names}) == 1
    straight, killed = (nulls.load(tmp_path / name) for name in ("straight", "killed"))
    assert (straight["prompt"] == killed["prompt"]).all()


class EagerJournal(generation.Journal):
    """Saves every step."""

    def save_if_due(self):
        self.due = 0
        super().save_if_due()


def test_a_damaged_file_of_states_counts_as_none(tmp_path):
    folder = run_folder.RunFolder(tmp_path / "run", {})
    with folder:
        folder.save_states([4, 2], {2: ([7, 8], torch.ones(2, 3)), 4: ([7], torch.zeros(1, 3))})
        assert sorted(folder.load_states([2, 4, 5])) == [2, 4]
        assert list(folder.load_states([4])) == [4]
        path = folder.batches / "000002.states"
        folder.save_states([3], {3: ([7, 8], torch.ones(1, 3))})  # fewer states than tokens
        assert sorted(folder.load_states([2, 3])) == [2]
        path.write_bytes(path.read_bytes()[:50])
        assert folder.load_states([2, 4]) == {}
