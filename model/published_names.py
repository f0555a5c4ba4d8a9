"""What published checkpoints call our tensors (`model/weights.py` has our names): Hugging Face's and Google's.

A map goes from our name to theirs; to three of theirs where we keep query, key and value side by side.
"""

import re
from typing import Any

from model.config import BertConfig

Names = dict[str, tuple[str, ...]]

# Tensors that a checkpoint may have and the head asked for does not; they are listed to the user.
LEFT_OVER = re.compile(
    r"^(bert[./])?(pooler|cls|embeddings\.position_ids)"  # next-sentence and language-model heads; 0 to 511
    r"|^classifier|^lm_predictions|^qa_outputs\.|^output_(weights|bias)$"  # heads of other tasks
    r"|^global_step$|adam_[mv]$"  # a Google checkpoint saved while training; the slots are twice the weights' size
)

_LAYER = {  # inside a layer
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.in": "intermediate.dense",
    "ffn.out": "output.dense",
    "ffn.norm": "output.LayerNorm",
}
_TABLES = {"token": "word_embeddings", "position": "position_embeddings", "segment": "token_type_embeddings"}


def hugging_face(config: BertConfig, present: set[str], head: Any = None) -> Names:
    """Dense kernels are [outputs, inputs] there. head: an entry of `heads/`, named as far as the source has it."""
    prefix = "bert." if any(name.startswith("bert.") for name in present) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in present)  # checkpoints converted before 2019
    scale, offset = ("gamma", "beta") if old else ("weight", "bias")
    theirs = _encoder(config, f"{prefix}embeddings.", f"{prefix}encoder.layer.", ".weight", "weight", scale, offset)
    return theirs | _head(head, "hugging_face", prefix, present)


def google(config: BertConfig, present: set[str], head: Any = None) -> Names:
    """Dense kernels are [inputs, outputs] as ours, except those of `turned_by_google`."""
    theirs = _encoder(config, "bert.embeddings.", "bert.encoder.layer_", "", "kernel", "gamma", "beta")
    theirs = {ours: tuple(name.replace(".", "/") for name in names) for ours, names in theirs.items()}
    return theirs | _head(head, "google", "bert/", present)


def turned_by_google(theirs: Names) -> set[str]:
    """Our names of the kernels that a Google checkpoint keeps as [outputs, inputs]: the last ones of its heads."""
    return {ours for ours, names in theirs.items() if names[0].endswith("output_weights")}


def of_head(head: Any) -> set[str]:
    """What checkpoints call the tensors that fine-tuning gives a head; not those that pre-training leaves."""
    layouts = ("hugging_face", "google") if head else ()
    return {
        theirs for layout in layouts for ours, theirs in head.published(layout).items() if ours not in head.pretrained
    }


def _head(head: Any, layout: str, prefix: str, present: set[str]) -> Names:
    """A head's tensors: of each kernel and bias both, if the source has the kernel."""
    names = {ours: theirs.format(bert=prefix) for ours, theirs in (head.published(layout) if head else {}).items()}
    kernels = {ours.rpartition(".")[0] for ours, theirs in names.items() if theirs in present and "kernel" in ours}
    return {ours: (theirs,) for ours, theirs in names.items() if ours.rpartition(".")[0] in kernels}


def _encoder(config, embeddings, layers, table, kernel, scale, offset) -> Names:
    theirs = {f"embeddings.{ours}": (f"{embeddings}{name}{table}",) for ours, name in _TABLES.items()}
    theirs |= _both("embeddings.norm", f"{embeddings}LayerNorm", kernel, scale, offset)
    for i in range(config.layers):
        for part, name in (("kernel", kernel), ("bias", "bias")):
            three = tuple(f"{layers}{i}.attention.self.{which}.{name}" for which in ("query", "key", "value"))
            theirs[f"layers.{i}.attention.qkv.{part}"] = three
        for ours, name in _LAYER.items():
            theirs |= _both(f"layers.{i}.{ours}", f"{layers}{i}.{name}", kernel, scale, offset)
    return theirs


def _both(ours, stem, kernel, scale, offset) -> Names:
    """Kernel and bias of a dense layer, or scale and offset of a layer norm."""
    if ours.endswith("norm"):
        return {f"{ours}.scale": (f"{stem}.{scale}",), f"{ours}.offset": (f"{stem}.{offset}",)}
    return {f"{ours}.kernel": (f"{stem}.{kernel}",), f"{ours}.bias": (f"{stem}.bias",)}
