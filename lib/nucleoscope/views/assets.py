"""The scripts and style sheets of strips and the live notebook, each joined with those of the card.

Contract: both contain the same `palette.format_css`, ``static/card.css`` and ``static/card.js``. Comments and
indentation are left out, because every strip of a page contains all of it.
"""

import json
import re
from pathlib import Path
from typing import Any

from nucleoscope.views import palette

STATIC = Path(__file__).with_name("static")


def join_script(*own: Path) -> str:
    """The script that draws cards, and then ``own``."""
    return "".join(map(read_compactly, (STATIC / "card.js", *own)))


def wrap_script(*own: Path, start: str) -> str:
    """`join_script` and then ``start``, in a function: on a page, other scripts may use the same names."""
    return f'(() => {{\n"use strict";\n{join_script(*own)}{start}\n}})();'


def join_style(*own: Path) -> str:
    """The colours, the style of cards, and then ``own``."""
    return palette.format_css() + "".join(map(read_compactly, (STATIC / "card.css", *own)))


def format_json(value: Any) -> str:
    """JSON that may be in a script: without "<", because "</script>" would end it and "<!--" hide what follows."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", r"\u003c")


def read_compactly(path: Path) -> str:
    """A script or style sheet without indentation, blank lines and comments that begin a line.

    Not for files whose strings continue on a second line: these would lose their indentation.
    """
    text = re.sub(r"^\s*(/\*.*?\*/|//[^\n]*)\s*$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    return "".join(f"{line.strip()}\n" for line in text.splitlines() if line.strip())
