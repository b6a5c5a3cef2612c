"""Nucleoscope: for every token that a language model writes, which other tokens it could have chosen.

The package is divided into layers ("rooms"), from the lowest up: `models`, `measure` and `data`; `store`;
`stats` and `workflow`; `views`; `explorer` and `book`. A room imports only from lower layers, which
import-linter checks. Modules that users import have short names here: ``from nucleoscope import results``.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

PUBLIC = {  # short name -> module; settings, quantities and the rooms can be imported by their own names
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
    """The modules of `PUBLIC`, imported on first use."""
    if name in PUBLIC:
        return importlib.import_module(f"{__name__}.{PUBLIC[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
