"""A percent notebook and its parameters in, an executed notebook out, by papermill.

Every script that runs a notebook calls this module. What the notebook prints appears in the
terminal at once, progress bars included; the executed notebook appears only when it is complete.
"""

import logging
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from nucleoscope.atomic import write_atomically
from nucleoscope.workflow import sockets
from nucleoscope.workflow.command_line import NotebookError

FOLDER = Path(__file__).resolve().parents[3] / "notebooks"
PATIENCE = 600  # seconds for a kernel to start or to report a finished cell, on a machine that is busy or suspended


class KernelManager(AsyncKernelManager):
    """Starts kernels with this Python, whichever kernels are installed or named in JUPYTER_PATH."""

    @property
    def kernel_spec(self) -> KernelSpec:
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def _async_interrupt_kernel(self) -> None:
        """Leaves alone a kernel that is about to be killed.

        jupyter_client interrupts it first. If it has just reported that a cell failed, it writes a line about that to
        the standard error; if it has not, the interrupt changes nothing.
        """
        if not self.shutting_down:
            await super()._async_interrupt_kernel()

    interrupt_kernel = _async_interrupt_kernel


def _check_executed(notebook: nbformat.NotebookNode) -> None:
    """NotebookError unless every code cell was executed and none has an error.

    papermill takes a cell that ends with sys.exit(0) for a success, and its metadata call every cell of a
    process that was killed "completed": they say nothing about a notebook.
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        ended = next((output for output in cell.outputs if output.output_type == "error"), None)
        if ended or cell.execution_count is None:
            how = f"ended the notebook early ({ended.ename})" if ended else "was not executed"
            raise NotebookError(f"the cell that begins with '{cell.source.strip().splitlines()[0]}' {how}")


class _Stream:
    """A stream that can end an unfinished line, such as a progress bar leaves."""

    def __init__(self, stream: Any):
        self.stream, self.last = stream, "\n"

    def write(self, text: str) -> None:
        self.stream.write(text)
        self.last = text[-1:] or self.last

    def flush(self) -> None:
        self.stream.flush()

    def end(self) -> None:
        if self.last != "\n":
            self.write("\n")


def execute(name: str, output: str | Path, parameters: dict[str, Any]) -> None:
    """Runs ``notebooks/<name>.py`` with ``parameters`` and writes the executed notebook to ``output``.

    The notebook runs in the current folder, with this Python. Raises NotebookError when a cell
    fails or ends the process early, or the process dies; nothing is written then.
    """
    errors = _Stream(sys.stderr)
    try:
        with sockets.create_folder() as folder:
            places = {"transport": "ipc", "ip": f"{folder}/kernel", "connection_file": f"{folder}/kernel.json"}
            executed = papermill.execute_notebook(
                jupytext.read(FOLDER / f"{name}.py"),
                None,
                parameters,
                kernel_name="python3",
                kernel_manager_class=KernelManager,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=errors,
                config=Config({"KernelManager": places}),
                start_timeout=PATIENCE,
                iopub_timeout=PATIENCE,
                shutdown_kernel="immediate",  # everything is written by then, and a polite shutdown prints a message
                coalesce_streams=True,  # keeps the last state of a progress bar, not a thousand lines
            )
        _check_executed(executed)
    except PapermillExecutionError as error:
        raise NotebookError(str(error.evalue) or error.ename, "\n".join(error.traceback)) from None
    except KeyboardInterrupt:
        # nbclient still waits for the notebook's process, which ends now: asyncio would print a traceback about that.
        logging.getLogger("asyncio").disabled = True
        raise
    except (DeadKernelError, RuntimeError) as error:  # RuntimeError: it did not even start
        raise NotebookError(f"the notebook's process died ({error}): run the same command again") from None
    finally:
        errors.end()
    with write_atomically(Path(output)) as stream:
        stream.write(nbformat.writes(executed).encode())
