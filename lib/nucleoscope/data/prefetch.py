"""Downloads a grid's models and data sets into the cache, for runs on machines that cannot reach the Hub.

Contract: everything that can be checked is checked before any download starts, and all problems are
reported at once. Files already in the cache are not downloaded again. Nothing here loads a model, and
importing this module is fast.
"""

import glob
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from tqdm import tqdm

from nucleoscope import hub
from nucleoscope.atomic import ABANDONED
from nucleoscope.data import prompts

WEIGHTS = (  # in the order in which transformers looks for them: file, and the parts that it indexes
    ("model.safetensors", None),
    ("model.safetensors.index.json", r".*\d+-of-\d+\.safetensors"),
    ("pytorch_model.bin", None),
    ("pytorch_model.bin.index.json", r".*\d+-of-\d+\.bin"),
)
CONFIGURATION = "config.json"
SMALL = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # configurations, tokenizers, templates
PREPARED = 2  # a data set's prepared tables take about this many times the space of its files


class Download(NamedTuple):
    """The files to download of a model or data set, and how many bytes are still missing."""

    name: str
    revision: str | None  # as requested; None for the latest on main, and for data sets
    files: list[str]
    size: int


class Plan(NamedTuple):
    """What a grid needs: the downloads, a sentence for each entry, and the problems that prevent them."""

    models: list[Download]
    datasets: list[Download]
    notes: list[str]
    refusals: list[str]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(download.size for download in (*self.models, *self.datasets))


def plan_downloads(runs: Iterable[dict[str, Any]]) -> Plan:
    """Plans the downloads for the runs of a grid, given their parameters (model_name, dataset_name, ...).

    Asks the Hub for lists of files, their sizes, and whether this user has access to gated models.
    """
    runs = list(runs)
    found = Plan([], [], [], [])
    if constants.HF_HUB_OFFLINE:
        found.refusals.append("HF_HUB_OFFLINE is set, but prefetching needs the Hub: unset it")
        return found
    models = {(run["model_name"], run.get("model_revision"), bool(run.get("trust_remote_code"))) for run in runs}
    for name, revision, own_code in sorted(models, key=str):
        _add(found.models, found, lambda: plan_model(name, revision, own_code), name)  # noqa: B023 - called at once
    for name in sorted({run["dataset_name"] for run in runs}):
        _add(found.datasets, found, lambda: plan_dataset(name), name)  # noqa: B023
    found.refusals.extend(check_space(found))
    if found.size:
        free = shutil.disk_usage(_find_existing(Path(constants.HF_HUB_CACHE))).free
        found.notes.append(
            f"{format_size(found.size)} in total, to {constants.HF_HUB_CACHE}, which has {format_size(free)} free"
        )
    return found


def _add(downloads: list[Download], found: Plan, planned: Any, name: str) -> None:
    """Adds one entry to the plan: its download, or why it is not possible."""
    try:
        download = planned()
    except (OSError, ValueError) as error:
        found.refusals.append(str(error))
        return
    if download is None:
        found.notes.append(f"{name}: local, nothing to download")
    elif not download.size:
        found.notes.append(f"{name}: already downloaded")
    else:
        found.notes.append(f"{name}: {format_size(download.size)} to download")
    if download is not None:
        downloads.append(download)


def plan_model(name: str, revision: str | None = None, own_code: bool = False) -> Download | None:
    """The download that a model needs; None for the packaged one, a file or a folder.

    Raises OSError or ValueError with one line, like `models.load`, also for a gated model without access.
    """
    hub.find(name)
    hub.check_revision(name, revision)
    if not hub.is_on_hub(name):
        return None
    try:
        api = HfApi()
        with hub.announce_wait(f"model '{name}'"):
            info = api.model_info(name, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT)
            api.auth_check(name)
    except Exception as error:  # the library raises many kinds
        raise hub.explain(name, error, revision) from error
    sizes = _read_sizes(info)
    files = list_needed_files(sizes, own_code)
    if not files:
        raise FileNotFoundError(f"model '{name}' has no .safetensors or .bin weights: see {hub.format_page(name)}")
    missing = [file for file in files if not isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)]
    return Download(name, revision, files, sum(sizes[file] for file in missing))


def list_needed_files(files: Iterable[str], own_code: bool = False) -> list[str]:
    """The files of a repository that transformers reads: one format of the weights, and all small files.

    Empty if there are no weights. ``own_code``: include the model's Python files.
    """
    top = [file for file in files if "/" not in file]
    for first, parts in WEIGHTS:
        if first in top:
            weights = [first, *(file for file in top if parts and re.fullmatch(parts, file))]
            break
    else:
        return []
    suffixes = (*SMALL, ".py") if own_code else SMALL
    small = [file for file in top if file.endswith(suffixes) and not file.endswith(".index.json")]
    templates = [file for file in files if re.fullmatch(r"additional_chat_templates/[^/]+\.jinja", file)]
    return sorted({*weights, *small, *templates})


def plan_dataset(name: str) -> Download | None:
    """The download that a data set needs; None for a packaged one or a file.

    Raises OSError or ValueError with one line, like `prompts.load`, but without the slow import of datasets.
    """
    if name not in prompts.HUB:
        prompts.locate(name)
        return None
    if prompts.is_cached(name):
        return Download(name, None, [], 0)
    entry, failures = prompts.HUB[name], []
    for revision in entry.revisions:
        try:
            with hub.announce_wait(f"data set {name}"):
                info = HfApi().dataset_info(
                    entry.path, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
                )
        except Exception as error:  # the library raises many kinds
            failures.append((revision, error))
            continue
        sizes = _read_sizes(info)
        if f"{entry.path.split('/')[-1]}.py" in sizes:
            failures.append((revision, ValueError("a loading script, which datasets no longer runs")))
            continue
        inside = [file for file in sizes if file.startswith(f"{entry.config or 'default'}/")]
        files = inside or [file for file in sizes if not file.startswith(".") and not file.endswith(".md")]
        return Download(name, None, files, sum(sizes[file] for file in files))
    raise prompts.explain_failures(name, failures)


def _read_sizes(info: Any) -> dict[str, int]:
    """A repository's files and their sizes."""
    # snapshot_download(dry_run=True) will not do: it sends one request per missing file instead of one for all; it
    # records in the cache which commit a branch now refers to, so that offline runs would no longer find an older one
    # if this plan fails; and `list_needed_files` has to see the whole list before it can select the files to download.
    return {file.rfilename: (file.lfs.size if file.lfs else file.size) or 0 for file in info.siblings or []}


def check_space(plan: Plan) -> list[str]:
    """One sentence for each disk with too little free space for the downloads."""
    models, tables = (sum(download.size for download in part) for part in (plan.models, plan.datasets))
    needs: dict[int, list] = {}
    for folder, size in (
        (constants.HF_HUB_CACHE, models + tables),
        (prompts.locate_all_caches(), PREPARED * tables),
    ):
        existing = _find_existing(Path(folder))
        disk = needs.setdefault(existing.stat().st_dev, [existing, folder, 0])
        disk[2] += size
    return [
        f"'{folder}' needs {format_size(size)} but has only {format_size(free)} free: "
        "free some space, or set HF_HOME to a folder on another disk"
        for existing, folder, size in needs.values()
        if size > (free := shutil.disk_usage(existing).free)
    ]


def _find_existing(folder: Path) -> Path:
    """The folder, or its nearest existing parent."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def check_kinds(plan: Plan, check: Callable[[str], None]) -> list[str]:
    """One sentence for each model to download whose configuration ``check`` refuses with a ValueError.

    ``check`` gets the name of a folder that has the model's config.json, which is not put into the cache.
    """
    refusals = []
    for download in plan.models:
        if not download.size or CONFIGURATION not in download.files:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                hf_hub_download(download.name, CONFIGURATION, revision=download.revision, local_dir=folder)
                check(folder)
            except ValueError as error:
                refusals.append(f"cannot load '{download.name}': {error}")
            except Exception as error:  # the library raises many types
                refusals.append(str(hub.explain(download.name, error, download.revision)))
    return refusals


def fetch(plan: Plan) -> list[str]:
    """Downloads what a plan lists, with one progress bar over the bytes; returns a line for each failure.

    Complete files are kept whatever happens: the next attempt downloads only the rest.
    """
    failures = []
    with tqdm(total=plan.size, unit="B", unit_scale=True, desc="downloading", disable=not plan.size) as bar:
        for download in plan.models:
            begun = bar.n
            try:
                _fetch_model(download, bar)
            except Exception as error:  # the library raises many types; the other models are still downloaded
                failures.append(str(hub.explain(download.name, error, download.revision)))
            bar.update(begun + download.size - bar.n)
        for download in filter(lambda download: download.size, plan.datasets):
            try:
                _fetch_dataset(download.name)
            except OSError as error:
                failures.append(str(error))
            bar.update(download.size)
    return failures


def _fetch_model(download: Download, bar: tqdm) -> None:
    _remove_abandoned(download.name)
    snapshot_download(
        download.name,
        revision=download.revision,
        allow_patterns=[glob.escape(file) for file in download.files],
        tqdm_class=_make_hidden_bar(bar),
    )


def _fetch_dataset(name: str) -> None:
    """Loads the data set exactly as a run does, so that a run finds it; without the library's progress bars."""
    import datasets

    disable_progress_bars()
    datasets.disable_progress_bars()
    try:
        prompts.fetch(name)
    finally:
        enable_progress_bars()
        datasets.enable_progress_bars()


def _make_hidden_bar(bar: tqdm) -> type[tqdm]:
    """A class of invisible progress bars: the one that has counted the most bytes moves ``bar``."""
    begun, counts, lock = bar.n, {}, threading.Lock()

    class Unseen(tqdm):
        def __init__(self, *args, **options):
            self.bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            with lock:
                self.n += n or 0
                if self.bytes:
                    counts[id(self)] = self.n
                    bar.update(begun + max(counts.values()) - bar.n)

    return Unseen


def _remove_abandoned(name: str) -> None:
    """Removes partial files that a killed download left behind: the library never uses them again."""
    blobs = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "blobs")
    for file in blobs.glob("*.incomplete"):
        if time.time() - file.stat().st_mtime > ABANDONED:
            file.unlink(missing_ok=True)


def reword(problem: str) -> str:
    """One of these problems as the command says it that fetches: it must not advise to run itself."""
    return problem.replace(hub.PREFETCH, hub.PREFETCH.replace("scripts/prefetch.py", "this command"))


def format_size(size: float) -> str:
    """A size for readers, such as 13.8 GB, in a suitable unit."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
