"""A run's nulls.parquet: cosines of candidate sets that were chosen for another reason than a model's next token.

Contract: one row per token looked at, candidate set, geometry and null model, as `measure.second_look` found them.
``prompt`` and ``step`` say which token it is, ``k`` and ``entropy`` (nats) are those of its measured set, and
``cosine`` is that of the null set, null where there is no pair. For gaussian_states, prompt is -1, step a running
number, and k and entropy belong to the set of the drawn state itself. ``draw`` counts independent draws, from 0.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.store.side_tables import load_table, write_table

if TYPE_CHECKING:
    import pandas as pd

NULLS = "nulls.parquet"
COLUMNS = ("prompt", "step", "candidates", "geometry", "null", "draw", "k", "entropy", "cosine")


def write_nulls(looked: Any, measurements: Path) -> None:
    """Writes the null sets of a `measure.second_look.SecondLook` beside the measurements file."""
    import pyarrow as pa

    columns = {}
    for name, values in looked.columns.items():
        numbers = values.numpy()
        if name in looked.names:
            columns[name] = pa.DictionaryArray.from_arrays(numbers, pa.array(looked.names[name], pa.string()))
        else:
            columns[name] = pa.array(numbers, from_pandas=True)  # NaN becomes null
    write_table(pa.table(columns), NULLS, measurements, looked.seed)


def load(
    folder: Path,
    columns: Sequence[str] | None = None,
    candidates: Collection[str] | str | None = None,
    geometry: Collection[str] | str | None = None,
    null: Collection[str] | str | None = None,
) -> "pd.DataFrame":
    """The null sets of a run: all or some columns, of all or some sets, geometries and null models.

    ValueError, in one line, if the file is missing, damaged or of other measurements.
    """
    choices = {"candidates": candidates, "geometry": geometry, "null": null}
    return load_table(folder, NULLS, columns, choices)
