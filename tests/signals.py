"""Signals for processes that tests start and stop."""

import signal


def restore() -> None:
    """Has a new process take SIGINT and SIGHUP as one that a terminal started; for ``preexec_fn``.

    nohup has all that it starts ignore SIGHUP, and a shell all that it starts in the background SIGINT: also the tests.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
