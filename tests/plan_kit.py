"""An engine folder with a real plan, built by the TensorRT that is installed, of a small BERT with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import export_kit
import onnx
import serve_kit

import plugins
from export import engine, graph
from plugins import compile as compiler
from plugins import kernels, tensorrt_flavour
from serve.fitting import source_hash
from serve.manifest import Profile, Range

PROFILES = {
    "packed": Profile(Range(1, 4, 8), Range(1, 64, 300), None),
    "padded": Profile(Range(1, 4, 8), None, Range(1, 16, 64)),
}


def write(
    folder: Path, architecture: int, layout: str = "packed", *, names: tuple[str, ...] = tuple(plugins.PLUGINS),
    precision: str = "float16", gelu: str = "erf",
) -> Path:  # fmt: skip
    """The folder: model.onnx in float32, the plan with the plugins `names` for one architecture, its kernels."""
    folder.mkdir(parents=True, exist_ok=True)
    config = replace(export_kit.SIZES, gelu=gelu)
    weights = export_kit.tensors(config)
    onnx.save(graph.build(weights, config, precision="float32", layout=layout), folder / "model.onnx")
    source = folder / f"model.{precision}.onnx"
    onnx.save(graph.build(weights, config, precision=precision, layout=layout, fused=graph.fuses(names)), source)
    trt = tensorrt_flavour.load("tensorrt_rtx")
    plan = engine.Plan(names, (architecture,), PROFILES[layout])
    engine.build(trt, source, folder / "model.plan", plan, graph.expected_nodes(config, fused=graph.fuses(names)))
    sizes = compiler.Sizes(
        config.hidden, config.heads, graph.padded_head_size(config), config.ffn, layout,
        "none" if gelu == "erf" else "tanh",
    )  # fmt: skip
    if needed := compiler.needed(sizes, precision, names):
        kernels.write(folder, architecture, compiler.compile_set(needed, architecture).values())
    (folder / "vocab.txt").write_text("\n".join(export_kit.vocabulary()) + "\n", encoding="utf-8")
    serve_kit.relist(folder, about(architecture, layout, names, precision, gelu))
    return folder


def about(
    architecture: int, layout: str = "packed", names: tuple[str, ...] = tuple(plugins.PLUGINS),
    precision: str = "float16", gelu: str = "erf",
) -> dict[str, Any]:  # fmt: skip
    """engine.json of such a folder, without its files."""
    return serve_kit.stated(
        layout, sizes=replace(export_kit.SIZES, gelu=gelu).to_dict(), precision=precision, gelu=gelu, window=64,
        profile={name: list(axis) for name, axis in vars(PROFILES[layout]).items() if axis}, target="tensorrt_rtx",
        tensorrt=tensorrt_flavour.version(tensorrt_flavour.load("tensorrt_rtx")), architectures=[architecture],
        plugins={name: source_hash(name) for name in names},
    )  # fmt: skip
