"""The ONNX graph: Keras's logits in both layouts, names and types, weights used once, padded heads, large files."""

import functools
import re
from dataclasses import replace

import export_kit as kit
import numpy as np
import onnx
import pytest
from onnx import TensorProto

import plugins
from configs.errors import UserError
from export import files, graph
from export.runners import padded
from heads import default
from model.config import BertConfig
from model.heads import HeadModel

SPAN = default()

FORMS = ("erf", "tanh")
PRECISIONS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
SIZES = kit.SIZES


def sizes(gelu: str) -> BertConfig:
    return replace(SIZES, gelu=gelu)


@functools.cache
def keras(gelu: str) -> tuple[np.ndarray, ...]:
    """Keras on the kit's batch: start logits, end logits, encoder's output; [T], [T], [T, H] real tokens."""
    model = HeadModel(SPAN, sizes(gelu))
    weights = kit.tensors(SIZES)
    for name, variable in model.names().items():
        variable.assign(weights[name])
    inputs, mask = padded(kit.batch())
    arguments = [inputs[name] for name in ("token_ids", "segment_ids", "padding_mask")]
    return tuple(array.numpy()[mask] for array in (*model(*arguments), model.encoder(*arguments).output))


def build(gelu: str = "erf", precision: str = "float32", layout: str = "packed", **more) -> onnx.ModelProto:
    return graph.build(kit.tensors(SIZES), sizes(gelu), precision=precision, layout=layout, **more)


def outputs(model, layout: str = "packed") -> list[np.ndarray]:
    """A model's outputs for the kit's batch, real tokens alone."""
    if layout == "packed":
        return [array[: kit.batch().tokens] for array in kit.compute(model, kit.packed_inputs(kit.batch()))]
    inputs, mask = padded(kit.batch())
    return [array[mask] for array in kit.compute(model, inputs)]


@pytest.mark.parametrize("gelu", FORMS)
@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_logits_are_those_of_keras(layout, gelu):
    start, end = outputs(build(gelu, layout=layout), layout)
    assert start.dtype == end.dtype == np.float32
    np.testing.assert_allclose(start, keras(gelu)[0], atol=1e-4, rtol=0)
    np.testing.assert_allclose(end, keras(gelu)[1], atol=1e-4, rtol=0)
    assert np.abs(keras("erf")[0] - keras("tanh")[0]).max() > 3e-4  # or the form of GELU would not be seen
    assert np.abs(start - end).max() > 0.1


@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_another_form_of_gelu_than_the_checkpoints_is_computed_when_asked_for(layout):
    start, _ = outputs(graph.build(kit.tensors(SIZES), SIZES, precision="float32", layout=layout, gelu="tanh"), layout)
    np.testing.assert_allclose(start, keras("tanh")[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layout", graph.LAYOUTS)
def test_float16_logits_are_near(layout):
    for ours, theirs in zip(outputs(build(precision="float16", layout=layout), layout), keras("erf")[:2], strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=0.05, rtol=0)


def test_the_encoder_alone_gives_its_last_hidden_state():
    model = build(head=None)
    assert [output.name for output in model.graph.output] == ["encoded"]
    np.testing.assert_allclose(outputs(model)[0], keras("erf")[2], atol=1e-4, rtol=0)
    half = build(precision="float16", head=None).graph.output[0].type.tensor_type
    assert half.elem_type == TensorProto.FLOAT16
    assert [axis.dim_value or axis.dim_param for axis in half.shape.dim] == ["T", SIZES.hidden]


@pytest.mark.parametrize("layout", graph.LAYOUTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_checker_passes_and_types_are_the_precisions(precision, layout):
    model = build(precision=precision, layout=layout)
    onnx.checker.check_model(model, full_check=True)
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for name, dtype in types.items():
        if re.search(r"norm\.(scale|offset)$|^span\.", name):
            assert dtype == TensorProto.FLOAT, name
        elif name in kit.tensors(SIZES):
            assert dtype == PRECISIONS[precision], name
    assert {value.name: value.type.tensor_type.elem_type for value in model.graph.input} == dict.fromkeys(
        ("token_ids", "segment_ids", "position_ids", "cu_seqlens")
        if layout == "packed"
        else ("token_ids", "segment_ids", "padding_mask"),
        TensorProto.INT32,
    )
    assert {value.type.tensor_type.elem_type for value in model.graph.output} == {TensorProto.FLOAT}


@pytest.mark.parametrize("gelu", FORMS)
def test_nodes_say_where_they_are_and_weights_keep_their_names(gelu):
    model = build(gelu, layout="padded")
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    parts = "attention/qkv attention/context attention/out attention/norm ffn/in ffn/gelu ffn/out ffn/norm".split()
    parts = [part for part in parts if gelu == "erf" or part != "ffn/gelu"]
    ours = [node.name for node in model.graph.node if node.domain == plugins.DOMAIN]
    assert ours == ["embeddings"] + [f"layer_{index}/{part}" for index in (0, 1) for part in parts]
    assert all(node.output[0] == node.name for node in model.graph.node if not node.name.startswith("head/"))
    # Every weight of the checkpoint is there once, and read by a node.
    read = [name for node in model.graph.node for name in node.input]
    weights = {name for name in kit.tensors(SIZES) if not name.startswith("span.")}
    weights |= {f"span.{part}.{word}" for part in ("kernel", "bias") for word in ("start", "end")}  # a column each
    assert weights <= {tensor.name for tensor in model.graph.initializer}
    assert {name: read.count(name) for name in weights} == dict.fromkeys(weights, 1)


@pytest.mark.parametrize("gelu", FORMS)
def test_the_numbers_of_nodes_are_those_expected(gelu):
    found = [node.op_type for node in build(gelu).graph.node if node.domain == plugins.DOMAIN]
    assert {op: found.count(op) for op in set(found)} == graph.expected_nodes(sizes(gelu))
    fused = [node.op_type for node in build(gelu, fused=True).graph.node if node.domain == plugins.DOMAIN]
    assert {op: fused.count(op) for op in set(fused)} == graph.expected_nodes(sizes(gelu), fused=True)
    assert graph.expected_nodes(sizes("erf"), "tanh") == graph.expected_nodes(sizes("tanh"))
    assert graph.expected_nodes(BertConfig())["attention"] == 12


def test_every_node_names_the_plugin_that_may_stand_for_it_and_its_function_declares_that():
    model = build("tanh")
    declared = {function.name: set(function.attribute) for function in model.functions}
    assert set(declared) == {"embed_layer_norm", "attention", "skip_layer_norm", "linear", "linear_gelu"}
    for node in model.graph.node:
        if node.domain == plugins.DOMAIN:
            stated = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
            assert (stated["plugin_namespace"], stated["plugin_version"]) == (b"retort", b"1")
            assert set(stated) == declared[node.op_type]


def test_an_op_without_its_body_is_left_to_a_plugin():
    model = build(bare=frozenset({"attention", "linear"}))
    assert {function.name for function in model.functions} == {"embed_layer_norm", "skip_layer_norm", "gelu"}
    assert sum(node.op_type == "attention" for node in model.graph.node) == SIZES.layers
    onnx.checker.check_model(model)


def test_heads_of_26_are_32_with_zeros_and_their_own_scale():
    model = build()
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kernel = weights["layers.0.attention.qkv.kernel"].reshape(SIZES.hidden, 3, 2, 32)
    out = weights["layers.0.attention.out.kernel"].reshape(2, 32, SIZES.hidden)
    assert not kernel[..., 26:].any()
    assert not out[:, 26:].any()
    theirs = kit.tensors(SIZES)["layers.0.attention.qkv.kernel"].reshape(SIZES.hidden, 3, 2, 26)
    np.testing.assert_array_equal(kernel[..., :26], theirs)
    scale = next(a.f for n in model.graph.node if n.op_type == "attention" for a in n.attribute if a.name == "scale")
    assert scale == np.float32(26**-0.5)
    assert graph.padded_head_size(BertConfig()) == 64
    whole = replace(SIZES, hidden=32)
    assert graph.padded_head_size(whole) == 16


def test_what_a_packed_sequence_gets_does_not_depend_on_its_neighbours_or_the_tail():
    model, sequences = build(), kit.batch()
    together = outputs(model)[0]
    for index in range(len(sequences)):
        alone = kit.compute(model, kit.packed_inputs(sequences.take(index, index + 1), tail=0))[0]
        part = together[sequences.cu_seqlens[index] : sequences.cu_seqlens[index + 1]]
        np.testing.assert_allclose(part, alone, atol=1e-5, rtol=0)


def test_large_weights_lie_in_a_file_beside_the_model(tmp_path):
    small, large = tmp_path / "small.onnx", tmp_path / "large.onnx"
    assert files.save(build(), small) == [small]
    for _ in range(2):  # written over an older one, it does not grow
        written = files.save(build(), large, external_from=1000)
    assert written == [large, tmp_path / "large.onnx.data"]
    assert large.stat().st_size < small.stat().st_size / 4
    assert sum(path.stat().st_size for path in written) < 1.2 * small.stat().st_size
    np.testing.assert_array_equal(outputs(large)[0], outputs(small)[0])
    kept = {tensor.name for tensor in onnx.load(large, load_external_data=False).graph.initializer if tensor.raw_data}
    assert "head/axis" in kept
    assert "embeddings.token" not in kept


def test_a_weight_beyond_float16_is_refused_by_name():
    weights = kit.tensors(SIZES)
    weights["layers.1.ffn.in.kernel"][3, 4] = -7e4
    message = "layers.1.ffn.in.kernel reaches 7e+04, float16 ends at 65,504; export with --precision bfloat16"
    with pytest.raises(UserError, match=re.escape(message)):
        graph.build(weights, SIZES, precision="float16", layout="packed")
    graph.build(weights, SIZES, precision="bfloat16", layout="packed")
