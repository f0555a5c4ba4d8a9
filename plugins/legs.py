"""One operator, several implementations: each leg runs a case and gives numpy back. What the tests compare.

    exact        reference.py in float64
    plain        reference.py in float32, rounded once to the dtype (or reference.py's own `plain`): the error to be
                 measured against
    onnxruntime  the ONNX function on ONNX Runtime
    interpreted  the Triton kernels in the interpreter, all cases in one process
    launched     the compiled kernels on a GPU, without TensorRT (with it: plugins/one_node.py)
A result is right if its largest error is at most twice that of `plain`, plus a floor: `assert_right`.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

import plugins
from plugins.compile import Variant, compile_set
from plugins.device import Device
from plugins.kernels import KernelSet
from plugins.numpy_tensor import Job, run_interpreted

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
ONNX = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
# Times the largest result. Of the dtype's spacing at 1: 8 times for float32 (order of sums), half of it for the others.
FLOOR = {"float32": 2.0**-20, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def part(op: str, name: str) -> Any:
    """A module of an operator's folder: part("gelu", "cases")."""
    return importlib.import_module(f"plugins.{plugins.OPS[op]}.{name}")


def inputs(op: str, case: Any, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The case's inputs, the same for every leg."""
    return part(op, "cases").inputs(case, np.random.default_rng(seed), DTYPES[dtype])


def exact(op: str, case: Any, given: Mapping[str, np.ndarray]) -> np.ndarray:
    """The reference in float64, on the inputs as they are in their dtype."""
    return getattr(part(op, "reference"), op)(*(_as(t, np.float64) for t in given.values()), **case.attributes)


def plain(op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> np.ndarray:
    """The unremarkable implementation in the dtype, as float64."""
    reference = part(op, "reference")
    if own := getattr(reference, "plain", None):
        return np.asarray(own(*given.values(), **case.attributes)).astype(np.float64)
    single = getattr(reference, op)(*(_as(t, np.float32) for t in given.values()), **case.attributes)
    with np.errstate(over="ignore"):
        return single.astype(DTYPES[dtype]).astype(np.float64)


def model(op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str, *, axes: bool = False) -> onnx.ModelProto:
    """A graph of this one node, with its function. axes: leave the lengths of the leading axes open."""
    attributes = case.attributes
    node = helper.make_node(
        op, list(given), ["y"], name=f"the_{op}", domain=plugins.DOMAIN,
        plugin_namespace=plugins.DOMAIN, plugin_version=str(plugins.VERSION), **attributes,
    )  # fmt: skip
    kinds = plugins.plugin(op).inputs
    infos = []
    for name, tensor in given.items():
        kind = ONNX[dtype] if kinds[name] == "A" else helper.np_dtype_to_tensor_dtype(tensor.dtype)
        shape = [f"{name}_{i}" for i in range(tensor.ndim)] if axes else tensor.shape
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph([node], op, infos, [helper.make_tensor_value_info("y", ONNX[dtype], None)])
    made = helper.make_model(
        graph,
        functions=[build(op, dtype, attributes)],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(plugins.DOMAIN, plugins.VERSION)],
    )
    made.ir_version = 10
    return made


def build(op: str, dtype: str, attributes: Mapping[str, Any]) -> onnx.FunctionProto:
    """The operator's function; `build` in function.py takes those attributes that choose a body."""
    folder = part(op, "function")
    function = getattr(folder, "build" if op == plugins.OPS[op] else f"build_{op}")
    taken = set(inspect.signature(function).parameters)
    return function(ONNX[dtype], **{key: value for key, value in attributes.items() if key in taken})


def onnxruntime(op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> np.ndarray:
    """The ONNX function run by ONNX Runtime on the CPU, as float64. It knows no bfloat16."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    made = model(op, case, given, dtype).SerializeToString()
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(given))[0]).astype(np.float64)


def shapes(op: str, case: Any, given: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs and of y."""
    known: dict[str, Any] = {name: tensor.shape for name, tensor in given.items()}
    return known | {"y": tuple(plugins.plugin(op)(case.attributes).output_shape(known))}


def variants(
    op: str, case: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str, tuning: Mapping[str, Any] | None = None
) -> dict[str, Variant]:
    """The kernels that a case needs, by name. tuning: further arguments of the folder's `variants`."""
    module = part(op, "kernel")
    build = getattr(module, "variants" if op == plugins.OPS[op] else f"variants_{op}")
    found = build(shapes, dtype, **case.attributes, **tuning or {})
    return {variant.name: variant for variant in found}


def kernels(
    op: str, case: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str, arch: int,
    tuning: Mapping[str, Any] | None = None,
) -> KernelSet:  # fmt: skip
    """The same compiled; none for an operator whose folder has no kernel.py."""
    if not importlib.util.find_spec(f"plugins.{plugins.OPS[op]}.kernel"):
        return KernelSet.of([])
    return compile_set(list(variants(op, case, shapes, dtype, tuning).values()), arch)


def interpreted(op: str, tasks: Sequence[tuple[Any, Mapping[str, np.ndarray], str]]) -> list[np.ndarray]:
    """The kernels run by Triton's interpreter for all (case, inputs, dtype), as float64. y is NaN beforehand."""
    jobs = []
    for case, given, dtype in tasks:
        plugin, known = plugins.plugin(op)(case.attributes), shapes(op, case, given)
        made = variants(op, case, known, dtype)
        tensors = dict(given) | {"y": np.full(known["y"], np.nan, DTYPES[dtype])}
        if scratch := plugin.workspace(known, dtype):
            tensors["workspace"] = np.full(-(-scratch // 4), np.nan, np.float32)
        jobs.append(Job(plugin.launches(known, dtype, made), made, tensors))
    return [result["y"].astype(np.float64) for result in run_interpreted(jobs)]


def launched(device: Device, op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> np.ndarray:
    """The plugin's own launches on a GPU, without TensorRT, as float64. y and the workspace are NaN beforehand."""
    known = shapes(op, case, given)
    plugin = plugins.plugin(op)(case.attributes, kernels(op, case, known, dtype, device.architecture))
    plugin.load()
    run = plugin.prepare(known, dtype)
    addresses = [device.upload(tensor) for tensor in given.values()]
    y = device.empty(int(np.prod(known["y"])) * DTYPES[dtype].itemsize)
    run(device.stream, [*addresses, y], device.empty(plugin.workspace(known, dtype)))
    return device.download(y, known["y"], DTYPES[dtype]).astype(np.float64)


def assert_right(result: np.ndarray, exact: np.ndarray, plain: np.ndarray, dtype: str, what: str = "") -> None:
    """The largest error is at most twice the plain implementation's, plus a floor; infinities and NaN must agree."""
    assert result.shape == exact.shape, f"{what}: shape {result.shape}, not {exact.shape}"
    finite = np.isfinite(plain)
    wrong = ~finite & ~((result == plain) | (np.isnan(result) & np.isnan(plain)))
    assert not wrong.any(), f"{what}: {result[wrong][0]} where {plain[wrong][0]} is meant"
    if not finite.any():
        return
    error, usual = np.abs(result - exact)[finite].max(), np.abs(plain - exact)[finite].max()
    allowed = 2 * usual + FLOOR[dtype] * np.abs(exact[finite]).max()
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g} (the plain one is off by {usual:.3g})"


def _as(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in dtype; integers as they are."""
    return tensor if tensor.dtype.kind == "i" else tensor.astype(dtype)
