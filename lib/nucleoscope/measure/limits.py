"""Runs a piece of Python that came with a model, such as its chat template, within a limit of time and of memory.

Contract: this knows nothing of models. Limits hold in this process, without a second one: a process that can be
killed would have to import transformers again, which takes seconds.
"""

import contextlib
import resource
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_LOCK = threading.Lock()  # the limit of memory is the process's: only one block at a time may change it
STATM = Path("/proc/self/statm")


class Exceeded(Exception):
    """The limit of time or memory was reached; the message says which."""


@contextlib.contextmanager
def limit(seconds: float, size: int) -> Iterator[None]:
    """Raises `Exceeded` if the block takes longer than ``seconds``, or ``size`` bytes more memory than before.

    Time is limited only in the main thread, which alone gets signals: they interrupt even the product of two
    large numbers. In another thread, as in the live notebook, a block that does not end leaves the page usable.
    Memory is limited only where the system says how much there is (Linux).
    """
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            stack.enter_context(_limit_time(seconds))
        stack.enter_context(_LOCK)
        stack.enter_context(_limit_memory(size))
        try:
            yield
        except MemoryError:
            raise Exceeded(f"it needs more than {size / 1e9:.0f} GB of memory") from None


@contextlib.contextmanager
def _limit_time(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Exceeded(f"it did not end within {seconds:g} s")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)  # and again, if the block catches the first one
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@contextlib.contextmanager
def _limit_memory(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_AS)
    if not STATM.is_file():
        yield
        return
    used = int(STATM.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = before
    wanted = min(bound for bound in (used + size, soft, hard) if bound != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
