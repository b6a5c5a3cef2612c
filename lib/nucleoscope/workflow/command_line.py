"""What the commands in scripts/ share: a parser and an ending with one-line errors.

Contract: importing this is quick, so that --help need not wait for torch.
"""

import argparse
import contextlib
import signal
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


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends some seconds before it kills: a job ends as if interrupted by hand."""


def _terminated(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the way out must not be interrupted by a second one
    raise Terminated


@contextlib.contextmanager
def one_line_errors(debug: bool, interrupted: str) -> Iterator[None]:
    """Ends the program with one line where a notebook fails or a file is wrong; with more where ``debug``.

    So it does at SIGINT and SIGTERM, and takes the notebook's process with it.
    """
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        from nucleoscope.workflow import notebooks

        try:
            yield
        except (notebooks.NotebookError, OSError, ValueError) as error:
            if debug:
                print(getattr(error, "traceback", ""), file=sys.stderr)
            sys.exit(f"error: {error}")
    except KeyboardInterrupt as signalled:
        print(interrupted, file=sys.stderr)
        sys.exit(143 if isinstance(signalled, Terminated) else 130)  # 128 and the signal's number
    finally:
        signal.signal(signal.SIGTERM, before)
