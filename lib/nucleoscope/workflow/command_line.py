"""What the commands in scripts/ share: the parser, and errors that are one line.

Contract: importing this is quick, so that --help does not wait for torch.
"""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator

from nucleoscope import settings
from nucleoscope.names import escape_line


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option that has one: a flag has none, nor has an option whose default is None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class Parser(argparse.ArgumentParser):
    """A parser that shows defaults, accepts no abbreviations, has --debug, and reports errors in one line."""

    def __init__(self, description: str | None):
        super().__init__(description=description, formatter_class=HelpFormatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the full traceback of an error")

    def add_settings(self) -> None:
        """Adds an option for each setting of a run, with its default, choices and help."""
        for name, each in settings.FIELDS.items():
            kind, choices, text = (each.metadata[key] for key in ("type", "choices", "help"))
            flags = [f"--{word}" for word in (name, *each.metadata["aliases"])]
            if kind is bool:
                self.add_argument(*flags, action="store_true", help=text)
            elif kind is int and choices:
                self.add_argument(*flags, type=_parse_number_or_auto, default=each.default, help=text)
            else:
                self.add_argument(*flags, type=kind, default=each.default, choices=choices or None, help=text)

    def error(self, message: str) -> None:
        """Prints one line without the usage, which --help shows."""
        self.exit(2, f"error: {message} (see --help)\n")


def _parse_number_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is neither auto nor a whole number")
    return text if text == "auto" else int(text)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends some seconds before it kills a job: the job ends as after Ctrl-C."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    raise Terminated


@contextlib.contextmanager
def report_errors(debug: bool, interrupted: str) -> Iterator[None]:
    """Ends the program with one line if a notebook fails or an input is invalid; ``debug`` adds the traceback.

    At SIGINT and SIGTERM it prints ``interrupted`` and also ends the notebook's process.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        from nucleoscope.workflow import notebooks

        try:
            yield
        except (notebooks.NotebookError, OSError, ValueError) as error:
            if debug:
                print(getattr(error, "traceback", ""), file=sys.stderr)
            sys.exit(f"error: {escape_line(str(error))}")
    except KeyboardInterrupt as signalled:
        print(interrupted, file=sys.stderr)
        sys.exit(143 if isinstance(signalled, Terminated) else 130)  # 128 and the signal's number
    finally:
        signal.signal(signal.SIGTERM, before)
