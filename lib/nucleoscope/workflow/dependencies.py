"""What a notebook is made from: its own file, and the modules of this package that it imports.

Contract: nothing is executed. Imports are read from the source, inside functions too, and followed
through the package by grimp; imports for type checking only do not count. A file that is not Python
(a style sheet, a table) belongs to the modules whose code names it. Importing this is quick.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import grimp

import nucleoscope

PACKAGE = Path(nucleoscope.__file__).parent


def list_dependencies(notebook: str | Path) -> list[str]:
    """The files that a percent-format notebook is made from: itself first, then this package's, sorted.

    Paths are relative to the current folder where they are below it. OSError if there is no such notebook,
    ValueError, in one line, if it or a module is not valid Python.
    """
    try:
        return _list_dependencies(Path(notebook))
    except SyntaxError as error:
        raise ValueError(f"'{error.filename}', line {error.lineno}: {error.msg}") from None
    except grimp.exceptions.SourceSyntaxError as error:
        raise ValueError(f"'{error.filename}', line {error.lineno}: invalid syntax") from None


def _list_dependencies(notebook: Path) -> list[str]:
    direct = {module for module in _read_imports(notebook) if module in _read_graph().modules}
    modules = direct.union(*(_read_graph().find_upstream_modules(module) for module in direct))
    # importing a.b.c executes a and a.b too; what these import lazily is not executed
    modules |= {".".join(module.split(".")[:depth]) for module in modules for depth in range(1, module.count(".") + 1)}
    files = {_find_file(module) for module in modules}
    files |= {data for data, owners in _read_data_files().items() if owners & modules}
    return [str(notebook), *sorted(map(_shorten, files))]


@functools.cache
def _read_graph() -> grimp.ImportGraph:
    return grimp.build_graph("nucleoscope", exclude_type_checking_imports=True, cache_dir=None)


def _read_imports(notebook: Path) -> Iterator[str]:
    """The modules that a notebook's cells import by name, also by the package's short names for them."""
    for node in ast.walk(ast.parse(notebook.read_text(encoding="utf-8"), str(notebook))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            for alias in node.names:
                short = nucleoscope.PUBLIC.get(alias.name) if node.module == "nucleoscope" else None
                yield f"{node.module}.{short or alias.name}"


@functools.cache
def _read_data_files() -> dict[Path, set[str]]:
    """The package's files that are not Python, and the modules whose code has the name of one as a text.

    Where none does, because a module reads whatever is in a folder, it is those of the room that name the folder.
    """
    places = {path: path.relative_to(PACKAGE).parts for path in PACKAGE.rglob("*") if path.is_file()}
    data = {path: parts for path, parts in places.items() if path.suffix != ".py" and "__pycache__" not in parts}
    names = {name for path, parts in data.items() for name in (path.name, *parts[1:2])}
    texts = {path: _find_texts(path, names) for path in places if path.suffix == ".py"}
    owners = {}
    for path, parts in data.items():
        named = {source for source, found in texts.items() if path.name in found}
        room = {source for source, found in texts.items() if places[source][0] == parts[0] and parts[1] in found}
        owners[path] = {_name_module(source) for source in named or room}
    return owners


def _find_texts(source: Path, names: set[str]) -> set[str]:
    """Those of the ``names`` that are texts in a module's code; in a comment or a sentence they do not count."""
    code = source.read_text(encoding="utf-8")
    if not any(name in code for name in names):  # most modules; parsing takes a hundred times as long
        return set()
    constants = {node.value for node in ast.walk(ast.parse(code, str(source))) if isinstance(node, ast.Constant)}
    return constants & names


def _name_module(source: Path) -> str:
    return ".".join(("nucleoscope", *source.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def _find_file(module: str) -> Path:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _shorten(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
