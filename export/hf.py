"""Back to Hugging Face: a run as a folder for `transformers`, `BertForQuestionAnswering.from_pretrained(DIR)` and such.

config.json, model.safetensors (float32; dense kernels [outputs, inputs], query, key and value each on its own), and the
tokeniser as vocab.txt, tokenizer_config.json, special_tokens_map.json. The logits are those of the checkpoint: dropout
is the only thing that differs, and it is off unless one trains.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from export.checkpoint import Checkpoint
from model import published_names

FILES = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
ACTIVATIONS = {"erf": "gelu", "tanh": "gelu_new"}  # as transformers calls them
SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}  # fmt: skip


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write the files into an empty folder."""
    # The metadata is what transformers asks for before it takes a file: which framework's tensors they are.
    save_file(tensors(checkpoint), folder / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(checkpoint.tokenizer.vocab_file, folder / "vocab.txt")
    for name, value in (
        ("config.json", model_config(checkpoint)),
        ("tokenizer_config.json", tokenizer_config(checkpoint)),
        ("special_tokens_map.json", SPECIAL),
    ):
        (folder / name).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def ours(folder: Path) -> bool:
    """Whether `write` may have written this folder, and nothing else lies in it."""
    return {path.name for path in folder.iterdir()} <= set(FILES)


def tensors(checkpoint: Checkpoint) -> dict[str, np.ndarray]:
    """Their name -> float32 array."""
    # The names that a file with these would have: the encoder below "bert.", and the head.
    head = checkpoint.head
    present = {"bert.embeddings", *(name.format(bert="bert.") for name in head.published("hugging_face").values())}
    names = published_names.hugging_face(checkpoint.config, present, head)
    found = {}
    for our_name, theirs in names.items():
        # Three parts where query, key and value lie side by side.
        parts = np.split(checkpoint.tensors[our_name], len(theirs), axis=-1)
        for name, array in zip(theirs, parts, strict=True):
            found[name] = np.ascontiguousarray(array.T if our_name.endswith(".kernel") else array)
    return found


def architecture(checkpoint: Checkpoint) -> str:
    """The class of transformers that the folder is for: without a head of its own, the encoder's."""
    return checkpoint.head.architecture or "BertModel"


def model_config(checkpoint: Checkpoint) -> dict:
    """config.json."""
    sizes = checkpoint.config
    named = {str(place): name for place, name in enumerate(checkpoint.head.labels)}
    labels = {"id2label": named, "label2id": {name: int(place) for place, name in named.items()}} if named else {}
    return {
        "architectures": [architecture(checkpoint)],
        **labels,
        "model_type": "bert",
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.ffn,
        "hidden_act": ACTIVATIONS[sizes.gelu],
        "max_position_embeddings": sizes.positions,
        "type_vocab_size": sizes.segments,
        "layer_norm_eps": sizes.layer_norm_epsilon,
        "hidden_dropout_prob": sizes.dropout,
        "attention_probs_dropout_prob": sizes.attention_dropout,
        "position_embedding_type": "absolute",
        "pad_token_id": checkpoint.tokenizer.pad_id,
        "torch_dtype": "float32",
    }


def tokenizer_config(checkpoint: Checkpoint) -> dict:
    """tokenizer_config.json; `strip_accents` null follows `do_lower_case` there as here."""
    tokenizer = checkpoint.tokenizer
    return {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": tokenizer.lowercase,
        "strip_accents": tokenizer.strip_accents,
        "tokenize_chinese_chars": tokenizer.chinese,
        "model_max_length": checkpoint.config.positions,
        **SPECIAL,
    }
