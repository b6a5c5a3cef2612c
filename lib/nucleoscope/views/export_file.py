"""Which file a run can be written to: found out from its name, before anything is loaded.

Contract: raises ValueError or OSError, in one line; reads and leaves nothing. Importing this is quick.
"""

import os
from pathlib import Path

from nucleoscope.names import suggest
from nucleoscope.store.locking import check_writable

ENDINGS = (".csv", ".parquet", ".html")


def check_name(output: str | os.PathLike, candidates: bool = False) -> str:
    """The ending of the file to write, in lower case. ValueError if it says no format, or the wrong one.

    ``candidates``: whether candidates are to be written. IsADirectoryError for a name that ends with a slash or a dot
    after one, which can only be that of a folder.
    """
    name = os.fspath(output)
    if os.path.basename(name) in ("", os.curdir, os.pardir):
        raise IsADirectoryError(f"'{name}' is the name of a folder: name a file" if name else "no output file is named")
    ending = Path(name).suffix.lower()
    if not ending and os.path.basename(name).lower() in ENDINGS:
        example = os.path.join(os.path.dirname(name), f"out{os.path.basename(name)}")
        raise ValueError(f"'{name}' has no name before its extension: write a name such as '{example}'")
    if ending not in ENDINGS:
        raise ValueError(f"the output file '{name}' must end in .csv, .parquet or .html{suggest(ending, ENDINGS)}")
    if candidates and ending == ".html":
        raise ValueError(
            "an HTML file always shows the candidates of each token: omit --candidates, or write a .csv or .parquet "
            "file"
        )
    return ending


def check_place(folder: Path, output: Path) -> None:
    """Raises ValueError or OSError if the run in ``folder`` cannot be written to the file ``output``."""
    if output.is_dir():
        raise IsADirectoryError(f"'{output}' is a folder: name a file")
    if output.exists() and not output.is_file():
        raise OSError(f"'{output}' is not a regular file: name another")
    if file := next((above for above in output.parents if above.exists() and not above.is_dir()), None):
        raise NotADirectoryError(f"'{file}' is not a folder: write to another folder")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"the folder '{output.parent}' does not exist: create it first")
    if output.resolve().parent == folder.resolve():
        raise ValueError(f"'{output}' would be among the files of the run: write it to another folder")
    check_writable(output.parent, "write to another folder")
