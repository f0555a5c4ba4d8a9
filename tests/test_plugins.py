"""What all plugins share: registration, finding TensorRT, the interpreter, what counts as right."""

import contextlib
import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import plugins
from configs.errors import UserError
from plugins import legs, measure, one_node, registration, tensorrt_flavour, tensorrt_values
from plugins.gelu.cases import CASES
from plugins.gelu.plugin import Gelu
from plugins.kernels import KernelSet

ROOT = Path(__file__).parent.parent
ODD = next(case for case in CASES if case.name == "odd")


@pytest.fixture
def trt():
    return tensorrt_flavour.load("tensorrt_rtx")


def test_every_plugin_has_its_folder_and_every_operator_its_plugin_and_function():
    for op, folder in plugins.OPS.items():
        there = {path.name for path in (ROOT / "plugins" / folder).iterdir()}
        assert {"README.md", "reference.py", "function.py", "plugin.py", "cases.py", f"test_{folder}.py"} <= there
        assert plugins.plugin(op).op == op
    assert set(plugins.OPS.values()) == set(plugins.PLUGINS)
    assert plugins.ops_of(["linear"]) == ["linear", "linear_gelu"]


# Registration


def creator(trt, op="gelu"):
    return trt.get_plugin_registry().get_creator(op, "1", "retort")


def test_plugins_are_registered_inside_the_block_and_not_after_it(trt):
    def fail_inside():
        with registration.registered(trt, ["gelu", "linear"]):
            assert all(creator(trt, op) for op in ("gelu", "linear", "linear_gelu"))
            assert creator(trt, "skip_layer_norm") is None
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert not any(creator(trt, op) for op in ("gelu", "linear", "linear_gelu"))


def test_instances_keep_the_kernels_of_the_engine_they_were_opened_with(trt):
    opened = []
    for where in ("first", "second"):
        with registration.registered(trt, ["gelu"], KernelSet.of([], where)):
            given = tensorrt_values.Fields(trt, {"approximate": "tanh"})
            made = creator(trt).create_plugin("n", given.collection, trt.TensorRTPhase.RUNTIME)
            opened.append(made.clone())
    assert [instance.plugin.kernels.where for instance in opened] == ["first", "second"]


def test_a_run_finds_its_workspace_at_a_multiple_of_what_cublaslt_wants_and_all_of_it(trt):
    bound = registration._bound_class(trt, plugins.plugin("linear"))(plugins.plugin("linear")({}))
    sizes = {"x": (32, 64), "weight": (64, 96), "bias": (96,), "y": (32, 96)}
    tensors = [SimpleNamespace(max=size, desc=SimpleNamespace(type=trt.float16)) for size in sizes.values()]
    asked, needed = bound.get_workspace_size(tensors[:3], tensors[3:]), bound.plugin.workspace(sizes, "float16")
    found = []
    bound.shapes = ("float16", *sizes.values())
    bound.ready[bound.shapes] = lambda stream, addresses, workspace: found.append((stream, addresses, workspace))
    for placed in (0x7F0000001080, 0x7F0000001000, 0x7F0000001001):  # TensorRT-RTX 1.6.1 has given the first
        bound.enqueue(None, None, [16, 32, 48], [64], placed, 5)
        stream, addresses, workspace = found[-1]
        assert (stream, addresses, workspace % 256) == (5, [16, 32, 48, 64], 0)
        assert placed <= workspace <= placed + asked - needed
    gelu = registration._bound_class(trt, Gelu)(Gelu({}))
    assert gelu.get_workspace_size(tensors[:1], tensors[:1]) == 0


def test_attributes_survive_being_serialised(trt):
    with registration.registered(trt, ["gelu", "skip_layer_norm"]):
        for op, values in (("gelu", {"approximate": "tanh"}), ("skip_layer_norm", {"epsilon": 0.25})):
            given = tensorrt_values.Fields(trt, values)
            first = creator(trt, op).create_plugin("n", given.collection, trt.TensorRTPhase.BUILD)
            again = creator(trt, op).create_plugin("n", first.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
            assert first.plugin.values == again.plugin.values == values


def test_fields_live_as_long_as_their_owner(trt):
    values = {"text": "tanh", "number": 3, "fraction": 0.25}
    held = [tensorrt_values.Fields(trt, values) for _ in range(200)]
    noise = [(np.full(1, 7, np.int32), bytes([7, 7, 7, index % 256])) for index in range(2000)]
    for fields in held:
        read = {field.name: tensorrt_values.value_of(field, values[field.name]) for field in fields.collection}
        assert read == values
    assert len(noise) == 2000


def test_the_plan_holds_the_attributes_of_the_node(trt):
    case = dataclasses.replace(legs.part("skip_layer_norm", "cases").CASES[0], epsilon=0.123456)
    plan, _ = one_node.build(trt, "skip_layer_norm", case, "float16", names=["skip_layer_norm"])
    assert np.float32(0.123456).tobytes() in plan


def test_a_node_without_its_attribute_is_an_error_of_the_parser(trt):
    case = SimpleNamespace(name="bare", attributes={}, shape=(2, 8), largest=1.0)
    with pytest.raises(RuntimeError, match="parser"):
        one_node.build(trt, "gelu", case, "float16", names=["gelu"])


def test_float32_activations_are_refused_by_the_plugin(trt):
    with pytest.raises(RuntimeError, match="builder"):
        one_node.build(trt, "gelu", ODD, "float32", names=["gelu"])


def test_all_activations_must_have_one_dtype(trt, monkeypatch):
    original = legs.model

    def mixed(*arguments, **options):
        model = original(*arguments, **options)
        model.graph.input[1].type.tensor_type.elem_type = legs.ONNX["bfloat16"]
        return model

    monkeypatch.setattr(legs, "model", mixed)
    case = legs.part("skip_layer_norm", "cases").CASES[0]
    with pytest.raises(RuntimeError, match="builder"):
        one_node.build(trt, "skip_layer_norm", case, "float16", names=["skip_layer_norm"])


def test_open_axes_give_open_outputs(trt):
    assert one_node.build(trt, "gelu", ODD, "float16", names=["gelu"], axes=True)[1] == 1
    case = legs.part("embed_layer_norm", "cases").CASES[3]
    assert one_node.build(trt, "embed_layer_norm", case, "float16", names=["embed_layer_norm"], axes=True)[1] == 1


def test_running_without_kernels_and_unknown_attributes_are_errors():
    with pytest.raises(ValueError, match="registered without kernels"):
        Gelu({"approximate": "tanh"}).prepare({"x": (3,), "y": (3,)}, "float16")
    with pytest.raises(ValueError, match="no attribute scale"):
        Gelu({"scale": 1.0})


# The interpreter


def test_the_interpreter_rounds_to_bfloat16_across_a_power_of_two():
    case = SimpleNamespace(attributes={"epsilon": 1e-12})
    given = legs.inputs("skip_layer_norm", legs.part("skip_layer_norm", "cases").CASES[0], "bfloat16")
    given |= {"gamma": np.zeros(384, np.float32), "beta": np.full(384, 1.999, np.float32)}
    (y,) = legs.interpreted("skip_layer_norm", [(case, given, "bfloat16")])
    assert (y == 2.0).all()


# TensorRT by its names


def in_a_new_process(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=environment
    )


BUILD = """
from plugins import one_node, tensorrt_flavour
from plugins.gelu.cases import CASES
print(one_node.build(tensorrt_flavour.load("tensorrt_rtx"), "gelu", CASES[2], "float16", ["gelu"])[1])
"""


def test_a_plugin_node_is_parsed_with_an_empty_cache_and_the_wheel_untouched(tmp_path):
    done = in_a_new_process(BUILD, RETORT_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    (link,) = tmp_path.rglob("libtensorrt_rtx.so")
    assert not (link.resolve().parent / link.name).exists()


def test_an_import_behind_our_back_is_an_error_and_no_abort(tmp_path):
    done = in_a_new_process("import tensorrt_rtx" + BUILD, RETORT_CACHE=str(tmp_path))
    assert done.returncode == 1
    assert "parser would abort at a plugin" in done.stderr.splitlines()[-1]


def test_an_absent_tensorrt_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(tensorrt_flavour.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="tensorrt is not installed; it comes from NVIDIA's own index"):
        tensorrt_flavour.load("tensorrt")
    with pytest.raises(UserError, match="--target takes tensorrt or tensorrt_rtx"):
        tensorrt_flavour.load("tensorflow")


def test_every_logger_hears_what_any_of_them_is_told(trt):
    early, late = tensorrt_flavour.logger(trt), tensorrt_flavour.logger(trt)
    late.log(trt.ILogger.Severity.ERROR, "broken")
    early.log(trt.ILogger.Severity.WARNING, "odd")
    early.log(trt.ILogger.Severity.INFO, "by the way")
    assert early.errors == late.errors == ["broken"]
    assert early.warnings == late.warnings == ["odd"]


def test_what_a_plugin_raised_stands_before_what_tensorrt_says_of_it(trt):
    log = tensorrt_flavour.logger(trt)
    assert tensorrt_flavour.reason(log) == "it gave no reason"
    log.log(trt.ILogger.Severity.ERROR, "broken  twice")
    assert tensorrt_flavour.reason(log) == "broken twice"
    with pytest.raises(ValueError), registration._logged("gelu"):
        raise ValueError("no kernel for it")
    assert tensorrt_flavour.reason(log) == "plugin gelu: ValueError: no kernel for it"
    log.log(trt.ILogger.Severity.ERROR, "a callback failed")
    assert tensorrt_flavour.reason(log) == "plugin gelu: ValueError: no kernel for it; a callback failed"
    for message in ("another", "and another", "and a third"):
        log.log(trt.ILogger.Severity.ERROR, message)
    assert tensorrt_flavour.reason(log) == "and a third"


# Measures of right and fast


def test_the_tolerance_is_twice_the_plain_error_and_a_floor():
    exact, plain = np.array([1.0, 0.5]), np.array([1.001, 0.5])
    legs.assert_right(exact + 0.0019, exact, plain, "float16")
    with pytest.raises(AssertionError, match="off by"):
        legs.assert_right(exact + 0.003, exact, plain, "float16")
    with pytest.raises(AssertionError, match="nan where"):
        legs.assert_right(np.array([np.nan, 0.5]), exact, np.array([np.inf, 0.5]), "float16")
    with pytest.raises(AssertionError):
        legs.assert_right(np.array([np.nan, 0.5]), exact, plain, "float16")


def test_results_replace_those_of_the_same_gpu_and_keep_the_others(tmp_path):
    def row(gpu, p50):
        return {"case": "a", "dtype": "float16", "tuning": "", "gpu": gpu, "p50_us": p50}

    measure.write_rows(tmp_path / "r.csv", [row("H100", "1"), row("L4", "2")])
    measure.write_rows(tmp_path / "r.csv", [row("H100", "3")])
    lines = (tmp_path / "r.csv").read_text().splitlines()
    assert len(lines) == 3
    assert "2" in lines[1].split(",")
    assert "3" in lines[2].split(",")


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_bench_states_the_share_of_peaks_that_it_measured_and_keeps_what_it_has(monkeypatch, interrupted):
    device = SimpleNamespace(architecture=90, name="H", driver_version="13.0")
    rates = {"float16": 500e12, "float8": 1000e12}
    monkeypatch.setattr(measure, "Device", lambda: contextlib.nullcontext(device))
    monkeypatch.setattr(measure.peaks, "bytes_per_s", lambda _: 4e12)
    monkeypatch.setattr(measure.peaks, "operations_per_s", lambda _, kind: rates[kind])
    monkeypatch.setattr(measure.peers, "load", lambda: None)
    cases = [SimpleNamespace(name=name) for name in ("base one", "base two", "large one")]
    monkeypatch.setattr(measure.legs, "cases", lambda op, _: cases)
    monkeypatch.setattr(measure.legs, "inputs", lambda *_: {})
    timed = []

    def time_case(device, op, case, dtype, tuning, given):
        timed.append((op, case.name))
        if interrupted and len(timed) == 2:
            raise KeyboardInterrupt
        return np.array([2.0, 1.0, 3.0]), {}

    monkeypatch.setattr(measure, "time_case", time_case)
    rows = measure.measure("linear8", lambda *_: 1e6, lambda *_: 1e9, [{}], ["float16"], ["attention"], only=["base"])
    shares = [(row["case"], row["percent_of_bandwidth"], row["percent_of_arithmetic"]) for row in rows]
    # 1 MB in 2 us is 500 GB/s, 1 GFLOP in 2 us 500 TFLOP/s: an eighth, and a half of float8's peak or all of float16's
    whole = [(case, "12.5", percent) for percent in ("50.0", "100.0") for case in ("base one", "base two")]
    assert shares == (whole[:1] if interrupted else whole)
    assert {(row["peak_gb_per_s"], row["p50_us"]) for row in rows} == {("4000", "2.00")}
