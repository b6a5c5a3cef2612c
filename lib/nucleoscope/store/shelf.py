"""Tables of tokens in, the same tables out, one at a time: what is analysed need not fit the memory.

Contract: files of our own in a temporary folder, gone with the shelf; nothing here knows measurements.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

# pandas is imported where it is used: commands and the Snakefile need none.
if TYPE_CHECKING:
    import pandas as pd

SCRATCH = "NUCLEOSCOPE_SCRATCH"  # names a folder that somebody else clears: a kernel is killed at its end


class Shelf(Mapping):
    """{(model, dataset): table}, each read from its file whenever it is asked for, and not kept.

    ``shelf[key]`` is a copy of one's own. A shelf that another process gets holds the places of
    the tables, not the tables, and lasts no longer than this one.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nucleoscope-", dir=os.environ.get(SCRATCH))
        self._paths: dict[tuple[str, str], Path] = {}
        self._sizes: dict[tuple[str, str], int] = {}

    def put(self, key: tuple[str, str], table: "pd.DataFrame") -> None:
        """Puts a table on the shelf."""
        path = Path(self._folder.name, f"{len(self._paths)}.pkl")
        table.to_pickle(path)
        self._paths[key], self._sizes[key] = path, len(table)

    def __getitem__(self, key: tuple[str, str]) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_pickle(self._paths[key])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __contains__(self, key: object) -> bool:
        return key in self._paths

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_folder": None}

    def tokens(self, key: tuple[str, str]) -> int:
        """How many rows a table has, without reading it."""
        return self._sizes[key]

    def part(self, keys: Iterable[tuple[str, str]]) -> "Shelf":
        """Some of the tables, in the same files."""
        some = Shelf.__new__(Shelf)
        some._folder = self._folder
        some._paths = {key: self._paths[key] for key in keys}
        some._sizes = {key: self._sizes[key] for key in keys}
        return some


def part(tables: Mapping[tuple[str, str], "pd.DataFrame"], keys: Iterable[tuple[str, str]]) -> Mapping:
    """Some of the tables; of a `Shelf` only their places, which cost nothing to hand to another process."""
    return tables.part(keys) if isinstance(tables, Shelf) else {key: tables[key] for key in keys}


def tokens(tables: Mapping[tuple[str, str], "pd.DataFrame"]) -> int:
    """How many rows all tables have."""
    return sum(tables.tokens(key) if isinstance(tables, Shelf) else len(tables[key]) for key in tables)
