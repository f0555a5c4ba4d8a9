"""The graph with 8-bit products: each of them may stay in 16 bits, joined nodes, the kernels it needs, marked nodes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import export_kit as kit
import numpy as np
import onnx
import pytest
from onnx import helper

import plugins
from export import engine, files, first_difference, graph, ranges, runners
from export.quantisation import FORMATS, Quantisation, names
from model.config import BertConfig
from plugins import compile as compiler
from plugins import formats, legs, tensorrt_flavour
from serve.manifest import Profile, Range

SIZES = BertConfig(vocabulary=400, hidden=64, layers=2, heads=2, ffn=96, positions=64)  # all multiples of 16


def all_of(format, channels=False):
    return Quantisation(format, dict.fromkeys(names(SIZES), 8 / formats.MOST[format]), channels)


PLAIN = ("linear", "linear_gelu", "linear_skip_layer_norm", "linear_skip_layer_norm8")


@pytest.mark.parametrize("fused", [False, True])
def test_each_product_can_stay_in_16_bits(fused):
    for left_out in names(SIZES):
        for gelu in ("erf", "tanh"):
            scales = {name: scale for name, scale in all_of("float8").scales.items() if name != left_out}
            some = Quantisation("float8", scales, False)
            model = graph.build(
                kit.tensors(SIZES), replace(SIZES, gelu=gelu), precision="float16", layout="packed", fused=fused,
                quantisation=some,
            )  # fmt: skip
            onnx.checker.check_model(model, full_check=True)
            products = {name: node.op_type for node in model.graph.node if (name := ranges.product_of(node))}
            assert sorted(products) == sorted(names(SIZES))
            assert [name for name, op in products.items() if op in PLAIN] == [left_out]
            start, end = kit.compute(model, kit.packed_inputs(kit.batch(SIZES)))
            assert np.isfinite(start).all()
            assert np.isfinite(end).all()
    counts = graph.count_nodes(model)  # of the last: ffn.out of the last layer is left out, whose norm gives no 8 bits
    joined = {"linear8": 2, "linear8_skip_layer_norm8": 3, "linear_skip_layer_norm": 1}
    parts = {"linear": 1, "linear8": 5, "skip_layer_norm": 1, "skip_layer_norm8": 3}
    gelu8 = {"linear8_gelu8": 1, "linear8_gelu": 1}
    assert counts == {"embed_layer_norm8": 1, "attention8": 2} | gelu8 | (joined if fused else parts)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("channels", [False, True])
def test_a_norm_joined_to_its_product_changes_no_answer(gelu, channels):
    """And int8 products, which have no such node, stay apart."""
    for format in FORMATS:
        found = []
        for fused in (False, True):
            model = graph.build(
                kit.tensors(SIZES), replace(SIZES, gelu=gelu), precision="float32", layout="packed", fused=fused,
                quantisation=all_of(format, channels),
            )  # fmt: skip
            found.append(np.stack(kit.compute(model, kit.packed_inputs(kit.batch(SIZES)))))
            joined = graph.count_nodes(model).get("linear8_skip_layer_norm8", 0)
            assert joined == (3 if fused and format == "float8" else 0)
        np.testing.assert_allclose(*found, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_every_kernel_that_a_node_asks_for_is_among_those_of_its_engine(format, gelu):
    for left_out in (None, "layers.0.attention.out", "layers.1.ffn.in", "layers.0.ffn.out"):
        scales = {name: scale for name, scale in all_of(format).scales.items() if name != left_out}
        config = replace(SIZES, gelu=gelu, ffn=128)
        model = graph.build(
            kit.tensors(config), config, precision="float16", layout="packed", fused=True,
            quantisation=Quantisation(format, scales, False),
        )  # fmt: skip
        sizes = compiler.Sizes(64, 2, 32, 128, "packed", "none" if gelu == "erf" else "tanh", format)
        made = {variant.name for variant in compiler.needed(sizes, "float16")}
        weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.domain != plugins.DOMAIN:
                continue
            plugin = plugins.plugin(node.op_type)
            values = {item.name: helper.get_attribute_value(item) for item in node.attribute}
            values = {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}
            case = SimpleNamespace(attributes={name: values[name] for name in plugin.attributes})
            given = dict(zip(plugin.inputs, node.input, strict=True))
            shapes = {name: weights.get(source, ()) for name, source in given.items()}
            shapes = {"x": (1, 64), "qkv": (1, 192)} | {name: shape for name, shape in shapes.items() if shape}
            assert set(legs.variants(node.op_type, case, shapes, "float16")) <= made


@pytest.mark.parametrize(("gelu", "node"), [("tanh", "layer_0/ffn/in"), ("erf", "layer_0/ffn/gelu")])
def test_a_marked_8_bit_output_is_what_it_stands_for(gelu, node, tmp_path):
    form, some = replace(SIZES, gelu=gelu), all_of("float8")
    settings: Any = {"layout": "packed", "fused": True, "quantisation": some}
    model = graph.build(kit.tensors(SIZES), form, precision="float32", **settings)
    wanted = ["layer_0/attention/context", node, "layer_0/attention/norm"]
    assert {node.op_type for node in model.graph.node if node.name in wanted} == {
        "attention8", "linear8_gelu8", "linear8_skip_layer_norm8",
    }  # fmt: skip
    files.save(model, tmp_path / "eight.onnx")
    files.save(graph.build(kit.tensors(SIZES), form, precision="float32", layout="packed"), tmp_path / "plain.onnx")
    batch = kit.batch(SIZES)
    eight, plain = (runners.onnx_runner(tmp_path / f"{n}.onnx", batch, "packed")(wanted) for n in ("eight", "plain"))
    differences = first_difference.relative(eight, plain, wanted)
    assert 0.005 < max(differences.values()) < 0.2
    trt = tensorrt_flavour.load("tensorrt_rtx")  # and TensorRT reads such a marked graph
    half = graph.build(kit.tensors(SIZES), form, precision="float16", **settings)
    files.save(half, tmp_path / "half.onnx")
    copy = first_difference.mark(tmp_path / "half.onnx", wanted)
    expected = first_difference.counts(copy)
    profile = Profile(Range(1, 2, 4), Range(1, 64, 256), None)
    plan = engine.Plan(tuple(plugins.PLUGINS), (89,), profile)
    assert engine.build(trt, copy, tmp_path / "plan", plan, expected) == expected
