"""ONNX becomes a TensorRT plan, for full TensorRT and TensorRT-RTX alike: one path, through the ONNX parser.

The network is strongly typed: every type is the graph's own, and TensorRT chooses none. Where a plugin of a node's name
is registered the parser takes it, and elsewhere the body of the node's function; how many it took is counted, because a
plan that quietly went without is a slow one. `tensorrt_rtx` builds on a machine without a GPU, too, and for several
compute capabilities in one plan; full TensorRT builds on the GPU that the plan is for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from configs.flags import listed
from export.progress import monitor
from plugins import formats, ops_of, registration, tensorrt_flavour
from serve.manifest import Profile

FEATURES = {  # what not every TensorRT has -> our flag
    "refit": "--refit",
    "version_compatible": "--version-compatible",
    "weight_streaming": "--weight-streaming",
}


@dataclass(frozen=True)
class Plan:
    """What a plan is built for."""

    plugins: tuple[str, ...]
    architectures: tuple[int, ...]
    profile: Profile
    features: tuple[str, ...] = ()  # of FEATURES


def choose_target(said: str) -> tuple[str | None, Any, str]:
    """(name or None, its module or None, why). `said`: "auto", "none", or a target: then it is an error if missing."""
    if said == "none":
        return None, None, "no plan was asked for"
    if said != "auto":
        return said, tensorrt_flavour.load(said), "asked for"
    missing = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return name, tensorrt_flavour.load(name), "installed"
        except UserError as error:
            missing.append(str(error))
    return None, None, "; ".join(missing)


def offered(trt: Any, precision: str) -> tuple[int, ...]:
    """Compute capabilities that this TensorRT builds for on any machine, ascending; none for full TensorRT.

    TensorRT-RTX compiles products for 7.5 in float16 alone: there are tensor cores for nothing else. 8-bit products are
    our plugins', from `formats.FIRST` on.
    """
    kinds = getattr(trt, "ComputeCapability", None)
    if kinds is None or not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        return ()
    found = sorted(int(name[2:]) for name in kinds.__members__ if name[2:].isdecimal())
    first = formats.FIRST.get(precision, 75 if precision == "float16" else 80)
    return tuple(arch for arch in found if arch >= first)


def choose_architectures(trt: Any, precision: str, asked: tuple[int, ...] | None, gpu: int | None) -> tuple[int, ...]:
    """Those asked for, or this machine's GPU, or without one all that this TensorRT builds for.

    Raises: UserError where this TensorRT cannot build for one of them here.
    """
    possible, name = offered(trt, precision), _title(trt)
    if gpu is None and not possible:
        raise UserError(f"{name} builds plans on the GPU they are for, and there is none here; take --target none")
    if asked is None:
        return (gpu,) if gpu is not None else possible
    if asked == (gpu,):
        return asked
    if not set(asked) <= set(possible):
        can = [f"for {listed(possible)} in one plan"] if possible else []
        can += [] if gpu is None else [f"for this machine's GPU, {gpu}, alone"]
        raise UserError(
            f"{name} builds {precision} plans {', or '.join(can)}; --arch says {','.join(map(str, asked))}. "
            "Choose from those, export on a machine with that GPU, or take --target none"
        )
    return asked


def refuse_missing(trt: Any, features: tuple[str, ...]) -> None:
    """Raise a UserError for the first feature that this TensorRT lacks, or has by name and cannot do on this machine.

    The flags exist in every version's bindings; whether there is anything behind them shows a network of one layer.
    """
    for feature in features:
        said = ""
        if tensorrt_flavour.has(trt, feature):
            logger = tensorrt_flavour.logger(trt)
            builder = trt.Builder(logger)
            network = _one_layer(trt, builder)
            config = builder.create_builder_config()
            config.set_flag(getattr(trt.BuilderFlag, feature.upper()))
            if builder.build_serialized_network(network, config) is not None:
                continue
            said = f" (it says: {_first(logger.errors)})"
        raise UserError(f"{_title(trt)} cannot do {FEATURES[feature]} on this machine{said}; leave the flag out")


def build(trt: Any, model: Path, out: Path, plan: Plan, expected: dict[str, int]) -> dict[str, int]:
    """Build a plan from an ONNX file and write it to `out`.

    Args:
        trt: module of `tensorrt_flavour.load`.
        model: ONNX in the precision that the plan is to have.
        expected: op -> how many nodes of it the graph has (`graph.expected_nodes`).

    Returns: op -> plugin layers in the plan, for the ops of the plan's plugins.
    Raises: UserError where TensorRT refuses, with what it said, or where plugins were not taken; KeyboardInterrupt.
    """
    refuse_missing(trt, plan.features)
    with registration.registered(trt, plan.plugins):  # without kernels: nothing is launched while building
        return _build(trt, model, out, plan, expected)


def _build(trt: Any, model: Path, out: Path, plan: Plan, expected: dict[str, int]) -> dict[str, int]:
    logger = tensorrt_flavour.logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise UserError(f"{_title(trt)} cannot read {model.name}: {_first([*errors, *logger.errors])}")
    layers = compare(plugin_layers(trt, network), expected, plan.plugins)

    config = builder.create_builder_config()
    config.add_optimization_profile(_profile(builder, plan.profile))
    config.clear_flag(trt.BuilderFlag.TF32)  # float32 is meant where the graph says float32: statistics and logits
    for feature in plan.features:
        config.set_flag(getattr(trt.BuilderFlag, feature.upper()))
    if set(plan.architectures) <= set(offered(trt, "float16")):  # else it is this machine's GPU, which needs no word
        config.num_compute_capabilities = len(plan.architectures)
        for index, arch in enumerate(plan.architectures):
            config.set_compute_capability(trt.ComputeCapability.__members__[f"SM{arch}"], index)
    progress = monitor(trt)
    config.progress_monitor = progress
    try:
        serialized = builder.build_serialized_network(network, config)
    finally:
        progress.close()
    if progress.stopped:
        raise progress.stopped
    if serialized is None:
        raise UserError(f"{_title(trt)} built no plan from {model.name}: {_first(logger.errors)}")
    out.write_bytes(memoryview(serialized))
    return layers


def plugin_layers(trt: Any, network: Any) -> dict[str, int]:
    """Op -> how many layers of a network are that plugin."""
    counts: dict[str, int] = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.PLUGIN_V3:
            layer.__class__ = trt.IPluginV3Layer  # the bindings give every layer as its base class
            name = layer.plugin.plugin_name
            counts[name] = counts.get(name, 0) + 1
    return counts


def compare(found: dict[str, int], expected: dict[str, int], plugins: tuple[str, ...]) -> dict[str, int]:
    """Plugin layers of each op that `plugins` bring. Raises: UserError unless these are its nodes, and no others."""
    wanted = {op: expected[op] for op in ops_of(plugins) if op in expected}
    lines = [f"{op}: {found.get(op, 0)} plugin layers for {count} nodes" for op, count in wanted.items()]
    strangers = [f"{op}: {count} plugin layers, none was asked for" for op, count in found.items() if op not in wanted]
    if strangers or any(found.get(op, 0) != count for op, count in wanted.items()):
        raise UserError(
            f"TensorRT did not take the plugins as it should ({'; '.join(lines + strangers)}); the plan would be slow "
            f"or wrong. Is every plugin of {listed(plugins) if plugins else 'none'} registered, and no other?"
        )
    return {op: found[op] for op in wanted}


def _profile(builder: Any, profile: Profile) -> Any:
    """One optimisation profile for all inputs; a name the network lacks is none of its business."""
    shapes = builder.create_optimization_profile()
    if profile.tokens:
        for name in ("token_ids", "segment_ids", "position_ids"):
            shapes.set_shape(name, *((tokens,) for tokens in profile.tokens))
        shapes.set_shape("cu_seqlens", *((batch + 1,) for batch in profile.batch))
    elif profile.length:
        both = list(zip(profile.batch, profile.length, strict=True))
        for name in ("token_ids", "segment_ids", "padding_mask"):
            shapes.set_shape(name, *both)
    return shapes


def _one_layer(trt: Any, builder: Any) -> Any:
    """x [2, 2] times two."""
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    x = network.add_input("x", trt.DataType.FLOAT, (2, 2))
    two = network.add_constant((2, 2), np.eye(2, dtype=np.float32) * 2).get_output(0)
    plain = trt.MatrixOperation.NONE
    network.mark_output(network.add_matrix_multiply(x, plain, two, plain).get_output(0))
    return network


def _title(trt: Any) -> str:
    return f"{trt.__name__.removesuffix('_bindings')} {tensorrt_flavour.version(trt)}"


def _first(messages: list[str]) -> str:
    return " ".join(messages[0].split())[:400] if messages else "it gave no reason"
