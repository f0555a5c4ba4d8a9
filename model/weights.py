"""Published weights into our names: Hugging Face folders, original Google checkpoints, our own run folders.

Our names (all float32; kernels are [inputs, outputs]):

    embeddings.token [V, H]   embeddings.position [positions, H]   embeddings.segment [2, H]
    embeddings.norm.{scale, offset} [H]
    layers.i.attention.qkv.{kernel [H, 3H], bias [3H]}     query, key and value side by side
    layers.i.attention.out.{kernel [H, H], bias [H]}       layers.i.attention.norm.{scale, offset} [H]
    layers.i.ffn.in.{kernel [H, I], bias [I]}              layers.i.ffn.out.{kernel [I, H], bias [H]}
    layers.i.ffn.norm.{scale, offset} [H]
    and those of a head, as its entry in heads/ names them: in a fine-tuned model, read where they are asked for

Every tensor of a source is used exactly once, listed as left over (pooler, language-model heads), or named in an error.
Nothing is unpickled: safetensors and TensorFlow's checkpoint reader only.
"""

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configs.errors import UserError
from model import published_names
from model.config import NAMED, BertConfig

MODEL_FILE = "model.safetensors"
ENCODER = ("embeddings.", "layers.")  # how the names of the encoder's tensors begin
CHECKPOINT = "*.ckpt*.index"  # bert_model.ckpt as published, model.ckpt-1000 as written by training


@dataclass
class Published:
    """Weights read from somewhere: sizes, tensors under our names, and what else a run needs to know of them."""

    config: BertConfig
    tensors: dict[str, np.ndarray]  # our name -> float32
    left_over: list[str]  # the source's names of tensors that this project has no use for
    folder: Path  # holds vocab.txt
    tokenizer: dict  # {lowercase, strip_accents, chinese} as the source states it
    source: str
    labels: list[str] = field(default_factory=list)  # of a fine-tuned source, where it names them


def load(source: str, head: Any = None) -> Published:
    """Read weights from a folder, or from the hub if `source` is no folder but looks like a repository's name.

    head: an entry of `heads/`, whose tensors are read with the encoder's where the source has them. None: the encoder
    alone; any head's tensors are left over.
    Raises: UserError when nothing is there, a tensor is missing, unknown or has a shape the sizes do not allow.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / "best" / MODEL_FILE).is_file():
            return _from_run(folder, head)
        if (folder / "bert_config.json").is_file() and list(folder.glob(CHECKPOINT)):
            return _from_google(folder, head)
        if (folder / "config.json").is_file() and (folder / MODEL_FILE).is_file():
            return _from_hugging_face(folder, str(folder), head)
        raise UserError(
            f"{folder} holds no weights that can be read; needed is config.json with {MODEL_FILE} (Hugging Face), "
            f"bert_config.json with bert_model.ckpt.* (Google), or a run folder with best/{MODEL_FILE}"
        )
    if source in NAMED or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source) or folder.exists():
        raise UserError(
            f"{source!r} is no folder; name a folder with weights, a hub repository as owner/name, "
            f"or take a size by name with random weights: {', '.join(NAMED)}"
        )
    return _from_hub(source, head)


def _from_hub(name: str, head: Any) -> Published:
    from huggingface_hub import snapshot_download  # comes with tokenizers

    wanted = ["config.json", MODEL_FILE, "vocab.txt", "tokenizer_config.json"]
    try:
        folder = snapshot_download(name, allow_patterns=wanted)
    except Exception as error:  # the library raises a dozen kinds; all mean that the weights are not here
        raise UserError(
            f"{name} is no folder here and could not be fetched from the hub ({type(error).__name__}); check the name "
            "and the network, or download the repository and name its folder"
        ) from error
    return _from_hugging_face(Path(folder), name, head)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; a truncated or foreign file is a UserError."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}); fetch or write it again") from error


def read_json(path: Path) -> dict:
    """A JSON object from a file; anything else is a UserError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; it has to lie beside the weights") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, needed is a JSON object")
    return value


def expected_shapes(config: BertConfig, head: Any = None) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every tensor of an encoder of these sizes, and of an entry of `heads/` if one is given."""
    wide, inner = config.hidden, config.ffn
    shapes = {
        "embeddings.token": (config.vocabulary, wide),
        "embeddings.position": (config.positions, wide),
        "embeddings.segment": (config.segments, wide),
        **_pair("embeddings.norm", "scale", (wide,), "offset", (wide,)),
    }
    for i in range(config.layers):
        layer = f"layers.{i}"
        shapes |= _pair(f"{layer}.attention.qkv", "kernel", (wide, 3 * wide), "bias", (3 * wide,))
        shapes |= _pair(f"{layer}.attention.out", "kernel", (wide, wide), "bias", (wide,))
        shapes |= _pair(f"{layer}.attention.norm", "scale", (wide,), "offset", (wide,))
        shapes |= _pair(f"{layer}.ffn.in", "kernel", (wide, inner), "bias", (inner,))
        shapes |= _pair(f"{layer}.ffn.out", "kernel", (inner, wide), "bias", (wide,))
        shapes |= _pair(f"{layer}.ffn.norm", "scale", (wide,), "offset", (wide,))
    return shapes | (head.shapes(config) if head else {})


def _pair(stem, first, first_shape, second, second_shape):
    return {f"{stem}.{first}": first_shape, f"{stem}.{second}": second_shape}


def check(tensors: dict[str, np.ndarray], config: BertConfig, source: str, head: Any = None) -> None:
    """Raise a UserError unless `tensors` are exactly those of `config` and of the head, each of its shape.

    The head may be missing, and so may all of it that no pre-training leaves.
    """
    shapes, of_head = expected_shapes(config), head.shapes(config) if head else {}
    own = of_head.keys() & tensors.keys()
    fine_tuned = own - set(head.pretrained) if head else set()
    shapes |= {name: shape for name, shape in of_head.items() if fine_tuned or name in own}
    _refuse_any(shapes.keys() - tensors.keys(), tensors.keys() - shapes.keys(), config, source)
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{source}: {name} has shape {tensors[name].shape}, the configuration needs {shape}; "
                "the configuration file belongs to other weights"
            )


def _refuse_any(missing, unknown, config, source):
    if missing or unknown:
        raise UserError(
            f"{source} does not fit its configuration: {len(missing)} tensors are missing ({_some(missing)}), "
            f"{len(unknown)} are unknown ({_some(unknown)}); check the number of layers ({config.layers})"
        )


def _some(names):
    names = sorted(names)
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "none"


def _from_run(folder: Path, head: Any) -> Published:
    stated = read_json(folder / "config.json")
    known = {field.name for field in fields(BertConfig)}
    model = stated.get("model")
    if not isinstance(model, dict) or set(model) - known:
        raise UserError(f"{folder / 'config.json'} has no key 'model' with the sizes {sorted(known)}")
    config = BertConfig(**model)
    tensors = read_tensors(folder / "best" / MODEL_FILE)
    labels, left_over = stated.get("labels", []), []
    if head is None or (stated.get("task"), labels) != (head.task, list(head.labels)):
        # Another task's head: what it learnt means something else here, but for what pre-training left.
        kept = set(head.pretrained) if head else set()
        left_over = [name for name in tensors if not name.startswith(ENCODER) and name not in kept]
        tensors = {name: array for name, array in tensors.items() if name not in left_over}
    check(tensors, config, str(folder), head)
    return Published(config, tensors, left_over, folder, stated.get("tokenizer", {}), str(folder), labels)


def _from_hugging_face(folder: Path, source: str, head: Any) -> Published:
    stated = read_json(folder / "config.json")
    if stated.get("model_type", "bert") != "bert":
        raise UserError(f"{source} is a {stated['model_type']!r} model; only BERT encoders can be read")
    activation = str(stated.get("hidden_act", "gelu"))
    gelu = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}.get(activation, activation)
    config = _config(stated, source, gelu)
    tensors = read_tensors(folder / MODEL_FILE)
    theirs = published_names.hugging_face(config, set(tensors), head)
    left_over = _left_over(theirs, tensors.keys(), config, source, head)
    named = _rename(theirs, tensors.__getitem__, source, turned={ours for ours in theirs if ours.endswith(".kernel")})
    check(named, config, source, head)
    settings = folder / "tokenizer_config.json"
    tokenizer = _tokenizer(read_json(settings) if settings.is_file() else {})
    return Published(config, named, left_over, folder, tokenizer, source, _labels(stated))


def _from_google(folder: Path, head: Any) -> Published:
    import tensorflow as tf

    stated = read_json(folder / "bert_config.json")
    activation = str(stated.get("hidden_act", "gelu"))
    # google-research/bert means the tanh form by "gelu"; other activations are refused by their own names.
    config = _config(stated, str(folder), "tanh" if activation == "gelu" else activation)
    found = sorted(path.name.removesuffix(".index") for path in folder.glob(CHECKPOINT))
    if len(found) > 1:
        raise UserError(f"{folder} holds {len(found)} checkpoints ({_some(found)}); leave the one to read there")
    source = str(folder / found[0])
    try:
        reader = tf.train.load_checkpoint(source)
        present = set(reader.get_variable_to_shape_map())
        theirs = published_names.google(config, present, head)
        left_over = _left_over(theirs, present, config, source, head)
        named = _rename(theirs, reader.get_tensor, source, turned=published_names.turned_by_google(theirs))
    except (tf.errors.OpError, RuntimeError, ValueError, IndexError) as error:  # IndexError: a truncated data file
        raise UserError(f"{source} cannot be read as a TensorFlow checkpoint ({error}); fetch it again") from error
    check(named, config, source, head)
    # The original files say nothing of case; the published folders' names do.
    name = folder.resolve().name
    cased = "cased" in name and "uncased" not in name
    return Published(config, named, left_over, folder, _tokenizer({"do_lower_case": not cased}), str(folder))


def _config(stated: dict, source: str, gelu: str) -> BertConfig:
    """BertConfig from the keys that both Google and Hugging Face use."""
    try:
        return BertConfig(
            vocabulary=int(stated["vocab_size"]),
            hidden=int(stated["hidden_size"]),
            layers=int(stated["num_hidden_layers"]),
            heads=int(stated["num_attention_heads"]),
            ffn=int(stated["intermediate_size"]),
            positions=int(stated["max_position_embeddings"]),
            segments=int(stated.get("type_vocab_size", 2)),
            gelu=gelu,
            layer_norm_epsilon=float(stated.get("layer_norm_eps", 1e-12)),
            dropout=float(stated.get("hidden_dropout_prob", 0.1)),
            attention_dropout=float(stated.get("attention_probs_dropout_prob", 0.1)),
        )
    except KeyError as error:
        raise UserError(f"the configuration of {source} lacks {error}; it is not that of a BERT encoder") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"the configuration of {source} has a size that is no number ({error})") from error


def _labels(stated: dict) -> list[str]:
    """The classes that a Hugging Face configuration names, in order; none where they are the library's LABEL_0 ..."""
    named = stated.get("id2label")
    if not isinstance(named, dict) or not all(str(place) in named for place in range(len(named))):
        return []
    found = [str(named[str(place)]) for place in range(len(named))]
    return [] if all(re.fullmatch(r"LABEL_\d+", name) for name in found) else found


def _tokenizer(stated: dict) -> dict:
    return {
        "lowercase": bool(stated.get("do_lower_case", True)),
        "strip_accents": stated.get("strip_accents"),
        "chinese": bool(stated.get("tokenize_chinese_chars", True)),
    }


def _left_over(theirs: published_names.Names, present, config: BertConfig, source: str, head: Any) -> list[str]:
    """The source's tensors that are of no use here. UserError when one is missing, or present and not known."""
    wanted = {name for names in theirs.values() for name in names}
    rest = present - wanted
    own = published_names.of_head(head)  # half a head is a mistake, not a left-over
    left_over = {name for name in rest if published_names.LEFT_OVER.search(name) and name not in own}
    _refuse_any(wanted - present, rest - left_over, config, source)
    return sorted(left_over)


def _rename(theirs: published_names.Names, read, source: str, turned: set[str]) -> dict[str, np.ndarray]:
    """Our name -> float32 array.

    read: gives the array of a name of the source; turned: names of ours whose arrays the source keeps transposed.
    """
    named = {}
    for ours, names in theirs.items():
        arrays = [read(name) for name in names]
        for name, array in zip(names, arrays, strict=True):
            if array.dtype.name not in ("float32", "float16", "bfloat16", "float64"):
                raise UserError(f"{source}: {name} is {array.dtype}; needed is floating point, not quantised weights")
            if array.shape != arrays[0].shape:  # one below the other they might still add up to the right size
                raise UserError(
                    f"{source}: {name} has shape {array.shape}, {names[0]} {arrays[0].shape}; they must be equal, "
                    "the file is damaged or not BERT's"
                )
        arrays = [np.asarray(array.T if ours in turned else array, np.float32) for array in arrays]
        named[ours] = np.ascontiguousarray(np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0])
    return named
