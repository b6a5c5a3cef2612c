"""Loads a model's tokenizer by name, which is much faster than loading the model.

Contract: a page about a run needs this and nothing else of a model, so importing it does not import
what loads models.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from nucleoscope.hub import explain, find, is_on_hub
from nucleoscope.models import gguf


def load_tokenizer(name: str, trust_remote_code: bool = False, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A model's tokenizer.

    ``revision``: that of a model on the Hub, as recorded in its identity; None for the latest. Raises the
    same errors as `loading.load`.
    """
    source, options = find(name)
    try:
        if revision and is_on_hub(name):
            options["revision"] = revision
        return read_tokenizer(source, {"trust_remote_code": trust_remote_code, **options})
    except gguf.Unsupported as error:
        raise ValueError(f"cannot load '{name}': {error}") from None
    except Exception as error:  # the library raises many types; all become one line
        raise explain(name, error, revision) from error


def load_local_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase | None:
    """A model's tokenizer if it can be had without the network and without running code of the model's, else None."""
    try:
        source, options = find(name)
        if is_on_hub(name):
            source = snapshot_download(name, revision=revision, local_files_only=True)
        return read_tokenizer(source, options)
    except Exception:  # the libraries raise many types for a file that is missing
        return None


def read_tokenizer(source: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer; it prepends its beginning-of-text token if its own configuration says so.

    transformers 5 looks only in tokenizer.json, but some models made for version 4, such as DeepSeek's,
    set this only in tokenizer_config.json.
    """
    if "gguf_file" in options:
        # AutoTokenizer would read the whole file several times slower, only to find this class for it
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source, gguf_file=options["gguf_file"])
        return gguf.adjust_tokenizer(tokenizer, gguf.read(Path(source, options["gguf_file"])))
    from transformers import AutoTokenizer  # slower to import
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    if tokenizer.bos_token_id is None:
        return tokenizer
    wanted = get_tokenizer_config(source, revision=options.get("revision")).get("add_bos_token")
    if wanted and getattr(tokenizer, "add_bos_token", None) is False:
        tokenizer.add_bos_token = True  # replaces the post-processor, so the token is not added twice
    return tokenizer
