"""Pairs of runs for the same prompts: one that measured a data set's own texts, one in which the model wrote.

Contract: which runs belong together is decided by what their run.json says, never by the names of folders: the same
model and data set by content, the same prompts in the same format, and the same temperature and top_p. Of runs that
measured the same, the first counts. If several runs of a kind fit, each combination is a pair, of equal dtypes where
there are any, and `name_pairs` names them by what differs.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from nucleoscope.names import escape_line
from nucleoscope.settings import fill_defaults, list_deciding
from nucleoscope.store import results
from nucleoscope.store.run_names import format_setting
from nucleoscope.store.run_settings import sort_values
from nucleoscope.wording import MEASURE_AGAIN, count

# numpy and pandas are imported where they are used: commands and the Snakefile need only paths.
if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

OWN = ("n_prompts", "max_tokens", "dtype")  # settings in which the two runs of a pair may differ
# Compared by content (model and data set), or only at times (dates), or what makes two runs a pair.
APART = ("model_name", "model_revision", "dataset_name", "template_date", "mode", "text_column", "seed", "variants")
COMMON = tuple(sorted({*list_deciding()} - {*OWN, *APART}))  # settings that are the same in both runs of a pair
SETTINGS = (*COMMON, "template_date", *OWN, "seed")  # in the names of pairs that need more than their runs' names
MASS = "mass"  # the column of the nucleus's probability
COLUMNS = (  # of the tables of a pair, before `MASS` and `ENDS`
    *("prompt", "step", "k", "entropy", "full_entropy", "varentropy", "full_varentropy"),
    *("surprisal", "rank", "margin", "end_probability", "cosine"),
)
ENDS = ("end_mass", "end_information", "end_information_squared")  # columns about the nucleus's tokens that end a text


class Run(NamedTuple):
    """A measured run: its folder, and the settings in its run.json, with defaults for those that it does not know."""

    folder: Path
    settings: dict[str, Any]

    @property
    def names(self) -> tuple[str, str]:
        """The short names of data set and model."""
        return results.shorten_names(self.settings["dataset_name"], self.settings["model_name"])


class Pair(NamedTuple):
    """A run that measured existing texts, and one in which the same model wrote texts for the same prompts."""

    existing: Run
    written: Run

    @property
    def n_prompts(self) -> int:
        """How many prompts both runs have, from the start of the data set."""
        return min(run.settings["n_prompts"] for run in self)

    @property
    def max_tokens(self) -> int:
        """How many tokens of each text both runs measured."""
        return min(run.settings["max_tokens"] for run in self)

    @property
    def text_column(self) -> str:
        """The column of the data set that has the existing texts."""
        return self.existing.settings["text_column"]

    def list_differences(self) -> list[tuple[str, Any, Any]]:
        """The settings in which the two runs differ: name, value where texts existed, value where the model wrote."""
        both = [(name, *(run.settings.get(name) for run in self)) for name in OWN]
        return [(name, one, other) for name, one, other in both if one != other]


class FoundPairs(NamedTuple):
    """What a results folder has: pairs, and runs that measured existing texts for which no run of a model's fits."""

    pairs: list[Pair]
    alone: list[Run]
    written: list[Run]


def find_pairs(results_dir: str) -> FoundPairs:
    """The pairs of runs below ``results_dir``, in the order of their names, with settings as numbers.

    A run that cannot be read is named on stderr. OSError, in one line, if the folder does not exist.
    """
    results.check_folder(results_dir)
    damaged: dict[Path, str] = {}
    runs = [run for folder in results.list_runs(results_dir, damaged) if (run := _open_run(folder, damaged))]
    runs = list({_describe_content(run): run for run in reversed(runs)}.values())[::-1]  # the first of duplicates
    for problem in damaged.values():
        print("left out:", escape_line(problem), file=sys.stderr)
    existing = [run for run in runs if run.settings["mode"] == "score"]
    written = [run for run in runs if run.settings["mode"] != "score"]
    pairs = [Pair(one, other) for one in existing for other in _choose_partners(one, written)]
    paired = {pair.existing.folder for pair in pairs}
    pairs.sort(key=_order_pair)
    return FoundPairs(pairs, [run for run in existing if run.folder not in paired], written)


def _order_pair(pair: Pair) -> tuple:
    """What pairs are sorted by: model, data set, column, then the settings that may be in their names."""
    dataset, model = pair.existing.names
    values = [run.settings.get(name) for name in SETTINGS for run in pair]
    return model, dataset, pair.text_column, sort_values(values)


def _choose_partners(existing: Run, written: Iterable[Run]) -> list[Run]:
    """The runs that are a pair with one: those of its dtype, since p depends on it, or of others if there are none."""
    partners = [run for run in written if not list_obstacles(existing, run)]
    equal = [run for run in partners if run.settings.get("dtype") == existing.settings.get("dtype")]
    return equal or partners


def _describe_content(run: Run) -> str:
    """What a run measured: equal for runs with the same model, data set and settings, wherever they are."""
    names = [*list_deciding(), "dtype"]
    settings = {name: run.settings.get(name) for name in names if name not in ("model_name", "dataset_name")}
    return json.dumps([_identify(run.settings, "model"), _identify(run.settings, "dataset"), settings], sort_keys=True)


def _open_run(folder: Path, damaged: dict[Path, str]) -> Run | None:
    """A run by its run.json; None for one without, as the published study's, and for a damaged one."""
    if not (folder / results.RUN_INFO).is_file():
        return None
    try:
        settings = fill_defaults(results.read_recorded(folder))
        run = Run(folder, settings)
        if settings["mode"] == "score" and not isinstance(settings["text_column"], str):
            raise ValueError("it measured existing texts, but names no column")
        _ = run.names, settings["n_prompts"] + settings["max_tokens"]  # whether they are what they should be
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"no {error} in its settings" if isinstance(error, KeyError) else str(error)
        damaged[folder] = f"'{folder}': {said}"
        return None
    return run


def list_obstacles(existing: Run, written: Run) -> list[str]:
    """Why two runs are no pair: the names of what differs; empty if they are one.

    A date in the chat template matters only if the template is used.
    """
    one, other = existing.settings, written.settings
    found = [name for name in ("model", "dataset") if _identify(one, name) != _identify(other, name)]
    dated = ("template_date",) if one["prompt_format"] == other["prompt_format"] == "chat" else ()
    return found + [name for name in (*COMMON, *dated) if one.get(name) != other.get(name)]


def _identify(settings: Mapping[str, Any], what: str) -> Any:
    """The content of a run's model or data set: hash or revision; its name if an earlier version recorded neither."""
    identity = settings.get(what)
    identity = identity if isinstance(identity, dict) else {}
    # a model's source is how its files came here; that of a data set decides how a file is read
    content = {key: value for key, value in identity.items() if what == "dataset" or key != "source"}
    return content if set(content) - {"source"} else settings.get(f"{what}_name")


def name_pairs(pairs: Iterable[Pair]) -> list[str]:
    """A name for each pair: model, data set and column, and where that is not enough, the settings that differ."""
    pairs = list(pairs)
    bases = ["{1} on {0}, {2}".format(*pair.existing.names, pair.text_column) for pair in pairs]
    names = []
    for pair, base in zip(pairs, bases, strict=True):
        rivals = [other for other, name in zip(pairs, bases, strict=True) if name == base]
        names.append(", ".join([base, *_list_distinctions(pair, rivals)]))
    double = {name for name in names if names.count(name) > 1}
    return [
        f"{name} ({pair.existing.folder}, {pair.written.folder})" if name in double else name
        for name, pair in zip(names, pairs, strict=True)
    ]


def _list_distinctions(pair: Pair, rivals: Iterable[Pair]) -> list[str]:
    """What tells a pair from others of the same name: "temperature 0.7", "seed 1" and so on."""
    rivals = list(rivals)
    found = []
    for name in SETTINGS:
        sides = (1,) if name == "seed" else (0,) if name not in OWN else (0, 1)
        values = {tuple(other[side].settings.get(name) for side in sides) for other in rivals}
        if len(values) > 1:
            own = list(dict.fromkeys(format_setting(pair[side].settings.get(name)) for side in sides))
            found.append(f"{name} {' and '.join(own)}")
    return found


def load_pair(pair: Pair) -> tuple["pd.DataFrame", "pd.DataFrame"]:
    """The tokens of both runs, existing first: the prompts that both have, as many tokens of each as both measured.

    Columns: `COLUMNS`, `MASS`, the probability of the nucleus under the full distribution p, and `ENDS`, the sums of p,
    of -p log p and of p (log p)^2 over the tokens in the nucleus that end a text. The latter are NaN where the run does
    not say which tokens do, as those of earlier versions, and for a token that does so itself, in an existing text.
    ValueError names a damaged file, or measurements without probabilities.
    """
    existing, written = (
        table[(table["prompt"] < pair.n_prompts) & (table["step"] < pair.max_tokens)].reset_index(drop=True)
        for table in map(_load_table, pair)
    )
    return existing, written


def _load_table(run: Run) -> "pd.DataFrame":
    path = results.find_measurements(run.folder)
    table = results.load_run(path, run.folder.name, run.folder.parent.name, (*COLUMNS, "token"))
    ends = read_ends(run.folder)
    sums = load_sums(path, ends or ())
    if len(sums) != len(table):
        raise ValueError(
            f"'{path}' has {count(len(table), 'token')}, but probabilities for {len(sums):,}: {MEASURE_AGAIN}"
        )
    if ends is None:
        sums[:, 1:] = float("nan")
    else:
        sums[table["token"].isin(ends).to_numpy(), 1:] = float("nan")
    return table[list(COLUMNS)].assign(**dict(zip((MASS, *ENDS), sums.T, strict=True)))


def read_ends(folder: Path) -> list[int] | None:
    """The ids that end a text, by a run's run.json; None if it was written by a version that did not record them."""
    found = results.load_info(folder).get("end_tokens")
    return found if isinstance(found, list) and all(isinstance(token, int) for token in found) else None


def load_sums(path: Path, ends: Iterable[int] = ()) -> "np.ndarray":
    """Sums over each token's nucleus under the full distribution p, in a measurements file: (n, 4) float64.

    The sum of p, its mass; then those of p, -p log p and p (log p)^2 over the candidates that are in ``ends``. In the
    order of `results.load_run`. Of a run's own file, candidates of one prompt are in memory at a time.
    """
    import numpy as np

    fields, ends = ("top_p_tokens", "top_p_probs"), list(ends)
    parts = [np.empty((0, 4))]
    for number, record in results.stream_arrays(path.parent, fields=fields):
        if record.get(fields[1]) is None:
            raise ValueError(f"'{path}' has no probabilities of the candidates of prompt {number}: {MEASURE_AGAIN}")
        steps = [np.asarray(probs, dtype=np.float64) for probs in record[fields[1]]]
        owners = np.repeat(np.arange(len(steps)), np.array(list(map(len, steps)), dtype=np.intp))
        probs = np.concatenate([np.empty(0), *steps])
        columns = np.zeros((4, len(probs)))
        columns[0] = probs
        if ends:
            ids = np.concatenate([np.empty(0, np.int64), *map(np.asarray, record[fields[0]])])
            p = probs[found := np.isin(ids, ends) & (probs > 0)]
            columns[1:, found] = p, -p * np.log(p), p * np.log(p) ** 2
        parts.append(np.column_stack([np.bincount(owners, column, len(steps)) for column in columns]))
    sums = np.concatenate(parts)
    sums[:, 0] = np.minimum(sums[:, 0], 1)  # rounded, a sum can exceed 1
    return sums
