"""Tries every type of causal language model in transformers, and writes the book's page of models that were tried."""

import os
import sys
from collections import Counter
from pathlib import Path

from nucleoscope.settings import quote
from nucleoscope.workflow.command_line import Parser, report_errors

MOST_JOBS = 1000  # processes
PAGE = Path(__file__).resolve().parents[1] / "book/families.md"


def create_parser() -> Parser:
    """The command line."""
    options = Parser(__doc__)
    options.add_argument(
        "--types", help="only these types, separated by commas: print their rows without writing the page"
    )
    options.add_argument(
        "--static",
        action="store_true",
        help="only compare the static decoding path, the one for GPUs, with the dynamic one on this CPU; write no page",
    )
    options.add_whole_number("jobs", 1, MOST_JOBS, default=os.cpu_count() or 1, help="types to try at once")
    return options


def choose_types(names: str | None) -> list[str]:
    """All types, or those named; ValueError for a name that transformers does not register."""
    from model_families import configurations

    known = configurations.list_types()
    chosen = known if names is None else [name.strip() for name in names.split(",")]
    if unknown := sorted(set(chosen) - set(known)):
        names = ", ".join(map(quote, unknown))
        raise ValueError(f"transformers has no causal language model of type {names}: {PAGE} lists the types")
    return chosen


def try_static_path(kinds: list[str]) -> None:
    """Prints a line for each type; exits with an error if one has other numbers on the static path."""
    import torch

    from model_families import static_path

    torch.set_num_threads(1)  # more are slower for models as small as these
    rows = []
    for kind in kinds:
        rows.append(static_path.try_static(kind))
        print(static_path.describe(rows[-1]), flush=True)
    counts = Counter(row.verdict for row in rows)
    print("; ".join(f"{verdict}: {count}" for verdict, count in counts.items()))
    if different := [row.kind for row in rows if row.verdict == static_path.DIFFERENT]:
        sys.exit(f"error: the static path gives different numbers for {', '.join(different)}")


def main() -> None:
    given = create_parser().parse_args()
    with report_errors(given.debug, interrupted="interrupted: nothing was written"):
        kinds = choose_types(given.types)
        if given.static:
            try_static_path(kinds)
            return
        from model_families import page, trial

        rows = []
        for row in trial.try_types(kinds, given.jobs):
            rows.append(row)
            print(page.describe(row), flush=True)
        if given.types is None:
            words = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
            PAGE.write_text(page.format_page(words, rows), encoding="utf-8")
        if failed := sorted({row.kind for row in rows if page.has_failed(row)}):
            sys.exit(f"error: wrong or failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
