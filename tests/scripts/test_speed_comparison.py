"""Two builds side by side, and two lengths of a run: what is timed, what the tables say, and what is refused."""

import argparse
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import forks
import tiny
from messages import assert_one_line
from nucleoscope.measure import generation, static
from nucleoscope.settings import Settings
from speed_comparison import builds, comparison, gpu_table, scaling, tables, worker, workers

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def load_benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "scripts/benchmark.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BENCHMARK = load_benchmark()


def parse(*words: str) -> argparse.Namespace:
    options = BENCHMARK.create_parser().parse_args(words)
    BENCHMARK.check_options(options)
    return options


def run_benchmark(*words: str, environment: dict[str, str] = ENVIRONMENT) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/benchmark.py", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)


def create_checkout(folder: Path, **modules: str) -> workers.Checkout:
    """A checkout whose library has only these modules, with this content, all in one folder."""
    library = folder / "lib/nucleoscope"
    library.mkdir(parents=True)
    for name, content in {"__init__": "", **modules}.items():
        (library / f"{name}.py").write_text(content)
    return workers.find_checkout(str(folder))


# The command line


def test_against_takes_several_data_sets_and_has_the_settings_of_a_run():
    options = parse("--against", ".", "--dataset_name", "math", "stories", "math")
    assert (options.against, options.scale) == (".", None)
    assert options.dataset_name == ["math", "stories"]
    assert (options.prompt_format, options.batch_size, options.max_tokens) == ("chat", "auto", 100)


def test_without_against_and_scale_the_options_are_as_before():
    options = parse()
    assert (options.against, options.scale, options.dataset_name) == (None, None, [])
    assert parse("--dataset_name", "stories").dataset_name == ["stories"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["--against=.", "--random_weights=vocab_size=9"],
            "--against cannot be combined with --scale or --random_weights: give",
        ),
        (
            ["--scale=9", "--model_name=gpt2"],
            "--scale cannot be combined with --dataset_name or --model_name: it has its own",
        ),
        (["--against=.", "--dataset_name", "math", " "], "dataset_name is ' '"),
        (["--dataset_name=poems"], "unknown data set 'poems'"),
        (["--against=.", "--prompt_column=x"], "'math' has no column 'x'"),
        (["--against=.", "--prompt_column=answer"], "'stories' has no column 'answer'"),
        (["--gpu_table", "--scale=9"], "--gpu_table cannot be combined with --against, --scale or --random_weights"),
        (["--branch_points=x"], "branch_points is 'x': it must be a whole number"),
        (["--branching", "--branch_points=x"], "branch_points is 'x': it must be a whole number"),
        (["--context", "--context_candidates=x"], "context_candidates is 'x': it must be a whole number"),
        (["--gpu_table", "--device=cpu"], "--gpu_table needs an NVIDIA GPU: omit --device=cpu"),
        (["--context", "--gpu_table"], "--context cannot be combined with --against, --scale or --gpu_table"),
        (
            ["--branching", "--context"],
            "--branching cannot be combined with --context, --against, --scale or --gpu_tab",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said):
    with pytest.raises(ValueError, match=said) as refused:
        parse(*words)
    assert_one_line(str(refused.value))


# Checkouts


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "hidden_size=30,num_attention_heads=7",
            "random_weights: the hidden size (30) is not a multiple of the number of",
        ),
        ("hidden_size=abc", "random_weights: hidden_size is 'abc': it must be a number, true or false"),
        ("hiden_size=3", "random_weights: a Llama has no setting 'hiden_size' (did you mean 'hidden_size'?)"),
        ('{"model_type": "lama"}', "transformers does not know the model_type 'lama' (did you mean 'llama'?)"),
        ('{"settings": {}}', "config.json' has no model_type: it is not the config.json of a model"),
        ("{", "config.json' is not valid JSON ("),
        ("a=b=c", "random_weights: a Llama has no setting 'a'"),
        ("hidden_size=b=c", "random_weights: hidden_size is 'b=c': it must be a number, true or false"),
        ("hidden_size", "random_weights: 'hidden_size' is not of the form key=value, such as hidden_size=64"),
        ("num_hidden_layers=-1", "random_weights: num_hidden_layers is -1: it must be above 0"),
        ("hidden_size=0", "random_weights: hidden_size is 0: it must be above 0"),
        ('{"model_type": "llama", "vocab_size": 0}', "random_weights: vocab_size is 0: it must be above 0"),
        ('{"model_type": "llava", "text_config": {"hidden_size": 0}}', "random_weights: hidden_size is 0: it must be"),
    ],
)
def test_a_shape_that_no_model_can_have_is_refused_in_one_line(tmp_path, given, said):
    if given.startswith("{"):
        path = tmp_path / "config.json"
        path.write_text(given)
        given = str(path)
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        comparison.load_shape(given)
    assert_one_line(str(caught.value))


def test_a_checkout_is_run_by_its_own_python_or_by_this_one(tmp_path):
    assert create_checkout(tmp_path / "bare").python == sys.executable
    (tmp_path / "own/.venv/bin").mkdir(parents=True)
    own = tmp_path / "own/.venv/bin/python"
    own.symlink_to(sys.executable)
    assert create_checkout(tmp_path / "own").python == str(own)  # not what it links to


def test_a_checkout_with_half_an_environment_is_refused(tmp_path):
    (tmp_path / ".venv").mkdir()
    with pytest.raises(FileNotFoundError, match="without bin/python: run make env there") as refused:
        create_checkout(tmp_path)
    assert_one_line(str(refused.value))


def test_each_build_goes_first_as_often_as_second():
    assert list(workers.order_pairs(3)) == [(0, 1), (1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("modules", "said"),
    [
        ({"__init__": "print('noise')"}, "No module named 'nucleoscope.models'"),
        ({"__init__": "raise ValueError('two\\nlines')"}, "two lines"),
        ({"__init__": "import os; os.kill(os.getpid(), 9)"}, "the worker was killed by SIGKILL"),
        ({"__init__": "import os; os._exit(3)"}, "the worker ended with exit status 3: it printed nothing"),
    ],
)
def test_an_error_of_a_worker_is_one_line_that_names_the_checkout(tmp_path, modules, said):
    checkout = create_checkout(tmp_path, **modules)
    with pytest.raises(workers.WorkerError) as failed:
        workers.run_job(checkout, parts=[], texts=["a"])
    message = assert_one_line(str(failed.value))
    assert message.startswith(f"in the checkout '{tmp_path}': ")
    assert said in message


def test_a_worker_measures_no_other_build_than_the_one_that_it_is_told_to(tmp_path):
    """An environment may have an installation of the library that comes first."""
    job = json.dumps({"library": str(tmp_path), "parts": [], "texts": []})
    environment = ENVIRONMENT | {"PYTHONPATH": str(ROOT / "lib")}
    command = [sys.executable, "-P", str(workers.WORKER)]
    done = subprocess.run(command, input=job, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"not from '{tmp_path}'" in json.loads(done.stdout)["error"]


def test_a_build_of_one_folder_is_called_by_the_names_that_it_has(tmp_path):
    """The names of 07e2a7e."""
    empty = dict.fromkeys(("generation", "scoring"), "")
    checkout = create_checkout(tmp_path, models="def context_length(model): return 'found'", **empty)
    code = f"import runpy; api = runpy.run_path({str(workers.WORKER)!r})['find_api']()\n"
    code += "print(*(m.__name__ for m in (api.loading, api.generation, api.scoring)), api.find_context_length(None))"
    environment = ENVIRONMENT | {"PYTHONPATH": str(checkout.folder / "lib")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    names = [f"nucleoscope.{name}" for name in ("models", "generation", "scoring")]
    assert done.stdout.split() == [*names, "found"]


# What is timed


def create_build(texts: list[str], **job) -> worker.Build:
    """A build with a tiny model that is not loaded by name."""
    model, tokenizer = tiny.create_model(), tiny.create_tokenizer()
    build = object.__new__(worker.Build)
    job = {"max_tokens": 20, "top_p": 0.9, "prompt_format": "raw", "batch_size": "auto"} | job
    build.job, build.texts, build.api, build.context = job, texts, worker.find_api(), 256
    build.model, build.tokenizer, build.device = model, tokenizer, model.device
    return build


TEXTS = [f"the cat {'sat and ' * n}" for n in range(6)]


def test_the_clock_counts_the_steps_and_leaves_no_hook():
    build = create_build(TEXTS)
    build.model.generation_config.eos_token_id = build.model.config.eos_token_id = None
    with worker.ForwardClock(build.model) as clock:
        list(build.generate(TEXTS, max_tokens=7, batches=[list(range(6))]))
    assert clock.steps == 6  # the first token is drawn after prefill
    assert clock.step_seconds > 0
    assert clock.prefilled > 0
    assert clock.depth == 0
    parts = (build.model, build.model.base_model, build.model.get_output_embeddings())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)


@torch.inference_mode()
def test_the_clock_sees_layers_and_output_layer_that_are_called_separately():
    model = tiny.create_model()
    with worker.ForwardClock(model) as clock:
        model(torch.tensor([[3, 4, 5]]))
        for count in (1, 2):
            before = clock.step_seconds
            hidden = model.base_model(input_ids=torch.tensor([[3]]))[0]
            between = clock.step_seconds
            model.get_output_embeddings()(hidden)
            assert clock.steps == count
            assert before < between < clock.step_seconds


def test_a_step_is_timed_in_each_batch_size_and_with_wide_nuclei(monkeypatch):
    monkeypatch.setattr(worker, "BATCHES", (2, 4, 100))
    found = worker.time_steps(create_build(TEXTS))
    assert [(step["rows"], step["top_p"]) for step in found] == [(n, p) for p in (0.9, 0.99) for n in (2, 4, 6)]
    assert all(step["forward"] > 0 and step["measuring"] > 0 for step in found)
    assert found[5]["k"] > found[2]["k"] >= 1


def test_a_build_whose_forward_passes_cannot_be_seen_is_not_given_a_share(monkeypatch):
    monkeypatch.setattr(worker.ForwardClock, "_start_pass", lambda *_: None)
    monkeypatch.setattr(worker.ForwardClock, "_stop", lambda *_: None)
    step = worker.time_step(create_build(TEXTS), 4, 0.9)
    assert (step["forward"], step["measuring"]) == (None, None)
    assert builds._compute_share(step) is None


def test_measuring_prefill_and_scoring_count_their_own_tokens():
    build = create_build(TEXTS, max_tokens=5)
    lengths = sum(len(build.tokenizer(text)["input_ids"]) for text in TEXTS)
    records = worker.list_records(generation.measure(build.model, build.tokenizer, TEXTS, max_tokens=5, progress=False))
    measured = worker.time_measuring(build)
    assert (measured["tokens"], measured["prompt_tokens"]) == (worker.count_tokens(records), lengths)
    assert measured["peak"] > 100  # torch alone takes more
    assert worker.time_prefill(build)["tokens"] == lengths
    texts = sum(min(5, len(build.tokenizer(text, add_special_tokens=False)["input_ids"])) for text in TEXTS)
    assert worker.time_scoring(build)["tokens"] == texts
    assert min(part(build)["seconds"] for part in (worker.time_prefill, worker.time_scoring)) > 0


# The table of a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="A CUDA DEVICE IS HERE: what is said without one is untested")
def test_the_table_of_a_gpu_is_refused_without_one():
    done = run_benchmark("--gpu_table")
    assert done.returncode == 1
    assert "--gpu_table needs an NVIDIA GPU" in assert_one_line(done.stderr.strip())


@pytest.mark.parametrize("path", [static.STATIC, static.DYNAMIC])
def test_the_table_of_a_gpu_has_a_row_for_each_shape_data_set_and_batch(monkeypatch, capsys, path):
    """With a tiny shape, on a CPU."""
    monkeypatch.setattr(static, "DEVICES", {"cpu"} if path == static.STATIC else set())
    monkeypatch.setattr(gpu_table, "BATCHES", (1, 3))
    monkeypatch.setattr(gpu_table, "measure_bandwidth", lambda _: 1e9)
    config = tiny.create_model("qwen3").config
    options = argparse.Namespace(device="cpu", n_prompts=3, max_tokens=5)
    gpu_table.compare(options, {"tiny": config})
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| tiny")]
    assert [row[1:4] for row in rows] == [[name, size, path] for name in ("gsm8k", "xsum") for size in ("1", "3")]
    assert all(len(row) == len(gpu_table.COLUMNS) for row in rows)
    assert all(float(row[place].replace(",", "")) > 0 for row in rows for place in (4, 5, 8))


def test_the_prompts_of_the_table_are_as_long_as_those_of_the_data_sets():
    for name, mean, longest in (("gsm8k", 60, 200), ("xsum", 540, 2000)):
        lengths = gpu_table.choose_lengths(name, 100)
        assert sum(lengths) / 100 == pytest.approx(mean, rel=0.05)
        assert max(lengths) <= longest
        assert [len(ids) for ids in gpu_table.draw_prompts(lengths, 50)] == lengths


@pytest.mark.parametrize(
    ("name", "weights"),
    [("Llama-3.1-8B", 8_030_261_248), ("Qwen3-8B", 8_190_735_360), ("deepseek-llm-7b", 6_910_365_696)],
)
def test_the_shapes_of_the_table_have_as_many_weights_as_the_models(name, weights):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(gpu_table.SHAPES[name])
    assert sum(weight.numel() for weight in model.parameters()) == weights


# Tables


def test_a_table_has_medians_and_the_spread_of_the_ratios_of_pairs():
    rows = [
        tables.ComparisonRow("a|b", [20, 30, 60], [10, 10, 40]),
        tables.ComparisonRow("c", [None, 1234.56], [1, None]),
    ]
    assert tables.format_table("Speed", rows, 1).splitlines() == [
        "### Speed",
        "",
        "| | this build | the other | ratio: median | smallest | largest |",
        "|---|---|---|---|---|---|",
        r"| a\|b | 30.0 | 10.0 | 2.00 | 1.50 | 3.00 |",
        "| c | 1,234.6 | 1.0 | – | – | – |",
    ]


def create_results(tokens: int, seconds: float, peak: float, forward: float | None = 30) -> dict:
    part = {"tokens": tokens, "seconds": seconds}
    step = {"rows": 25, "top_p": 0.9, "k": 41.3, "forward": forward, "measuring": forward and 10}
    return {
        "measure": part | {"prompt_tokens": 7 * tokens, "peak": peak},
        "prefill": part,
        "score": {"tokens": 2 * tokens, "seconds": seconds},
        "steps": [step],
        "start": {"import": 1, "load": 2, "first": 3},
    }


def test_the_tables_of_two_builds_have_every_data_set_and_the_total():
    pairs = [(create_results(100, 1, 500), create_results(100, 2, 800, None))]
    other = [(create_results(300, 1, 700), create_results(300, 6, 600, None))]
    printed = builds.format_comparison({"math": pairs, "stories": other}).split("### ")
    sections = {text.partition("\n")[0]: text.splitlines()[4:] for text in printed[1:]}
    rates, _, scoring, share, *_ = sections.values()
    assert [line for line in rates if line] == [
        "| math | 100.0 | 50.0 | 2.00 | 2.00 | 2.00 |",
        "| stories | 300.0 | 50.0 | 6.00 | 6.00 | 6.00 |",
        "| total | 200.0 | 50.0 | 4.00 | 4.00 | 4.00 |",
    ]
    assert scoring[2] == "| total | 400.0 | 100.0 | 4.00 | 4.00 | 4.00 |"
    assert share[0] == "| math, batch 25, top_p 0.9 (mean k 41) | 25.0 | – | – | – | – |"
    peaks = sections["Peak memory after measuring, MiB"]
    assert peaks[2] == "| largest | 700 | 800 | 0.88 | 0.88 | 0.88 |"
    assert "| load the model | 2.0 | 2.0 | 1.00 | 1.00 | 1.00 |" in sections["Before measuring, s"]
    assert "| stories, in prompts | 2,100 | 2,100 | 1.00 | 1.00 | 1.00 |" in sections["Tokens"]


def test_the_total_of_one_data_set_is_not_repeated():
    pairs = [(create_results(100, 1, 500), create_results(100, 2, 800))]
    assert "total" not in builds.format_comparison({"math": pairs})


def test_the_tables_of_two_lengths():
    long = {"tokens": 1000, "seconds": 5, "measuring_seconds": 4, "core_seconds": 8, "before": 300, "peak": 420}
    short = {"tokens": 100, "seconds": 0.8, "measuring_seconds": 0.4, "core_seconds": 1, "before": 300, "peak": 400}
    printed = scaling.format_scaling([[long, short]], (10_000, 100))
    assert printed.count("| | 10,000 prompts | 100 prompts | ratio: median | smallest | largest |") == 3
    for row in (
        "| while measuring | 250.0 | 250.0 | 1.00 | 1.00 | 1.00 |",
        "| from prompts to files | 200.0 | 125.0 | 1.60 | 1.60 | 1.60 |",
        "| user and system | 8.000 | 10.000 | 0.80 | 0.80 | 0.80 |",
        "| before the run | 300 | 300 | 1.00 | 1.00 | 1.00 |",
        "| peak | 420 | 400 | 1.05 | 1.05 | 1.05 |",
    ):
        assert row in printed


# As a user runs them


@pytest.mark.long
def test_this_build_against_itself(tmp_path):
    model = tiny.save(tmp_path / "tiny", tiny.create_model(), tiny.create_tokenizer(chat=True))
    prompts = tmp_path / "lines.txt"
    prompts.write_text("the cat\nthe dog and the cat\nthere\n")
    words = ["--model_name", model, "--dataset_name", str(prompts), "math", "--n_prompts=3", "--max_tokens=4"]
    words += ["--against=.", "--repeats=1", "--dtype=float32", "--device=cpu"]
    done = run_benchmark(*words, environment=forks.create_environment(**ENVIRONMENT))  # the workers are not forked
    assert done.returncode == 0, done.stderr
    assert f"* the other: . ({workers.describe_commit(workers.get_own_checkout())})" in done.stdout
    counts = [line for line in done.stdout.partition("### Tokens")[2].splitlines()[4:] if line]
    assert len(counts) == 4  # two data sets, each with the tokens in prompts and those that were measured
    for line in counts:
        label, ours, others, ratio = line.strip("| ").split(" | ")[:4]
        assert label.startswith((str(prompts), "math"))
        assert int(ours.replace(",", "")) == int(others.replace(",", "")) > 0
        assert ratio == "1.00"
    assert "| largest |" in done.stdout
    assert "–" not in done.stdout  # nothing is unknown


@pytest.mark.long
def test_a_run_of_more_prompts_beside_one_of_a_hundred():
    words = ["--scale=130", "--repeats=1", "--max_tokens=2", "--device=cpu"]
    done = run_benchmark(*words, environment=forks.create_environment(**ENVIRONMENT))
    assert done.returncode == 0, done.stderr
    assert "2 tokens per prompt, batches of 25; 1 pair, alternating which run goes first" in done.stdout
    assert done.stdout.count("| | 130 prompts | 100 prompts |") == 3
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    assert [row.split(" | ")[0] for row in rows] == [
        "| while measuring",
        "| from prompts to files",
        "| user and system",
        "| before the run",
        "| peak",
    ]
    assert not any("–" in row for row in rows)


def test_the_prompts_of_a_longer_run_begin_with_those_of_a_shorter(tmp_path):
    found = {}
    for n in (3, 5):
        scaling.save_prompts(tmp_path / f"{n}.jsonl", n)
        found[n] = [json.loads(line)["prompt"] for line in (tmp_path / f"{n}.jsonl").read_text().splitlines()]
    assert found[5][:3] == found[3]
    tokenizer = scaling.create_tokenizer()
    assert [len(tokenizer(text)["input_ids"]) for text in found[5]] == list(map(len, found[5]))
    assert Settings.n_prompts == scaling.SMALL
