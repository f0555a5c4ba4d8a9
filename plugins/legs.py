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
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper

import plugins
from plugins import formats
from plugins.compile import Variant, compile_set
from plugins.device import Device
from plugins.kernels import KernelSet
from plugins.numpy_tensor import Job, run_interpreted

DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
DTYPES |= formats.DTYPES
ONNX = {"float32": onnx.TensorProto.FLOAT, "float16": onnx.TensorProto.FLOAT16, "bfloat16": onnx.TensorProto.BFLOAT16}
ONNX |= formats.ONNX
# Times the largest result. Of the dtype's spacing at 1: 8 times for float32 (order of sums), half of it for the others.
FLOOR = {"float32": 2.0**-20, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float8": 2.0**-4, "int8": 2.0**-8}


Result = Any  # an operator's output; of one with several, a tuple of them


def part(op: str, name: str) -> Any:
    """A module of an operator's folder: part("gelu", "cases")."""
    return importlib.import_module(f"plugins.{plugins.OPS[op]}.{name}")


def cases(op: str, name: str = "CASES") -> list[Any]:
    """The folder's cases that are the operator's: those that have its attributes and, if they name one, its name."""
    wanted = set(plugins.plugin(op).attributes)
    found = [case for case in getattr(part(op, "cases"), name) if set(case.attributes) == wanted]
    return [case for case in found if getattr(case, "op", "") in ("", op)]


def inputs(op: str, case: Any, dtype: str, seed: int = 0) -> dict[str, np.ndarray]:
    """The case's inputs, the same for every leg; those of them that the operator has."""
    given = part(op, "cases").inputs(case, np.random.default_rng(seed), DTYPES[dtype])
    return {name: given[name] for name in plugins.plugin(op).inputs}


def outputs(op: str, case: Any, dtype: str) -> dict[str, str]:
    """Name -> dtype of the outputs for activations of this dtype."""
    kinds = plugins.plugin(op)(case.attributes).kinds()
    return {name: dtype if kinds[name] == "A" else kinds[name] for name in plugins.plugin(op).outputs}


def exact(op: str, case: Any, given: Mapping[str, np.ndarray]) -> Result:
    """The reference in float64, on the inputs as they are in their dtype; of an 8-bit output what is to be rounded."""
    return getattr(part(op, "reference"), op)(*(_as(t, np.float64) for t in given.values()), **case.attributes)


def plain(op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> Result:
    """The unremarkable implementation in the dtype, as float64."""
    reference = part(op, "reference")
    own = getattr(reference, "plain" if op == plugins.OPS[op] else f"plain_{op}", None)
    take = (lambda tensor: tensor) if own else (lambda tensor: _as(tensor, np.float32))
    found = (own or getattr(reference, op))(*map(take, given.values()), **case.attributes)
    arrays = found if isinstance(found, tuple) else (found,)
    with np.errstate(over="ignore"):
        return result([
            (formats.rounded(array, kind) if kind in formats.MOST else array.astype(DTYPES[kind])).astype(np.float64)
            for array, kind in zip(arrays, outputs(op, case, dtype).values(), strict=True)
        ])  # fmt: skip


def model(
    op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str, *, axes: bool = False, wide: bool = False
) -> onnx.ModelProto:
    """A graph of this one node, with its function. axes: leave the lengths of the leading axes open. wide: 8-bit inputs
    and outputs are float32 outside of it, because ONNX Runtime takes no float8 from numpy."""
    attributes, kinds = case.attributes, outputs(op, case, dtype)
    inner = {name: f"{name}_8" if wide and _is_8_bit(tensor) else name for name, tensor in given.items()}
    after = {name: f"{name}_8" if wide and kind in formats.MOST else name for name, kind in kinds.items()}
    node = helper.make_node(
        op, [*inner.values()], [*after.values()], name=f"the_{op}", domain=plugins.DOMAIN,
        plugin_namespace=plugins.DOMAIN, plugin_version=str(plugins.VERSION), **attributes,
    )  # fmt: skip
    before, infos = [], []
    for name, tensor in given.items():
        kind = ONNX[dtype] if plugins.plugin(op).inputs[name] == "A" else _onnx_type(tensor)
        if inner[name] != name:
            before.append(helper.make_node("Cast", [name], [inner[name]], to=kind))
            kind = onnx.TensorProto.FLOAT
        shape = [f"{name}_{i}" for i in range(tensor.ndim)] if axes else tensor.shape
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    casts = [helper.make_node("Cast", [after[n]], [n], to=onnx.TensorProto.FLOAT) for n in kinds if after[n] != n]
    results = [
        helper.make_tensor_value_info(name, ONNX["float32" if after[name] != name else kind], None)
        for name, kind in kinds.items()
    ]
    made = helper.make_model(
        helper.make_graph([*before, node, *casts], op, infos, results),
        functions=[plugins.function(op, ONNX[dtype], **attributes)],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(plugins.DOMAIN, plugins.VERSION)],
    )
    made.ir_version = 10
    return made


def onnxruntime(op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> Result:
    """The ONNX function run by ONNX Runtime on the CPU, as float64. It knows no bfloat16."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    made = model(op, case, given, dtype, wide=True).SerializeToString()
    session = ort.InferenceSession(made, options, providers=["CPUExecutionProvider"])
    fed = {name: tensor.astype(np.float32) if _is_8_bit(tensor) else tensor for name, tensor in given.items()}
    return result([np.asarray(array).astype(np.float64) for array in session.run(None, fed)])


def shapes(op: str, case: Any, given: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs and outputs."""
    known: dict[str, Any] = {name: tensor.shape for name, tensor in given.items()}
    plugin = plugins.plugin(op)(case.attributes)
    return known | dict.fromkeys(plugin.outputs, tuple(plugin.output_shape(known)))


def variants(
    op: str, case: Any, shapes: Mapping[str, tuple[int, ...]], dtype: str, tuning: Mapping[str, Any] | None = None
) -> dict[str, Variant]:
    """The kernels that a case needs, by name. tuning: further arguments of the folder's `variants`."""
    module = part(op, "kernel")
    build = getattr(module, f"variants_{op}", module.variants)
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


def interpreted(op: str, tasks: Sequence[tuple[Any, Mapping[str, np.ndarray], str]]) -> list[Result]:
    """`interpreted_all` of one operator: (case, inputs, dtype)."""
    return interpreted_all([(op, *task) for task in tasks])


def interpreted_all(
    tasks: Sequence[tuple[str, Any, Mapping[str, np.ndarray], str]], without: str = "no such kernel"
) -> list[Result]:
    """The kernels run by Triton's interpreter for all (op, case, inputs, dtype), as float64. Outputs are NaN before.

    without: a word; kernels with it in their name are as if there were none.
    """
    jobs = []
    for op, case, given, dtype in tasks:
        plugin, known = plugins.plugin(op)(case.attributes), shapes(op, case, given)
        made = {name: one for name, one in variants(op, case, known, dtype).items() if without not in name}
        tensors = dict(given) | {name: _poison(known[name], kind) for name, kind in outputs(op, case, dtype).items()}
        launches = plugin.launches(known, dtype, made)
        if any("workspace" in launch.arguments for launch in launches):
            tensors["workspace"] = np.full(-(-plugin.workspace(known, dtype) // 4), np.nan, np.float32)
        jobs.append(Job(launches, made, tensors))
    return [
        result([after[name].astype(np.float64) for name in plugins.plugin(op).outputs])
        for (op, *_), after in zip(tasks, run_interpreted(jobs), strict=True)
    ]


def launched(device: Device, op: str, case: Any, given: Mapping[str, np.ndarray], dtype: str) -> Result:
    """The plugin's own launches on a GPU, without TensorRT, as float64. Outputs and workspace are NaN beforehand."""
    known = shapes(op, case, given)
    plugin = plugins.plugin(op)(case.attributes, kernels(op, case, known, dtype, device.architecture))
    plugin.load()
    run = plugin.prepare(known, dtype)
    addresses = [device.upload(tensor) for tensor in given.values()]
    kinds = outputs(op, case, dtype)
    results = [device.empty(int(np.prod(known[name])) * DTYPES[kind].itemsize) for name, kind in kinds.items()]
    run(device.stream, [*addresses, *results], device.empty(plugin.workspace(known, dtype)))
    return result([
        device.download(address, known[name], DTYPES[kind]).astype(np.float64)
        for address, (name, kind) in zip(results, kinds.items(), strict=True)
    ])  # fmt: skip


def assert_case_right(
    op: str, case: Any, found: Result, given: Mapping[str, np.ndarray], dtype: str, what: str = "", *,
    slack: float = 0.0, share: float = 0.02, near: float = 0.001,
) -> None:  # fmt: skip
    """`assert_right` for every output, and `assert_codes` for one of 8 bits. slack: a further allowance, times the
    largest result."""
    exacts, plains = exact(op, case, given), plain(op, case, given, dtype)
    kinds = outputs(op, case, dtype)
    results, exacts, plains = ([*r] if isinstance(r, tuple) else [r] for r in (found, exacts, plains))
    for ours, meant, usual, (name, kind) in zip(results, exacts, plains, kinds.items(), strict=True):
        assert_right(ours, meant, usual, kind, f"{what} {name}".strip(), slack)
        if kind in formats.MOST:
            assert_codes(ours, usual, kind, f"{what} {name}".strip(), share, near)


def assert_codes(
    ours: np.ndarray, usual: np.ndarray, format: str, what: str = "", share: float = 0.02, near: float = 0.001
) -> None:
    """Numbers of an 8-bit format against the plain ones: none is more than a step and `near` of the range away, and at
    most `share` of them (or 2) differ at all."""
    steps = np.abs(_place(ours, format) - _place(usual, format))
    far = (steps > 1) & ~(np.abs(ours - usual) <= near * formats.MOST[format])
    assert not far.any(), f"{what}: {steps[far].max()} steps of {format} apart"
    assert (steps > 0).sum() <= max(2, share * steps.size), f"{what}: {(steps > 0).mean():.1%} of the numbers differ"


def assert_right(
    result: np.ndarray, exact: np.ndarray, plain: np.ndarray, dtype: str, what: str = "", slack: float = 0.0
) -> None:
    """The largest error is at most twice the plain implementation's, plus a floor; infinities and NaN must agree."""
    assert result.shape == exact.shape, f"{what}: shape {result.shape}, not {exact.shape}"
    finite = np.isfinite(plain)
    wrong = ~finite & ~((result == plain) | (np.isnan(result) & np.isnan(plain)))
    assert not wrong.any(), f"{what}: {result[wrong][0]} where {plain[wrong][0]} is meant"
    if not finite.any():
        return
    error, usual = np.abs(result - exact)[finite].max(), np.abs(plain - exact)[finite].max()
    allowed = 2 * usual + (FLOOR[dtype] + slack) * np.abs(exact[finite]).max()
    assert error <= allowed, f"{what}: off by {error:.3g}, allowed {allowed:.3g} (the plain one is off by {usual:.3g})"


def _as(tensor: np.ndarray, dtype: Any) -> np.ndarray:
    """Numbers in dtype; integers as they are."""
    return tensor if tensor.dtype.kind == "i" else tensor.astype(dtype)


def result(arrays: Sequence[np.ndarray]) -> Result:
    """Outputs as a leg gives them."""
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _is_8_bit(tensor: np.ndarray) -> bool:
    return tensor.dtype in formats.DTYPES.values()


def _onnx_type(tensor: np.ndarray) -> int:
    known = (kind for name, kind in formats.ONNX.items() if formats.DTYPES[name] == tensor.dtype)
    return next(known, None) or helper.np_dtype_to_tensor_dtype(tensor.dtype)


def _poison(shape: tuple[int, ...], kind: str) -> np.ndarray:
    """NaN, and where there is none the number that nothing becomes."""
    return np.full(shape, -128 if kind == "int8" else np.nan, DTYPES[kind])


def _place(values: np.ndarray, format: str) -> np.ndarray:
    """The place of each number among the format's, as int16."""
    codes = values.astype(formats.DTYPES[format]).view(np.int8).astype(np.int16)
    return codes if format == "int8" else np.where(codes < 0, -128 - codes, codes)  # sign and magnitude
