"""What the commands in scripts/ share: a parser and an ending with one-line errors.

Contract: importing this is quick, so that --help need not wait for torch.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator


class Parser(argparse.ArgumentParser):
    """Shows defaults, takes no abbreviations, has --debug, and says what is wrong in one line."""

    def __init__(self, description: str | None):
        super().__init__(
            description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False
        )
        self.add_argument("--debug", action="store_true", help="show the whole traceback of an error")

    def error(self, message: str) -> None:
        """One line, without the usage: --help has that."""
        self.exit(2, f"error: {message} (see --help)\n")


@contextlib.contextmanager
def one_line_errors(debug: bool, interrupted: str) -> Iterator[None]:
    """Ends the program with one line where a notebook fails or a file is wrong; with more where ``debug``."""
    from nucleoscope import notebooks

    try:
        yield
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        sys.exit(130)
    except (notebooks.NotebookError, OSError, ValueError) as error:
        if debug:
            print(getattr(error, "traceback", ""), file=sys.stderr)
        sys.exit(f"error: {error}")
