"""Runs one command of Snakemake's graph of jobs: logs its output, reserves GPUs for it, and records how it ended."""

import argparse
import os
from pathlib import Path

from nucleoscope.settings import quote
from nucleoscope.workflow.command_line import Parser


def create_parser() -> Parser:
    """The command line: the log, the GPUs, the status file, and after -- the command."""
    options = Parser(__doc__)
    options.add_argument("--log", type=Path, help="file to copy the output to")
    options.add_whole_number("gpus", 0, help="number of this machine's GPUs to reserve for this job; 0 hides them all")
    options.add_whole_number(
        "threads", 1, help="threads that the command may start; by default, the value of OMP_NUM_THREADS"
    )
    options.add_argument("--nice", action="store_true", help="give way to other processes on the CPU (nice 10)")
    options.add_argument(
        "--status", type=Path, help="file to record how the job ended; the exit status is then 0 even if it failed"
    )
    options.add_argument(
        "--tries_left",
        type=parse_number,
        default=0,
        help="with --status: tries left after this one; only the last records a failure",
    )
    options.add_argument("--problem", help="with --status, instead of a command: why the job cannot be started")
    options.add_argument("command", nargs="*", help="the command, after --")
    return options


def parse_number(text: str) -> int:
    """A number of tries: below 0 once all are used up, so that the command is not run (see `jobs.run`)."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"tries_left is {quote(text)}: it must be a whole number") from None


def main() -> None:
    parser = create_parser()
    options = parser.parse_args()
    if bool(options.command and options.log) == bool(options.problem) or (options.problem and not options.status):
        parser.error("give either --log and a command, or --status and --problem")
    if options.problem and options.command:
        parser.error("--problem replaces the command: omit one of them")
    from nucleoscope.workflow import jobs, status

    try:
        if options.problem:
            raise SystemExit(status.write_status(options.status, options.problem, started=False))
        if options.nice:
            os.nice(jobs.NICENESS)
        if options.threads:
            os.environ |= dict.fromkeys(jobs.THREADS, str(options.threads))
        raise SystemExit(jobs.run(options.command, options.log, options.gpus, options.status, options.tries_left))
    except FileNotFoundError as error:
        missing = error.filename == (options.command or [None])[0]
        raise SystemExit(
            f"error: {f'command {error.filename!r} does not exist: check its name' if missing else error}"
        ) from None
    except OSError as error:
        if isinstance(error, PermissionError) and error.filename == (options.command or [None])[0]:
            error = f"command '{error.filename}' is not an executable file: check its name and permissions"
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:  # while it waited for a GPU
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
