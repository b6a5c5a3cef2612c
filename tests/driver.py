"""A made-up NVIDIA driver, for this process and for those that it starts (`fake_driver/pynvml.py`)."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from nucleoscope.models import gpus

FOLDER = Path(__file__).parent / "fake_driver"


class Driver:
    """What the driver lists can be changed at any time."""

    def __init__(self, file: Path, monkeypatch: pytest.MonkeyPatch):
        self.file = file
        spec = importlib.util.spec_from_file_location("pynvml", FOLDER / "pynvml.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(gpus, "pynvml", module)
        path = os.pathsep.join(filter(None, [str(FOLDER), os.environ.get("PYTHONPATH")]))
        self.environment = {"FAKE_DRIVER": str(file), "PYTHONPATH": path}
        for name, value in self.environment.items():
            monkeypatch.setenv(name, value)

    def put(self, *listed: dict | None) -> None:
        self.file.write_text(json.dumps(listed))

    def fail(self, error: str) -> None:
        self.file.write_text(json.dumps(error))
