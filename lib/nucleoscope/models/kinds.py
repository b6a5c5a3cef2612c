"""Which of transformers' classes loads a model, by its configuration; what is no causal language model is refused.

Contract: nothing is loaded or downloaded here. What a configuration does not quote, such as a layer that sees later
tokens, is found out by `measure.checking`.
"""

from typing import Any

import transformers
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
)

from nucleoscope.settings import quote

# In order: a model that both can load is loaded as the first, without the part that sees.
CLASSES = {AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING}
CLASSES |= {AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
ADVICE = "choose a model that continues a text"


class UnsupportedKind(ValueError):
    """A configuration of something that is no causal language model, or that transformers does not know."""


def check_type(entries: dict[str, Any]) -> None:
    """Raises `UnsupportedKind` for the ``entries`` of a config.json of a type that transformers does not know."""
    kind = entries.get("model_type")
    if kind is None or "auto_map" in entries:  # transformers looks elsewhere
        return
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedKind(
            f"model_type is {quote(kind)} in its config.json, which is unknown to transformers "
            f"{transformers.__version__}: install a newer version, if the name is right"
        )


def check_folder(folder: str) -> None:
    """Raises `UnsupportedKind` for a folder whose config.json is not that of a causal language model.

    One that needs Python files of its own passes: what it is they alone say.
    """
    entries = PreTrainedConfig.get_config_dict(folder)[0]
    check_type(entries)
    if "auto_map" not in entries:
        choose_class(AutoConfig.from_pretrained(folder))


def choose_class(config: PreTrainedConfig, trust_remote_code: bool = False) -> type:
    """The class of `CLASSES` that loads a model of this configuration.

    A model that also sees is one if the part that writes is a causal language model. Raises `UnsupportedKind`.
    """
    own = getattr(config, "auto_map", None) or {}
    for loader, known in CLASSES.items():
        if type(config) in known or (trust_remote_code and loader.__name__ in own):
            _check_direction(config, loader)
            return loader
    if any(loader.__name__ in own for loader in CLASSES):
        return AutoModelForCausalLM  # which asks for trust_remote_code
    what = "an encoder and a decoder" if config.is_encoder_decoder else f"of type {quote(config.model_type)}"
    raise UnsupportedKind(
        f"{type(config).__name__} is not the configuration of a causal language model ({what}): {ADVICE}"
    )


def _check_direction(config: PreTrainedConfig, loader: type) -> None:
    """Raises `UnsupportedKind` for encoders, with or without a decoder: they read a prompt in both directions."""
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise UnsupportedKind(
            f"{type(config).__name__} describes an encoder and a decoder, not a causal model: {ADVICE}"
        )
    if loader is not AutoModelForCausalLM or getattr(config, "is_decoder", True):
        return
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
    if len({mapping.get(type(config), None) for mapping in mappings} - {None}) == 2:
        raise UnsupportedKind(  # BERT and its relatives: one configuration, two directions
            f"{type(config).__name__} is not that of a causal language model: is_decoder is false, so each token sees "
            f"those after it; {ADVICE}"
        )
