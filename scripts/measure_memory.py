"""Measures how much memory and time it takes to read one synthetic run and to analyse 15 of them."""

import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from nucleoscope.settings import ANALYSES
from nucleoscope.store import results
from nucleoscope.workflow.command_line import Parser

ROOT = Path(__file__).resolve().parents[1]
MODELS, DATASETS = [f"model-{number}" for number in range(5)], [f"data-{number}" for number in range(3)]
STEPS, MIB = 100, 2**20


def write_measurements(path: Path, prompts: int, seed: int = 0, vocabulary: int = 128_256) -> None:
    """Synthetic measurements and their tokens.parquet: the median nucleus size is 40, some are tens of thousands."""
    import torch

    from nucleoscope.store.record_files import write_records

    rng, records = np.random.default_rng(seed), []
    for index in range(prompts):
        k = np.clip(np.exp(rng.normal(np.log(40), 1.9, STEPS)), 1, 0.3 * vocabulary).astype(int)
        ids = torch.from_numpy(rng.integers(0, vocabulary, k.sum()).astype(np.int32))
        probs = torch.from_numpy(rng.random(k.sum()).astype(np.float32))
        h = np.where(k > 1, np.log(k) * rng.uniform(0.3, 1, STEPS), 0)
        c = np.where(k > 1, 0.4 - 0.05 * h + rng.normal(0, 0.05, STEPS), 1)
        columns = {"entropies": h, "full_entropies": h + rng.exponential(1, STEPS)}
        columns |= {"varentropies": h * rng.random(STEPS), "surprisals": rng.exponential(2, STEPS), "cosines": c}
        columns |= {"weighted_cosines": np.where(k > 1, c + rng.normal(0, 0.02, STEPS), 1)}
        columns |= {"similarity_entropies": 0.4 * h * rng.random(STEPS)}
        records.append(
            {
                "prompt": f"prompt {index} " + "words " * 60,
                "tokens": torch.from_numpy(rng.integers(0, vocabulary, STEPS)),
                "top_p_tokens": list(ids.split(k.tolist())),
                "top_p_probs": list(probs.split(k.tolist())),
                **{name: column.tolist() for name, column in columns.items()},
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as stream:
        write_records(stream, range(prompts), records, {})
    results.write_tokens(records, path)


def write_grid(folder: Path, prompts: int) -> None:
    """15 synthetic runs, three of them generated: the runs on one data set have the same content for every model."""
    for place, data in enumerate(DATASETS):
        first = folder / data / MODELS[0] / results.MEASUREMENTS
        write_measurements(first, prompts, place)
        for model in MODELS[1:]:
            (folder / data / model).mkdir()
            for name in (results.MEASUREMENTS, results.TOKENS):
                os.link(first.with_name(name), folder / data / model / name)


def watch(command: list[str], pause: float = 0.1) -> tuple[int, float]:
    """Runs a command: peak bytes of the command and all its children together, and their CPU seconds.

    Memory shared by processes counts once (proportional set size, Linux only). RuntimeError if the command fails.
    """
    import psutil

    def measure_held(process: psutil.Process) -> int:
        try:  # the kernel's own total: psutil would add up thousands of lines
            text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            return 1024 * int(re.search(r"^Pss: +(\d+)", text, re.MULTILINE)[1])
        except (OSError, TypeError):  # it has just ended
            return 0

    before, peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as started:
        root = psutil.Process(started.pid)
        while started.poll() is None:
            try:
                processes = [root, *root.children(recursive=True)]
            except psutil.Error:
                break
            peak_bytes = max(peak_bytes, sum(map(measure_held, processes)))
            time.sleep(pause)
    if started.returncode:
        raise RuntimeError(f"{command[1]} failed with exit status {started.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return peak_bytes, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(sizes: list[int], resamples: int) -> None:
    """Prints memory and time for reading and for analysing 15 synthetic runs of each size."""
    read = "import sys; from nucleoscope.store import results; results.load_run(sys.argv[1], 'model', 'data')"
    print("prompts per run | reading one run: MiB, core s | analysing 15 runs: MiB, core s")
    for prompts in sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_grid(Path(folder), prompts)
            file = next(Path(folder).rglob("measurements.pt"))
            once = watch([sys.executable, "-c", read, str(file)])
            command = [sys.executable, str(ROOT / "scripts/correlation_eval.py"), "--results_dir", folder]
            whole = watch([*command, "--resamples", str(resamples)])
        numbers = [f"{found[0] / MIB:,.0f}, {found[1]:,.1f}" for found in (once, whole)]
        print(f"{prompts:,} | {' | '.join(numbers)}", flush=True)


def main() -> None:
    options = Parser(__doc__)
    numbers = "prompts per run, one number or several"
    options.add_whole_number("prompts", 1, metavar="N", nargs="+", default=[100, 1000], help=numbers)
    text = "resamples per analysis; 2,000 take longer but need hardly any more memory"
    options.add_whole_number("resamples", *ANALYSES["resamples"], default=100, help=text)
    given = options.parse_args()
    measure(given.prompts, given.resamples)


if __name__ == "__main__":
    main()
