"""A notebook's process: its sockets are in a private folder that is swept, and only a complete notebook is kept."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from messages import assert_one_line
from nucleoscope.atomic import ABANDONED
from nucleoscope.workflow import notebooks, sockets

HEAD = (
    "# ---\n# jupyter:\n#   kernelspec:\n#     language: python\n#     name: python3\n#     display_name: x\n# ---\n\n"
)


@pytest.fixture
def base(tmp_path, monkeypatch) -> Path:
    """A temporary folder with a short name: that of pytest may be too long for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        monkeypatch.setattr(tempfile, "tempdir", place)
        yield Path(place)


def find_dead() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave_folder(base: Path, name: str, owner: str, age: float = 2 * ABANDONED) -> Path:
    folder = base / f"{sockets.PREFIX}{name}"
    folder.mkdir()
    (folder / sockets.OWNER).write_text(owner)
    (folder / "kernel-1").touch()
    os.utime(folder, (time.time() - age,) * 2)
    return folder


def test_what_killed_commands_left_is_swept_and_nothing_else(base, tmp_path):
    dead, here = find_dead(), socket.gethostname()
    gone = leave_folder(base, "dead", f"{dead} {here}")
    kept = [
        leave_folder(base, "young", f"{dead} {here}", age=10),
        leave_folder(base, "alive", f"{os.getpid()} {here}"),
        leave_folder(base, "elsewhere", f"{dead} another-machine"),
        leave_folder(base, "no-number", f"x {here}"),
        leave_folder(base, "not-utf8", "x"),
    ]
    (kept[-1] / sockets.OWNER).write_bytes(b"\xff")
    others = leave_folder(base, "others", f"{dead} {here}")
    if os.getuid() == 0:
        os.chown(others, 65534, 65534)
        kept.append(others)
    aside = leave_folder(tmp_path, "aside", f"{dead} {here}")
    (base / f"{sockets.PREFIX}link").symlink_to(aside)
    (base / f"{sockets.PREFIX}file").write_text(f"{dead} {here}")
    with sockets.create_folder() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert not gone.exists()
        assert all((place / "kernel-1").exists() for place in [*kept, aside])
        assert (base / f"{sockets.PREFIX}link").is_symlink()
        assert (base / f"{sockets.PREFIX}file").is_file()
    assert not folder.exists()


def test_a_temporary_folder_whose_name_is_too_long_for_a_socket_is_not_used(tmp_path, monkeypatch):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with sockets.create_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{folder}/kernel-5")
        assert folder.parent == Path("/tmp")
    monkeypatch.setattr(sockets, "SHORT", str(tmp_path / "nowhere"))
    with pytest.raises(OSError, match="cannot create a temporary folder") as caught, sockets.create_folder():
        pass
    assert assert_one_line(str(caught.value)).endswith("(No such file or directory): set TMPDIR to another folder")


@pytest.mark.parametrize(
    ("code", "how"),
    [
        ("import sys; sys.exit(0)", "ended the notebook early (SystemExit)"),
        ("raise SystemExit", "ended the notebook early (SystemExit)"),
        ("import os; os.kill(os.getpid(), 9)", "run the same command again"),
    ],
)
def test_a_notebook_that_ends_early_is_no_success(base, tmp_path, monkeypatch, code, how):
    """Whatever papermill's metadata say."""
    (tmp_path / "early.py").write_text(f"{HEAD}# %% tags=['parameters']\n1\n\n# %%\n{code}\n\n# %%\n2\n")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    (tmp_path / "early.ipynb").write_text("older")
    with pytest.raises(notebooks.NotebookError) as caught:
        notebooks.execute("early", tmp_path / "early.ipynb", {})
    assert assert_one_line(str(caught.value)).endswith(how)
    assert (tmp_path / "early.ipynb").read_text() == "older"
    assert os.listdir(base) == []  # no connection file either


def test_a_complete_notebook_is_kept(base, tmp_path, monkeypatch):
    (tmp_path / "whole.py").write_text(HEAD + "# %% tags=['parameters']\nx = 1\n\n# %%\n\n# %%\nx\n")
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    notebooks.execute("whole", tmp_path / "whole.ipynb", {"x": 5})
    cells = json.loads((tmp_path / "whole.ipynb").read_text())["cells"]
    assert cells[-1]["outputs"][0]["data"]["text/plain"] == ["5"]
