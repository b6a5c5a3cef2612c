"""What the study costs at three sizes: assumptions in, a section of the page Performance out.

Contract: text in Markdown; nothing is read or written. `cost_simulation.assumptions` contains the numbers,
`cost_simulation.scale` the simulation; the caller of `format_page` supplies the text.
"""

import numpy as np

from cost_simulation.assumptions import (
    ANALYSED,
    ASSUMED,
    CANDIDATE,
    CORES,
    DATA,
    GB,
    MIB,
    MODELS,
    ONCE,
    PAGE,
    PANEL,
    POOLED,
    PROMPTS,
    READ,
    RECORDS,
    RUNS,
    SMALL,
    STEPS,
    TABLE,
    TOKEN,
    UNITS,
    draw,
)
from cost_simulation.scale import (
    Cluster,
    Data,
    compute_batch,
    compute_batch_size,
    compute_peak,
    compute_roof,
    compute_work,
    simulate_queue,
)


def simulate(gpus: int, models: int, datasets: int, prompts: int, repeats: int, share: int = 1) -> dict:
    """Many runs of a grid, or of one of ``share`` equal slices of it: {figure: (repeats,) values} of the whole grid."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(repeats):
        a = draw(rng, share)
        shapes = {(m, d): compute_work(m, d, prompts, STEPS, a, rng) for m in MODELS for d in DATA}
        kinds = [shapes[MODELS[m % 5], DATA[d % 3]] for m in range(models) for d in range(datasets)]
        runs = kinds[::share]
        cluster = Cluster(gpus // share, a["disk"], a["link"], a["start"], a["lost"], a["again"])
        outcome = simulate_queue(runs, cluster, rng)
        tokens = models * datasets * prompts * STEPS * np.mean([data.reached for data in DATA])
        busy = share * sum(sum(run.batches) for run in runs)
        rows.append(
            {
                "GPU hours": share * outcome.held / 3600,
                "generating": busy / (share * outcome.held),
                "wall": outcome.wall,
                "losses": share * outcome.losses,
                "tokens": tokens,
                "host": a["host"] + RECORDS * prompts * STEPS,
                "files": tokens * (TOKEN + CANDIDATE * a["candidates"]),
                "read": sum(run.load for run in runs) * share,
                "analysis": (models * datasets * a["each"] + tokens * a["analysis"]) / 3600,
            }
        )
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def format_span(values: np.ndarray, by: float = 1) -> str:
    """The median and the range of the middle 90%."""
    low, middle, high = np.quantile(np.asarray(values) / by, [0.05, 0.5, 0.95])
    return (
        format_figure(middle)
        if format_figure(low) == format_figure(high)
        else f"{format_figure(middle)} ({format_figure(low)} to {format_figure(high)})"
    )


def format_figure(value: float) -> str:
    """A number with two significant digits."""
    if value == 0:
        return "0"
    digits = max(0, 1 - int(np.floor(np.log10(abs(value)))))
    rounded = round(value, 1 - int(np.floor(np.log10(abs(value)))))
    return f"{rounded:,.{digits}f}"


def format_size(values: np.ndarray | float) -> str:
    """Bytes in a unit suitable for their median."""
    middle = np.median(values)
    unit, name = next(
        (10.0 ** (p or 3), n) for p, n in ((15, "PB"), (12, "TB"), (9, "GB"), (6, "MB"), (0, "kB")) if middle >= 10.0**p
    )
    return f"{format_span(np.atleast_1d(values), unit)} {name}"


def format_time(seconds: np.ndarray) -> str:
    """Times in a unit suitable for their median."""
    middle = np.median(seconds)
    unit, name = next(
        (u, n) for u, n in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s")) if middle >= 2 * u or u == 1
    )
    return f"{format_span(seconds, unit)} {name}"


def format_table(head: list[str], rows: list[list[str]], right: int = 1) -> str:
    """A table in Markdown; all columns after the first ``right`` are right-aligned."""
    rule = ["---" if place < right else "--:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows]) + "\n"


def format_assumptions() -> str:
    """The table of assumptions and their sources."""
    rows = []
    for (low, mode, high), unit, what, basis, note in ASSUMED.values():
        value = f"{mode:,g}" if low == high else f"{mode:,g} ({low:,g} to {high:,g})"
        rows.append([what, f"{value} {unit}".strip(), basis, note])
    return format_table(["what", "value", "basis", "note"], rows, right=4)


def format_shapes() -> str:
    """The table of figures that follow from the sizes of models and data sets."""
    free, rows = ASSUMED["memory"][0][1] * GB, []
    for m in MODELS:
        sizes = [compute_batch_size(m, data.longest, STEPS, free - m.weights, PROMPTS) for data in DATA]
        most = max(compute_peak(m, d.longest, STEPS, size) for d, size in zip(DATA, sizes, strict=True))
        numbers = [f"{m.parameters / 1e9:.2f}", f"{m.weights / GB:.1f}", f"{m.cache / 1e6:.2f}"]
        rows.append([m.name, *numbers, ", ".join(map(str, sizes)), f"{most / GB:.0f}"])
    head = ["model", "parameters, 10⁹", "weights, GB", "cache per token, MB"]
    return format_table([*head, "batch size (" + ", ".join(d.name for d in DATA) + ")", "GPU memory, GB"], rows)


def compare_roofline() -> tuple[str, list[float]]:
    """Our own runs on two cores compared with an ideal roofline."""
    still = {"layer": 0, "measuring": 0, "passes": 0, "candidates": 0, "unpacking": 0}
    rows, ratios = [], []
    for name, prompt, reached, size, seconds in RUNS:
        data = Data(name, prompt, prompt, 0, reached)
        ideal = PROMPTS / size * compute_batch(SMALL, data, size, STEPS, {**CORES, **still})
        tokens = PROMPTS * STEPS * reached
        ratios.append(ideal / seconds)
        rows.append([name, str(size), *(f"{tokens / s:,.0f}" for s in (ideal, seconds)), f"{ideal / seconds:.2f}"])
    return format_table(
        ["data set", "batch size", *(f"{of}, tokens/s" for of in ("roof", "measured")), "measured / roof"], rows
    ), ratios


def fit_line(points: tuple, column: int) -> tuple[float, float]:
    """Bytes at zero tokens and bytes per token of a run, by least squares over relative errors."""
    known = np.array([(row[0] * STEPS, row[column] * MIB) for row in points if row[column]], dtype=float)
    return tuple(np.polyfit(known[:, 0], known[:, 1], 1, w=1 / known[:, 1])[::-1])


def format_measured() -> str:
    """The table of the memory that reading and analysing took."""
    name = {"read": "reading one run", "analysed": "analysing 15 runs"}
    head = ["prompts per run", *(f"{name[key]}, {when}" for key in name for when in ("before", "now"))]
    rows = [
        [f"{prompts:,}", *(f"{value:,} MiB" if value else "not run" for value in (*read, *analysed))]
        for (prompts, *read), (_, *analysed) in zip(READ, ANALYSED, strict=True)
    ]
    return format_table(head, rows)


def estimate_costs() -> tuple[str, dict[str, dict]]:
    """The table of the three sizes, and the figures that it is made from."""
    grids = {
        "the study, one H100": (1, 5, 3, 100, 200),
        "the study, 15 H100": (15, 5, 3, 100, 200),
        "the largest, 256 H100": (256, 1000, 100, 10_000, 24, 64),
    }
    found = {name: simulate(*grid) for name, grid in grids.items()}
    base, by = fit_line(ANALYSED, 2)
    lines: dict[tuple[str, str], list[str]] = {}
    for name, (_, models, datasets, prompts, *_) in grids.items():
        runs, r = models * datasets, found[name]
        column = {
            ("runs", "given"): f"{runs:,}",
            ("tokens", "estimate"): format_figure(np.median(r["tokens"])),
            ("GPU hours", "estimate"): format_span(r["GPU hours"]),
            ("of which generating", "estimate"): format_span(100 * r["generating"]) + "%",
            ("wall time until all is measured", "estimate"): format_time(r["wall"]),
            ("runs lost and restarted", "estimate"): format_span(r["losses"]),
            ("host memory of a run", "estimate"): format_size(r["host"]),
            ("weights on disk", "calculated"): format_size(np.mean([m.weights for m in MODELS]) * models),
            ("weights read", "calculated"): format_size(r["read"]),
            ("measurements on disk", "estimate"): format_size(r["files"]),
            ("analysis, core hours", "estimate"): format_span(r["analysis"]),
            ("analysis, memory", "measured; last column: estimate"): format_size(
                estimate_memory(runs, datasets, models, prompts, base, by)
            ),
            ("analysis, temporary files", "estimate"): format_size(np.median(r["tokens"]) * TABLE),
            ("book", "estimate"): format_size(runs * PAGE),
            ("page of coefficients", "estimate"): format_size(runs * PANEL),
        }
        for key, value in column.items():
            lines.setdefault(key, []).append(value)
    return format_table(["", *grids, "basis"], [[key, *values, basis] for (key, basis), values in lines.items()]), found


def estimate_memory(runs: int, datasets: int, models: int, prompts: int, base: float, by: float) -> float:
    """Bytes of the analysis: as measured if a run is the largest item, otherwise for fitting the largest pool."""
    tokens = prompts * STEPS
    return max(base + by * tokens, POOLED * tokens * max(models, datasets) if runs > 15 else 0)


def format_page(words: str) -> str:
    """``words`` with each <name> replaced by its value."""
    check, ratios = compare_roofline()
    costs_table, found = estimate_costs()
    small, wide, large = found.values()
    facts = {
        "assumptions": format_assumptions(),
        "shapes": format_shapes(),
        "check": check,
        "slower": f"{1 / max(ratios):.1f} to {1 / min(ratios):.1f}",
        "memory": format_measured(),
        "analysed": format_time(small["analysis"] * 3600 / 2),
        "once": format_figure(ONCE / 3600),
        "token": str(TOKEN),
        "candidate": str(CANDIDATE),
        "costs": costs_table,
        "generating": format_span(100 * small["generating"]),
        "generating_large": format_span(100 * large["generating"]),
        "faster": format_span(small["wall"] / wide["wall"]),
        "bound": describe_bounds(),
    }
    for name, text in facts.items():
        words = words.replace(f"<{name}>", text.rstrip("\n"))
    return words


def describe_bounds() -> str:
    """Which of the three times is the longest, at the likeliest values."""
    a = {name: mode * UNITS[unit] for name, ((_, mode, _), unit, _, _, _) in ASSUMED.items()}
    steps = {"framework": [], "memory": [], "computing": []}
    for m in MODELS:
        read, computed = compute_roof(m, PROMPTS, 100 + STEPS / 2, a)
        for name, seconds in zip(steps, (m.layers * a["layer"], read, computed), strict=True):
            steps[name].append(1e3 * seconds)
    return ", ".join(f"{name} {min(values):.0f} to {max(values):.0f} ms" for name, values in steps.items())
