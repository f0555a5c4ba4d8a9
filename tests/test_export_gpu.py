"""The search for the first layer that differs, in a real plan on a GPU: `make test-gpu`."""

import export_kit as kit
import numpy as np
import pytest
from plan_kit import PROFILES

import plugins
from export import engine, files, graph, runners
from export.first_difference import ROUNDING, find
from export.plan_runner import plan_runner
from plugins import compile as compiler
from plugins import tensorrt_flavour
from serve import gpu

pytestmark = pytest.mark.gpu
SIZES = kit.SIZES


def search(folder, layout: str, names: tuple[str, ...], spoilt: str | None = None) -> str:
    """What `find` says of a plan with these plugins, one weight of which is another one, against ONNX Runtime."""
    found = gpu.find()
    assert isinstance(found, gpu.Gpu), found
    weights = kit.tensors(SIZES)
    files.save(graph.build(weights, SIZES, precision="float32", layout=layout), folder / "model.onnx")
    if spoilt:
        weights[spoilt] = weights[spoilt] + np.float32(0.3) * np.sign(weights[spoilt])
    half = folder / "model.float16.onnx"
    fused = graph.fuses(names)
    files.save(graph.build(weights, SIZES, precision="float16", layout=layout, fused=fused), half)
    sizes = compiler.Sizes(SIZES.hidden, SIZES.heads, graph.padded_head_size(SIZES), SIZES.ffn, layout, "none")
    kernels = compiler.compile_set(compiler.needed(sizes, "float16", names), found.architecture)
    plan = engine.Plan(names, (found.architecture,), PROFILES[layout])
    trt = tensorrt_flavour.load("tensorrt_rtx")
    ours = plan_runner(trt, half, plan, kernels, layout)(kit.batch())
    reference = runners.onnx_runner(folder / "model.onnx", kit.batch(), layout)
    return find(half, ours, reference, ROUNDING["float16"])


@pytest.mark.parametrize("names", [tuple(plugins.PLUGINS), ()], ids=["all", "none"])
@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_no_layer_of_a_plan_differs_from_onnx_runtime(tmp_path, layout, names):
    assert search(tmp_path, layout, names).startswith("no layer differs by more than 2 %")


@pytest.mark.parametrize(("weight", "node"), [
    ("layers.1.attention.qkv.kernel", "layer_1/attention/qkv"),
    ("layers.0.ffn.out.bias", "layer_0/ffn/norm"),
])  # fmt: skip
def test_the_first_node_of_a_plan_that_differs_is_named(tmp_path, weight, node):
    told = search(tmp_path, "packed", tuple(plugins.PLUGINS), weight)
    assert told.startswith(f"the first layer that differs is {node.split('/')[0]}: {node} by ")
