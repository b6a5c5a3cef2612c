"""Files of variants, null models and vocabularies with known answers, for the tests of what is made from them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

from nucleoscope.store import record_files, results
from nucleoscope.store.tokens import SOURCE, compute_fingerprint

SETS = ("top_p_0.5", "top_p_0.9", "top_k_5")
GEOMETRIES = ("raw", "all_but_top_3")
NULLS = ("other_step", "random", "frequency_matched", "norm_matched", "gaussian_states")
CLASSES = ("word_start", "word_piece", "digit", "punctuation", "whitespace", "capitalised", "other_script", "special")


def draw_run(
    seed: int,
    prompts: int = 40,
    length: int = 30,
    of_k: float = -0.3,
    beyond_k: float = 0.0,
    level: float = 0.0,
    sets: Sequence[str] = SETS,
    geometries: Sequence[str] = GEOMETRIES,
) -> pd.DataFrame:
    """The rows of variants.parquet: cosine depends on log k by ``of_k``, and beyond it on entropy by ``beyond_k``.

    Entropy is log k times a number that is independent of it, so given k the two are related by ``beyond_k`` only.
    ``level`` is the standard deviation of a prompt's own level, of entropy's factor and of cosine independently.
    """
    rng = np.random.default_rng(seed)
    n, parts = prompts * length, []
    prompt = np.repeat(np.arange(prompts), length)
    size, even = rng.geometric(0.15, n), rng.uniform(0.4, 0.9, n)
    even = even + level * rng.normal(0, 1, prompts)[prompt]
    own = rng.normal(0, 0.1, n) + level * rng.normal(0, 1, prompts)[prompt]
    for name in sets:
        rule, _, value = name.rpartition("_")
        k = np.full(n, int(value)) if rule == "top_k" else np.maximum(np.round(size * float(value)), 1).astype(int)
        entropy = np.log(np.maximum(k, 1)) * even
        for place, geometry in enumerate(geometries):
            noise = own + rng.normal(0, 0.02, n)
            cosine = 0.3 + of_k * np.log(k) / 3 + beyond_k * (even - 0.65) - 0.1 * place + noise
            columns = {"prompt": prompt, "step": np.tile(np.arange(length), prompts), "candidates": name}
            columns |= {"geometry": geometry, "k": k, "mass": 0.9, "entropy": entropy}
            columns |= {"cosine": np.where(k > 1, cosine, np.nan), "weighted_cosine": np.nan}
            parts.append(pd.DataFrame(columns | {"similarity_entropy": np.nan}))
    return pd.concat(parts, ignore_index=True)


def draw_nulls(variants: pd.DataFrame, seed: int = 0, tokens: int = 600, draws: int = 2) -> pd.DataFrame:
    """The rows of nulls.parquet for the top_p sets: cosines depend on log k as in `draw_run`; random ones do not."""
    rng, parts = np.random.default_rng(seed), []
    kept = variants[variants["candidates"].str.startswith("top_p")]
    kept = kept[kept["prompt"] * (kept["step"].max() + 1) + kept["step"] < tokens]
    for null in NULLS:
        for draw in range(1 if null == "gaussian_states" else draws):
            part = kept[["prompt", "step", "candidates", "geometry", "k", "entropy"]].assign(null=null, draw=draw)
            slope = 0.0 if null == "random" else -0.3
            cosine = 0.3 + slope * np.log(part["k"]) / 3 + rng.normal(0, 0.1, len(part))
            part["cosine"] = np.where(part["k"] > 1, cosine, np.nan)
            if null == "gaussian_states":
                part["step"] = part.groupby(["candidates", "geometry"]).cumcount()
                part["prompt"] = -1
            parts.append(part)
    names = ["prompt", "step", "candidates", "geometry", "null", "draw", "k", "entropy", "cosine"]
    return pd.concat(parts, ignore_index=True)[names]


def draw_vocabulary(seed: int = 0, size: int = 400) -> pd.DataFrame:
    """The rows of vocabulary.parquet: ids of one class after another."""
    rng = np.random.default_rng(seed)
    names = np.repeat(CLASSES, -(-size // len(CLASSES)))[:size]
    columns = {"id": np.arange(size, dtype=np.int32), "text": [f"t{place}" for place in range(size)], "class": names}
    columns |= {"norm": rng.uniform(0.5, 2, size).astype(np.float32)}
    return pd.DataFrame(columns | {"mean_probability": rng.exponential(1 / size, size).astype(np.float32)})


def write_run(
    results_dir: Path,
    variants: pd.DataFrame,
    model: str = "model",
    dataset: str = "data",
    nulls: pd.DataFrame | None = None,
    vocabulary: pd.DataFrame | None = None,
    choose: Callable | None = None,
    top_p: float = 0.9,
) -> Path:
    """A run's folder: measurements of its own top_p, run.json, and the files of its variants.

    ``choose(entropy, k, generator)`` gives the ids of a token's candidates; by default they are drawn at random.
    """
    folder = Path(results_dir) / dataset / model
    folder.mkdir(parents=True)
    own = variants[(variants["candidates"] == f"top_p_{top_p:g}") & (variants["geometry"] == "raw")]
    rng, records = np.random.default_rng(0), []
    for prompt, rows in own.groupby("prompt"):
        sizes = rows["k"].tolist()
        if choose is None:
            ids = rng.integers(0, 400, sum(sizes))
        else:
            ids = np.concatenate([choose(row.entropy, row.k, rng) for row in rows.itertuples()])
        full = (rows["entropy"] + rng.exponential(0.3, len(rows))).tolist()
        records.append(
            {
                "prompt": f"prompt {prompt}",
                "tokens": torch.arange(len(rows)),
                "top_p_tokens": list(torch.tensor(ids).split(sizes)),
                "entropies": rows["entropy"].tolist(),
                "full_entropies": full,
                "cosines": rows["cosine"].fillna(1.0).tolist(),
            }
        )
    with open(folder / results.MEASUREMENTS, "wb") as stream:
        record_files.write_records(stream, range(len(records)), records, {})
    (folder / results.RUN_INFO).write_text(json.dumps({"settings": {"top_p": top_p}}))
    write_parquet(folder, "variants.parquet", variants)
    if nulls is not None:
        write_parquet(folder, "nulls.parquet", nulls)
    if vocabulary is not None:
        write_parquet(folder, "vocabulary.parquet", vocabulary)
    return folder


def write_parquet(folder: Path, name: str, frame: pd.DataFrame) -> None:
    """Writes a table beside the measurements as measuring does: short numbers, dictionaries, the fingerprint.

    Of variants, each group of rows has one candidate set.
    """
    columns = {}
    for column in frame:
        values = frame[column]
        if column in ("candidates", "geometry", "null", "class"):
            columns[column] = pa.array(values.tolist()).dictionary_encode()
        elif column == "text":
            columns[column] = pa.array(values.tolist())
        else:
            whole = column in ("prompt", "step", "k", "draw", "id")
            columns[column] = pa.array(values.to_numpy(np.int32 if whole else np.float32), from_pandas=True)
    layout = [frame[key].unique().tolist() for key in ("candidates", "geometry") if key in frame]
    metadata = {SOURCE: compute_fingerprint(folder / results.MEASUREMENTS)}
    metadata |= {b"nucleoscope.variants": json.dumps(layout).encode()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    groups = [frame["candidates"] == each for each in layout[0]] if name == "variants.parquet" else []
    with parquet.ParquetWriter(folder / name, table.schema, write_page_checksum=True) as writer:
        for part in [table.filter(group.to_numpy()) for group in groups] or [table]:
            writer.write_table(part)
