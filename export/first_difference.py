"""Where do two runs of a network part ways? Marks intermediate tensors as outputs and names the first that differs.

Two passes: over the ends of all layers, then over every node of the first layer that differs. Marking a tensor keeps
TensorRT from fusing across it, so few are marked at a time.
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from plugins import DOMAIN

# Largest relative difference (Frobenius norms) of a layer's output that is put down to rounding.
ROUNDING = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1, "float8": 3e-1, "int8": 3e-1}
EIGHT_BITS = ("attention8", "gelu8", "linear8_gelu8")  # ops whose first output is stored, not what it stands for
HEAD = "head/"  # how the names of a head's nodes begin; the last one of each output is called "head/OUTPUT"
Values = dict[str, np.ndarray]
Runner = Callable[[list[str]], Values]  # names of nodes -> their outputs, float32 [T, ...] of real tokens, or [B, ...]


def find(model: Path, ours: Runner, reference: Runner, rounding: float, *, inside: bool = True) -> str:
    """A sentence that names the first layer of `model` (an ONNX file) whose output differs by more than `rounding`.

    inside: False where the reference knows the ends of layers alone.
    """
    names = node_names(onnx.load(str(model), load_external_data=False))
    ends = [name for name in names if is_end(name)]
    differences = relative(ours(ends), reference(ends), ends)
    first = next((name for name in ends if not differences[name] <= rounding), None)
    if first is None:
        last = ends[-1]
        return f"no layer differs by more than {_percent(rounding)}; the last, {last}, by {_percent(differences[last])}"
    block = layer_of(first)
    before = ends[ends.index(first) - 1] if first != ends[0] else None
    if inside and (within := [name for name in names if layer_of(name) == block]):
        differences |= relative(ours(within), reference(within), within)
        # Nothing inside may stand out alone: then it is the layer as a whole.
        first = next((name for name in within if not differences[name] <= rounding), first)
    told = f"the first layer that differs is {block}: {first} by {_percent(differences[first])}"
    return f"{told} ({before} before it by {_percent(differences[before])})" if before else told


def relative(ours: Values, reference: Values, names: list[str]) -> dict[str, float]:
    """Name -> |ours - reference| / |reference|; infinite where ours is not finite."""
    found = {}
    for name in names:
        a, b = ours[name].astype(np.float64), reference[name].astype(np.float64)
        difference = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))
        found[name] = difference if np.isfinite(difference) else float("inf")
    return found


def node_names(model: onnx.ModelProto) -> list[str]:
    """The nodes of ours in a model and the head's last ones, in the order of computing."""
    return [node.name for node in model.graph.node if node.domain == DOMAIN or node.name == f"{HEAD}{node.output[0]}"]


def counts(path: Path) -> dict[str, int]:
    """Op -> how many nodes of it an ONNX file has, of our ops: what a plan of it is to be compared with."""
    model = onnx.load(str(path), load_external_data=False)
    return dict(Counter(node.op_type for node in model.graph.node if node.domain == DOMAIN))


def layer_of(name: str) -> str:
    """`layer_3/attention/qkv` -> `layer_3`."""
    return name.split("/")[0]


def is_end(name: str) -> bool:
    """Whether a node is the last of the embeddings, of a layer or of the head."""
    return name == "embeddings" or name.startswith(HEAD) or name.endswith("/ffn/norm")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"


def mark(path: Path, names: list[str]) -> Path:
    """A copy of an ONNX file, beside it, whose outputs are those nodes in float32, `marked.NAME`, instead of its own.

    Nodes that none of them needs are left out: plugins whose output nobody reads have crashed TensorRT-RTX's builder.
    Weights in a file beside it are shared. The caller removes the copy.
    """
    model = onnx.load(str(path), load_external_data=False)
    node_of = {node.name: node for node in model.graph.node}
    del model.graph.output[:]
    for name in names:
        out, node = f"marked.{name}", node_of[name]
        if node.op_type in EIGHT_BITS:
            scale = numpy_helper.from_array(np.array(1 / _inverse_scale(model, node), np.float32), f"{out}.scale")
            model.graph.initializer.append(scale)
            inputs = [node.output[0], scale.name]
            model.graph.node.append(helper.make_node("DequantizeLinear", inputs, [out], name=out))
        else:
            model.graph.node.append(helper.make_node("Cast", [node.output[0]], [out], name=out, to=TensorProto.FLOAT))
        # The shape is left open: rows follow the layout, the width is the node's.
        model.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, None))
    wanted, kept = {value.name for value in model.graph.output}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    kept.reverse()
    weights = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    del model.graph.initializer[:]
    model.graph.initializer.extend(weights)
    copy = path.with_name(f"marked.{os.getpid()}.{path.name}")
    onnx.save_model(model, str(copy))
    return copy


def _inverse_scale(model: onnx.ModelProto, node: onnx.NodeProto) -> float:
    """What the node multiplies its result with before it is rounded to 8 bits."""
    for attribute in node.attribute:
        if attribute.name == "inverse_scale":
            return attribute.f
    (found,) = (tensor for tensor in model.graph.initializer if tensor.name == node.input[-1])
    return float(numpy_helper.to_array(found)[0])
