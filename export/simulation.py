"""8-bit products on a CPU: model.onnx (float32) in which every product can be told to round its factors, and how.

One session serves every choice of products and scales, because both are inputs of the network. What it computes is what
the 8-bit graph computes, up to float32's rounding and the 16 bits of all else: on 8-bit formats that does not show.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from data.batches import Windows
from export.comparison import Logits
from export.quantisation import quantise_weight
from export.ranges import batches, product_of, session
from export.runners import inputs_of, per_sequence, real
from plugins import formats


class Simulation:
    """A session; `logits(...)` with products -> scales, those that are not there stay as they are.

    model: path of model.onnx. channels: a scale for each output of a weight; but for those of `single`.
    """

    def __init__(
        self, path: Path, layout: str, format: str, channels: bool, single: frozenset[str] = frozenset()
    ) -> None:
        self._layout = layout
        model = onnx.load(str(path))
        self.outputs, self._whole = [item.name for item in model.graph.output], per_sequence(model)
        weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.names = [name for node in model.graph.node if (name := product_of(node))]
        nodes: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if name := product_of(node):
                place = self.names.index(name)
                kernel = numpy_helper.to_array(weights[node.input[1]])
                stored, scale = quantise_weight(kernel, format, channels and name not in single)
                rounded = (stored.astype(np.float32) * scale[:, None]).T  # [K, M], as the hardware sees it
                for array, what in ((np.ascontiguousarray(rounded), "rounded"), (np.array(place), "place")):
                    model.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{what}"))
                nodes += _switched(name, node.input[0], node.input[1], format)
                node.input[0], node.input[1] = f"{name}.x", f"{name}.w"
            nodes.append(node)
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        count = len(self.names)
        model.graph.input.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, [count]))
        model.graph.input.append(helper.make_tensor_value_info("switches", TensorProto.BOOL, [count]))
        self._session = session(model, path.parent)
        self._inputs = {item.name for item in self._session.get_inputs()}

    def logits(self, features: Windows, rows: np.ndarray, scales: Mapping[str, float]) -> Logits:
        """The head's outputs for the windows `rows`, in their order."""
        switches = np.array([name in scales for name in self.names])
        told = np.array([scales.get(name, 1.0) for name in self.names], np.float32)
        found: tuple[list, ...] = tuple([] for _ in self.outputs)
        for _, batch in batches(features, rows):
            inputs, mask = inputs_of(batch, self._layout)
            inputs |= {"scales": told, "switches": switches}
            fed = {name: array for name, array in inputs.items() if name in self._inputs}
            for name, side, array in zip(self.outputs, found, self._session.run(self.outputs, fed), strict=True):
                side.extend(array if name in self._whole else np.split(real(array, mask), batch.cu_seqlens[1:-1]))
        return found


def _switched(name: str, x: str, weight: str, format: str) -> list[onnx.NodeProto]:
    """`NAME.x` and `NAME.w`: what the product multiplies, rounded where its switch is on."""
    made = [
        helper.make_node("Gather", ["scales", f"{name}.place"], [f"{name}.scale"]),
        helper.make_node("Gather", ["switches", f"{name}.place"], [f"{name}.on"]),
        helper.make_node("Reciprocal", [f"{name}.scale"], [f"{name}.inverse"]),
        *formats.nodes(x, f"{name}.inverse", f"{name}.8", format),
        helper.make_node("Cast", [f"{name}.8"], [f"{name}.back"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}.back", f"{name}.scale"], [f"{name}.kept"]),
        helper.make_node("Where", [f"{name}.on", f"{name}.kept", x], [f"{name}.x"]),
        helper.make_node("Where", [f"{name}.on", f"{name}.rounded", weight], [f"{name}.w"]),
    ]
    for node in made:
        node.name = f"simulation/{node.output[0]}"
    return made
