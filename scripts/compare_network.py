"""An engine folder's network, for runtimes that are not ours: its weights, padded graphs of it, a PyTorch head.

Everything comes from the folder itself (`model.onnx`, float32, whose initializers bear the checkpoint's names), so that
a peer computes what the engine computes and nobody needs the run it was exported from.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from configs.errors import UserError
from export import graph
from export.quantisation import BASE, FORMATS
from heads import Head
from model.config import BertConfig
from scripts.bench_engine_plans import Shape, fix, without_mask
from serve.manifest import MODEL, NAME, Manifest

Outputs = dict[str, np.ndarray]  # float32 [B, S, ...] per token, [B, ...] per sequence


@dataclass(frozen=True)
class Network:
    """Weights and sizes of an engine."""

    manifest: Manifest
    config: BertConfig
    gelu: str
    tensors: graph.Tensors
    head: Head

    @classmethod
    def of(cls, manifest: Manifest) -> "Network":
        """Read from the folder, whose files `manifest.read` has checked. Raises: UserError where it lacks a weight."""
        about = json.loads((manifest.folder / NAME).read_text(encoding="utf-8"))
        known = {item.name for item in fields(BertConfig)}
        config = BertConfig(**{name: value for name, value in about["sizes"].items() if name in known})
        model = onnx.load(str(manifest.folder / MODEL))
        tensors = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
        if "layers.0.attention.qkv.kernel" not in tensors:
            raise UserError(f"{manifest.folder / MODEL} has other weights than export.py writes; export it again")
        return cls(manifest, config, about.get("gelu", config.gelu), unpadded(tensors, config), manifest.entry)

    @property
    def precision(self) -> str:
        """Of peers beside the plan: they have no 8-bit products, so theirs are what the rest of the plan is."""
        return BASE if self.manifest.precision in FORMATS else self.manifest.precision

    def padded(self, precision: str, shape: Shape) -> onnx.ModelProto:
        """The graph for one shape of full sequences: nothing masked, unless the head itself asks for the mask."""
        model = graph.build(
            self.tensors, self.config, precision=precision, layout="padded", head=self.head, gelu=self.gelu
        )
        asked = [node for node in model.graph.node if "padding_mask" in node.input and node.op_type != "attention"]
        return fix(model if asked else without_mask(model), shape)

    def shapes(self, shape: Shape, layout: str) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Output -> (shape, dtype) as a runtime with this layout writes it."""
        rows = (shape.batch, shape.length) if layout == "padded" else (shape.batch * shape.length,)
        axes = {"token": rows, "sequence": (shape.batch,)}
        return {
            o.name: (axes[o.per] + (() if o.width is None else (o.width,)), np.float32) for o in self.manifest.outputs
        }

    def named(self, arrays: dict[str, np.ndarray] | tuple[np.ndarray, ...], shape: Shape) -> Outputs:
        """Whatever a runtime gave, under its names and with its axes."""
        given = arrays if isinstance(arrays, dict) else dict(zip(self.shapes(shape, "padded"), arrays, strict=True))
        return {name: given[name].reshape(to) for name, (to, _) in self.shapes(shape, "padded").items()}

    def torch_head(self) -> Callable[[Any], Any]:
        """(torch) -> a module: x [B, S, H] -> outputs by name. Raises: UserError for a head it does not know."""
        task, tensors = self.manifest.task, self.tensors
        known = {"span.kernel.start", "tagger.kernel", "classifier.kernel"} & tensors.keys()
        if not known and self.manifest.outputs[0].name not in ("encoded", "embedding"):
            raise UserError(f"--compare torch does not know the head of --task {task}; leave torch out")
        return lambda torch: _head(torch, tensors, self.manifest.outputs[0].name, self.manifest.head)


def unpadded(tensors: graph.Tensors, config: BertConfig) -> graph.Tensors:
    """Without the zeros that `graph.build` puts behind every head, and the span's two columns in one weight."""
    size, padded = config.head_size, graph.padded_head_size(config)
    found = dict(tensors)
    for index in range(config.layers if padded > size else 0):
        here = f"layers.{index}.attention"
        for name in (f"{here}.qkv.kernel", f"{here}.qkv.bias"):
            array = found[name]
            found[name] = array.reshape(*array.shape[:-1], -1, padded)[..., :size].reshape(*array.shape[:-1], -1)
        out = found[f"{here}.out.kernel"]
        found[f"{here}.out.kernel"] = out.reshape(-1, padded, out.shape[-1])[:, :size].reshape(-1, out.shape[-1])
    if "span.kernel.start" in found:
        for name, axis in (("span.kernel", -1), ("span.bias", -1)):
            found[name] = np.stack([found[f"{name}.{word}"] for word in ("start", "end")], axis)
    return found


def worst_error(ours: Outputs, reference: Outputs) -> float:
    """The largest difference of a number, over the size of its output's (root mean square); inf where not finite.

    Not over how they vary: in a deep network of random weights all tokens come to look alike.
    """
    found = []
    for name, wanted in reference.items():
        scale = max(float(np.sqrt(np.mean(np.square(wanted, dtype=np.float64)))), 1e-12)
        found.append(float(np.nan_to_num(np.abs(ours[name] - wanted), nan=np.inf).max()) / scale)
    return max(found)


def _head(torch: Any, tensors: graph.Tensors, output: str, settings: dict[str, Any]) -> Any:
    """As anybody would write it: a Linear in the module's dtype, and float32 from there on."""
    nn = torch.nn

    def linear(source: str) -> Any:
        kernel = np.ascontiguousarray(tensors[f"{source}.kernel"].T, dtype=np.float32)
        layer = nn.Linear(kernel.shape[1], kernel.shape[0])
        layer.weight = nn.Parameter(torch.from_numpy(kernel), requires_grad=False)
        layer.bias = nn.Parameter(torch.from_numpy(tensors[f"{source}.bias"].astype(np.float32)), requires_grad=False)
        return layer

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            names = ("span", "tagger", "pooler", "classifier")
            self.parts = nn.ModuleDict({name: linear(name) for name in names if f"{name}.kernel" in tensors})

        def forward(self, x: Any) -> dict[str, Any]:
            parts = self.parts
            if "span" in parts:
                start, end = parts["span"](x).float().unbind(-1)
                return {"start_logits": start.contiguous(), "end_logits": end.contiguous()}
            if "tagger" in parts:
                return {output: parts["tagger"](x).float()}
            if "classifier" in parts:
                return {output: parts["classifier"](parts["pooler"](x[:, 0]).tanh()).float()}
            if output == "encoded":
                return {output: x.float()}
            mean = (x[:, 0] if settings.get("pooling") == "cls" else x.mean(1)).float()
            return {output: nn.functional.normalize(mean, dim=-1)}

    return Headed()
