"""Stands in for nvidia-ml-py: the GPUs are those that the JSON file named by FAKE_DRIVER lists.

A list of objects with "id", maybe "free" (bytes; without it the GPU does not say) and maybe "slices" (ids,
null for a number without a slice; without it the GPU knows no slices). A null in the list is a GPU that
does not answer. A string instead of the list is the error that loading the driver gives. The file is read
anew each time.
"""

import json
import os
from pathlib import Path
from types import SimpleNamespace

_state = {"gpus": None}


class NVMLError(Exception):
    pass


def nvmlInit():
    said = json.loads(Path(os.environ["FAKE_DRIVER"]).read_text())
    if isinstance(said, str):
        raise NVMLError(said)
    _state["gpus"] = said


def nvmlShutdown():
    if _state["gpus"] is None:
        raise NVMLError("Uninitialized")
    _state["gpus"] = None


def nvmlDeviceGetCount():
    if _state["gpus"] is None:
        raise NVMLError("Uninitialized")
    return len(_state["gpus"])


def nvmlDeviceGetHandleByIndex(number):
    return _answer(_state["gpus"][number], "GPU is lost")


def nvmlDeviceGetUUID(handle):
    return handle["id"]


def nvmlDeviceGetMemoryInfo(handle):
    return SimpleNamespace(free=_answer(handle.get("free"), "Not Supported"))


def nvmlDeviceGetMaxMigDeviceCount(handle):
    return len(_answer(handle.get("slices"), "Not Supported"))


def nvmlDeviceGetMigDeviceHandleByIndex(handle, number):
    return {"id": _answer(handle["slices"][number], "Not Found")}


def _answer(value, error):
    if value is None:
        raise NVMLError(error)
    return value
