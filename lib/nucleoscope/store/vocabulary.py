"""A run's vocabulary.parquet: one row per id of the embedding, with the token's class, norm and mean probability.

Contract: columns id, text, class, norm, mean_probability.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

VOCABULARY = "vocabulary.parquet"


def load(folder: Path) -> "pd.DataFrame":
    """All rows. ValueError, in one line, if the file is missing."""
    import pandas as pd

    path = Path(folder) / VOCABULARY
    if not path.is_file():
        raise ValueError(f"'{folder}' has no {VOCABULARY}: measure the run again, without variants=none")
    return pd.read_parquet(path)
