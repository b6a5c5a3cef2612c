"""A run's variants as arrays: one candidate set at a time, with its cosines in every geometry.

Contract: folders of runs in, arrays out; nothing is computed. Only the tokens whose set has more than one candidate are
there, because the others have no pair to compare.
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from nucleoscope.names import escape_line
from nucleoscope.settings import Settings
from nucleoscope.store import results, variants
from nucleoscope.store.run_names import order_run
from nucleoscope.variants import GEOMETRIES_BY_NAME, SETS_BY_NAME
from nucleoscope.wording import MEASURE_AGAIN

Runs = dict[tuple[str, str], Path]  # the folder of each (model, dataset)


class CandidateTable(NamedTuple):
    """The n tokens of a run for which one candidate set has a pair, in order of prompt and step.

    prompt, step, k (n,) int; entropy (n,); cosines (n, v) in the v ``geometries``; place (n,): the token's number in
    the run, which is the same in all sets; tokens: how many the run has.
    """

    prompt: np.ndarray
    step: np.ndarray
    place: np.ndarray
    k: np.ndarray
    entropy: np.ndarray
    cosines: np.ndarray
    geometries: tuple[str, ...]
    tokens: int


def load_set(folder: Path, candidates: str) -> CandidateTable | None:
    """One candidate set of a run; None if it was not measured. ValueError, in one line, for a file that is none.

    A geometry without any cosine is left out, and so is a token without a finite entropy or without a cosine in one of
    the other geometries.
    """
    columns = ["prompt", "step", "candidates", "geometry", "k", "entropy", "cosine"]
    if candidates not in variants.read_layout(folder).candidates:
        return None
    frame = variants.load(folder, columns=columns, candidates=candidates)
    codes, names = pd.factorize(frame["geometry"])
    of = {str(name): np.flatnonzero(codes == code) for code, name in enumerate(names)}
    arrays = {name: frame[name].to_numpy() for name in ("prompt", "step", "k", "entropy", "cosine")}
    rows = {name: _sort(arrays, of[name]) for name in GEOMETRIES_BY_NAME if name in of}
    if not rows:
        return None
    first = next(iter(rows.values()))
    for name, found in rows.items():
        same = len(found) == len(first) and all(
            np.array_equal(arrays[key][found], arrays[key][first]) for key in ("prompt", "step")
        )
        if not same:
            raise ValueError(
                f"'{folder}': the variants of {candidates} have different tokens in geometry {name}: {MEASURE_AGAIN}"
            )
    cosines = {name: arrays["cosine"][found].astype(np.float64) for name, found in rows.items()}
    k, entropy = arrays["k"][first].astype(np.int64), arrays["entropy"][first].astype(np.float64)
    cosines = {name: values for name, values in cosines.items() if np.isfinite(values[k > 1]).any()}
    kept = (k > 1) & np.isfinite(entropy)
    for values in cosines.values():
        kept &= np.isfinite(values)
    matrix = np.stack([values[kept] for values in cosines.values()], axis=1) if cosines else np.empty((kept.sum(), 0))
    prompt, step = (arrays[key][first][kept].astype(np.int64) for key in ("prompt", "step"))
    return CandidateTable(
        prompt, step, np.flatnonzero(kept), k[kept], entropy[kept], matrix, tuple(cosines), len(first)
    )


def list_sets(folder: Path) -> list[str]:
    """The names of the candidate sets that a run was measured with. ValueError as from `store.variants.load`."""
    names = set(variants.load(folder, columns=["candidates"])["candidates"].unique())
    return [name for name in SETS_BY_NAME if name in names]


def _sort(arrays: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """The rows in order of prompt and step, in which they usually are."""
    prompt, step = arrays["prompt"][rows].astype(np.int64), arrays["step"][rows].astype(np.int64)
    key = prompt * (int(step.max(initial=0)) + 1) + step
    return rows if (np.diff(key) > 0).all() else rows[np.argsort(key, kind="stable")]


def find_values(
    folder: Path, model: str, dataset: str, column: str, prompt: np.ndarray, step: np.ndarray
) -> np.ndarray:
    """A column of tokens.parquet for tokens (n,) by prompt and step: (n,), NaN for tokens that are not there."""
    path = results.find_measurements(folder)
    if path is None:
        return np.full(len(prompt), np.nan)
    table = results.load_run(path, model, dataset, {"prompt", "step", column})
    wanted = pd.DataFrame({"prompt": prompt, "step": step})
    return wanted.merge(table[["prompt", "step", column]], how="left")[column].to_numpy(np.float64)


def find_measured(results_dir: str | Path, keys: Iterable[tuple[str, str]]) -> tuple[Runs, dict[tuple[str, str], str]]:
    """The folders of the runs (model, dataset) that have variants, and the others: "" for one without the file, and for
    one whose file cannot be used why, in one line, which is also printed on stderr."""
    found: Runs = {}
    missing: dict[tuple[str, str], str] = {}
    for model, dataset in sorted(keys, key=order_run):
        folder = results.locate_measured(results_dir, model, dataset)
        if reason := explain_missing(folder):
            missing[model, dataset] = reason if Path(folder, variants.VARIANTS).exists() else ""
            if missing[model, dataset]:
                print("skipped:", escape_line(reason), file=sys.stderr)
        else:
            found[model, dataset] = folder
    return found, missing


def explain_missing(folder: Path) -> str:
    """Why a run has no variants, in one line; "" if it has them."""
    try:
        list_sets(folder)
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def find_usual_top_p(folders: Iterable[Path]) -> float:
    """The top_p of the nuclei from which all runs with variants drew their tokens; the default if they differ.

    Also if there is no such run, or one does not say it.
    """
    common = find_common_top_p(folder for folder in folders if not explain_missing(folder))
    return Settings.top_p if np.isnan(common) else common


def find_common_top_p(folders: Iterable[Path]) -> float:
    """The top_p of the nuclei from which all runs drew their tokens; NaN if they differ or one does not say it."""
    names = {find_top_p(folder) for folder in folders}
    chosen = names.pop() if len(names) == 1 else ""
    return float(chosen.removeprefix("top_p_")) if chosen else np.nan


def find_top_p(folder: Path) -> str:
    """The name of the candidate set that the run was measured with; "" if its run.json does not say."""
    try:
        return f"top_p_{float(results.load_info(folder)['settings']['top_p']):g}"
    except (OSError, KeyError, TypeError, ValueError):
        return ""
