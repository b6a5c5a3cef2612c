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

from nucleoscope.hub import AGAIN
from nucleoscope.settings import quote

# In order: a model that both can load is loaded as the first, without the part that sees.
CLASSES = {AutoModelForCausalLM: MODEL_FOR_CAUSAL_LM_MAPPING}
CLASSES |= {AutoModelForImageTextToText: MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING}
ADVICE = "choose a model that generates text"
PAIR = f"it is an encoder-decoder model, not a causal language model: {ADVICE}"


class UnsupportedKind(ValueError):
    """A configuration of something that is no causal language model, or that transformers does not know."""


def _check_type(entries: dict[str, Any]) -> None:
    """Raises `UnsupportedKind` for the ``entries`` of a config.json without a type that transformers knows."""
    kind = entries.get("model_type")
    if "auto_map" in entries:  # its own code says what it is
        return
    if kind is None:
        raise UnsupportedKind(f"its config.json has no model_type: {AGAIN}")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UnsupportedKind(
            f"its config.json has model_type {quote(kind)}, which transformers {transformers.__version__} does not "
            "know: check the name, or install a newer transformers"
        )


def check_folder(folder: str) -> None:
    """Raises `UnsupportedKind` for a folder whose config.json is not that of a causal language model.

    One that needs Python files of its own passes: what it is they alone say.
    """
    if "auto_map" not in PreTrainedConfig.get_config_dict(folder)[0]:
        choose_class(read_config(folder, {}))


def read_config(source: str, options: dict[str, Any]) -> PreTrainedConfig:
    """The configuration of the model in a folder or on the Hub; ``options`` are those of `from_pretrained`.

    Raises `UnsupportedKind` if its type is missing or not known.
    """
    _check_type(PreTrainedConfig.get_config_dict(source, **options)[0])
    return AutoConfig.from_pretrained(source, **options)


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
    if config.is_encoder_decoder:
        raise UnsupportedKind(PAIR)
    raise UnsupportedKind(f"its type, {quote(config.model_type)}, is not a causal language model: {ADVICE}")


def _check_direction(config: PreTrainedConfig, loader: type) -> None:
    """Raises `UnsupportedKind` for encoders, with or without a decoder: they read a prompt in both directions."""
    if config.is_encoder_decoder or config.get_text_config().is_encoder_decoder:
        raise UnsupportedKind(PAIR)
    if loader is not AutoModelForCausalLM or getattr(config, "is_decoder", True):
        return
    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING)
    if len({mapping.get(type(config), None) for mapping in mappings} - {None}) == 2:
        raise UnsupportedKind(  # BERT and its relatives: one configuration, two directions
            f"a {quote(config.model_type)} model with is_decoder set to false is not a causal language model (each "
            f"token sees those after it): {ADVICE}"
        )
