"""Snakemake, whose Slurm plugin asks for the states of jobs three times a second.

    python tests/polling.py OPTIONS

The plugin itself waits ten seconds longer after each question, up to three minutes, while no job has ended, and no
option limits that: right for jobs of hours, and most of the time of tests whose jobs take seconds.
"""

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

if __name__ == "__main__":
    RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 0.3, lambda self, seconds: None)
    sys.exit(main())
