"""From a model's name to the model and its tokenizer, placed on its device.

`load`, `load_tokenizer` and `Model` are imported on first use, because they import torch.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name in ("load", "Model"):
        from nucleoscope.models import loading

        return getattr(loading, name)
    if name == "load_tokenizer":
        from nucleoscope.models import tokenizers

        return tokenizers.load_tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
