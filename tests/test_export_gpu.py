"""The search for the first layer that differs, in a real plan on a GPU: `make test-gpu`."""

from dataclasses import replace
from typing import Any

import export_kit as kit
import numpy as np
import pytest
from plan_kit import PROFILES

import plugins
from export import engine, files, graph, quantisation, runners
from export.first_difference import ROUNDING, find
from export.plan_runner import plan_runner
from model.config import BertConfig
from plugins import compile as compiler
from plugins import formats, tensorrt_flavour
from plugins.linear8 import plugin as linear8
from plugins.linear_skip_layer_norm import plugin as linear_skip_layer_norm
from serve import gpu

pytestmark = pytest.mark.gpu
SIZES = kit.SIZES
WIDE = BertConfig(vocabulary=400, hidden=128, layers=2, heads=2, ffn=256, positions=64)  # our kernels' blocks fit


def search(folder, layout: str, names: tuple[str, ...], spoilt: str | None = None, config: BertConfig = SIZES) -> str:
    """What `find` says of a plan with these plugins, one weight of which is another one, against ONNX Runtime."""
    found = gpu.find()
    assert isinstance(found, gpu.Gpu), found
    weights = kit.tensors(config)
    files.save(graph.build(weights, config, precision="float32", layout=layout), folder / "model.onnx")
    if spoilt:
        weights[spoilt] = weights[spoilt] + np.float32(0.3) * np.sign(weights[spoilt])
    half = folder / "model.float16.onnx"
    fused = graph.fuses(names)
    files.save(graph.build(weights, config, precision="float16", layout=layout, fused=fused), half)
    sizes = compiler.Sizes(config.hidden, config.heads, graph.padded_head_size(config), config.ffn, layout, "none")
    kernels = compiler.compile_set(compiler.needed(sizes, "float16", names), found.architecture)
    plan = engine.Plan(names, (found.architecture,), PROFILES[layout])
    trt = tensorrt_flavour.load("tensorrt_rtx")
    ours = plan_runner(trt, half, plan, kernels, layout)(kit.batch(config))
    reference = runners.onnx_runner(folder / "model.onnx", kit.batch(config), layout)
    return find(half, ours, reference, ROUNDING["float16"])


APART = tuple(name for name in plugins.PLUGINS if name != "linear_skip_layer_norm")  # its parts take its place


@pytest.mark.parametrize("names", [tuple(plugins.PLUGINS), APART, ()], ids=["all", "apart", "none"])
@pytest.mark.parametrize("layout", graph.LAYOUTS)
@pytest.mark.parametrize("config", [SIZES, WIDE], ids=["narrow", "wide"])
def test_no_layer_of_a_plan_differs_from_onnx_runtime(tmp_path, layout, names, config):
    told = search(tmp_path, layout, names, config=config)
    assert told.startswith("no layer differs by more than 2 %"), told


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("format", quantisation.FORMATS)
@pytest.mark.parametrize("few", [True, False], ids=["few", "many"])
def test_a_plan_of_8_bit_products_is_what_onnx_runtime_computes_of_them(tmp_path, format, gelu, few, monkeypatch):
    """Products of our own, and those of cuBLASLt; one stays in 16 bits."""
    for module in () if few else (linear8, linear_skip_layer_norm):
        for name in [name for name in vars(module) if name.startswith("FEW_TOKENS")]:
            monkeypatch.setattr(module, name, 0)
    found = gpu.find()
    assert isinstance(found, gpu.Gpu), found
    weights, config, names = kit.tensors(WIDE), replace(WIDE, gelu=gelu), tuple(plugins.PLUGINS)
    scales = dict.fromkeys(quantisation.names(WIDE), 8 / formats.MOST[format])
    del scales["layers.1.attention.out"]
    settings: Any = {"layout": "packed", "quantisation": quantisation.Quantisation(format, scales, False)}
    files.save(graph.build(weights, config, precision="float32", **settings), tmp_path / "model.onnx")
    half = tmp_path / "model.8.onnx"
    files.save(graph.build(weights, config, precision="float16", fused=True, **settings), half)
    sizes = compiler.Sizes(128, 2, 64, 256, "packed", "none" if gelu == "erf" else "tanh", format)
    kernels = compiler.compile_set(compiler.needed(sizes, "float16", names), found.architecture)
    plan = engine.Plan(names, (found.architecture,), PROFILES["packed"])
    trt, batch = tensorrt_flavour.load("tensorrt_rtx"), kit.batch(WIDE)
    ours = plan_runner(trt, half, plan, kernels, "packed")(batch)
    reference = runners.onnx_runner(tmp_path / "model.onnx", batch, "packed")
    # 11 to 13 % on an H200: numbers of 8 bits that float16 rounds the other way, layer upon layer
    told = find(half, ours, reference, 0.2)
    assert told.startswith("no layer differs by more than 20 %"), told


@pytest.mark.parametrize(("weight", "node"), [
    ("layers.1.attention.qkv.kernel", "layer_1/attention/qkv"),
    ("layers.0.ffn.out.bias", "layer_0/ffn/norm"),
])  # fmt: skip
def test_the_first_node_of_a_plan_that_differs_is_named(tmp_path, weight, node):
    told = search(tmp_path, "packed", tuple(plugins.PLUGINS), weight)
    assert told.startswith(f"the first layer that differs is {node.split('/')[0]}: {node} by ")
