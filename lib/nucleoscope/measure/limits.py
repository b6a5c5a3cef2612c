"""Runs a piece of Python that came with a model, such as its chat template, within a limit of time and of memory.

Contract: this knows nothing of models. Limits hold in this process, without a second one: a process that can be
killed would have to import transformers again, which takes seconds.
"""

import contextlib
import ctypes
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_LOCK = threading.Lock()  # the limit of memory is the process's: only one call at a time may change it
STATM = Path("/proc/self/statm")
AGAIN = 1  # seconds after which a call is interrupted once more, if something in it has caught the first interruption


class Exceeded(Exception):
    """The limit of time or memory was reached; the message says which."""


class _Late(BaseException):
    """Interrupts a call whose time is over; not an Exception, which the code of a model might catch."""


def call(function: Callable[[], Any], seconds: float, size: int) -> Any:
    """What ``function`` returns; `Exceeded` if it takes longer than ``seconds``, or ``size`` bytes more memory.

    Time is limited in every thread, memory only where the system says how much there is (Linux). One call runs
    at a time; a thread that waits for that of another one does not lose time. In a thread other than the main
    one, a single long operation in C is not interrupted: see `_Watch`.
    """
    with _LOCK, _limit_memory(size):
        try:
            return _call_in_time(function, seconds)
        except MemoryError:
            raise Exceeded(f"it needs more than {_format_size(size)} of memory") from None


def _call_in_time(function: Callable[[], Any], seconds: float) -> Any:
    main = threading.current_thread() is threading.main_thread()
    timer = _Alarm(seconds) if main else _Watch(seconds)
    late = False
    try:
        timer.start()
        result = function()
    except _Late:
        late = True
    finally:
        stopped = False
        while not stopped:  # an interruption may also arrive here, and must not leave the timer running
            try:
                timer.stop()
                stopped = True
            except _Late:
                late = True
    if late:
        raise Exceeded(f"it did not end within {seconds:g} s")
    return result


class _Alarm:
    """Raises `_Late` in the main thread, which alone gets signals: they interrupt even a power of large numbers."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.before = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)

    def start(self) -> None:
        signal.signal(signal.SIGALRM, _interrupt)
        signal.setitimer(signal.ITIMER_REAL, self.seconds, AGAIN)

    def stop(self) -> None:
        handler, timer = self.before
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _interrupt(*_: Any) -> None:
    raise _Late


class _Watch:
    """Raises `_Late` in any other thread: a second thread asks Python to do that, between two of its instructions.

    This ends every loop in Python, such as that of a template. It cannot end a single operation in C, such as the
    power of large numbers: nothing else in this process runs while that computes, and only another process could
    stop it. The limit of memory still applies to its result.
    """

    def __init__(self, seconds: float):
        self.seconds, self.thread = seconds, threading.get_ident()
        self.running = True
        # Plain locks: an exception that arrives inside an Event can leave the lock of that Event locked.
        self.asking, self.stopped = threading.Lock(), threading.Lock()

    def start(self) -> None:
        self.stopped.acquire()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        wait = self.seconds
        while not self.stopped.acquire(timeout=wait):
            with self.asking:
                if self.running:
                    self._ask(_Late)
            wait = AGAIN

    def stop(self) -> None:
        with self.asking:
            self.running = False  # from here on, nothing more is asked for
        self._ask(None)
        if self.stopped.locked():
            self.stopped.release()

    def _ask(self, kind: type[BaseException] | None) -> None:
        """Has an exception raised in the thread; None withdraws one that has not been raised yet."""
        exception = ctypes.py_object(kind) if kind else None
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.thread), exception)


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


def _format_size(size: int) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
