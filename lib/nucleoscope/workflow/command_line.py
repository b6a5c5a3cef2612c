"""What the commands in scripts/ share: the parser, and errors that are one line.

Contract: importing this is quick, so that --help does not wait for torch.
"""

import argparse
import contextlib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from functools import partial
from traceback import format_exc
from typing import Any

from nucleoscope import settings
from nucleoscope.names import escape_line, suggest

LONGEST_LINE, LONGEST_WORD = 2000, 300  # characters of an error message


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of each option that has one: a flag has none, nor has an option whose default is None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if isinstance(action.default, list):  # as one types it
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        shown = action.default is not None and action.default is not False
        return super()._get_help_string(action) if shown else action.help


class Parser(argparse.ArgumentParser):
    """A parser that shows defaults, accepts no abbreviations, has --debug, and reports errors in one line."""

    def __init__(self, description: str | None, formatter: type[argparse.HelpFormatter] = HelpFormatter):
        super().__init__(description=description, formatter_class=formatter, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the full traceback of an error")

    def add_settings(self, *names: str) -> None:
        """Adds an option for each of some settings of a run (default: all), with its default, choices and help."""
        for name in names or settings.FIELDS:
            each = settings.FIELDS[name]
            kind, text = each.metadata["type"], each.metadata["help"]
            flags = [f"--{word}" for word in (name, *each.metadata["aliases"])]
            if kind is bool:
                self.add_argument(*flags, action="store_true", help=text)
            else:  # whether a value is allowed is checked where notebooks and grids check it: `Settings.check`
                values = [*each.metadata["choices"], *(["N"] if kind is int else [])]
                metavar = f"{{{','.join(values)}}}" if each.metadata["choices"] else None
                parse = partial(settings.parse, name)
                self.add_argument(*flags, type=parse, default=each.default, metavar=metavar, help=text)

    def list_given(self, names: Collection[str]) -> list[str]:
        """Those of some options that are on the command line, also with their defaults as values."""
        unset = object()
        parsed = vars(self.parse_args(namespace=argparse.Namespace(**dict.fromkeys(names, unset))))
        return [name for name in names if parsed[name] is not unset]

    def add_whole_number(self, name: str, least: int, most: int = settings.MOST, **options: Any) -> None:
        """Adds an option whose value is a whole number from ``least`` to ``most``."""
        self.add_argument(f"--{name}", type=_create_whole_parser(name, least, most), **options)

    def add_results_dir(self, help: str) -> None:
        """Adds --results_dir, which is checked and normalised as that of a run is."""
        self.add_argument("--results_dir", type=_parse_results_dir, default=settings.Settings.results_dir, help=help)

    def error(self, message: str) -> None:
        """Prints one line without the usage, which --help shows."""
        close = ""
        if found := re.match(r"argument (--\w+).*: expected one argument$", message):
            message = f"{found[1]} needs a value; if the value begins with a dash, write {found[1]}=VALUE"
        elif found := re.match(r"argument (--\w+).*: ignored explicit argument (.*)$", message):
            message = f"{found[1]} is a flag: it takes no value, but got {found[2]}"
        elif found := re.match(r"argument (--\w+): (given twice.*)", message):
            message = f"{found[1]} is {found[2]}"
        elif found := re.match(r"argument --(\w+).*?: (\1 is .*)", message, re.DOTALL):
            message = found[2]
        elif found := re.match(r"unrecognized arguments: (-[^\s=]*)", message):
            names = re.findall(r"--\w+", self.format_usage())
            longer = [name for name in names if name.startswith(f"{found[1]}_")]
            close = suggest(longer[0] if longer else found[1], names)
        self.exit(2, f"error: {_fit_on_line(message)}{close or ' (see --help)'}\n")


def _fit_on_line(message: object) -> str:
    """A message that is one line in every terminal: what is quoted from an input may contain anything."""
    words = str(message).split()
    line = " ".join(word if len(word) <= LONGEST_WORD else f"{word[:60]}...{word[-60:]}" for word in words)
    line = escape_line(line)
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."


def _create_whole_parser(name: str, least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number: int | str = int(text)
        except ValueError:
            number = text
        with _as_argument_error():
            settings.check_whole(name, number, least, most)
        return int(number)

    return parse


def _parse_results_dir(text: str) -> str:
    with _as_argument_error():
        settings.validate("results_dir", text)
    return settings.normalise("results_dir", text)


@contextlib.contextmanager
def _as_argument_error() -> Iterator[None]:
    """Makes argparse show the message of a ValueError, which it would otherwise replace."""
    try:
        yield
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


class NotebookError(Exception):
    """A cell of a notebook failed. The message is one line; ``traceback`` has the details."""

    def __init__(self, message: str, traceback: str = ""):
        super().__init__((message.strip().splitlines() or ["a cell failed"])[0])
        self.traceback = traceback


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a cluster sends some seconds before it kills a job: the job ends as after Ctrl-C."""


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the cleanup
    raise Terminated


def _reword(message: str) -> str:
    """An error of the system's, as Python writes it, in words: the file first, and no number."""
    found = re.fullmatch(r"\[Errno \d+\] (?P<why>[^:']+): (?P<path>'.*')", message, re.DOTALL)
    if not found:
        return message
    full = found["why"] == os.strerror(errno.ENOSPC)
    return f"{found['path']}: {found['why']}" + ("; free some space and run the same command again" if full else "")


@contextlib.contextmanager
def report_errors(debug: bool, interrupted: str) -> Iterator[None]:
    """Ends the program with one line if a notebook fails or an input is invalid; ``debug`` adds the traceback.

    At SIGINT and SIGTERM it prints ``interrupted`` and also ends the notebook's process.
    """
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        try:
            yield
        except (NotebookError, OSError, ValueError) as error:
            if debug:
                print(getattr(error, "traceback", "") or format_exc(), file=sys.stderr)
            sys.exit(f"error: {_fit_on_line(_reword(str(error)))}")
    except KeyboardInterrupt as signalled:
        print(interrupted, file=sys.stderr)
        sys.exit(143 if isinstance(signalled, Terminated) else 130)  # 128 and the signal's number
    finally:
        signal.signal(signal.SIGTERM, before)
