"""Plans by the TensorRT that is installed, built for real: plugins counted, what is lacking refused, Ctrl-C obeyed."""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import export_kit as kit
import pytest

import plugins
from configs.errors import UserError
from export import engine, files, graph, progress
from export.first_difference import counts, mark
from plugins import registration, tensorrt_flavour
from serve.manifest import Profile, Range

PACKED = Profile(Range(1, 4, 8), Range(1, 64, 512), None)
PADDED = Profile(Range(1, 4, 8), None, Range(1, 32, 64))
ALL = tuple(plugins.PLUGINS)
SIZES = kit.SIZES


@pytest.fixture(scope="module")
def trt():
    return tensorrt_flavour.load("tensorrt_rtx")


@pytest.fixture
def build(trt, tmp_path):
    """build(plugins, ...) -> (plugin layers, the plan's file) of the kit's model."""

    def run(names=(), gelu="erf", precision="float16", layout="packed", bare=frozenset(), features=(), archs=(89,)):
        sizes = replace(SIZES, gelu=gelu)
        fused = graph.fuses(names)
        model = graph.build(kit.tensors(sizes), sizes, precision=precision, layout=layout, fused=fused, bare=bare)
        files.save(model, tmp_path / "model.onnx")
        plan = engine.Plan(tuple(names), archs, PACKED if layout == "packed" else PADDED, features)
        out = tmp_path / "model.plan"
        return engine.build(trt, tmp_path / "model.onnx", out, plan, graph.expected_nodes(sizes, fused=fused)), out

    return run


@pytest.mark.parametrize("names", [(), ALL, *((name,) for name in ALL)], ids=lambda names: "+".join(names) or "none")
def test_a_plan_has_the_plugins_asked_for_at_every_node_and_no_others(build, names):
    layers, plan = build(names)
    parts = {"skip_layer_norm": 4, "linear": 8, "gelu": 2}
    joined = {"linear": 2, "linear_gelu": 2, "linear_skip_layer_norm": 4}
    expected = {"embed_layer_norm": 1, "attention": 2} | (joined if graph.fuses(names) else parts)
    assert layers == {op: count for op, count in expected.items() if plugins.OPS[op] in names}
    assert plan.stat().st_size > 10_000


@pytest.mark.parametrize(("precision", "layout"), [("bfloat16", "packed"), ("float16", "padded")])
def test_a_plan_of_the_tanh_form_has_its_gelu_inside_linear(build, precision, layout):
    layers, plan = build(ALL, gelu="tanh", precision=precision, layout=layout)
    expected = {"embed_layer_norm": 1, "attention": 2, "linear": 2, "linear_gelu": 2, "linear_skip_layer_norm": 4}
    assert layers == expected
    assert plan.is_file()


@pytest.mark.parametrize(("precision", "layout"), [("float32", "packed"), ("bfloat16", "padded")])
def test_a_plan_needs_no_plugin_in_any_precision_or_layout(build, precision, layout):
    assert build((), precision=precision, layout=layout)[0] == {}


@pytest.mark.parametrize("precision", graph.DTYPES)
def test_one_plan_holds_for_all_architectures_that_are_offered(build, trt, precision):
    names = () if precision == "float32" else ALL
    assert build(names, precision=precision, archs=engine.offered(trt, precision))[1].is_file()


def test_a_plan_of_the_first_layers_nodes_alone_is_built_without_the_nodes_behind_them(trt, tmp_path):
    model = tmp_path / "model.onnx"
    files.save(graph.build(kit.tensors(SIZES), SIZES, precision="float16", layout="packed", fused=True), model)
    copy = mark(model, ["layer_0/attention/context", "layer_0/ffn/norm"])
    wanted = {"embed_layer_norm": 1, "attention": 1, "linear": 1, "linear_gelu": 1, "linear_skip_layer_norm": 2}
    assert counts(copy) == wanted
    plan = engine.Plan(ALL, (89,), PACKED)
    assert engine.build(trt, copy, tmp_path / "model.plan", plan, counts(copy)) == wanted


def test_a_plugin_that_was_not_registered_stops_the_build(build, monkeypatch):
    @contextmanager
    def forgetful(trt, names, kernels=None):
        with registered(trt, [name for name in names if name != "attention"], kernels):
            yield

    registered = registration.registered
    monkeypatch.setattr(registration, "registered", forgetful)
    with pytest.raises(UserError, match="attention: 0 plugin layers for 2 nodes; linear: 2 plugin layers"):
        build(ALL)


def test_a_plugin_that_nobody_asked_for_stops_the_build(build, trt):
    with registration.registered(trt, ["gelu"]), pytest.raises(UserError, match="gelu: 2 plugin layers, none was ask"):
        build(())


def test_the_plugins_are_forgotten_when_a_plan_is_built(build):
    build(("gelu",))
    assert build(())[0] == {}


def test_a_graph_without_bodies_is_read_with_its_plugins_and_not_without(build):
    layers, _ = build(("attention",), bare=frozenset({"attention"}))
    assert layers == {"attention": 2}
    with pytest.raises(UserError, match=r"tensorrt_rtx 1\.\S+ cannot read model.onnx: .*attention"):
        build((), bare=frozenset({"attention"}))


def test_what_is_no_onnx_is_refused_in_a_sentence(trt, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07 not a model")
    plan = engine.Plan((), (89,), PACKED)
    with pytest.raises(UserError, match=r"cannot read model\.onnx"):
        engine.build(trt, tmp_path / "model.onnx", tmp_path / "model.plan", plan, {})


def test_what_this_tensorrt_cannot_do_is_refused_by_its_flag(trt, build):
    if not any(path.exists() for path in (Path("/dev/nvidia0"), Path("/dev/nvidiactl"))):
        with pytest.raises(UserError, match=r"rtx 1\.\S+ cannot do --refit on this machine \(it says: .+leave the"):
            build(features=("refit",))
    with pytest.raises(UserError, match=r"cannot do --version-compatible on this machine .it says: .*lean"):
        build(features=("version_compatible",))


def test_a_feature_that_is_not_there_at_all_is_refused(monkeypatch, trt):
    monkeypatch.setattr(tensorrt_flavour, "has", lambda trt, feature: False)
    with pytest.raises(UserError, match="cannot do --weight-streaming on this machine; leave the flag out"):
        engine.refuse_missing(trt, ("weight_streaming",))


def test_what_it_can_do_is_done(build):
    assert build(features=("weight_streaming",))[1].is_file()


def test_the_profile_has_the_shape_of_every_input():
    class Recorder(dict):
        def set_shape(self, name, least, usual, most):
            self[name] = [tuple(least), tuple(usual), tuple(most)]

    builder = SimpleNamespace(create_optimization_profile=Recorder)
    row = [(1,), (64,), (512,)]
    assert engine._profile(builder, PACKED) == {
        "token_ids": row, "segment_ids": row, "position_ids": row, "cu_seqlens": [(2,), (5,), (9,)],
    }  # fmt: skip
    both = [(1, 1), (4, 32), (8, 64)]
    assert engine._profile(builder, PADDED) == dict.fromkeys(("token_ids", "segment_ids", "padding_mask"), both)


def test_a_target_that_is_not_installed_is_an_error_by_name_and_passed_over_by_auto(monkeypatch):
    load = tensorrt_flavour.load
    assert engine.choose_target("none")[:2] == (None, None)
    name, module, why = engine.choose_target("auto")
    assert (name, module, why) == (name, load(name), "installed")

    def nothing(target):
        raise UserError(f"{target} is not installed; get it")

    monkeypatch.setattr(tensorrt_flavour, "load", nothing)
    with pytest.raises(UserError, match="tensorrt is not installed; get it"):
        engine.choose_target("tensorrt")
    assert engine.choose_target("auto") == (
        None, None, "tensorrt is not installed; get it; tensorrt_rtx is not installed; get it",
    )  # fmt: skip


def test_architectures_are_those_asked_for_or_this_gpu_or_all_that_are_possible(trt):
    possible = engine.offered(trt, "float16")
    assert {75, 80, 86, 89, 120} <= set(possible)
    assert engine.choose_architectures(trt, "float16", None, None) == possible
    assert engine.choose_architectures(trt, "float16", None, 89) == (89,)
    assert engine.choose_architectures(trt, "float16", (80, 120), 89) == (80, 120)
    # Nothing is set then, and TensorRT takes the GPU it sees.
    assert engine.choose_architectures(trt, "float16", (90,), 90) == (90,)
    for precision in ("bfloat16", "float32"):  # no tensor cores for these before 8.0
        assert engine.choose_architectures(trt, precision, None, None) == possible[1:]


@pytest.mark.parametrize(("asked", "gpu", "message"), [
    ((90,), None, r"builds float16 plans for 75, 80, 86, 89, 120 or 121 in one plan; --arch says 90. Choose"),
    ((89, 90), 90, r"or 121 in one plan, or for this machine's GPU, 90, alone; --arch says 89,90. Choose"),
])  # fmt: skip
def test_an_architecture_that_cannot_be_built_for_here_is_refused(trt, asked, gpu, message):
    with pytest.raises(UserError, match=message):
        engine.choose_architectures(trt, "float16", asked, gpu)


def test_full_tensorrt_builds_on_a_gpu_alone():
    full = SimpleNamespace(__name__="tensorrt", __version__="11.0")
    with pytest.raises(UserError, match="builds plans on the GPU they are for, and there is none here"):
        engine.choose_architectures(full, "float16", None, None)
    assert engine.choose_architectures(full, "float16", None, 90) == (90,)
    with pytest.raises(UserError, match=r"float16 plans for this machine's GPU, 90, alone; --arch says 80\. Choose"):
        engine.choose_architectures(full, "float16", (80,), 90)


def test_progress_is_shown_and_ctrl_c_stops_the_build(build, monkeypatch):
    bars = []

    class Bar:
        n = 0

        def __init__(self, desc, total, **_):
            self.title, self.total, self.open = desc, total, True
            bars.append(self)

        def update(self, steps):
            self.n += steps
            if self.title == stop_at:
                raise KeyboardInterrupt

        def close(self):
            self.open = False

    monkeypatch.setattr(progress, "tqdm", Bar)
    stop_at = None
    _, out = build()
    assert {"Building engine", "Optimizing graph"} <= {bar.title for bar in bars}
    assert sum(bar.n for bar in bars) > 20
    out.unlink()
    bars.clear()
    stop_at = "Optimizing graph"
    with pytest.raises(KeyboardInterrupt):
        build()
    assert "Timing tactics" not in {bar.title for bar in bars}  # it comes after, and takes the time
    assert not any(bar.open for bar in bars)
    assert not out.exists()


def test_bars_of_a_build_that_broke_off_are_removed(trt):
    shown = progress.monitor(trt)
    shown.phase_start("Building engine", None, 6)
    assert shown.step_complete("Building engine", 0)
    shown.close()
    assert not shown.bars
    shown.phase_finish("Building engine")  # late, and of no consequence
