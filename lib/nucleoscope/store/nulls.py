"""A run's nulls.parquet: candidate sets of null models, one row per token looked at, variant, null model and draw.

Contract: columns prompt, step, candidates, geometry, null, draw, k, entropy, cosine.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

NULLS = "nulls.parquet"


def load(folder: Path) -> "pd.DataFrame":
    """All rows. ValueError, in one line, if the file is missing."""
    import pandas as pd

    path = Path(folder) / NULLS
    if not path.is_file():
        raise ValueError(f"'{folder}' has no {NULLS}: measure the run again, without variants=none")
    return pd.read_parquet(path)
