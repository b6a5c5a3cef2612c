"""Texts that are already there: the same numbers as generation and as a plain reference, by every road."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

import forks
import oracle
import tiny
from messages import assert_one_line
from model_families import configurations
from nucleoscope import quantities
from nucleoscope.data import prompts
from nucleoscope.measure import encoding, generation, scoring
from nucleoscope.measure.runs import complete_run
from nucleoscope.settings import LEAST_TEMPERATURE, Settings, list_deciding
from nucleoscope.store import results, run_folder

ROOT = Path(__file__).parents[2]
PROMPTS = ["the cat sat on the", "in", "a long and winding road that leads to the other end of it all", "she", "of the"]
TEXTS = [" mat", " the beginning there was a word and the word was", " is open", " said \N{PARTY POPPER}", " one"]
KINDS = {
    "llama": {},
    "llama, padded vocabulary": {"vocab_size": tiny.VOCAB + 20},
    "mistral": {},
    "mistral, window of 3": {"sliding_window": 3},
    "qwen3": {},
    "gpt2": {},
}
QUANTITIES = set(quantities.find_columns())


def score_texts(model, texts=TEXTS, before=PROMPTS, tokenizer=None, **parameters):
    """The records of `scoring.measure`, in prompt order."""
    found = {}
    tokenizer = tokenizer or tiny.create_tokenizer()
    for batch in scoring.measure(model, tokenizer, before, texts, progress=False, **parameters):
        found.update(zip(batch.indices, batch.records, strict=True))
    return [found[index] for index in range(len(texts))]


def generate_records(model, **parameters):
    """The records that generation gives for `PROMPTS`, in order, and the inputs that score the same tokens."""
    inputs = encoding.encode(tiny.create_tokenizer(), PROMPTS, max_tokens=parameters["max_tokens"])
    found = {}
    for batch in generation.measure(
        model, tiny.create_tokenizer(), PROMPTS, inputs=inputs, progress=False, **parameters
    ):
        found.update(zip(batch.indices, batch.records, strict=True))
    records = [found[index] for index in range(len(PROMPTS))]
    both = [ids + record["tokens"].tolist() for ids, record in zip(inputs.ids, records, strict=True)]
    return records, scoring.Texts(both, starts=[len(ids) for ids in inputs.ids])


def assert_same(one: list[dict], other: list[dict], tolerance: float = 1e-4) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.keys() == right.keys()
        assert left["prompt"] == right["prompt"]
        assert left["tokens"].tolist() == right["tokens"].tolist()
        assert [ids.tolist() for ids in left["top_p_tokens"]] == [ids.tolist() for ids in right["top_p_tokens"]]
        for name in QUANTITIES:
            assert left[name] == pytest.approx(right[name], abs=tolerance, rel=0), name
        for here, there in zip(left["top_p_probs"], right["top_p_probs"], strict=True):
            assert here.tolist() == pytest.approx(there.tolist(), abs=tolerance, rel=0)


# The same numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 2, "auto"])
def test_what_was_generated_is_measured_the_same_when_scored(kind, batch_size):
    model = tiny.create_model(kind.split(",")[0], **KINDS[kind])
    records, inputs = generate_records(model, max_tokens=20, seed=2)
    assert max(len(record["tokens"]) for record in records) == 20
    assert_same(score_texts(model, inputs=inputs, batch_size=batch_size), records)


def create_capped_model() -> Gemma2ForCausalLM:
    """A model that squeezes its logits after the output layer, and has full and sliding layers."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 8}
    settings = tiny.COMMON | {"initializer_range": 0.3} | shape | heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma2ForCausalLM(Gemma2Config(**settings, final_logit_softcapping=3.0)).eval()


def test_a_model_that_caps_its_logits_is_measured_by_its_own_logits():
    model = create_capped_model()
    records, inputs = generate_records(model, max_tokens=16)
    assert_same(score_texts(model, inputs=inputs), records)
    reader = scoring.TextForward(model)
    with torch.inference_mode():
        list(reader.compute_logits(inputs.ids, inputs.starts))
    assert reader.reading == scoring.ALONE


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen3", "gpt2"])
def test_ordinary_models_have_their_output_layer_called_apart(kind):
    reader = scoring.TextForward(tiny.create_model(kind))
    with torch.inference_mode():
        list(reader.compute_logits([[0, 5, 6, 7]], [2]))
    assert reader.reading == scoring.BATCHED


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_surprisals_are_those_of_a_plain_log_softmax(kind):
    model, tokenizer = tiny.create_model(kind), tiny.create_tokenizer()
    for prompt, text, record in zip(PROMPTS, TEXTS, score_texts(model), strict=True):
        before, after = (tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"])
        assert record["prompt"] == prompt
        assert record["tokens"].tolist() == after
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + after])).logits[0]
        expected = -logits.double().log_softmax(-1)[range(len(before) - 1, len(before + after) - 1), after]
        assert record["surprisals"] == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1, 1.7])
def test_softmax_of_the_logits_over_the_temperature_is_measured(temperature):
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    for prompt, text, record in zip(PROMPTS, TEXTS, score_texts(model, temperature=temperature), strict=True):
        before, after = (tokenizer(prompt)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([before + after])).logits[0, len(before) - 1 : -1].double()
        for step, p in enumerate((logits / temperature).softmax(-1).numpy()):
            candidates = oracle.find_nucleus(p, 0.9)
            assert record["top_p_tokens"][step].tolist() == candidates
            expected = {
                "entropies": oracle.compute_entropy(oracle.compute_q(p[candidates])),
                "full_entropies": oracle.compute_entropy(p.tolist()),
                "full_varentropies": oracle.compute_varentropy(p.tolist()),
                "surprisals": -math.log(p[after[step]]),
                "ranks": 1 + sum(p > p[after[step]]),
                "margins": sorted(p)[-1] - sorted(p)[-2],
                "end_probabilities": p[tiny.EOS],
            }
            for name, value in expected.items():
                assert record[name][step] == pytest.approx(value, rel=1e-4, abs=1e-4), (name, step)


def test_a_token_outside_its_nucleus_is_measured_too():
    outside = [
        surprisal
        for record in score_texts(tiny.create_model())
        for token, ids, surprisal in zip(
            record["tokens"].tolist(), record["top_p_tokens"], record["surprisals"], strict=True
        )
        if token not in ids.tolist()
    ]
    assert outside  # a random model did not expect these texts
    assert all(2.3 < surprisal < 1000 for surprisal in outside)  # below a probability of 0.1


def test_a_model_that_sees_padding_reads_each_text_alone():
    """A hook stands for that: hidden states depend on the width of a batch, if it has several rows."""
    model = tiny.create_model()
    expected = score_texts(model)

    def spread(module, args, output):
        if len(output[0]) > 1:
            output[0].mul_(1 + output[0].shape[1] / 10)

    handle = model.model.register_forward_hook(spread)
    assert_same(score_texts(model), expected)
    handle.remove()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, torch.float32) for kind in ("electra", "rembert", "roformer", "mamba")]
    + [(kind, torch.bfloat16) for kind in ("mamba", "mamba2", "electra")],
)
def test_a_model_whose_output_layer_may_expect_something_else_is_measured_by_its_own_logits(kind, dtype):
    """In ELECTRA, RemBERT and RoFormer other layers come before it; Mamba's is in another data type than its states."""
    model, row = configurations.build_model(kind).to(dtype), [20, 30, 40, 50, 60, 70]
    with torch.inference_mode():
        found = torch.cat(list(scoring.TextForward(model).compute_logits([row], [2])))
        expected = model(input_ids=torch.tensor([row[:-1]]), use_cache=False).logits[0, 1:]
    torch.testing.assert_close(found.to(expected), expected, rtol=1e-5, atol=1e-5)


def test_a_model_whose_logits_depend_on_the_length_of_the_text_reads_it_anew_for_each_token():
    """ProphetNet: its logits at a token are others if more tokens follow, whichever they are."""
    model = configurations.build_model("prophetnet")
    row, reader = [20, 30, 40, 50, 60, 70], scoring.TextForward(model)
    with torch.inference_mode():
        found = torch.cat(list(reader.compute_logits([row], [2])))
        expected = torch.cat([model(input_ids=torch.tensor([row[:end]])).logits[:, -1] for end in range(2, 6)])
        whole = model(input_ids=torch.tensor([row])).logits[0, 1:5]
    assert reader.reading == scoring.PREFIXES
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (whole - expected).abs().max() > 0.1


def test_batches_pieces_and_the_tokenizers_padding_change_nothing(monkeypatch):
    model, tokenizer = (
        tiny.create_model().double(),
        tiny.create_tokenizer(pad=True),
    )  # rounding leaves no trace in float32
    whole = score_texts(model)
    for batch_size in (1, 2, 3, 5):
        assert_same(score_texts(model, batch_size=batch_size), whole, 1e-5)
    assert_same(score_texts(model, batches=[[3, 0], [4, 2, 1]]), whole, 1e-5)
    tokenizer.padding_side = "left"
    assert_same(score_texts(model, tokenizer=tokenizer), whole, 1e-5)
    monkeypatch.setattr(scoring, "PIECE_CPU", 4 * tiny.VOCAB)
    assert_same(score_texts(model), whole, 1e-5)


def test_the_logits_of_a_whole_batch_never_exist(monkeypatch):
    monkeypatch.setattr(scoring, "PIECE_CPU", 4 * tiny.VOCAB)
    model, sizes = tiny.create_model(), []
    model.lm_head.register_forward_hook(lambda module, args, output: sizes.append(output.numel() // tiny.VOCAB))
    score_texts(model)
    probed = sizes[:6]  # the check of causality, and the comparisons with the model's own logits
    assert max(probed) <= scoring.PROBE
    assert max(sizes[6:]) == 4


def test_auto_batches_hold_the_tokens_that_are_read_at_once():
    inputs = scoring.Texts([[1] * 1000] * 3 + [[1] * 100] * 50, starts=[1] * 53)
    batches = scoring.plan_batches(tiny.create_model(), inputs, Settings())
    assert sorted(index for batch in batches for index in batch) == list(range(53))
    assert [len(batch) for batch in batches] == [1, 1, 1, 10, 10, 10, 10, 10]  # 1024 tokens, padding included
    twenty = Settings(batch_size=20)
    assert [len(batch) for batch in scoring.plan_batches(tiny.create_model(), inputs, twenty, list(range(30)))] == [
        20,
        10,
    ]


# Prompt and text as tokens


@pytest.mark.parametrize("prompt", ["", "the", "the ", "of the\n", "on", "<eos>", "\N{FOX FACE}", "שלום"])
@pytest.mark.parametrize("text", ["e", " mat", "\n", "\n\n the", "ing", "\N{FOX FACE}", "<eos> more", "عالم"])
def test_the_prompt_keeps_its_ids_and_the_text_reads_on_behind_it(prompt, text):
    tokenizer = tiny.create_tokenizer()
    ids = scoring.encode_text(encoding.Encoder(tokenizer), prompt, text)
    assert tokenizer.decode(tokenizer(prompt)["input_ids"] + ids) == "<bos>" + prompt + text
    (both,) = scoring.encode(tokenizer, [prompt], [text]).ids
    assert both == encoding.encode(tokenizer, [prompt]).ids[0] + ids


def test_a_token_over_the_joint_is_taken_apart():
    tokenizer = tiny.create_tokenizer()
    assert len(tokenizer("on", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.convert_ids_to_tokens(scoring.encode_text(encoding.Encoder(tokenizer), "o", "n the")) == [
        "n",
        "Ġthe",
    ]


def test_no_space_comes_in_with_a_tokenizer_that_puts_one_first():
    pieces = ["▁", "a", "b", "▁a", "▁b", "\n", "ab", "<unk>"]
    merges = [("▁", "a"), ("▁", "b"), ("a", "b")]
    core = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(split=False), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core)
    assert tokenizer.convert_ids_to_tokens(tokenizer("b")["input_ids"]) == ["▁b"]
    for prompt, text, expected in [("a", " b", ["▁b"]), ("b", "a", ["a"]), ("a", "b", ["b"]), ("a ", "b", ["b"])]:
        found = scoring.encode_text(encoding.Encoder(tokenizer), prompt, text)
        assert tokenizer.convert_ids_to_tokens(found) == expected, (prompt, text)


def test_chat_scores_the_text_as_the_assistants_reply():
    tokenizer = tiny.create_tokenizer(chat=True)
    inputs = scoring.encode(tokenizer, ["the cat"], ["sat"], "chat")
    assert tokenizer.decode(inputs.ids[0]) == "<bos>[user] the cat<eos>[assistant] sat"
    assert inputs.starts == [len(encoding.encode(tokenizer, ["the cat"], "chat").ids[0])]
    (record,) = score_texts(tiny.create_model(), ["sat"], ["the cat"], tokenizer, prompt_format="chat")
    assert tokenizer.decode(record["tokens"]) == "sat"


def test_an_empty_prompt_starts_from_the_beginning_of_text_token():
    with_bos = tiny.create_tokenizer()
    silent = tiny.create_tokenizer(bos=False)
    silent.bos_token = "<bos>"  # it has the token and does not put it in front by itself
    for tokenizer in (with_bos, silent):
        inputs = scoring.encode(tokenizer, [""], ["the cat"])
        assert inputs.ids[0][0] == tiny.BOS
        assert inputs.starts == [1]


def test_an_empty_prompt_starts_where_generation_does_without_a_beginning_of_text_token_too():
    tokenizer, model = tiny.create_tokenizer(bos=False), tiny.create_model()
    assert scoring.encode(tokenizer, [""], ["the cat"]).ids[0][0] == tiny.EOS
    (batch,) = generation.measure(model, tokenizer, [""], max_tokens=12, progress=False)
    (written,) = batch.records
    ids = [tiny.EOS, *written["tokens"].tolist()]
    inputs = scoring.Texts([ids], starts=[1])
    (batch,) = scoring.measure(model, tokenizer, [""], [""], inputs=inputs, progress=False)
    assert_same(batch.records, [written], 1e-4)
    with pytest.raises(ValueError, match="a prompt is empty"):
        scoring.encode(tiny.create_tokenizer(bos=False, eos=False), [""], ["the cat"])


def test_max_tokens_cuts_the_text_and_the_context_cuts_the_prompt_as_in_generation():
    tokenizer = tiny.create_tokenizer(bos=False)
    before = ["the", "the " * 50]
    inputs = scoring.encode(tokenizer, before, [" one two three four", " one"], context=20, max_tokens=8)
    written = encoding.encode(tokenizer, before, context=20, max_tokens=8)
    assert [ids[:start] for ids, start in zip(inputs.ids, inputs.starts, strict=True)] == written.ids
    assert inputs.truncated == written.truncated == [1]
    assert inputs.texts_truncated == [0]
    assert len(inputs.ids[0]) - inputs.starts[0] == 8


def test_a_text_may_reach_the_last_position_of_the_context():
    model = tiny.create_model("gpt2", n_positions=16)
    (record,) = score_texts(model, ["the " * 50], ["the " * 50], max_tokens=8)
    assert len(record["tokens"]) == 8


# Runs


def fill_folder(folder, stop_after=None, **parameters):
    """Scores `TEXTS` into a run, as the notebook does; optionally stops after so many batches."""
    run = run_folder.RunFolder(folder, {"mode": "score"})
    with tiny.stop_after(run, stop_after), run:
        options = {"progress": False, "variants": "none"} | parameters
        complete_run(run, tiny.create_model().double(), tiny.create_tokenizer(), PROMPTS, TEXTS, **options)
    return results.load(folder / "measurements.pt") if run.finished else None


@pytest.mark.parametrize("later_size", [2, 4])
def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_numbers(tmp_path, later_size):
    straight = fill_folder(tmp_path / "straight", batch_size=2)
    assert fill_folder(tmp_path / "stopped", batch_size=2, stop_after=1) is None
    assert len(run_folder.RunFolder(tmp_path / "stopped", {"mode": "score"}).list_batches()) == 1
    assert_same(fill_folder(tmp_path / "stopped", batch_size=later_size), straight, 1e-5)


def test_run_json_has_the_keys_of_a_generated_run_and_what_was_cut(tmp_path):
    fill_folder(tmp_path / "scored", max_tokens=8)
    run = run_folder.RunFolder(tmp_path / "written", {})
    with run:
        options = {"max_tokens": 8, "variants": "none", "progress": False}
        complete_run(run, tiny.create_model(), tiny.create_tokenizer(), PROMPTS, **options)
    info, other = results.load_info(tmp_path / "scored"), results.load_info(tmp_path / "written")
    assert info.keys() - other.keys() == {"texts_truncated", "reading"}
    assert other.keys() - info.keys() == {"decoding", "decoding_path", "shared_prefix_tokens"}
    assert (info["mode"], other["mode"]) == ("score", "generate")
    longer = [len(tiny.create_tokenizer(bos=False)(text)["input_ids"]) > 8 for text in TEXTS]
    assert info["texts_truncated"] == sum(longer)


def test_the_progress_bar_counts_the_tokens_measured(capsys):
    total = sum(len(record["tokens"]) for record in score_texts(tiny.create_model()))
    list(scoring.measure(tiny.create_model(), tiny.create_tokenizer(), PROMPTS, TEXTS, progress=True))
    assert f"{total}/{total}" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "advice"), [(torch.float32, ""), (torch.bfloat16, ": try dtype=float32")])
def test_logits_with_nan_name_the_prompt(dtype, advice):
    model = tiny.create_model().to(dtype)
    model.get_input_embeddings().weight.data[tiny.create_tokenizer()("z", add_special_tokens=False)["input_ids"]] = (
        torch.nan
    )
    with pytest.raises(ValueError, match=rf"NaN or inf for prompt 1 \('she'\){advice}$"):
        score_texts(model, [" said", "zz"], ["the", "she"])


def test_running_out_of_memory_halves_the_batch():
    model = tiny.create_model().double()

    def limited(module, args, options):
        if len(options["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    model.model.register_forward_pre_hook(limited, with_kwargs=True)
    assert_same(score_texts(model, batch_size=5), score_texts(tiny.create_model().double()), 1e-5)


# One line for what is wrong


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"top_p": 0.0}, r"top_p is 0.0: it must be a number in \(0, 1\]"),
        ({"temperature": 0}, "temperature is 0: it must be a finite positive number, at least 1e-30"),
        ({"temperature": math.nan}, "temperature is nan: it must be a finite positive number, at least 1e-30"),
        ({"max_tokens": 0}, "max_tokens is 0: it must be a whole number from 1 to 1,000,000,000"),
        ({"max_tokens": 1000}, "max_tokens is 1000, but the model's context has 256 positions"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"prompt_format": "chat"}, "no chat template: use prompt_format=raw"),
        ({"texts": [""] * 5}, r"the text of prompt 0 \('the cat sat on the'\) is empty"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        score_texts(tiny.create_model(), **parameters)


@pytest.mark.parametrize(
    ("mode", "column", "message"),
    [
        ("score", None, "mode=score needs text_column"),
        ("generate", "answer", "text_column is 'answer', but only mode=score"),
        ("sing", None, "mode is 'sing': it must be generate or score"),
    ],
)
def test_mode_and_text_column_go_together(mode, column, message):
    with pytest.raises(ValueError, match=message):
        Settings(mode=mode, text_column=column).check()
    Settings(mode="generate").check()
    Settings(mode="score", text_column="answer").check()


def test_the_packaged_set_of_problems_has_answers():
    data = prompts.load("math", text_column="answer")
    assert len(data.continuations) == len(data.texts) == 100
    assert data[:2] == prompts.load("math")[:2]
    assert prompts.load("math").continuations is None


# The command line


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    """The name of a small random model on disk."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    return tiny.save(folder, tiny.create_model(), tiny.create_tokenizer(chat=True))


@pytest.fixture
def lines(tmp_path):
    """The name of a data set of prompts with texts on disk."""
    rows = [{"prompt": prompt, "answer": text, "none": ""} for prompt, text in zip([*PROMPTS], [*TEXTS], strict=True)]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "lines.jsonl")


def run_notebook(**parameters):
    words = [word for name, value in parameters.items() for word in (f"--{name}", str(value))]
    return subprocess.run(
        [sys.executable, "scripts/correlation_pipeline.py", *words],
        cwd=ROOT,
        env=forks.create_environment(HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_texts_are_scored_from_the_command_line_beside_what_is_generated(tmp_path, tiny_model, lines):
    given = {"model_name": tiny_model, "dataset_name": lines, "results_dir": tmp_path, "dtype": "float32"}
    score = given | {"mode": "score", "text_column": "answer"}
    done = run_notebook(**score)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "lines-answer" / "tiny-llama"
    assert done.stdout.rstrip().endswith(f"results: {folder}")
    assert {path.name for path in folder.iterdir()} == {
        *("candidates.parquet", "measure.ipynb", "measurements.pt", "run.ipynb", "run.json", "texts", "tokens.parquet")
    }
    assert_same(results.load(folder / "measurements.pt"), score_texts(tiny.create_model()))
    settings = results.load_info(folder)["settings"]
    assert (settings["mode"], settings["text_column"]) == ("score", "answer")
    assert "seed" not in settings  # it decides nothing

    before = (folder / "measurements.pt").stat()
    assert run_notebook(**score, seed=5).returncode == 0
    assert (folder / "measurements.pt").stat() == before

    assert run_notebook(**given, max_tokens=3).returncode == 0
    settings = results.load_info(tmp_path / "lines" / "tiny-llama")["settings"]
    assert set(settings) == {*list_deciding(), "model", "dataset"} - {"mode", "text_column", "model_revision"}
    assert sorted(results.list_runs(tmp_path)) == [tmp_path / "lines" / "tiny-llama", folder]


def test_results_of_the_two_modes_never_mix(tmp_path):
    settings = {"model_name": "m", "dataset_name": "d", "max_tokens": 5}
    with run_folder.RunFolder(tmp_path, settings) as run:
        run.finish(0, {})
    assert run_folder.RunFolder(tmp_path, settings).finished
    with pytest.raises(FileExistsError, match="mode was 'generate' and is now 'score'"):
        run_folder.RunFolder(tmp_path, settings | {"mode": "score", "text_column": "answer"})


def test_results_from_before_there_was_a_temperature_count_as_made_at_1(tmp_path):
    settings = {"model_name": "m", "dataset_name": "d", "max_tokens": 5}
    with run_folder.RunFolder(tmp_path, settings) as run:
        run.finish(0, {})
    assert run_folder.RunFolder(tmp_path, settings | {"temperature": 1.0}).finished
    with pytest.raises(FileExistsError, match=r"different settings: temperature was 1\.0 and is now 0\.5; to replace"):
        run_folder.RunFolder(tmp_path, settings | {"temperature": 0.5})


@pytest.mark.parametrize("column", ["answer", "a/b"])
def test_scored_texts_lie_in_a_folder_of_their_own(column):
    name = "lines-" + column.replace("/", "_")
    assert results.locate_run("results", "some/lines.csv", "org/m", column) == Path("results", name, "m")
    assert results.locate_run("results", "some/lines.csv", "org/m") == Path("results/lines/m")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"mode": "score", "text_column": "summary"},
            "has no column 'summary': set text_column to one of 'answer', 'none'",
        ),
        (
            {"mode": "score", "text_column": "none"},
            "line 1: column 'none' is empty: remove this row, because it has no text to measure",
        ),
        ({"mode": "score"}, "mode=score needs text_column"),
        ({"text_column": "answer"}, "text_column is 'answer', but only mode=score"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tmp_path, tiny_model, lines, parameters, message):
    done = run_notebook(model_name=tiny_model, dataset_name=lines, results_dir=tmp_path / "results", **parameters)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in assert_one_line(done.stderr.rstrip())
    assert not (tmp_path / "results").exists()


def test_everything_is_finite_at_the_lowest_temperature():
    """Logits of ten thousand, which no model has, are still no overflow."""
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
        assert model(torch.tensor([[5, 6, 7]])).logits.abs().max() > 10_000
    options = {"progress": False, "temperature": LEAST_TEMPERATURE}
    batches = [*scoring.measure(model, tokenizer, ["the cat", "in"], [" sat on", " the hat"], **options)]
    batches += generation.measure(model, tokenizer, ["the cat", "in"], max_tokens=4, **options)
    for record in (record for batch in batches for record in batch.records):
        for name in tiny.QUANTITIES:
            assert record[name]
            assert all(map(math.isfinite, record[name])), name
