"""The input of the cost simulation: sizes of models and texts, measured figures, estimates.

Contract: numbers and their sources; `cost_simulation.scale` contains the model that uses them,
`cost_simulation.costs` the resulting tables. Speeds of a GPU are published by its maker or are estimates: no GPU
was available.
"""

import numpy as np

from cost_simulation.scale import Data, ModelSize

PROMPTS, STEPS = 100, 100  # prompts and steps per run in the study
GB, MIB = 1e9, 2**20
MODELS = (  # config.json: layers, hidden, heads, key-value heads, head width, intermediate, vocabulary
    ModelSize("deepseek-llm-7b-base", 30, 4096, 32, 32, 128, 11008, 102400),
    ModelSize("Llama-3.1-8B", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelSize("Llama-3.1-8B-Instruct", 32, 4096, 32, 8, 128, 14336, 128256),
    ModelSize("Mistral-7B-v0.1", 32, 4096, 32, 8, 128, 14336, 32000),
    ModelSize("Qwen3-8B", 36, 4096, 32, 8, 128, 12288, 151936),
)
SMALL = ModelSize("SmolLM2-135M-Instruct", 30, 576, 9, 3, 64, 1536, 49152, tied=True)
DATA = (  # mean and longest prompt in tokens, share of texts that reach the last step, mean share reached by the others
    Data("gsm8k", 60, 200, 0.88, 0.76),
    Data("writingprompts", 35, 100, 0.64, 0.55),
    Data("xsum", 540, 2000, 0.94, 0.63),  # 431 words on average (Narayan et al. 2018)
)
# SmolLM2 on two cores, the default grid: data set, mean tokens per prompt with the chat template, share reached, batch
# size, seconds.
RUNS = (
    ("math", 76, 0.879, 25, 24.5),
    ("stories", 66, 0.847, 25, 22.6),
    ("articles", 173, 0.815, 25, 28.5),
)
CORES = {"flops": 714e9, "bandwidth": 16e9, "flops share": 1, "bandwidth share": 1}  # measured: best of 150
# name: (least, likeliest, most), unit, what it is, its basis, a note. Triangular; all three equal: a fixed number.
ASSUMED = {
    "flops": ((989, 989, 989), "TFLOP/s", "H100 SXM, dense bfloat16", "published", "{cite}`nvidia2023`: half of 1,979"),
    "bandwidth": ((3350, 3350, 3350), "GB/s", "H100 SXM, memory bandwidth", "published", "{cite}`nvidia2023`"),
    "memory": ((80, 80, 80), "GB", "H100 SXM, memory", "published", "{cite}`nvidia2023`"),
    "flops share": (
        (0.25, 0.4, 0.6),
        "",
        "share of the peak that matrix products reach",
        "estimate",
        "our runs on a CPU reached half of their roof, see below",
    ),
    "bandwidth share": ((0.5, 0.7, 0.85), "", "share of the bandwidth reached", "estimate", "--"),
    "layer": (
        (0.2, 0.4, 0.8),
        "ms",
        "the framework's overhead per layer and step",
        "estimate",
        "without any computation, on our CPU: 0.15",
    ),
    "measuring": ((0.5, 1.5, 3), "ms", "launching the measurements of a step", "estimate", "120 launches"),
    "passes": (
        (6, 10, 16),
        "",
        "float32 passes over the logits to find nuclei and entropies",
        "estimate",
        "from the code",
    ),
    "candidates": ((20, 100, 260), "", "mean size of a nucleus", "estimate", "SmolLM2: 16 to 260, by data set"),
    "unpacking": ((40, 60, 100), "µs", "moving a token from the GPU to a saved batch, GPU idle", "measured", "60"),
    "finishing": ((300, 440, 700), "µs", "joining and loading a token and showing it, GPU idle", "measured", "440"),
    "host": ((1.5, 2.5, 5), "GB", "host memory of a run without records", "estimate", "1.7 to 2.5 on our CPU"),
    "start": (
        (10, 25, 90),
        "s",
        "from the start of a job until weights load: Python, kernel, imports",
        "estimate",
        "imports alone take 5 on our CPU",
    ),
    "notebook": ((3, 6, 15), "s", "the rest of the run's notebook", "estimate", "--"),
    "link": ((1, 2, 5), "GB/s", "reading weights from the file system to one GPU", "estimate", "--"),
    "disk": ((2, 10, 40), "GB/s", "the file system, for all GPUs together", "estimate", "--"),
    "lost": ((0, 0.02, 0.1), "", "preemptions and failures per hour of a GPU", "estimate", "--"),
    "again": ((30, 120, 600), "s", "until a lost run starts again", "estimate", "--"),
    "each": (
        (2, 14, 35),
        "s",
        "core time per run in all analyses, 2,000 resamples",
        "measured range",
        "2 to 35, depending on its curves; the likeliest value is an estimate that fits the 190 s above",
    ),
    "analysis": (
        (0.1, 1.2, 2),
        "ms",
        "core time per token in all analyses",
        "measured range",
        "0.1 to 2, depending on the size of the run; likeliest value: as above",
    ),
}
UNITS = {"TFLOP/s": 1e12, "GB/s": 1e9, "GB": 1e9, "ms": 1e-3, "µs": 1e-6, "s": 1, "": 1}
TOKEN, CANDIDATE = 216, 8  # bytes in measurements.pt: measured on six real runs, within 1%
ONCE = 2 * 190  # core seconds for 15 synthetic runs of 10,000 tokens with all variants (two cores), 2,000 resamples
POOLED = 140  # bytes per token while curves are fitted to a pool, measured on 4.7 million tokens
TABLE = 61  # bytes per token in tokens.parquet, measured on a synthetic run of a million tokens
PAGE, PANEL = 1.4 * 2**20, 65e3  # bytes of a run's page with its data, and of one run in the page of coefficients
RECORDS = 5.6e3  # bytes per token in a process that has all records of a run in memory, measured
# Prompts per run, peak MiB of all processes of the analysis before and after it was changed to read one run at a time.
ANALYSED = ((100, 894, 669), (1000, 1807, 819), (10000, None, None))
READ = ((100, 238, 68), (1000, 660, 159), (10000, 5560, 1335))  # MiB to read one run: torch.load, results.load_run


def draw(rng: np.random.Generator, share: int = 1) -> dict[str, float]:
    """One draw of all assumptions, in seconds and bytes; ``share``: number of slices of the file system."""
    found = {}
    for name, ((low, mode, high), unit, _, _, _) in ASSUMED.items():
        value = mode if low == high else rng.triangular(low, mode, high)
        found[name] = value * UNITS[unit]
    return found | {"disk": found["disk"] / share}
