"""Measures one model on one data set with notebooks/measure.py, then shows the results with notebooks/run.py.

With --context, notebooks/context.py measures similarity in context, in a second pass before the results are shown. With
--branches, notebooks/branches.py then continues texts from the likeliest candidates of some tokens.
"""

import argparse
import sys
from typing import Any

from nucleoscope.settings import FIELDS, Settings
from nucleoscope.workflow.command_line import Parser, report_errors


class Once(argparse.Action):
    """An option that is refused if it is given twice: argparse would silently take the last value."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        if getattr(namespace, self.dest) is not None:
            raise argparse.ArgumentError(self, "given twice: give it once")
        setattr(namespace, self.dest, values)


def create_parser() -> Parser:
    """The command line: every setting, by its name, and which notebooks."""
    options = Parser(__doc__)
    options.add_settings()
    options.add_argument(
        "--only",
        action=Once,
        choices=("measure", "page", "context", "branches"),
        help="execute only one of the notebooks: measure.py (measure), run.py (page), context.py (context) or "
        "branches.py (branches)",
    )
    options.add_argument(
        "--if_missing",
        action="store_true",
        help="skip any of measure.py, context.py and branches.py that already has complete results with these "
        "settings; with --only page, context or branches, end without an error if the run has not been measured yet",
    )
    return options


def main() -> None:
    parser = create_parser()
    options = vars(parser.parse_args())
    debug, only, if_missing = (options.pop(name) for name in ("debug", "only", "if_missing"))
    with report_errors(debug, interrupted="interrupted: run the same command again to resume"):
        from nucleoscope.store import run_names
        from nucleoscope.workflow import run_notebooks  # here: --help need not wait for it

        chosen = Settings(**options).check()
        if only is None:
            run_notebooks.check_second_passes(chosen)
        folder = run_notebooks.locate(chosen)
        print(run_names.describe_run(folder.name, folder.parent.name), flush=True)
        # With both, it is a job of the graph, which gives all settings of a run to each.
        named = () if only and if_missing else parser.list_given(FIELDS)
        for line in run_notebooks.list_unused(chosen, only, named):
            print(line, file=sys.stderr)
        given = named if only not in (None, "measure") else ()
        if only in (None, "measure"):
            run_notebooks.measure(chosen, if_missing)
        try:
            if only == "context" or (only is None and chosen.context):
                run_notebooks.measure_context(chosen, if_missing, given)
        except Exception:  # not Ctrl-C
            if only is None:  # the page is made without it
                run_notebooks.write_page(chosen, if_missing, given)
            raise
        if only in (None, "page"):  # after similarity in context, which its cards show
            run_notebooks.write_page(chosen, if_missing, given)
        if only == "branches" or (only is None and chosen.branches):
            run_notebooks.measure_branches(chosen, if_missing, given)
        if only in (None, "measure") or not if_missing:  # the graph's other jobs follow one that has said it
            print(f"results: {folder}")


if __name__ == "__main__":
    main()
