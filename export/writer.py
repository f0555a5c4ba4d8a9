"""Nodes and weights of a network while `graph.py` writes it: names, dtypes, functions, and where 8 bits are read."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import plugins
from configs import __version__
from configs.errors import UserError
from export.quantisation import Quantisation

DTYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
OPSET, IR = 20, 10  # what ONNX Runtime 1.18 and TensorRT's parser of today both read
# Their second output, `NODE/8`, is for the product, the first for all.
TWO_OUTPUTS = ("embed_layer_norm8", "skip_layer_norm8", "linear_skip_layer_norm8", "linear8_skip_layer_norm8")


@dataclass
class Writer:
    """Collects nodes and weights. A node's first output has the node's name unless another is given."""

    precision: str
    quantisation: Quantisation | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)

    @property
    def dtype(self) -> int:
        return DTYPES[self.precision]

    def op(self, name: str, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """A standard ONNX node; returns its output's name."""
        outputs = [output or name, f"{name}/8"] if op in TWO_OUTPUTS else [output or name]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=name, **attributes))
        return output or name

    def retort(self, name: str, op: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        """A node of ours, with the function that says what it means. Every node of an op shares that function."""
        if op not in self.functions:
            self.functions[op] = plugins.function(op, self.dtype, **attributes)
        # With a body present TensorRT takes the plugin only if the node names its namespace and version.
        attributes |= {"plugin_namespace": plugins.DOMAIN, "plugin_version": str(plugins.VERSION)}
        return self.op(name, op, inputs, output, domain=plugins.DOMAIN, **attributes)

    def producer(self, name: str, op: str, inputs: list[str], product: str, output: str = "", **attributes: Any) -> str:
        """A node whose result the named product multiplies: op, or `op`8 where that product is 8 bits wide."""
        if self.quantisation is None or product not in self.quantisation:
            return self.retort(name, op, inputs, output, **attributes)
        attributes |= {"inverse_scale": self.quantisation.inverse(product), "format": self.quantisation.format}
        return self.retort(name, f"{op}8", inputs, output, **attributes)

    def eight(self, x: str) -> str:
        """The 8-bit output of the node that wrote x: the last one, x itself or what stands beside it."""
        return next(node for node in reversed(self.nodes) if x in node.output).output[-1]

    def weight(self, name: str, array: np.ndarray, dtype: int | None = None) -> str:
        """An initializer, cast once from float32; `dtype` None is the precision's. Returns its name."""
        if name not in self.weights:
            numpy_dtype = helper.tensor_dtype_to_np_dtype(self.dtype if dtype is None else dtype)
            if numpy_dtype == np.float16:
                _refuse_overflow(name, array)
            self.weights[name] = numpy_helper.from_array(array.astype(numpy_dtype), name)
        return name

    def model(self, title: str, inputs, outputs, functions) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, "bert", inputs, outputs, list(self.weights.values()), doc_string=title)
        domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(plugins.DOMAIN, plugins.VERSION)]
        return helper.make_model(
            graph, functions=functions, opset_imports=domains, ir_version=IR,
            producer_name="retort", producer_version=__version__,
        )  # fmt: skip


def _refuse_overflow(name: str, array: np.ndarray) -> None:
    largest, most = float(np.abs(array).max(initial=0)), float(np.finfo(np.float16).max)
    if largest > most:
        raise UserError(
            f"{name} reaches {largest:.3g}, float16 ends at {most:,.0f}; export with --precision bfloat16 or float32"
        )
