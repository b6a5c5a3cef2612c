"""Converts a plotly figure, given as plain JSON, into a table of the data that it draws.

Contract: figures as notebooks store them, with their numbers either listed or packed; no files.
"""

import base64
import csv
import html
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from nucleoscope.names import escape_cell

PLOTLY = "application/vnd.plotly.v1+json"  # the type of a figure among the outputs of a notebook
LARGEST = float(np.finfo(np.float32).max)
COORDINATES = ("x", "x +", "x -", "y", "y +", "y -", "z")  # columns of a figure's csv; + and - are its error bars


def format_csv(figure: Mapping[str, Any]) -> str:
    """The data of a figure as a table: one row per point, with the name of its trace."""
    blocks = [(_name_trace(figure, trace), _list_columns(trace)) for trace in figure["data"]]
    names = [name for name in COORDINATES if any(name in columns for _, columns in blocks)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["trace", *names])
    for trace, columns in blocks:
        length = max(map(len, columns.values()), default=0)
        filled = [columns.get(name) or [""] * length for name in names]
        writer.writerows(map(_format_cell, [trace, *row]) for row in zip(*filled, strict=True))
    return stream.getvalue()


def _format_cell(value: Any) -> Any:
    """A value of a figure for a csv: what plotly shows of a text, and no formula.

    A number has nine digits, which tell all numbers in float32 apart, as models give them, or fewer if it is one.
    """
    if isinstance(value, str):
        return escape_cell(html.unescape(value))
    if not isinstance(value, float):
        return value
    # Python's floats: NumPy would round one to float32 before it compares it with a float32.
    short = abs(value) < LARGEST and float(np.float32(value)) == value
    return np.float32(value) if short else float(f"{value:.9g}")


def _name_trace(figure: Mapping[str, Any], trace: Mapping[str, Any]) -> str:
    """The name of a trace: its name plus the text in its meta, or else the title of its x axis."""
    if isinstance(trace.get("meta"), str):
        return ", ".join(filter(None, [trace.get("name"), trace["meta"]]))
    axis = figure["layout"].get("xaxis" + trace.get("xaxis", "x")[1:]) or {}
    return trace.get("name") or (axis.get("title") or {}).get("text") or ""


def _list_columns(trace: Mapping[str, Any]) -> dict[str, list]:
    """The coordinates of a trace, all of the same length; a matrix z is listed row by row."""
    columns = {name: decode(trace[name]) for name in "xyz" if trace.get(name) is not None}
    for name, part in (("x", "array"), ("x", "arrayminus"), ("y", "array"), ("y", "arrayminus")):
        if (bars := (trace.get(f"error_{name}") or {}).get(part)) is not None:
            columns[f"{name} {'+' if part == 'array' else '-'}"] = decode(bars)
    if "z" in columns and columns["z"].ndim == 2:
        rows, width = columns["z"].shape
        x, y = columns.get("x", np.arange(width)), columns.get("y", np.arange(rows))
        columns = {"x": np.tile(x, rows), "y": np.repeat(y, width), "z": columns["z"].ravel()}
    shortest = min(map(len, columns.values()), default=0)  # as plotly draws them
    return {name: values[:shortest].tolist() for name, values in columns.items()}


def decode(values: Any) -> np.ndarray:
    """A trace's values, whether listed or in plotly's packed form."""
    if not isinstance(values, dict):
        return np.asarray(values, dtype=None if all(isinstance(v, int | float | list) for v in values) else object)
    array = np.frombuffer(base64.b64decode(values["bdata"]), np.dtype(values["dtype"]).newbyteorder("<"))
    shape = [int(part) for part in str(values.get("shape", "")).split(",") if part.strip()]
    return array.reshape(shape or -1)
