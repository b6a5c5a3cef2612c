"""Runs one command of the graph: copies its words to a log, and gives it GPUs that no other job here has."""

import os
from pathlib import Path

from nucleoscope.workflow.command_line import Parser


def parser() -> Parser:
    """The command line: where the log goes, how many GPUs, and after -- the command."""
    options = Parser(__doc__)
    options.add_argument("--log", type=Path, required=True, help="the log")
    options.add_argument("--gpus", type=int, help="so many GPUs of this machine for it alone, 0: none; else as it is")
    options.add_argument("command", nargs="+", help="the command, after --")
    return options


def main() -> None:
    options = parser().parse_args()
    from nucleoscope.models import gpus
    from nucleoscope.workflow import logs

    def say(line: str) -> None:
        logs.note(options.command, options.log, line)

    try:
        if options.gpus is None:
            raise SystemExit(logs.run(options.command, options.log))
        with gpus.claimed(options.gpus, say) as mine:
            environment = os.environ | {gpus.VISIBLE: ",".join(mine)}
            raise SystemExit(logs.run(options.command, options.log, environment, mine.values()))
    except OSError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:  # while it waited for a GPU
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
