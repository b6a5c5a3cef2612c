"""Executes the imports of a notebook's cells, and prints the files of this package's modules that are loaded then.

    python tests/execute_imports.py notebooks/run.py

It is forked (see `forks`): importing the libraries takes most of the time, and they are not asked for.
"""

import ast
import sys
from pathlib import Path

if __name__ == "__main__":
    code = ast.parse(Path(sys.argv[1]).read_text())
    code.body = [node for node in code.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(code, sys.argv[1], "exec"))
    print(*(module.__file__ for name, module in sys.modules.items() if name.startswith("nucleoscope")))
