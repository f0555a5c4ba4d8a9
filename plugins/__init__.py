"""Our own GPU operators: one folder each, which answers every question about its operator. Start with README.md.

In the graph an operator is a node of domain `retort` and an ONNX function of the same name: ONNX Runtime runs the
function's body, TensorRT takes the plugin where one is registered and the body where none is.
"""

import importlib
import inspect
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

    from plugins.registration import Plugin

DOMAIN = "retort"
VERSION = 1
# The GPUs that kernels can be built for, as compute capability x 10: T4, A100, A10, L4, H100, B200, RTX 50.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120, 121)
# What `--plugins` chooses from, in the order in which a token meets them.
PLUGINS = {
    "embed_layer_norm": "three embeddings, added and normalised",
    "attention": "softmax(q k^T) v for sequences of any length, no score matrix in memory",
    "skip_layer_norm": "bias, residual and layer norm in one pass",
    "gelu": "GELU, by erf or tanh",
    "linear": "matrix product with bias, and GELU where asked for; by cuBLASLt, for few tokens by a kernel of ours",
    "linear_skip_layer_norm": "matrix product, bias, residual and layer norm: in place of two of the others",
    "linear8": "products of float8 (cuBLASLt, some ours) and int8 (ours), for --precision float8 and int8",
}
# The operators and their folders. Several share one: a function has one body per name in TensorRT's ONNX parser.
OPS = {
    "embed_layer_norm": "embed_layer_norm",
    "embed_layer_norm8": "embed_layer_norm",
    "attention": "attention",
    "attention8": "attention",
    "skip_layer_norm": "skip_layer_norm",
    "skip_layer_norm8": "skip_layer_norm",
    "gelu": "gelu",
    "gelu8": "gelu",
    "linear": "linear",
    "linear_gelu": "linear",
    "linear_skip_layer_norm": "linear_skip_layer_norm",
    "linear_skip_layer_norm8": "linear_skip_layer_norm",
    "linear8_skip_layer_norm": "linear_skip_layer_norm",
    "linear8_skip_layer_norm8": "linear_skip_layer_norm",
    "linear8": "linear8",
    "linear8_gelu": "linear8",
    "linear8_gelu8": "linear8",
}


def function(op: str, dtype: int, **attributes: Any) -> "onnx.FunctionProto":
    """The ONNX function of an operator for activations of an `onnx.TensorProto` dtype (`build` in its function.py).

    An operator that is not its folder's namesake is built by `build_<op>` there. `build` takes those of the node's
    attributes that choose a body.
    """
    module = importlib.import_module(f"plugins.{OPS[op]}.function")
    build = getattr(module, "build" if op == OPS[op] else f"build_{op}")
    taken = set(inspect.signature(build).parameters)
    return build(dtype, **{key: value for key, value in attributes.items() if key in taken})


def plugin(op: str) -> "type[Plugin]":
    """The class in an operator's plugin.py that says to TensorRT what the operator is and launches."""
    module = importlib.import_module(f"plugins.{OPS[op]}.plugin")
    return next(item for item in vars(module).values() if getattr(item, "op", None) == op)


def ops_of(names: "list[str] | tuple[str, ...] | frozenset[str] | set[str]") -> list[str]:
    """The operators that the named plugins (folders) bring: ["linear"] -> ["linear", "linear_gelu"]."""
    return [op for op, folder in OPS.items() if folder in names]


def cache_folder(name: str) -> Path:
    """~/.cache/retort/<name>, or $RETORT_CACHE/<name>: for what can be made again."""
    return Path(os.environ.get("RETORT_CACHE") or Path.home() / ".cache" / "retort") / name
