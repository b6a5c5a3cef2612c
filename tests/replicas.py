"""The study's models and data sets in small, under their real names and revisions, to be served by `hub`.

A model has the real one's architecture, vocabulary, head counts and all other fields of its configuration,
in the form of its time, but 2 layers and a width of 128 with random weights; its tokenizer is of the real
one's kind, with as many tokens, special ones at their places, trained on the packaged prompts. Files lie
as in the real repositories: in parts, beside duplicates that nobody should download. A data set has the real
one's files and columns, and rows that are made up.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from pyarrow import parquet
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

import hub
from nucleoscope.data import prompts

WIDTH, LAYERS, HEADS = 128, 2, 32  # 32 heads as the real ones, of 4 numbers each
DEEPSEEK, LLAMA, INSTRUCT = (
    "deepseek-ai/deepseek-llm-7b-base",
    "meta-llama/Llama-3.1-8B",
    "meta-llama/Llama-3.1-8B-Instruct",
)
MISTRAL, QWEN = "mistralai/Mistral-7B-v0.1", "Qwen/Qwen3-8B"
REVISIONS = {
    DEEPSEEK: "7683fea62db869066ddaff6a41d032262c490d4f",
    LLAMA: "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b",
    INSTRUCT: "0e9e39f249a16976918f6564b8830bc894c89659",
    MISTRAL: "27d67f1b5f57dc0953326b2601d68371d40ea8da",
    QWEN: "b968826d9c46dd6066d109eabc6255188de91218",
}
PARQUET = "c0ffee00" * 5  # the commit of xsum's branch of parquet files
LATER = "feedbeef" * 5  # a commit after the pinned one, with other content
JUNK = b"this file is not to be downloaded"

# Llama 3's and Qwen's word pattern splits contractions, words, numbers (of 3 digits, or 1), signs and spaces.
WORDS = "|".join(
    (
        *(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,%d}"),
        *(r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"),
    )
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Kind(NamedTuple):
    """What makes a model: its class, its configuration, its tokenizer's files, and which weights it has."""

    model: type
    config: type
    fields: dict
    generation: dict
    tokenizer: dict  # tokenizer_config.json
    weights: str = "safetensors"
    others: tuple[str, ...] = ()  # files that nobody needs


COMMON = {
    "hidden_act": "silu",
    "hidden_size": WIDTH,
    "initializer_range": 0.02,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
LLAMA_3 = COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "intermediate_size": 448,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "transformers_version": "4.43.0.dev0",
    "vocab_size": 128256,
}
LLAMA_3_TOKENIZER = {
    "bos_token": "<|begin_of_text|>",
    "clean_up_tokenization_spaces": True,
    "eos_token": "<|end_of_text|>",
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 131072,
    "tokenizer_class": "PreTrainedTokenizerFast",
}
ORIGINAL = (
    "original/consolidated.00.pth",
    "original/params.json",
    "original/tokenizer.model",
    "LICENSE",
    "USE_POLICY.md",
)
ENDS = [128001, 128008, 128009]
KINDS = {
    DEEPSEEK: Kind(
        LlamaForCausalLM,
        LlamaConfig,
        COMMON
        | {
            "architectures": ["LlamaForCausalLM"],
            "bos_token_id": 100000,
            "eos_token_id": 100001,
            "intermediate_size": 344,
            "max_position_embeddings": 4096,
            "model_type": "llama",
            "num_key_value_heads": HEADS,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "transformers_version": "4.33.1",
            "vocab_size": 102400,
        },
        {"bos_token_id": 100000, "eos_token_id": 100001, "do_sample": True, "temperature": 0.7, "top_p": 0.95},
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>"},
            "clean_up_tokenization_spaces": False,
            "eos_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>"},
            "legacy": True,
            "model_max_length": 4096,
            "pad_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>"},
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizerFast",
            "unk_token": None,
        },
        weights="bin",
    ),
    LLAMA: Kind(
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA_3,
        {"bos_token_id": 128000, "eos_token_id": 128001, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        LLAMA_3_TOKENIZER,
        others=ORIGINAL,
    ),
    INSTRUCT: Kind(
        LlamaForCausalLM,
        LlamaConfig,
        LLAMA_3 | {"eos_token_id": ENDS, "transformers_version": "4.42.3"},
        {"bos_token_id": 128000, "eos_token_id": ENDS, "do_sample": True, "temperature": 0.6, "top_p": 0.9},
        LLAMA_3_TOKENIZER | {"eos_token": "<|eot_id|>", "chat_template": LLAMA_CHAT},
        others=ORIGINAL,
    ),
    MISTRAL: Kind(
        MistralForCausalLM,
        MistralConfig,
        COMMON
        | {
            "architectures": ["MistralForCausalLM"],
            "bos_token_id": 1,
            "eos_token_id": 2,
            "intermediate_size": 448,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-05,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
            "transformers_version": "4.34.0.dev0",
            "vocab_size": 32000,
        },
        {"bos_token_id": 1, "eos_token_id": 2},
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "additional_special_tokens": [],
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": True,
            "model_max_length": 1000000000000000019884624838656,
            "pad_token": None,
            "sp_model_kwargs": {},
            "spaces_between_special_tokens": False,
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
            "use_default_system_prompt": False,
        },
        others=("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"),
    ),
    QWEN: Kind(
        Qwen3ForCausalLM,
        Qwen3Config,
        COMMON
        | {
            "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "head_dim": WIDTH // HEADS,
            "intermediate_size": 384,
            "max_position_embeddings": 40960,
            "max_window_layers": 36,
            "model_type": "qwen3",
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-06,
            "rope_scaling": None,
            "rope_theta": 1000000,
            "sliding_window": None,
            "transformers_version": "4.51.0",
            "use_sliding_window": False,
            "vocab_size": 151936,
        },
        {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643}
        | {"temperature": 0.6, "top_k": 20, "top_p": 0.95},
        {
            "add_bos_token": False,
            "add_prefix_space": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "bos_token": None,
            "chat_template": QWEN_CHAT,
            "clean_up_tokenization_spaces": False,
            "eos_token": "<|im_end|>",
            "errors": "replace",
            "model_max_length": 131072,
            "pad_token": "<|endoftext|>",
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
            "unk_token": None,
        },
    ),
}


# Tokenizers


def create_tokenizer(name: str) -> Tokenizer:
    """A tokenizer of the kind that a model has; it says what the one that is loaded must say."""
    return {
        DEEPSEEK: _create_deepseek,
        LLAMA: _create_llama,
        INSTRUCT: _create_llama,
        MISTRAL: _create_mistral,
        QWEN: _create_qwen,
    }[name]()


def _create_deepseek() -> Tokenizer:
    splits = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥]+"]
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits]
    special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"]
    core = _create_bytes(100000, special, [*steps, pre_tokenizers.Digits(individual_digits=True)])
    core.post_processor = processors.ByteLevel(trim_offsets=False)  # puts nothing in front: add_bos_token does
    return core


def _create_llama() -> Tokenizer:
    names = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 8: "eom_id", 9: "eot_id"}
    special = [f"<|{names.get(place, f'reserved_special_token_{place}')}|>" for place in range(256)]
    core = _create_bytes(128000, special, [pre_tokenizers.Split(Regex(WORDS % 3), "isolated")])
    start = processors.TemplateProcessing(single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128000)])
    core.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), start])
    return core


def _create_qwen() -> Tokenizer:
    names = ["endoftext", "im_start", "im_end", *(f"extra_{place}" for place in range(3, 26))]
    core = _create_bytes(
        151643, [f"<|{name}|>" for name in names], [pre_tokenizers.Split(Regex(WORDS % 1), "isolated")]
    )
    core.normalizer = normalizers.NFC()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    return core


def _create_bytes(size: int, special: list[str], steps: list) -> Tokenizer:
    """A byte-level BPE tokenizer of ``size`` tokens, and the special ones behind them."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        _create_texts(), trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    )
    core = _fill(core, size)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(special)
    return core


def _create_mistral() -> Tokenizer:
    """As SentencePiece's: words begin with a mark, unknown characters are written as bytes."""
    core = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # for the training: no piece spans two words
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core.train_from_iterator(
        _create_texts(), trainers.BpeTrainer(vocab_size=1500, special_tokens=special, show_progress=False)
    )
    core = _fill(core, 32000)
    core.add_special_tokens(special[:3])
    core.pre_tokenizer = None
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    core.decoder = decoders.Sequence(steps)
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return core


def _create_texts() -> Iterator[str]:
    return chain.from_iterable(prompts.load(name).texts for name in prompts.PACKAGED)


def _fill(core: Tokenizer, size: int) -> Tokenizer:
    """The tokenizer with tokens that nothing is ever split into, up to ``size``."""
    content = json.loads(core.to_str())
    content["added_tokens"] = []
    vocabulary = content["model"]["vocab"]
    mark = "▁" if content["model"]["byte_fallback"] else "Ġ"
    vocabulary |= {f"{mark}filler{index}": index for index in range(len(vocabulary), size)}
    return Tokenizer.from_str(json.dumps(content))


# Repositories


def save_model(name: str, folder: Path) -> None:
    """Writes the files of a model's repository."""
    kind = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sorted(KINDS).index(name))
        # Logits of a standard deviation of about 5: nuclei of one token and of hundreds both occur.
        model = kind.model(kind.config(**kind.fields | {"initializer_range": 0.45})).to(torch.bfloat16)
    folder.mkdir(parents=True)
    if kind.weights == "bin":
        _save_parts(model.state_dict(), folder)
    else:
        model.save_pretrained(folder, max_shard_size="10MB")
    core = create_tokenizer(name)
    core.save(str(folder / "tokenizer.json"), pretty=False)
    if name == QWEN:
        core.model.save(str(folder))  # vocab.json, merges.txt
    for file, content in (
        ("config", kind.fields),
        ("generation_config", kind.generation),
        ("tokenizer_config", kind.tokenizer),
    ):
        (folder / f"{file}.json").write_text(json.dumps(content, ensure_ascii=False, indent=2))
    for file in (*kind.others, "README.md", ".gitattributes"):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(JUNK)


def _save_parts(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Two files in PyTorch's own format and their index."""
    names = list(weights)
    parts = {"pytorch_model-00001-of-00002.bin": names[:3], "pytorch_model-00002-of-00002.bin": names[3:]}
    for file, held in parts.items():
        torch.save({name: weights[name].clone() for name in held}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": {name: file for file, held in parts.items() for name in held}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def save_table(path: Path, columns: dict[str, list[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), path)


def create_rows(column: str, split: str, many: int, mark: str = "") -> list[str]:
    """Made-up texts: two of a data set, a split or a row are never the same."""
    return [
        f"{mark}{column} {index} of {split}: " + "the cat sat on the mat, " * (1 + index % 3) for index in range(many)
    ]


SPLITS = {"train": 30, "validation": 12, "test": 12}


def save_dataset(name: str, folder: Path, mark: str = "") -> None:
    """Writes the files of a data set's repository as of its pinned revision, or of xsum's parquet branch."""
    others = {"gsm8k": ["answer"], "writingprompts": ["story"], "xsum": ["summary", "id"]}
    columns = [prompts.HUB[name].column, *others[name]]
    splits = {split: many for split, many in SPLITS.items() if name != "gsm8k" or split != "validation"}
    places = {"gsm8k": "{config}/{split}-00000-of-00001", "writingprompts": "data/{split}-00000-of-00001"}
    place = places.get(name, "default/{split}/0000") + ".parquet"
    configs = ["main", "socratic"] if name == "gsm8k" else ["default"]
    for config in configs:
        for split, many in splits.items():
            table = {column: create_rows(column, f"{config} {split}", many, mark) for column in columns}
            save_table(folder / place.format(config=config, split=split), table)
    if name != "xsum":
        (folder / "README.md").write_text(_format_card(columns, configs, splits, place.rsplit("-00000", 1)[0]))
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n")


def _format_card(columns: list[str], configs: list[str], splits: dict[str, int], place: str) -> str:
    """A data set's README.md: what its header says of its files."""
    features = [{"name": column, "dtype": "string"} for column in columns]
    header = {
        "dataset_info": [
            {
                "config_name": config,
                "features": features,
                "splits": [
                    {"name": split, "num_bytes": 100 * many, "num_examples": many} for split, many in splits.items()
                ],
                "download_size": 5000,
                "dataset_size": 100 * sum(splits.values()),
            }
            for config in configs
        ],
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": s, "path": place.format(config=config, split=s) + "-*"} for s in splits],
            }
            for config in configs
        ],
    }
    return f"---\n{json.dumps(header)}\n---\n# A data set\n"  # JSON is YAML


def create_repositories(base: Path) -> dict[str, hub.Repository]:
    """All repositories of the study's grid, in the folder of temporary files of all tests, ``base``.

    They are written once, and shared by processes that test side by side.
    The pinned revision is the newest of each, but of gsm8k, where a later one has other content.
    """
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "replicas"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests in several processes share them
        if not (folder / ".whole").exists():
            for name in KINDS:
                save_model(name, folder / name)
            for name, entry in prompts.HUB.items():
                save_dataset(name, folder / "datasets" / entry.path)
            (folder / "script").mkdir()
            (folder / "script/xsum.py").write_text("# a loading script, which datasets no longer runs\n")
            (folder / "script/README.md").write_text("# XSum\n")
            save_dataset("gsm8k", folder / "later", mark="later ")
            (folder / ".whole").touch()
    found = {name: _create_pinned(folder / name, REVISIONS[name], name.startswith("meta-llama")) for name in KINDS}
    for entry in prompts.HUB.values():
        found[f"datasets/{entry.path}"] = _create_pinned(folder / "datasets" / entry.path, entry.revisions[0])
    gsm8k, xsum = (f"datasets/{prompts.HUB[name].path}" for name in ("gsm8k", "xsum"))
    commit = prompts.HUB["gsm8k"].revisions[0]
    found[gsm8k] = hub.Repository({commit: found[gsm8k].commits[commit], LATER: folder / "later"}, {"main": LATER})
    script, files = folder / "script", folder / "datasets" / prompts.HUB["xsum"].path
    commit = prompts.HUB["xsum"].revisions[0]
    branches = {"main": commit, "refs/convert/parquet": PARQUET}
    found[xsum] = hub.Repository({commit: script, PARQUET: files}, branches)
    return found


def _create_pinned(folder: Path, commit: str, gated: bool = False) -> hub.Repository:
    return hub.Repository({commit: folder}, {"main": commit}, gated)
