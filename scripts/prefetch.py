"""Downloads the models and data sets of a grid into the cache, for runs on machines that cannot reach the Hub."""

import sys

from nucleoscope.workflow.command_line import Parser, report_errors


def create_parser() -> Parser:
    """The command line: which grid."""
    options = Parser(__doc__)
    options.add_argument("grid", help="the grid, a YAML file such as scripts/grids/study.yml")
    return options


def main() -> None:
    options = create_parser().parse_args()
    with report_errors(options.debug, interrupted="interrupted: run the same command again to fetch the rest"):
        from nucleoscope.data import prefetch
        from nucleoscope.workflow import grid  # here: --help need not wait for them

        plan = prefetch.plan_downloads(entry.parameters for entry in grid.plan_runs(grid.load(options.grid)).values())
        for note in plan.notes:
            print(note, flush=True)
        refusals = plan.refusals
        if plan.size and not refusals:
            from nucleoscope.models import kinds  # here: what is refused without it need not wait

            refusals = prefetch.check_kinds(plan, kinds.check_folder)
        refusals = refusals or prefetch.fetch(plan)
        for line in refusals:
            print(f"error: {prefetch.reword(line)}", file=sys.stderr)
        if refusals:
            sys.exit(1)
        print("everything is in the cache: runs with HF_HUB_OFFLINE=1 need no network")


if __name__ == "__main__":
    main()
