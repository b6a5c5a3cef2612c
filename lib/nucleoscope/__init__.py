"""Nucleoscope: what a language model was choosing between, at every token it wrote.

The package is divided into rooms, from the ground floor up: `models`, `measure` and `data`; `store`;
`stats` and `workflow`; `views`; `explorer` and `book`. A room imports only from lower floors, which
import-linter checks. The modules that users import have short names here: ``from nucleoscope import results``.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

PUBLIC = {  # short name -> module; settings, quantities and the rooms are names already
    "correlation": "stats.correlation",
    "curves": "stats.curves",
    "examples": "views.examples",
    "figures": "views.figures",
    "fits": "stats.fits",
    "panels": "views.panels",
    "prompts": "data.prompts",
    "results": "store.results",
    "tables": "views.tables",
}


def __getattr__(name: str) -> ModuleType:
    """The modules of `PUBLIC`, imported when they are first asked for."""
    if name in PUBLIC:
        return importlib.import_module(f"{__name__}.{PUBLIC[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
