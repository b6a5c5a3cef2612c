"""Measures one build of this project in a process of its own, so that the process's peak memory is the build's.

Contract: a job comes as JSON on stdin, and its results leave as lines of JSON on stdout, each an object whose
key says what was measured; an error is {"error": one line}. Which build is measured is up to PYTHONPATH. The
build need not know of this file: to compare builds, only functions are called that commit 07e2a7e has as well,
under the names in `find_api`. This file imports nothing of its neighbours, which belong to another build.
"""

import importlib
import importlib.util
import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

STEPS, STEP_PROMPT = 17, 64  # tokens drawn to time a step; tokens that prompts are cut to for that, to save prefill
BATCHES, WIDE = (25, 100), 0.99  # prompts per step; the top_p that makes nuclei wide in every build
WARM_UP = {"n_prompts": 4, "max_tokens": 3}


def find_api() -> SimpleNamespace:
    """The modules and functions to measure with, by one name each.

    This is the only place that knows how builds differ: 07e2a7e has all its modules in one folder, and a model's
    context length is found by the module that loads it; later builds have rooms, and `model_facts`. The functions
    taken from these modules have the same parameters in both.
    """
    if importlib.util.find_spec("nucleoscope.measure"):
        names = {"loading": "models.loading", "generation": "measure.generation", "scoring": "measure.scoring"}
        finder = ("measure.model_facts", "find_context_length")
    else:
        names = {"loading": "models", "generation": "generation", "scoring": "scoring"}
        finder = ("models", "context_length")
    api = {name: importlib.import_module(f"nucleoscope.{place}") for name, place in names.items()}
    find_context_length = getattr(importlib.import_module(f"nucleoscope.{finder[0]}"), finder[1])
    return SimpleNamespace(**api, find_context_length=find_context_length)


def measure_peak(device: Any = None) -> float:
    """The peak memory in MiB, of this process so far or, if it uses a GPU, of the ``device``."""
    if getattr(device, "type", None) == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():  # unlike ru_maxrss, it does not begin with the memory of the process that started this one
        return int(re.search(r"^VmHWM:\s+(\d+)", status.read_text(encoding="ascii"), re.MULTILINE)[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def synchronise(device: Any) -> None:
    """Waits for a GPU: its work is part of what is timed. Not during a capture, when nothing is computed."""
    if device.type == "cuda":
        import torch

        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(device)


class ForwardClock:
    """Times the forward passes of a model, whoever calls them, by hooks.

    The model, the part of it without the output layer, and the output layer have hooks, because a build may
    call the last two separately; a call within another counts once. A pass over one token per row is a step,
    any other one prefill. ``steps`` and ``step_seconds`` are those after the latest prefill, which ended at
    ``prefilled``. On a GPU, each pass is waited for.
    """

    def __init__(self, model: Any):
        self.model, self.device, self.depth, self.begin = model, model.device, 0, 0.0
        self.is_step, self.steps, self.step_seconds, self.prefilled = False, 0, 0.0, 0.0

    def __enter__(self) -> "ForwardClock":
        parts = [self.model, getattr(self.model, "base_model", None), self.model.get_output_embeddings()]
        head, self.handles = parts[-1], []
        for part in {id(part): part for part in parts if part is not None}.values():
            before = self._start if part is head else self._start_pass
            self.handles.append(part.register_forward_pre_hook(before, with_kwargs=True))
            self.handles.append(part.register_forward_hook(self._stop))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _start_pass(self, part: Any, args: tuple, options: dict) -> None:
        if self.depth == 0:
            ids = next(
                each for each in (options.get("input_ids"), options.get("inputs_embeds"), *args) if each is not None
            )
            self.is_step = ids.shape[1] == 1
            self.steps += self.is_step
        self._start(part, args, options)

    def _start(self, *_: object) -> None:
        if self.depth == 0:
            synchronise(self.device)
            self.begin = time.perf_counter()
        self.depth += 1

    def _stop(self, *_: object) -> None:
        self.depth -= 1
        if self.depth == 0:
            synchronise(self.device)
            now = time.perf_counter()
            if self.is_step:
                self.step_seconds += now - self.begin
            else:
                self.steps, self.step_seconds, self.prefilled = 0, 0.0, now


class Build:
    """A loaded model, and the settings and prompts of the job to measure it with."""

    def __init__(self, job: dict[str, Any]):
        self.job, self.texts = job, job["texts"]
        begin = time.perf_counter()
        self.api = find_api()
        imported = time.perf_counter()
        self.model, self.tokenizer, _ = self.api.loading.load(job["model_name"], job["dtype"], job["device"])
        loaded = time.perf_counter()
        self.context, self.device = self.api.find_context_length(self.model), self.model.device
        texts, most = self.texts[: WARM_UP["n_prompts"]], WARM_UP["max_tokens"]
        list(self.generate(texts, max_tokens=most))
        self.times = {"import": imported - begin, "load": loaded - imported, "first": time.perf_counter() - loaded}

    @property
    def settings(self) -> dict[str, Any]:
        return {name: self.job[name] for name in ("max_tokens", "top_p", "prompt_format", "batch_size")}

    def encode(self, texts: list[str]) -> Any:
        options = (self.job["prompt_format"], self.context, self.job["max_tokens"])
        return self.api.generation.encode(self.tokenizer, texts, *options)

    def generate(self, texts: list[str], **options: Any) -> Iterator[Any]:
        """Batches of records; ``options`` replace the job's settings or are others of `generation.measure`."""
        options = self.settings | {"progress": False} | options
        return self.api.generation.measure(self.model, self.tokenizer, texts, **options)

    def score(self, texts: list[str]) -> Iterator[Any]:
        """Batches of records of the ``texts``, each after an empty prompt."""
        prompts, options = [""] * len(texts), self.settings | {"progress": False}
        return self.api.scoring.measure(self.model, self.tokenizer, prompts, texts, **options)

    def describe(self) -> dict[str, Any]:
        import torch
        import transformers

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": name,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def list_records(batches: Iterator[Any]) -> list[dict]:
    return [record for batch in batches for record in batch.records]


def count_tokens(records: list[dict]) -> int:
    return sum(len(record["tokens"]) for record in records)


def time_measuring(build: Build) -> dict[str, float]:
    """All prompts with the job's settings, from texts to records; then the peak memory up to here."""
    synchronise(build.device)
    begin = time.perf_counter()
    inputs = build.encode(build.texts)
    tokens = count_tokens(list_records(build.generate(build.texts, inputs=inputs)))
    synchronise(build.device)
    seconds = time.perf_counter() - begin
    prompt_tokens = sum(map(len, inputs.ids))
    return {"tokens": tokens, "prompt_tokens": prompt_tokens, "seconds": seconds, "peak": measure_peak(build.device)}


def time_prefill(build: Build) -> dict[str, float]:
    """Reading all prompts and measuring the first token of each."""
    inputs = build.encode(build.texts)
    begin = time.perf_counter()
    list(build.generate(build.texts, inputs=inputs, max_tokens=1))
    synchronise(build.device)
    return {"tokens": sum(map(len, inputs.ids)), "seconds": time.perf_counter() - begin}


def time_scoring(build: Build) -> dict[str, float]:
    """The prompts as texts to be scored, each after an empty prompt."""
    list(build.score(build.texts[: WARM_UP["n_prompts"]]))
    synchronise(build.device)
    begin = time.perf_counter()
    tokens = count_tokens(list_records(build.score(build.texts)))
    synchronise(build.device)
    return {"tokens": tokens, "seconds": time.perf_counter() - begin}


def time_steps(build: Build) -> list[dict[str, Any]]:
    """What a step takes in one batch of each of `BATCHES` sizes (if there are enough prompts) and each top_p."""
    sizes = sorted({min(size, len(build.texts)) for size in BATCHES})
    choices = [build.job["top_p"]] + [WIDE] * (build.job["top_p"] < WIDE)
    return [time_step(build, size, top_p) for top_p in choices for size in sizes]


def time_step(build: Build, size: int, top_p: float) -> dict[str, Any]:
    """Milliseconds per step in the forward pass and in everything else, which is measuring; None if hooks see no pass.

    The time after prefill is divided: there is one more token to measure than there are forward passes, and
    building the records is a part of measuring.
    """
    inputs = build.encode(build.texts)
    inputs.ids = [ids[-STEP_PROMPT:] for ids in inputs.ids]
    rows = sorted(range(len(inputs.ids)), key=lambda row: -len(inputs.ids[row]))[:size]
    with ForwardClock(build.model) as clock:
        options = {"inputs": inputs, "batches": [rows], "max_tokens": STEPS, "top_p": top_p}
        records = list_records(build.generate(build.texts, **options))
        synchronise(build.device)
        other = time.perf_counter() - clock.prefilled - clock.step_seconds
    sizes = [len(candidates) for record in records for candidates in record["top_p_tokens"]]
    found = {"rows": size, "top_p": top_p, "k": sum(sizes) / max(1, len(sizes)), "forward": None, "measuring": None}
    longest = max(len(record["tokens"]) for record in records)
    if 0 < longest - 1 <= clock.steps:
        forward, measuring = clock.step_seconds / clock.steps, other / (clock.steps + 1)
        found |= {"forward": 1e3 * forward, "measuring": 1e3 * measuring}
    return found


PARTS: dict[str, Callable[[Build], Any]] = {
    "measure": time_measuring,  # first, because of the peak memory
    "prefill": time_prefill,
    "score": time_scoring,
    "steps": time_steps,
}


def time_run(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A whole run of the first n_prompts of a file, from its prompts to its files. Not for a build like 07e2a7e."""
    build = Build(job)
    before = measure_peak(build.device)
    from nucleoscope.data import prompts
    from nucleoscope.measure import runs
    from nucleoscope.store import results, run_folder

    begin, cores = time.perf_counter(), time.process_time()
    data = prompts.load(job["dataset_name"], job["n_prompts"])
    folder = Path(job["folder"])
    run = run_folder.RunFolder(folder, {name: job[name] for name in ("model_name", "dataset_name", "n_prompts")})
    with run:
        runs.complete_run(run, build.model, build.tokenizer, data.texts, progress=False, **build.settings)
    seconds, cores, info = time.perf_counter() - begin, time.process_time() - cores, results.load_info(folder)
    found = {"tokens": info["tokens"], "seconds": seconds, "measuring_seconds": info["seconds"], "core_seconds": cores}
    yield {"build": build.describe()}
    yield {"run": found | {"before": before, "peak": measure_peak(build.device)}}


def work(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The results of a job: the parts that it names, or a whole run."""
    if job["parts"] == ["run"]:
        yield from time_run(job)
        return
    build = Build(job)
    yield {"build": build.describe()}
    yield {"start": build.times}
    for name in job["parts"]:
        yield {name: PARTS[name](build)}


def main() -> None:
    job = json.loads(sys.stdin.read())
    # What libraries print goes to stderr, also from C: only results leave by the standard output.
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        import nucleoscope

        found = Path(nucleoscope.__file__).resolve().parents[1]
        if found != Path(job["library"]).resolve():
            raise ImportError(f"nucleoscope is imported from '{found}' and not from '{job['library']}'")
        for result in work(job):
            print(json.dumps(result), file=output, flush=True)
    except Exception as error:  # another build can raise anything; the traceback is for --debug
        traceback.print_exc()
        reason = " ".join(str(error).split())
        message = reason if isinstance(error, (OSError, ValueError)) else f"{type(error).__name__}: {reason}"
        print(json.dumps({"error": message or type(error).__name__}), file=output, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
