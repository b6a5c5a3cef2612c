"""The process in which a notebook runs: which signals it gets."""

import asyncio
import signal

from nucleoscope.workflow import notebooks


def test_a_kernel_that_is_about_to_be_killed_is_not_interrupted_first():
    """An interrupt in the moment after a cell has failed adds a line of ipykernel's to what the command says."""

    class Recorder(notebooks.KernelManager):
        sent: tuple[int, ...] = ()

        async def _async_signal_kernel(self, signum: int) -> None:
            self.sent += (signum,)

    async def use_kernel() -> Recorder:
        manager = Recorder()
        await manager.start_kernel()
        await manager.interrupt_kernel()
        assert manager.sent == (signal.SIGINT,)
        await manager.shutdown_kernel(now=True)
        return manager

    manager = asyncio.run(use_kernel())
    assert manager.sent == (signal.SIGINT,)
    assert not manager.has_kernel
