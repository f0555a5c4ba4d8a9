"""Published weights into our names: Hugging Face folders, original Google checkpoints, our own run folders.

Our names (all float32; kernels are [inputs, outputs]):

    embeddings.token [V, H]   embeddings.position [positions, H]   embeddings.segment [2, H]   embeddings.norm.{scale,offset} [H]
    layers.i.attention.qkv.{kernel [H, 3H], bias [3H]}     query, key and value side by side
    layers.i.attention.out.{kernel [H, H], bias [H]}       layers.i.attention.norm.{scale,offset} [H]
    layers.i.ffn.in.{kernel [H, I], bias [I]}              layers.i.ffn.out.{kernel [I, H], bias [H]}   layers.i.ffn.norm.*
    span.{kernel [H, 2], bias [2]}                         the head, present in a fine-tuned model

Every tensor of a source is used exactly once, listed as left over (pooler, language-model heads), or named in an error.
Nothing is unpickled: safetensors and TensorFlow's checkpoint reader only.
"""

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from configs.errors import UserError
from model.config import NAMED, BertConfig

LEFT_OVER = re.compile(r"^(bert\.|bert/)?(pooler|cls|embeddings\.position_ids)|^cls|^classifier|^dropout|^lm_predictions")
MODEL_FILE = "model.safetensors"


@dataclass
class Published:
    """Weights read from somewhere: sizes, tensors under our names, and what else a run needs to know of them."""

    config: BertConfig
    tensors: dict[str, np.ndarray]  # our name -> float32
    left_over: list[str]  # the source's names of tensors that this project has no use for
    folder: Path  # holds vocab.txt
    tokenizer: dict  # {lowercase, strip_accents, chinese} as the source states it
    source: str


def load(source: str) -> Published:
    """Read weights from a folder, or from the hub if `source` is no folder but looks like a repository's name.

    Raises: UserError when nothing is there, a tensor is missing, unknown or has a shape the sizes do not allow.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if (folder / "best" / MODEL_FILE).is_file():
            return _from_run(folder)
        if (folder / "bert_config.json").is_file() and list(folder.glob("*.ckpt.index")):
            return _from_google(folder)
        if (folder / "config.json").is_file() and (folder / MODEL_FILE).is_file():
            return _from_hugging_face(folder, str(folder))
        raise UserError(
            f"{folder} holds no weights that can be read; needed is config.json with {MODEL_FILE} (Hugging Face), "
            f"bert_config.json with bert_model.ckpt.* (Google), or a run folder with best/{MODEL_FILE}"
        )
    if source in NAMED or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        raise UserError(
            f"no folder {source!r}; name a folder with weights, a hub repository as owner/name, "
            f"or take a size by name with random weights: {', '.join(NAMED)}"
        )
    return _from_hub(source)


def _from_hub(name: str) -> Published:
    from huggingface_hub import snapshot_download  # comes with tokenizers

    try:
        folder = snapshot_download(name, allow_patterns=["config.json", MODEL_FILE, "vocab.txt", "tokenizer_config.json"])
    except Exception as error:  # the library raises a dozen kinds; all mean that the weights are not here
        raise UserError(
            f"{name} could not be fetched from the hub ({type(error).__name__}); check the name and the network, "
            "or download the repository and name its folder"
        ) from error
    return _from_hugging_face(Path(folder), name)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file; a truncated or foreign file is a UserError."""
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
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


def expected_shapes(config: BertConfig, head: bool = False) -> dict[str, tuple[int, ...]]:
    """Our name -> shape of every tensor that an encoder of these sizes has, with the span head if asked for."""
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
    if head:
        shapes |= _pair("span", "kernel", (wide, 2), "bias", (2,))
    return shapes


def _pair(stem, first, first_shape, second, second_shape):
    return {f"{stem}.{first}": first_shape, f"{stem}.{second}": second_shape}


def check(tensors: dict[str, np.ndarray], config: BertConfig, source: str) -> None:
    """Raise a UserError unless `tensors` are exactly those of `config` (head optional), each of its shape."""
    shapes = expected_shapes(config, head="span.kernel" in tensors or "span.bias" in tensors)
    missing = sorted(shapes.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - shapes.keys())
    if missing or unknown:
        raise UserError(
            f"{source} does not fit its configuration: {len(missing)} tensors are missing ({_some(missing)}), "
            f"{len(unknown)} are unknown ({_some(unknown)}); check the number of layers ({config.layers})"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise UserError(
                f"{source}: {name} has shape {tensors[name].shape}, the configuration needs {shape}; "
                "the configuration file belongs to other weights"
            )


def _some(names):
    return ", ".join(names[:4]) + (" ..." if len(names) > 4 else "") if names else "none"


def _from_run(folder: Path) -> Published:
    stated = read_json(folder / "config.json")
    known = {field.name for field in fields(BertConfig)}
    model = stated.get("model")
    if not isinstance(model, dict) or set(model) - known:
        raise UserError(f"{folder / 'config.json'} has no key 'model' with the sizes {sorted(known)}")
    config = BertConfig(**model)
    tensors = read_tensors(folder / "best" / MODEL_FILE)
    check(tensors, config, str(folder))
    return Published(config, tensors, [], folder, stated.get("tokenizer", {}), str(folder))


def _from_hugging_face(folder: Path, source: str) -> Published:
    stated = read_json(folder / "config.json")
    if stated.get("model_type", "bert") != "bert":
        raise UserError(f"{source} is a {stated['model_type']!r} model; only BERT encoders can be read")
    activation = stated.get("hidden_act", "gelu")
    gelu = {"gelu": "erf", "gelu_new": "tanh", "gelu_pytorch_tanh": "tanh"}.get(activation, activation)
    config = _config(stated, source, gelu)
    named, left_over = _rename(read_tensors(folder / MODEL_FILE), _HUGGING_FACE, config, transpose=True)
    check(named, config, source)
    settings = folder / "tokenizer_config.json"
    return Published(config, named, left_over, folder, _tokenizer(read_json(settings) if settings.is_file() else {}), source)


def _from_google(folder: Path) -> Published:
    import tensorflow as tf

    stated = read_json(folder / "bert_config.json")
    config = _config(stated, str(folder), "tanh")  # google-research/bert means the tanh form by "gelu"
    prefix = str(next(folder.glob("*.ckpt.index")))[: -len(".index")]
    try:
        reader = tf.train.load_checkpoint(prefix)
        shapes = reader.get_variable_to_shape_map()
        # Optimizer slots of a checkpoint saved while training: no weights, and twice their size.
        wanted = [name for name in shapes if not re.search(r"adam_[mv]$|^global_step$", name)]
        source = {name: reader.get_tensor(name) for name in wanted}
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise UserError(f"{prefix} cannot be read as a TensorFlow checkpoint ({error}); fetch it again") from error
    named, left_over = _rename(source, _GOOGLE, config, transpose=False)
    check(named, config, str(folder))
    # The original files say nothing of case; the published folders' names do.
    cased = "uncased" not in folder.name and ("cased" in folder.name or "multi_cased" in folder.name)
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


def _tokenizer(stated: dict) -> dict:
    return {
        "lowercase": bool(stated.get("do_lower_case", True)),
        "strip_accents": stated.get("strip_accents"),
        "chinese": bool(stated.get("tokenize_chinese_chars", True)),
    }


# Our stem -> the source's stem of (kernel, bias) or (scale, offset), inside one layer and outside.
_LAYER_STEMS = {
    "attention.out": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "ffn.in": "intermediate.dense",
    "ffn.out": "output.dense",
    "ffn.norm": "output.LayerNorm",
}


def _layer_map(layer: int, stem: str, kernel: str, scale: tuple[str, str]) -> dict[str, str | list[str]]:
    theirs = {}
    for ours, name in _LAYER_STEMS.items():
        parts = scale if ours.endswith("norm") else (kernel, "bias")
        for part, theirs_part in zip(("scale", "offset") if ours.endswith("norm") else ("kernel", "bias"), parts):
            theirs[f"layers.{layer}.{ours}.{part}"] = f"{stem}.{name}.{theirs_part}"
    for part, theirs_part in (("kernel", kernel), ("bias", "bias")):
        three = [f"{stem}.attention.self.{name}.{theirs_part}" for name in ("query", "key", "value")]
        theirs[f"layers.{layer}.attention.qkv.{part}"] = three
    return theirs


def _HUGGING_FACE(config: BertConfig, present: set[str]) -> dict:
    prefix = "bert." if any(name.startswith("bert.") for name in present) else ""
    old = any(name.endswith("LayerNorm.gamma") for name in present)  # checkpoints converted before 2019
    scale = ("gamma", "beta") if old else ("weight", "bias")
    theirs = _embedding_map(f"{prefix}embeddings.", ".weight", scale)
    for i in range(config.layers):
        theirs |= _layer_map(i, f"{prefix}encoder.layer.{i}", "weight", scale)
    if "qa_outputs.weight" in present:
        theirs |= {"span.kernel": "qa_outputs.weight", "span.bias": "qa_outputs.bias"}
    return theirs


def _GOOGLE(config: BertConfig, present: set[str]) -> dict:
    theirs = _embedding_map("bert.embeddings.", "", ("gamma", "beta"))
    for i in range(config.layers):
        theirs |= _layer_map(i, f"bert.encoder.layer_{i}", "kernel", ("gamma", "beta"))
    theirs = {ours: [n.replace(".", "/") for n in t] if isinstance(t, list) else t.replace(".", "/") for ours, t in theirs.items()}
    if "cls/squad/output_weights" in present:  # a fine-tuned run_squad checkpoint
        theirs |= {"span.kernel": "cls/squad/output_weights", "span.bias": "cls/squad/output_bias"}
    return theirs


def _embedding_map(stem, suffix, scale):
    return {
        "embeddings.token": f"{stem}word_embeddings{suffix}",
        "embeddings.position": f"{stem}position_embeddings{suffix}",
        "embeddings.segment": f"{stem}token_type_embeddings{suffix}",
        "embeddings.norm.scale": f"{stem}LayerNorm.{scale[0]}",
        "embeddings.norm.offset": f"{stem}LayerNorm.{scale[1]}",
    }


def _rename(source: dict, names, config: BertConfig, transpose: bool) -> tuple[dict[str, np.ndarray], list[str]]:
    """The source's tensors under our names, and the source's names that were left over.

    transpose: the source keeps dense kernels as [outputs, inputs] (Hugging Face). The span head is so in both.
    """
    wanted = names(config, set(source))
    used, named = set(), {}
    for ours, theirs in wanted.items():
        parts = theirs if isinstance(theirs, list) else [theirs]
        if any(part not in source for part in parts):
            continue  # `check` names it
        used.update(parts)
        turn = ours.endswith(".kernel") and (transpose or ours == "span.kernel")
        arrays = [np.asarray(source[part], np.float32) for part in parts]
        arrays = [array.T if turn else array for array in arrays]
        named[ours] = np.ascontiguousarray(np.concatenate(arrays, axis=-1) if len(arrays) > 1 else arrays[0])
    rest = sorted(source.keys() - used)
    for name in rest:
        if not LEFT_OVER.search(name):
            named[name] = np.asarray(source[name])  # unknown: `check` names it in its error
    return named, [name for name in rest if LEFT_OVER.search(name)]
