"""The encoder and its head as ONNX, written straight from a checkpoint's float32 weights.

One text for every runtime: each op of ours stands there as a node of the domain `retort` whose function carries a body
in standard ONNX. ONNX Runtime inlines the bodies; TensorRT takes a plugin of the op's name where one is registered and
inlines the body where none is.

Two layouts (letters as in `model/bert.py`; T is the number of tokens of all sequences together):

    packed   token_ids, segment_ids, position_ids int32 [T], cu_seqlens int32 [B+1]  ->  outputs [T, ...], [B, ...]
    padded   token_ids, segment_ids, padding_mask int32 [B, S]                       ->  [B, S, ...], [B, ...]

What the outputs are, and what is written for them, the head says (`heads/`).

`cu_seqlens` counts tokens: sequence b is tokens cu_seqlens[b] to cu_seqlens[b+1]; positions restart at each.
Activations have the precision's dtype; layer-norm parameters, the head and the logits are float32 whatever it is. With
a `Quantisation` some products multiply float8 or int8, which the nodes before them write beside or in place of theirs.
Nodes are named by where they are, `layer_3/attention/qkv`, and weights have the checkpoint's names (`model/weights`).
"""

from collections import Counter
from collections.abc import Collection

import numpy as np
import onnx
from onnx import TensorProto, helper

import heads
import plugins
from export.quantisation import Quantisation
from export.writer import DTYPES as DTYPES
from export.writer import Writer
from heads import Head
from model.config import BertConfig
from plugins import formats

LAYOUTS = ("packed", "padded")
DEFAULT_HEAD = heads.default()
WHOLE = "outputs_per_sequence"  # metadata of a model: outputs with a row a sequence, by name, apart by commas
HEAD_MULTIPLE = 8  # kernels load 16 bytes at once: 8 values of two bytes
Tensors = dict[str, np.ndarray]


def build(
    tensors: Tensors,
    config: BertConfig,
    *,
    precision: str,
    layout: str,
    head: Head | None = DEFAULT_HEAD,
    gelu: str | None = None,
    fused: bool = False,
    quantisation: Quantisation | None = None,
    bare: frozenset[str] = frozenset(),
) -> onnx.ModelProto:
    """Write the network.

    Args:
        tensors: float32 weights under our names; the head's are needed, too.
        config: sizes.
        precision: "float32", "float16" or "bfloat16": dtype A of activations, tables and kernels.
        layout: "packed" or "padded".
        head: an entry of `heads/`; None for the encoder alone, whose one output is `encoded` A [T, H] or [B, S, H].
        gelu: "tanh" or "erf" instead of the checkpoint's own form.
        fused: write a product and the layer norm after it as one node, `linear_skip_layer_norm` or one of its kin (see
            `fuses`), but for int8 products, which have no such node; and one of 16 bits and the erf form of GELU after
            it, which the tanh form is in any case.
        quantisation: which products are 8 bits wide; all else is in `precision`.
        bare: ops whose function body is left out, so that only a runtime with a plugin of that name can read them.

    Returns: a model that holds its weights.
    Raises: UserError where a weight is too large for float16.
    """
    writer = Writer(precision, quantisation)
    inputs = {"token_ids": ["T"], "segment_ids": ["T"], "position_ids": ["T"], "cu_seqlens": ["B+1"]}
    rows, sequences = ["T"], "cu_seqlens"
    if layout == "padded":
        rows, sequences = ["B", "S"], "padding_mask"
        inputs = {name: rows for name in ("token_ids", "segment_ids", sequences)}
        _positions(writer)
    x = _embeddings(writer, tensors, config)
    for index in range(config.layers):
        output = "encoded" if head is None and index == config.layers - 1 else ""
        x = _layer(writer, tensors, config, index, x, sequences, layout, gelu or config.gelu, fused, output)
    if head is not None:
        head.tail(writer, tensors, x, layout)
        outputs = {
            output.name: (
                TensorProto.FLOAT,
                [*(rows if output.per == "token" else ["B"]), *([] if output.width is None else [output.width])],
            )
            for output in head.outputs(config.hidden)
        }
    else:
        outputs = {"encoded": (writer.dtype, [*rows, config.hidden])}
    whole = [output.name for output in head.outputs(config.hidden) if output.per == "sequence"] if head else []
    model = writer.model(
        f"{quantisation.format if quantisation else precision}, {layout}",
        [helper.make_tensor_value_info(name, TensorProto.INT32, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, (dtype, shape) in outputs.items()],
        [writer.functions[op] for op in writer.functions if op not in bare],
    )
    if whole:
        helper.set_model_props(model, {WHOLE: ",".join(whole)})
    return model


def fuses(names: Collection[str]) -> bool:
    """Whether the graph for a plan with the named plugins is written `fused`.

    TensorRT takes no plugin inside a body. So where this one is not to be had, the graph has its two parts instead.
    """
    return "linear_skip_layer_norm" in names


def expected_nodes(config: BertConfig, gelu: str | None = None, *, fused: bool = False) -> dict[str, int]:
    """Op -> how many nodes of it the network of these sizes has, in the order of `plugins.OPS`."""
    joined = fused or (gelu or config.gelu) == "tanh"  # GELU and the product before it
    norms = 2 * config.layers
    products = (3 if joined else 4) * config.layers
    counts = {
        "embed_layer_norm": 1,
        "attention": config.layers,
        "skip_layer_norm": 0 if fused else norms,
        "gelu": 0 if joined else config.layers,
        "linear": products - norms if fused else products,
        "linear_gelu": config.layers if joined else 0,
        "linear_skip_layer_norm": norms if fused else 0,
    }
    return {op: counts[op] for op in plugins.OPS if counts.get(op)}


def count_nodes(model: onnx.ModelProto) -> dict[str, int]:
    """Op -> how many nodes of it a written network has, in the order of `plugins.OPS`."""
    found = Counter(node.op_type for node in model.graph.node if node.domain == plugins.DOMAIN)
    return {op: found[op] for op in plugins.OPS if found[op]}


def padded_head_size(config: BertConfig) -> int:
    """Values a head has in the graph: D, with zeros up to the next multiple that kernels can load at once."""
    return -(-config.head_size // HEAD_MULTIPLE) * HEAD_MULTIPLE


def _positions(writer: Writer) -> None:
    """`position_ids` int32 [B, S]: every row is 0 to S - 1."""
    shape = writer.op("position_ids/shape", "Shape", ["token_ids"])  # int64 [2]: B, S
    axis = writer.weight("position_ids/axis", np.array(1), TensorProto.INT64)
    zero, one = (
        writer.weight(f"position_ids/{word}", np.array(value), TensorProto.INT64)
        for word, value in (("from", 0), ("step", 1))
    )
    length = writer.op("position_ids/length", "Gather", [shape, axis], axis=0)  # int64, no axes: S
    row = writer.op("position_ids/row", "Range", [zero, length, one])  # int64 [S]
    row = writer.op("position_ids/cast", "Cast", [row], to=TensorProto.INT32)
    writer.op("position_ids", "Expand", [row, shape])


def _embeddings(writer: Writer, tensors: Tensors, config: BertConfig) -> str:
    tables = [writer.weight(name, tensors[name]) for name in _names("embeddings", "token", "position", "segment")]
    norm = _norm_weights(writer, tensors, "embeddings.norm")
    inputs = ["token_ids", "segment_ids", "position_ids", *tables, *norm]
    first, epsilon = "layers.0.attention.qkv", config.layer_norm_epsilon
    return writer.producer("embeddings", "embed_layer_norm", inputs, first, epsilon=epsilon)


def _layer(
    writer: Writer, tensors: Tensors, config: BertConfig, index: int, x: str, sequences: str,
    layout: str, gelu: str, fused: bool, output: str,
) -> str:  # fmt: skip
    """One transformer layer on x A rows+[H]; `sequences` is the input that tells sequences apart."""
    here, there = f"layer_{index}", f"layers.{index}"
    size, padded = config.head_size, padded_head_size(config)
    pad = padded - size
    kernel, bias = tensors[f"{there}.attention.qkv.kernel"], tensors[f"{there}.attention.qkv.bias"]
    out = tensors[f"{there}.attention.out.kernel"]
    if pad:  # zeros in a head's query and key add nothing to its scores; those in its value meet zero rows of `out`
        kernel, bias = _pad_heads(kernel, size, pad, axis=-1), _pad_heads(bias, size, pad, axis=-1)
        out = _pad_heads(out, size, pad, axis=0)

    qkv = _linear(writer, f"{here}/attention/qkv", f"{there}.attention.qkv", x, kernel, bias)  # rows+[3 N D]
    context = writer.producer(
        f"{here}/attention/context", "attention", [qkv, sequences], f"{there}.attention.out",
        num_heads=config.heads, scale=size**-0.5, layout=layout,
    )  # fmt: skip
    x = _linear_skip_norm(
        writer, tensors, f"{here}/attention", f"{there}.attention", context, out, x, config, fused, f"{there}.ffn.in"
    )  # fmt: skip

    inner = _ffn_in(writer, tensors, here, there, x, gelu, fused)  # rows+[I]
    out, after = tensors[f"{there}.ffn.out.kernel"], f"layers.{index + 1}.attention.qkv"
    return _linear_skip_norm(
        writer, tensors, f"{here}/ffn", f"{there}.ffn", inner, out, x, config, fused, after, output
    )  # fmt: skip


def _ffn_in(writer: Writer, tensors: Tensors, here: str, there: str, x: str, gelu: str, fused: bool) -> str:
    """GELU(x W + b). The tanh form joins the product before it, unless that writes 16 bits and 8 are to come out; the
    erf form does between two products of 8 bits, and in a `fused` graph between two of 16."""
    kernel, bias = tensors[f"{there}.ffn.in.kernel"], tensors[f"{there}.ffn.in.bias"]
    eight = writer.quantisation or ()
    before, after = (f"{there}.ffn.{side}" in eight for side in ("in", "out"))
    approximate = "tanh" if gelu == "tanh" else "none"
    if (before and after) or (not after and (gelu == "tanh" or (fused and not before))):
        out = f"{there}.ffn.out" if after else ""
        name = f"{here}/ffn/{'in' if gelu == 'tanh' else 'gelu'}"  # as the node in float32 that gives the same
        return _linear(writer, name, f"{there}.ffn.in", x, kernel, bias, "linear_gelu", out, approximate)
    inner = _linear(writer, f"{here}/ffn/in", f"{there}.ffn.in", x, kernel, bias)
    return writer.producer(f"{here}/ffn/gelu", "gelu", [inner], f"{there}.ffn.out", approximate=approximate)


def _linear(writer: Writer, name, source, x, kernel, bias, op="linear", out="", approximate="") -> str:
    """x W + b. Where the layer norm that follows adds the bias, in float32, b is one vector of zeros for all.

    Of an 8-bit product x is the 8-bit output of the node that wrote it; out: the 8-bit product that multiplies the
    result, if it is written in 8 bits.
    """
    zeros = f"zeros.{kernel.shape[1]}"
    plus = writer.weight(zeros, np.zeros(kernel.shape[1])) if bias is None else writer.weight(f"{source}.bias", bias)
    eight = writer.quantisation
    if eight is None or source not in eight:
        more = {"approximate": approximate} if op == "linear_gelu" else {}
        return writer.retort(name, op, [x, writer.weight(f"{source}.kernel", kernel), plus], **more)
    # cuBLASLt writes no float8 where a weight has many scales; of the erf form it writes none at all.
    channels = eight.channels and not (out and eight.format == "float8" and approximate == "tanh")
    weight, scale = _stored(writer, source, kernel, channels)
    inputs = [writer.eight(x), weight, plus, scale]
    if out:
        inputs.append(writer.weight(f"{out}.inverse_scale", np.array([eight.inverse(out)]), TensorProto.FLOAT))
        return writer.retort(name, "linear8_gelu8", inputs, format=eight.format, approximate=approximate)
    return writer.retort(name, {"linear": "linear8", "linear_gelu": "linear8_gelu"}[op], inputs, format=eight.format)


def _stored(writer: Writer, source: str, kernel: np.ndarray, channels: bool) -> tuple[str, str]:
    """(weight, scale) of an 8-bit product."""
    eight = writer.quantisation
    assert eight
    stored, scale = eight.stored(source, kernel, channels)
    weight = writer.weight(f"{source}.kernel.{eight.format}", stored, formats.ONNX[eight.format])
    return weight, writer.weight(f"{source}.scale", scale, TensorProto.FLOAT)


def _linear_skip_norm(
    writer: Writer, tensors, here, source, inner, kernel, x, config, fused, product, output=""
) -> str:
    """The layer norm of inner W + b + x, as one node or as two. product: the one that multiplies the result."""
    bias = writer.weight(f"{source}.out.bias", tensors[f"{source}.out.bias"])
    norm = _norm_weights(writer, tensors, f"{source}.norm")
    epsilon: dict = {"epsilon": config.layer_norm_epsilon}
    eight = writer.quantisation if writer.quantisation and f"{source}.out" in writer.quantisation else None
    if not fused or (eight and eight.format == "int8"):
        update = _linear(writer, f"{here}/out", f"{source}.out", inner, kernel, None)
        return writer.producer(f"{here}/norm", "skip_layer_norm", [update, x, bias, *norm], product, output, **epsilon)
    if eight:
        weight, scale = _stored(writer, f"{source}.out", kernel, eight.channels)
        inputs, more = [writer.eight(inner), weight, bias, scale, x, *norm], {"format": eight.format}
        op = "linear8_skip_layer_norm"
    else:
        inputs, more = [inner, writer.weight(f"{source}.out.kernel", kernel), bias, x, *norm], {}
        op = "linear_skip_layer_norm"
    return writer.producer(f"{here}/norm", op, inputs, product, output, **epsilon, **more)


def _norm_weights(writer: Writer, tensors: Tensors, source: str) -> list[str]:
    return [writer.weight(name, tensors[name], TensorProto.FLOAT) for name in _names(source, "scale", "offset")]


def _names(stem: str, *words: str) -> list[str]:
    return [f"{stem}.{word}" for word in words]


def _pad_heads(array: np.ndarray, size: int, pad: int, axis: int) -> np.ndarray:
    """Zeros behind every `size` entries of an axis: [..., heads * size] -> [..., heads * (size + pad)]."""
    axis %= array.ndim
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    split = array.reshape(*before, -1, size, *after)
    widths = [(0, pad) if place == axis + 1 else (0, 0) for place in range(split.ndim)]
    return np.pad(split, widths).reshape(*before, -1, *after)
