"""Tables beside a run's measurements that cannot be computed from them: a model was needed.

Contract: each is a parquet file that belongs to one measurements file, by its fingerprint. It is written whole, and is
read only next to these measurements.
"""

import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nucleoscope.atomic import write_atomically
from nucleoscope.file_errors import find_system_cause
from nucleoscope.store.measurements import find_measurements
from nucleoscope.store.tokens import SOURCE, compute_fingerprint
from nucleoscope.wording import MEASURE_AGAIN

# pandas and pyarrow are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import pandas as pd

SEED = b"nucleoscope.seed"  # the metadata key for the seed of what was drawn


def write_table(table: Any, name: str, measurements: Path, seed: int) -> None:
    """Writes a pyarrow table under its ``name`` beside the measurements that it belongs to."""
    from pyarrow import parquet

    metadata = {SOURCE: compute_fingerprint(measurements), SEED: str(seed).encode()}
    with write_atomically(measurements.with_name(name)) as stream:
        parquet.write_table(table.replace_schema_metadata(metadata), stream, write_page_checksum=True)


def load_table(
    folder: Path, name: str, columns: Sequence[str] | None, choices: dict[str, Collection[str] | str | None]
) -> "pd.DataFrame":
    """Some or all columns of a run's table, and the rows whose columns have one of the ``choices`` (None: any).

    ValueError, in one line, if the file is missing, damaged, or of other measurements, OSError if the system cannot
    read it.
    """
    import pyarrow as pa
    from pyarrow import parquet

    path = Path(folder) / name
    if not path.is_file():
        raise ValueError(f"'{folder}' has no {name}: repeat the run's command with --variants=default --overwrite")
    wanted = {key: [value] if isinstance(value, str) else list(value) for key, value in choices.items() if value}
    filters = [(key, "in", values) for key, values in wanted.items()]
    try:
        _check_source(path)
        options: dict[str, Any] = {"columns": columns and list(columns), "filters": filters or None}
        return parquet.read_table(path, page_checksum_verification=True, **options).to_pandas()
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:  # a damaged name is no UTF-8
        if cause := find_system_cause(error, path):
            raise OSError(f"cannot read '{path}': {cause}") from None
        reason = textwrap.shorten(str(error), 100)
        raise ValueError(f"'{path}' is damaged ({reason}): {MEASURE_AGAIN}") from None


def is_readable(path: Path, columns: Sequence[str]) -> bool:
    """Whether a table can be read to its end, belongs to the measurements next to it, and has these ``columns``."""
    try:
        return list(load_table(path.parent, path.name, None, {})) == list(columns)
    except ValueError:
        return False


def _check_source(path: Path) -> None:
    """ValueError if a table does not belong to the measurements next to it."""
    from pyarrow import parquet

    source = (parquet.read_schema(path).metadata or {}).get(SOURCE)
    measurements = find_measurements(path.parent)
    if measurements and source != compute_fingerprint(measurements):
        raise ValueError(f"'{path}' belongs to other measurements: {MEASURE_AGAIN}")
