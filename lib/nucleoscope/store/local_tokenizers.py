"""The tokenizer of a measured run, for texts that its files do not have.

Contract: what analyses read needs no tokenizer, so that they do not depend on this module.
"""

from pathlib import Path
from typing import Any

from nucleoscope.store.results import RUN_INFO, read_recorded


def find_tokenizer(folder: Path) -> Any:
    """The tokenizer of a run's model if it can be had without the network and without its own code, else None."""
    if not (folder / RUN_INFO).is_file():
        return None
    from nucleoscope.models.tokenizers import load_local_tokenizer  # a second: only texts need it

    settings = read_recorded(folder)
    return load_local_tokenizer(settings["model_name"], settings.get("model", {}).get("revision"))
