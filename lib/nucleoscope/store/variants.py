"""A run's variants.parquet: one row per token and variant of its candidates (`nucleoscope.variants`).

Contract: columns as in `nucleoscope.variants.COLUMNS`; values that do not exist are missing.
"""

from pathlib import Path
from typing import TYPE_CHECKING

# pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

VARIANTS = "variants.parquet"


def load(
    folder: Path, columns: list[str] | None = None, candidates: str | None = None, geometry: str | None = None
) -> "pd.DataFrame":
    """The rows of one or all candidate sets and geometries. ValueError, in one line, if the file is missing."""
    from pyarrow import parquet

    path = Path(folder) / VARIANTS
    if not path.is_file():
        raise ValueError(f"'{folder}' has no {VARIANTS}: measure the run again, without variants=none")
    wanted = {"candidates": candidates, "geometry": geometry}
    filters = [(name, "=", value) for name, value in wanted.items() if value is not None]
    return parquet.read_table(path, columns=columns, filters=filters or None).to_pandas()
