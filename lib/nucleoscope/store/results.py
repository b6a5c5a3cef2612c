"""Results on disk: where they lie, what they are called, and how they are loaded as a table.

Contract: this module reads, and knows nothing of models or statistics. A cell is one model on one
data set, in ``<results_dir>/<dataset>/<model>/`` (see `cell_folder`); `cells.Cell` writes it.
"""

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope import quantities
from nucleoscope.store.reading import light
from nucleoscope.store.shelf import Shelf

# torch and pandas are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

MEASUREMENTS, RUN_INFO, NOTEBOOK = "measurements.pt", "run.json", "run.ipynb"
STUDY_MEASUREMENTS = "output_*.pt"  # what the published study's code writes in the same folders
ANALYSES = "correlation_eval"  # the folder of the analyses, beside those of the data sets
PAGES = "book"  # the folder of executed notebooks that are pages of the book and nothing else
ANALYSIS_FILES = (
    *("correlation.ipynb", "correlation.png", "correlation.pdf"),
    *("correlation_bins.csv", "correlation_stats.csv", "correlation_stats.tex", "correlation_stats_short.tex"),
    *("fits.ipynb", "fit_lines.csv", "fit_stats.csv", "fit_stats.tex"),
)
REQUIRED = ("prompt", "entropies", "cosines", "top_p_tokens")  # what the published study's files have


def short_names(dataset_name: str, model_name: str) -> tuple[str, str]:
    """What a cell's data set and model are called in paths and tables.

    A file of prompts goes by its name without the ending, a model by what stands after the last "/".
    """
    names = Path(dataset_name).stem, model_name.rstrip("/").rsplit("/", 1)[-1]
    for name, given in zip(names, (dataset_name, model_name), strict=True):
        if name in ("", ".", ".."):
            raise ValueError(f"'{given}' gives no name for a results folder: write the folder's own name")
    return names


def cell_folder(
    results_dir: str | os.PathLike, dataset_name: str, model_name: str, text_column: str | None = None
) -> Path:
    """The folder of one cell.

    Texts that were measured, not written, count as a data set of their own, <dataset>-<text_column>.
    """
    dataset, model = short_names(dataset_name, model_name)
    if text_column:
        dataset = f"{dataset}-{text_column.replace('/', '_')}"
    return Path(results_dir, dataset, model)


def load(path: str | os.PathLike) -> list[dict]:
    """The records of a measurements file, one a prompt. ValueError names a file that is damaged or not ours."""
    return _checked(read(path), path)


def _checked(records: Any, path: str | os.PathLike) -> list[dict]:
    if not isinstance(records, list) or not all(isinstance(r, dict) and all(k in r for k in REQUIRED) for r in records):
        raise ValueError(f"'{path}' is not a measurements file: it is no list of records with {', '.join(REQUIRED)}")
    return records


def load_info(folder: Path) -> dict[str, Any]:
    """What a cell's run.json says; see `runs.run_info` for the keys."""
    return read_json(folder / RUN_INFO)


def measurements(folder: Path) -> Path | None:
    """The measurements file of a cell's folder: ours, or else the latest one of the published study's code."""
    if (folder / MEASUREMENTS).is_file():
        return folder / MEASUREMENTS
    return max(folder.glob(STUDY_MEASUREMENTS), default=None)  # their names end in the time


def cells(results_dir: str | os.PathLike = "results") -> list[Path]:
    """The folders below ``results_dir`` that hold measurements, by data set and model."""
    return sorted(folder for folder in Path(results_dir).glob("*/*/") if measurements(folder))


def load_cells(
    results_dir: str | os.PathLike = "results",
) -> tuple[dict[tuple[str, str], "pd.DataFrame"], dict[Path, str]]:
    """The tokens of every cell below ``results_dir``, and the files that cannot be read.

    Returns {(model, dataset): table} and {file: what is wrong with it}. Columns of a table: model,
    dataset (categories), prompt (index), step, token, k (size of the nucleus), then the quantities,
    in nats where they are entropies; NaN, and -1 for the token, where a file lacks them.
    """
    if not Path(results_dir).is_dir():
        raise FileNotFoundError(f"no folder '{results_dir}' here ({Path.cwd()})")
    damaged: dict[Path, str] = {}
    return dict(each_cell(results_dir, damaged)), damaged


def each_cell(
    results_dir: str | os.PathLike, damaged: dict[Path, str]
) -> Iterator[tuple[tuple[str, str], "pd.DataFrame"]]:
    """The name and the tokens of one cell after the other; files that cannot be read go into ``damaged``."""
    for folder in cells(results_dir):
        path = measurements(folder)
        try:
            yield (folder.name, folder.parent.name), load_cell(path, folder.name, folder.parent.name)
        except (ValueError, TypeError, RuntimeError, OSError) as error:  # the right names may hold anything
            damaged[path] = str(error) if str(path) in str(error) else f"'{path}': {error}"


def load_cell(path: str | os.PathLike, model: str, dataset: str) -> "pd.DataFrame":
    """The tokens of one measurements file as a table; columns as in `load_cells`. ValueError names a bad file.

    Candidates are not read. Where `reading.light` does not know the file, `load` has the last word.
    """
    try:
        return table(_checked(light(path), path), model, dataset)
    except (ValueError, TypeError, RuntimeError):
        return table(load(path), model, dataset)


def load_readable(results_dir: str | os.PathLike) -> Shelf:
    """The tables of `load_cells` on a shelf, to be read one at a time.

    Files that cannot be read are named on stderr. ValueError where none is left.
    """
    if not Path(results_dir).is_dir():
        raise FileNotFoundError(f"no folder '{results_dir}' here ({Path.cwd()})")
    tables, damaged = Shelf(), {}
    for key, found in each_cell(results_dir, damaged):
        tables.put(key, found)
    for problem in damaged.values():
        print("skipped:", problem, file=sys.stderr)
    if not tables:
        raise ValueError(f"no measurements that can be read under '{results_dir}': measure a model first")
    return tables


def load_table(results_dir: str | os.PathLike = "results") -> "pd.DataFrame":
    """Every measured token below ``results_dir``, one a row; columns as in `load_cells`.

    ValueError names a bad file.
    """
    import pandas as pd
    from pandas.api.types import union_categoricals

    tables, damaged = load_cells(results_dir)
    if damaged:
        raise ValueError(next(iter(damaged.values())))
    if not tables:
        return table([], "", "").assign(model=pd.Categorical([]), dataset=pd.Categorical([]))
    parts = [tables[key] for key in sorted(tables, key=lambda key: key[::-1])]
    names = {name: union_categoricals([part[name] for part in parts]) for name in ("model", "dataset")}
    joined = pd.concat([part.drop(columns=list(names)) for part in parts], ignore_index=True)
    return joined.assign(**names)[parts[0].columns]


def table(records: list[dict], model: str, dataset: str) -> "pd.DataFrame":
    """The tokens of some records as a table; columns as in `load_cells`. ValueError names a bad prompt."""
    import numpy as np
    import pandas as pd

    columns = quantities.find_columns(key for record in records for key in record)
    lengths = [len(record["entropies"]) for record in records]
    for index, (record, length) in enumerate(zip(records, lengths, strict=True)):
        for name in ("tokens", "top_p_tokens", *columns):
            if len(record.get(name, range(length))) != length:
                raise ValueError(f"prompt {index} has {len(record[name])} {name} for {length} entropies")
    total = sum(lengths)
    found: dict[str, Any] = {
        "model": pd.Categorical([model] * total, [model]),
        "dataset": pd.Categorical([dataset] * total, [dataset]),
        "prompt": np.repeat(np.arange(len(records)), lengths),
        "step": np.array([step for length in lengths for step in range(length)], dtype=np.int64),
        "k": np.array([len(ids) for record in records for ids in record["top_p_tokens"]], dtype=np.int64),
    }
    for name, column, missing, dtype in [
        ("tokens", "token", -1, np.int64),
        *((plural, column, np.nan, np.float64) for plural, column in columns.items()),
    ]:
        parts = [np.asarray(r.get(name, [missing] * n), dtype=dtype) for r, n in zip(records, lengths, strict=True)]
        found[column] = np.concatenate([np.empty(0, dtype), *parts])
    return pd.DataFrame(found)


def choices(table: "pd.DataFrame") -> "pd.DataFrame":
    """The tokens that had an alternative (k > 1): with one candidate there is no pair to compare."""
    return table[table["k"] > 1]


def read_json(path: Path) -> dict:
    """A JSON object; ValueError names a file that holds none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): move it away") from None
    if not isinstance(content, dict):
        raise ValueError(f"'{path}' is not a JSON object: move it away")
    return content


def read(path: str | os.PathLike) -> Any:
    """What a file of tensors holds, on the CPU; ValueError names one that is damaged."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # what a damaged file makes of the loader is anybody's guess
        reason = textwrap.shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 100)
        raise ValueError(
            f"'{path}' cannot be read as measurements: it is truncated or not ours; "
            f"delete it and measure again ({reason})"
        ) from None
