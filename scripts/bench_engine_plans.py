"""The encoder as TensorRT plans: with plugins, with some of them, with none; what `bench_engine` times and checks.

A plan whose every node is a plugin is built once for all shapes, as an engine folder's plan is. Where TensorRT computes
something itself, the plan is built for the one shape that is timed, which suits TensorRT best, unless it is `open`.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

import plugins
from export import engine, files, graph, ranges
from export.quantisation import Quantisation
from model.config import BertConfig
from model.weights import expected_shapes
from plugins import compile as compiler
from plugins import formats
from plugins.device import Device
from scripts.bench_engine_opened import Opened
from scripts.bench_engine_timer import Entrant
from serve.manifest import Profile, Range

ALL = tuple(name for name in plugins.PLUGINS if name != "linear8")
ALL8 = tuple(plugins.PLUGINS)  # of an 8-bit variant
HEADROOM = 1.25  # of its scales, over the largest numbers of the smallest shape
PADDED = ("token_ids", "segment_ids", "padding_mask")
# What of attention's body goes when there is no mask: a value, and the one that takes its place.
UNMASKED = {"visible_scores": "scores32", "v": "v_all"}


@dataclass(frozen=True)
class Shape:
    """A full batch: every sequence has `length` tokens, so nothing is padding."""

    batch: int
    length: int

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


@dataclass(frozen=True)
class Variant:
    """A network to time. `name` is what the table calls it; without plugins it may go without the mask, too."""

    name: str
    gelu: str = "erf"
    layout: str = "padded"
    plugins: tuple[str, ...] = ()
    mask: bool = True
    casts: bool = True  # False: statistics, softmax and GELU are not float32 in the graph; TensorRT decides
    open: bool = False  # without plugins: one plan for all shapes, as those with all plugins are
    format: str = ""  # float8 or int8 of all products, which no plan without plugins has


def weights(config: BertConfig, seed: int = 0) -> graph.Tensors:
    """Random float32 weights: activations of order 1, and attention that looks at some tokens more than at others."""
    random = np.random.default_rng(seed)
    found = {}
    for name, shape in expected_shapes(config).items():
        scale = 1 / np.sqrt(shape[0]) if name.endswith(".kernel") else 0.1
        found[name] = random.standard_normal(shape, np.float32) * np.float32(scale) + np.float32(name.endswith("scale"))
    return found


def inputs(config: BertConfig, shape: Shape, layout: str, seed: int = 1) -> dict[str, np.ndarray]:
    """Random ids, the same for both layouts; all inputs int32."""
    random = np.random.default_rng(seed)
    rows = (shape.batch, shape.length)
    ids = random.integers(0, config.vocabulary, rows, np.int32)
    return given(ids, layout)


def given(ids: np.ndarray, layout: str) -> dict[str, np.ndarray]:
    """A network's inputs for ids int32 [B, S] without padding: the first third of a sequence is its first segment."""
    batch, length = ids.shape
    segments = np.broadcast_to(np.arange(length) >= length // 3, ids.shape).astype(np.int32)
    if layout == "padded":
        return {"token_ids": ids, "segment_ids": segments, "padding_mask": np.ones(ids.shape, np.int32)}
    return {
        "token_ids": ids.reshape(-1), "segment_ids": segments.reshape(-1),
        "position_ids": np.tile(np.arange(length, dtype=np.int32), batch),
        "cu_seqlens": np.arange(batch + 1, dtype=np.int32) * length,
    }  # fmt: skip


def without_mask(model: onnx.ModelProto) -> onnx.ModelProto:
    """A padded model that has no input `padding_mask`: every query sees every key. For plans without plugins."""
    body = next(function for function in model.functions if function.name == "attention")
    wanted, kept, gone = set(body.output), [], set()
    for node in reversed(body.node):
        names = [UNMASKED.get(name, name) for name in node.input]
        if set(node.output) & set(UNMASKED):
            gone |= set(node.output)
        elif set(node.output) & wanted:
            node.input[:] = names
            wanted |= set(names)
            kept.append(node)
    if gone != set(UNMASKED) or "padding_mask" in wanted:
        raise ValueError("attention's body has other names than UNMASKED says")
    del body.node[:]
    body.node.extend(reversed(kept))
    body.input.remove("padding_mask")
    for node in model.graph.node:
        if node.op_type == "attention":
            node.input.remove("padding_mask")
    model.graph.input.remove(next(item for item in model.graph.input if item.name == "padding_mask"))
    return model


def without_casts(model: onnx.ModelProto, dtype: int) -> onnx.ModelProto:
    """A model all in one dtype, as a plain export of a float16 network is. For plans without plugins."""
    for function in model.functions:
        for node in function.node:
            if node.op_type == "Cast" and node.input[0] != "scale32":  # which comes from a float32 attribute
                node.op_type = "Identity"
                del node.attribute[:]
    numpy_dtype = helper.tensor_dtype_to_np_dtype(dtype)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(numpy_dtype), tensor.name))
    return model


def fix(model: onnx.ModelProto, shape: Shape) -> onnx.ModelProto:
    """The model with numbers for its open axes."""
    sizes = {"B": shape.batch, "S": shape.length, "T": shape.batch * shape.length, "B+1": shape.batch + 1}
    for item in (*model.graph.input, *model.graph.output):
        for axis in item.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = sizes[axis.dim_param]  # in place of the name
    return model


def profile(layout: str, shapes: list[Shape]) -> Profile:
    """From the smallest to the largest of the shapes, tuned for the one with most tokens."""

    def span(values: list[int]) -> Range:
        return Range(min(values), values[int(np.argmax([s.batch * s.length for s in shapes]))], max(values))

    batch = span([shape.batch for shape in shapes])
    if layout == "packed":
        return Profile(batch, span([shape.batch * shape.length for shape in shapes]), None)
    return Profile(batch, None, span([shape.length for shape in shapes]))


class Encoder:
    """One size's weights, its plans, and its outputs as ONNX Runtime computes them in float32 on the CPU."""

    def __init__(self, config: BertConfig, precision: str, shapes: list[Shape]) -> None:
        self.config, self.precision, self.shapes = config, precision, shapes
        self.tensors = weights(config)
        self.dtype = helper.tensor_dtype_to_np_dtype(graph.DTYPES[precision])
        self._references: dict[tuple[str, Shape], np.ndarray] = {}
        self._sessions: dict[str, Any] = {}
        self._engines: dict[Variant, Any] = {}
        self._scales: dict[str, dict[str, float]] = {}

    def model(self, variant: Variant, precision: str) -> onnx.ModelProto:
        """The network, its axes open; all bodies are there."""
        model = graph.build(
            self.tensors, self.config, precision=precision, layout=variant.layout, head=None, gelu=variant.gelu,
            fused=graph.fuses(variant.plugins),
            quantisation=self.quantisation(variant) if variant.format else None,
        )  # fmt: skip
        model = model if variant.mask else without_mask(model)
        return model if variant.casts else without_casts(model, graph.DTYPES[precision])

    def quantisation(self, variant: Variant) -> Quantisation:
        """All products, with scales from the largest numbers of the smallest shape, as ONNX Runtime computes it."""
        if variant.gelu not in self._scales:
            model = self.model(Variant("ranges", variant.gelu), "float32")
            sources = ranges.mark(model)
            session = _session(model)
            shape = min(self.shapes, key=lambda shape: shape.batch * shape.length)
            arrays = session.run([*sources.values()], inputs(self.config, shape, "padded"))
            most = [float(np.abs(array).max()) * HEADROOM for array in arrays]
            self._scales[variant.gelu] = dict(zip(sources, most, strict=True))
        scales = {name: most / formats.MOST[variant.format] for name, most in self._scales[variant.gelu].items()}
        return Quantisation(variant.format, scales, channels=variant.format == "int8")

    def reference(self, gelu: str, shape: Shape) -> np.ndarray:
        """float32 [B * S, H]."""
        if gelu not in self._sessions:
            self._sessions[gelu] = _session(self.model(Variant("reference", gelu), "float32"))
        if (gelu, shape) not in self._references:
            (found,) = self._sessions[gelu].run(None, inputs(self.config, shape, "padded"))
            self._references[gelu, shape] = found.reshape(-1, self.config.hidden)
        return self._references[gelu, shape]

    def build(self, trt: Any, variant: Variant, shape: Shape | None, arch: int) -> tuple[bytes, dict[str, int]]:
        """(plan, op -> plugin layers) for one shape, or for all shapes of the run. Raises: UserError."""
        model = self.model(variant, self.precision)
        expected = graph.count_nodes(model)
        shapes = self.shapes if shape is None else [shape]
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "model.onnx", Path(folder) / "model.plan"
            files.save(model if shape is None else fix(model, shape), source)
            plan = engine.Plan(variant.plugins, (arch,), profile(variant.layout, shapes))
            layers = engine.build(trt, source, out, plan, expected)
            return out.read_bytes(), layers

    def kernels(self, variant: Variant, arch: int) -> Any:
        """Our kernels for the plugins of a variant, compiled or from the cache."""
        config = self.config
        sizes = compiler.Sizes(
            config.hidden, config.heads, graph.padded_head_size(config), config.ffn, variant.layout,
            "none" if variant.gelu == "erf" else "tanh", variant.format,
        )  # fmt: skip
        return compiler.compile_set(compiler.needed(sizes, self.precision, variant.plugins), arch)

    def entrant(self, trt: Any, device: Device, variant: Variant, shape: Shape) -> Entrant:
        """A variant captured for one shape on the GPU, with the output of a replay."""
        kernels = self.kernels(variant, device.architecture) if variant.plugins else None
        opened = self._engines.get(variant)
        if opened is None:
            whole = set(ALL) <= set(variant.plugins) or variant.open
            plan, _ = self.build(trt, variant, None if whole else shape, device.architecture)
            opened = Opened(trt, plan, variant.plugins, kernels)
            if whole:
                self._engines[variant] = opened
        given = inputs(self.config, shape, variant.layout)
        if not variant.mask:
            del given["padding_mask"]
        return opened.entrant(device, given, (shape.batch * shape.length, self.config.hidden), self.dtype)


def _session(model: onnx.ModelProto) -> Any:
    """ONNX Runtime on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def worst_error(output: np.ndarray, reference: np.ndarray) -> float:
    """The largest |y - reference| / |reference| of a token's vector, inf where a value is not finite."""
    apart = np.linalg.norm(output - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    return float(np.nan_to_num(apart, nan=np.inf).max())
