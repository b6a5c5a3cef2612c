"""`placement`: which GPUs are taken, by runs that start together too; and a model in several places measured as in one.

There need be no GPU here: torch's words about GPUs are made up, the locks and accelerate's part are real.
"""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from transformers import AutoConfig

import tiny
from driver import Driver
from messages import assert_one_line
from nucleoscope.measure import batching, generation, model_facts, scoring
from nucleoscope.measure.encoding import Inputs
from nucleoscope.models import gpus as locks
from nucleoscope.models import loading, placement

GB = 10**9


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """A function that puts GPUs with so many free gigabytes into this machine; nothing is locked at first."""
    monkeypatch.setattr(placement, "_held", {})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(*free: float) -> None:
        names = [f"gpu-{number}" for number in range(len(free))]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (int(free[gpu] * GB), 80 * GB))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda gpu: SimpleNamespace(uuid=names[gpu]))
        monkeypatch.setattr(placement, "pick_device", lambda device: torch.device(PLACES.get(device, device)))

    return put


@pytest.fixture
def driver(tmp_path, monkeypatch) -> Driver:
    return Driver(tmp_path / "driver.json", monkeypatch)


PLACES = {"auto": "cuda", "balanced": "cuda"}
OTHER = """
import fcntl, sys
files = [open(name, "a") for name in sys.argv[1:]]
for file in files:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("locked", flush=True)
sys.stdin.read()
"""


def start_holder(*numbers: int) -> subprocess.Popen:
    """Another process that takes some GPUs' locks, and ends with an error where it cannot."""
    files = []
    for number in numbers:
        with locks._open(f"gpu-{number}") as stream:
            files.append(stream.name)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-S", "-c", OTHER, *files], text=True, **pipes)


@pytest.fixture
def taken():
    """A function that has another process take some GPUs, and gives that process."""
    processes = []

    def take(*numbers: int) -> subprocess.Popen:
        processes.append(start_holder(*numbers))
        assert processes[-1].stdout.readline() == "locked\n"
        return processes[-1]

    yield take
    for process in processes:
        process.kill()
        process.communicate()


def place_model(device: str = "auto", need: float | None = 1) -> list[int]:
    """The GPUs that are taken for ``need`` gigabytes."""
    options = placement.plan_placement(device, lambda: None if need is None else int(need * GB))
    if options["device_map"] == "balanced":
        return list(options["max_memory"])
    return [options["device_map"][""].index]


# One GPU


def test_the_freest_gpu_is_taken(gpus):
    gpus(10, 30, 20)
    assert place_model() == [1]


def test_a_gpu_that_somebody_chose_is_kept(gpus):
    gpus(10, 30, 20)
    assert place_model("cuda:2") == [2]


def test_where_only_one_gpu_is_visible_there_is_nothing_to_choose(gpus):
    gpus(10)
    assert place_model() == place_model("cuda") == place_model("balanced") == place_model(need=None) == [0]


def test_on_the_cpu_nothing_is_said_of_places():
    assert placement.plan_placement("cpu", lambda: 1) == placement.plan_placement("cpu", lambda: None) == {}


def test_a_run_takes_another_gpu_than_the_one_before_although_that_is_freer(gpus, taken):
    gpus(10, 30, 20)
    taken(1)
    assert place_model() == [2]


def test_a_gpu_is_free_again_when_its_run_has_ended_however(gpus, taken):
    gpus(10, 30, 20)
    other = taken(1)
    assert placement._lock(1, keep=False) is False
    other.kill()
    other.wait()
    assert place_model() == [1]


def test_where_all_are_taken_the_freest_one_is_shared(gpus, taken):
    gpus(10, 30, 20)
    taken(0, 1, 2)
    assert place_model() == [1]


def test_a_second_model_of_the_same_process_may_have_the_same_gpu(gpus):
    gpus(10, 30, 20)
    assert place_model() == place_model() == [1]


def test_a_gpu_that_a_run_named_itself_is_taken_too(gpus, taken):
    gpus(10, 30)
    assert place_model("cuda:1") == [1]
    taken(0)
    assert "BlockingIOError" in start_holder(1).communicate()[1]


@pytest.mark.parametrize("visible", [None, "4,7", "GPU-gpu-0,GPU-gpu-1"])
def test_a_gpu_that_the_grid_has_given_to_a_job_is_taken_however_it_is_called_here(gpus, monkeypatch, visible):
    """And one that is taken here the grid gives to nobody."""
    gpus(10, 30)
    monkeypatch.setattr(locks, "_list_driver_ids", lambda: ["GPU-gpu-1", "GPU-gpu-0"])
    with locks.claim(1, pytest.fail) as mine:
        assert list(mine) == ["GPU-gpu-1"]
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert place_model() == [0]
        assert locks.take("GPU-gpu-0") is None
    assert locks.describe_holder("GPU-gpu-0") == f"process {os.getpid()}"


def test_a_folder_of_locks_that_is_another_users_is_left_alone(gpus, tmp_path, monkeypatch):
    gpus(10, 30)
    monkeypatch.setattr(locks.os, "getuid", lambda: 12345)
    assert place_model() == [1]
    assert list(tmp_path.rglob("gpu-*")) == []
    monkeypatch.setattr(locks, "_list_driver_ids", lambda: ["GPU-gpu-0"])
    with pytest.raises(PermissionError, match="belongs to another user"), locks.claim(1, pytest.fail):
        pass


def test_unknown_weights_go_to_the_freest_gpu(gpus):
    gpus(10, 30)
    assert place_model(need=None) == [1]


def test_the_driver_is_asked_for_free_memory_and_not_each_gpu(gpus, driver):
    gpus(1, 1, 1)
    driver.put(*({"id": f"GPU-{name}", "free": size} for name, size in [("gpu-2", 1), ("gpu-0", 3), ("other", 9)]))
    assert placement.read_free_memory() == {0: 3, 1: GB, 2: 1}


@pytest.mark.parametrize("listed", [[], [{"id": "GPU-gpu-0"}], [{"id": "GPU-gpu-0", "free": 5}, None]])
def test_where_the_driver_does_not_say_cuda_is_asked(gpus, driver, listed):
    gpus(1, 2)
    driver.put(*listed)
    assert placement.read_free_memory() == {0: GB, 1: 2 * GB}


def test_where_there_is_no_driver_cuda_is_asked(gpus, driver):
    gpus(1, 2)
    driver.fail("NVML Shared Library Not Found")
    assert placement.read_free_memory() == {0: GB, 1: 2 * GB}


def test_what_torch_keeps_but_does_not_use_is_free(gpus, driver, monkeypatch):
    """An earlier model's memory, which torch keeps for the next one, also on the GPU that the user named."""
    gpus(10, 30)
    driver.put({"id": "GPU-gpu-0", "free": 11 * GB})  # the driver does not say it of the other
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda gpu: 40 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda gpu: 5 * GB)
    assert placement.read_free_memory() == {0: 46 * GB, 1: 65 * GB}
    assert place_model("cuda:0", need=45) == [0]
    with pytest.raises(placement.TooLarge, match=r"cuda:0 has only 46\.0 GB free"):
        place_model("cuda:0", need=47)
    model = tiny.create_model()
    monkeypatch.setattr(model_facts, "count_weight_bytes", lambda model: {torch.device("cuda:1"): GB})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index * GB, 80 * GB))
    assert model_facts.find_free_memory(model) == [(36 * GB, 1.0)]


# Several GPUs


def test_weights_that_do_not_fit_one_gpu_are_put_on_as_few_as_hold_them(gpus):
    gpus(20, 24, 22, 24)
    assert place_model(need=40) == [1, 3]
    assert place_model(need=60) == [1, 2, 3]


def test_gpus_that_nobody_has_taken_are_preferred_for_a_large_model_as_well(gpus, taken):
    gpus(24, 24, 24, 24)
    taken(0, 1)
    assert place_model(need=40) == [2, 3]
    assert place_model(need=70) == [0, 1, 2, 3]


def test_balanced_takes_all_that_nobody_has_taken(gpus, taken):
    gpus(24, 24, 24, 24)
    assert place_model("balanced") == [0, 1, 2, 3]
    placement._held.clear()
    taken(1)
    assert place_model("balanced") == [0, 2, 3]


def test_a_tight_fit_is_tried(gpus):
    gpus(16)
    assert place_model(need=15.5) == [0]


@pytest.mark.parametrize(("free", "need"), [((16,), 17), ((24, 24), 60)])
def test_weights_that_fit_no_gpus_are_refused_with_the_figures(gpus, free, need):
    gpus(*free)
    with pytest.raises(placement.TooLarge) as caught:
        place_model(need=need)
    message = assert_one_line(str(caught.value))
    assert f"{need}.0 GB" in message
    assert " + ".join(f"{size}.0" for size in free) in message
    assert message.endswith("or device=cpu")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_known_from_the_configuration(tmp_path, kind, tied, dtype):
    model = tiny.create_model(kind, tie_word_embeddings=tied).to(dtype)
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    expected = sum(parameter.nbytes for parameter in model.parameters())
    assert placement.estimate_weights(config, dtype) == placement.estimate_weights(config, "auto") == expected


def test_quantised_weights_are_not_known(tmp_path):
    tiny.create_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "fp8"}}))
    assert placement.estimate_weights(AutoConfig.from_pretrained(tmp_path), "auto") is None


def test_a_model_is_loaded_straight_to_its_gpus(gpus, tmp_path, monkeypatch):
    """What transformers is told, and that accelerate spreads a model over two GPUs by it."""
    told = {}
    name = tiny.save(tmp_path / "tiny", tiny.create_model(num_hidden_layers=6), tiny.create_tokenizer())
    size = placement.estimate_weights(AutoConfig.from_pretrained(name), "auto") / GB

    def load(source, **options):
        told.update(options)
        return tiny.create_model(), {"missing_keys": set(), "mismatched_keys": set()}

    monkeypatch.setattr(loading.kinds.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(loading, "pick_device", placement.pick_device)
    gpus(10, 20)
    loading.load(name)
    assert told["device_map"] == {"": torch.device("cuda:1")}
    gpus(size * 0.8, size * 0.8)
    loading.load(name)
    assert told["device_map"] == "balanced"
    spread = infer_auto_device_map(tiny.create_model(num_hidden_layers=6), told["max_memory"], ["LlamaDecoderLayer"])
    assert set(spread.values()) == {0, 1}
    gpus(size * 0.4, size * 0.4)
    with pytest.raises(placement.TooLarge):
        loading.load(name)


def test_a_part_without_room_is_no_silent_crawl(monkeypatch):
    model = tiny.create_model()
    model.hf_device_map = {"model.embed_tokens": 0, "model.layers.0": 1, "model.layers.1": "disk"}
    with pytest.raises(
        placement.TooLarge, match=r"model\.layers\.1 and the modules after it do not fit on the GPUs.* or device=cpu"
    ):
        placement.check_placed(model)


# Measured and described


@pytest.fixture
def dispatched(tmp_path):
    """A model in two places, one layer on disk until it is wanted; and the same model in one."""
    model, whole = tiny.create_model(num_hidden_layers=4), tiny.create_model(num_hidden_layers=4)
    names = [
        *(f"model.layers.{n}" for n in range(4)),
        "model.embed_tokens",
        "model.norm",
        "model.rotary_emb",
        "lm_head",
    ]
    places = {name: "disk" if name in ("model.layers.1", "model.layers.2", "lm_head") else "cpu" for name in names}
    return dispatch_model(
        model, places, main_device="cpu", offload_dir=str(tmp_path), skip_keys="past_key_values"
    ), whole


TEXTS = ["the cat sat on the", "in", "a long and winding road that leads to the other end"]


def test_a_model_in_two_places_writes_and_reads_as_in_one(dispatched):
    found = []
    for model in dispatched:
        options = {"max_tokens": 12, "batches": [[2, 0, 1]], "progress": False}
        (written,) = generation.measure(model, tiny.create_tokenizer(), TEXTS, **options)
        (read,) = scoring.measure(model, tiny.create_tokenizer(), TEXTS, TEXTS[::-1], **options)
        found.append([*written.records, *read.records])
    for one, other in zip(*found, strict=True):
        assert one["tokens"].tolist() == other["tokens"].tolist()
        assert len(one["tokens"]) > 0
        for name in tiny.QUANTITIES:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=1e-6)


def test_run_json_says_where_the_model_lay(dispatched):
    info = batching.collect_run_info(dispatched[0], Inputs([[1]]), [], "auto")
    (device,) = info["devices"]
    assert device["device"] == "cpu"
    assert info["device"] == device["name"]
    names = {"model.layers.0", "model.layers.3", "model.embed_tokens", "model.norm", "model.rotary_emb"}
    assert set(device["modules"].split(", ")) == names


def test_several_gpus_are_described_with_their_share(monkeypatch):
    model = tiny.create_model()
    model.hf_device_map = {
        "model.embed_tokens": 0,
        **{f"model.layers.{n}": int(n > 9) for n in range(32)},
        "lm_head": 1,
    }
    sizes = {torch.device("cuda:0"): 8 * GB, torch.device("cuda:1"): 24 * GB}
    monkeypatch.setattr(model_facts, "count_weight_bytes", lambda model: sizes)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2**30)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (device.index * GB, 80 * GB))
    info = batching.collect_run_info(model, Inputs([[1]]), [], "auto")
    assert info["device"] == "2 x NVIDIA H100"
    assert [device["weights_gb"] for device in info["devices"]] == [8.0, 24.0]
    modules = [device["modules"] for device in info["devices"]]
    assert modules == ["model.embed_tokens, model.layers.0 to 9", "model.layers.10 to 31, lm_head"]
    assert info["peak_memory_mib"] == 2048
    assert model_facts.find_free_memory(model) == [(0, 0.25), (GB, 0.75)]


# The size of batches


def test_auto_makes_batches_of_the_same_size_with_at_most_128_rows():
    assert generation.choose_batch_size("auto", tiny.create_model(), Inputs([[1, 2, 3]] * 100), 10) == 100
    assert generation.choose_batch_size("auto", tiny.create_model(), Inputs([[1]] * 129), 10) == 65
    assert generation.choose_batch_size("auto", tiny.create_model(), Inputs([[1]] * 8), 10) == 8
    assert generation.choose_batch_size(300, tiny.create_model(), Inputs([[1, 2, 3]] * 100), 10) == 300


@pytest.mark.parametrize(("share", "expected"), [(1e-3, 1), (1, 4), (1.9, 7), (1e3, 20)])
def test_on_a_cpu_the_cache_of_the_longest_prompts_is_a_multiple_of_the_weights(monkeypatch, share, expected):
    model = tiny.create_model()
    token, row = model_facts.measure_cache(model)
    weights = model_facts.count_weight_bytes(model)[torch.device("cpu")]
    longest = (weights // 4 - row) // token - 10  # four such rows fill the cache once
    monkeypatch.setattr(generation, "CACHE_SHARE", share)
    monkeypatch.setattr(generation, "LEAST_CACHE", 0)
    inputs = Inputs([[1]] * 12 + [[1] * longest] * 8)
    assert generation.choose_batch_size("auto", model, inputs, 10) == expected


def test_the_fullest_gpu_decides_the_size_of_a_batch(monkeypatch):
    model, inputs = tiny.create_model(), Inputs([[1] * 90] * 1000)
    sizes = []
    for places in ([(10**7, 1.0)], [(10**7, 0.5), (10**7, 0.5)], [(10**7, 0.5), (10**6, 0.5)]):
        monkeypatch.setattr(model_facts, "find_free_memory", lambda model, places=places: places)
        monkeypatch.setattr(generation, "BATCH_LIMIT", 10**6)
        sizes.append(generation.choose_batch_size("auto", model, inputs, 10))
    assert sizes[2] < sizes[0] < sizes[1]


@pytest.mark.parametrize("device", ["meta", "hpu", "privateuseone", "gpu", "", "tpu:0"])
def test_a_device_that_cannot_be_used_is_one_line(device):
    with pytest.raises(
        ValueError, match=f"device is '{device}': it must be auto, balanced, or cpu, cuda, mps or xpu with"
    ) as caught:
        placement.pick_device(device)
    assert_one_line(str(caught.value))
