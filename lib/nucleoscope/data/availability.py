"""Whether the models and data sets of some runs can be loaded, asked once for all of them.

Contract: nothing is downloaded. What is in the cache is available; the Hub is asked about the rest,
each model and data set once and all at the same time.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from huggingface_hub import constants

from nucleoscope import hub
from nucleoscope.data import prefetch, prompts
from nucleoscope.settings import Settings

ADVICE = f"and the run does not use the network: {hub.PREFETCH}"


def find_unavailable(runs: Mapping[str, Mapping[str, Any]], offline: bool = False) -> dict[str, list[str]]:
    """{key: reasons, a line each} for those ``runs`` whose model or data set, or both, cannot be loaded.

    ``runs`` are mappings of settings. ``offline``: the runs will not use the network, so what is not in
    the cache is unavailable; else the Hub is asked, unless HF_HUB_OFFLINE forbids that.
    """
    needs = {key: _list_checks(run, offline) for key, run in runs.items()}
    checks = {each: check for needed in needs.values() for each, check in needed.items()}
    with ThreadPoolExecutor(max_workers=16) as pool:
        reasons = dict(zip(checks, pool.map(_explain, checks.values()), strict=True))
    found = {key: [reason for need in needed if (reason := reasons[need])] for key, needed in needs.items()}
    return {key: several for key, several in found.items() if several}


def check(run: Mapping[str, Any]) -> None:
    """Raises OSError or ValueError, in one line, if the model or data set of one run cannot be loaded.

    This is quick, without torch, transformers and datasets; unless both are in the cache or local, the Hub is asked.
    """
    for check_one in reversed(_list_checks(run, offline=False).values()):  # a file's faults before the Hub is asked
        check_one()


def _list_checks(run: Mapping[str, Any], offline: bool) -> dict[tuple, Callable[[], None]]:
    """The two checks of a run's settings, by what they check: runs that have it in common need one."""
    model, revision, dataset = run["model_name"], run.get("model_revision"), run["dataset_name"]
    columns = run.get("n_prompts", Settings.n_prompts), run.get("prompt_column"), run.get("text_column")
    return {
        ("model", model, revision): partial(_check_model, model, revision, offline),
        ("data set", dataset, *columns): partial(_check_dataset, dataset, columns, offline),
    }


def _explain(check: Callable[[], None]) -> str | None:
    try:
        check()
    except (OSError, ValueError) as error:
        return " ".join(str(error).split())
    return None


def _check_model(name: str, revision: str | None, offline: bool) -> None:
    hub.check(name, revision)
    if not hub.is_on_hub(name) or hub.is_cached(name, revision):
        return
    if offline:
        raise FileNotFoundError(f"model '{name}' is not completely in the cache {constants.HF_HUB_CACHE}, {ADVICE}")
    prefetch.plan_model(name, revision)


def _check_dataset(name: str, columns: tuple[int, str | None, str | None], offline: bool) -> None:
    prompts.check(name, *columns)
    if name in prompts.HUB and not prompts.is_cached(name):
        if offline:
            raise FileNotFoundError(f"data set '{name}' is not in the cache {prompts.locate_cache()}, {ADVICE}")
        prefetch.plan_dataset(name)
