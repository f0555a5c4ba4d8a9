"""What all plugins share: compiling, kernel folders, packing a launch, registration, finding TensorRT."""

import ctypes
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import plugins
from configs.errors import UserError
from plugins import compile as compiler
from plugins import kernels, launch, legs, measure, one_node, registration, tensorrt_flavour
from plugins.gelu import kernel as gelu_kernel
from plugins.gelu.cases import CASES
from plugins.gelu.plugin import Gelu
from plugins.kernels import Kernel, KernelSet
from plugins.launch import Launch, Prepared

ROOT = Path(__file__).parent.parent
VARIANT = gelu_kernel.variants({}, "float16", approximate="none")[0]
ODD = next(case for case in CASES if case.name == "odd")
SIGNATURE = ("*fp16", "i32", "fp32", "*fp16")
KERNEL = Kernel("gelu-x", b"code", "entry", 0, 4, SIGNATURE, 2, (0, 3), {"BLOCK": 8}, 90, "hash")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch, request):
    if "trt" not in request.fixturenames:
        monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))


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


# Compiling


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_a_kernel_compiles_without_a_gpu_for_old_and_new(arch):
    kernel = compiler.compile_kernel(VARIANT, arch)
    assert kernel.cubin[:4] == b"\x7fELF"
    assert (kernel.entry, kernel.arch, kernel.hidden) == ("gelu_kernel", arch, 2)
    assert (kernel.signature, kernel.aligned, kernel.constants["BLOCK"]) == (("*fp16", "i32", "*fp16"), (0, 2), 1024)
    assert str(ROOT).encode() not in kernel.cubin


@pytest.mark.slow
@pytest.mark.parametrize("arch", plugins.ARCHITECTURES)
@pytest.mark.parametrize("gelu", ["none", "tanh"])
def test_all_kernels_of_all_plugins_compile_for_every_architecture(arch, gelu):
    sizes = compiler.Sizes(hidden=384, heads=12, head_size=32, ffn=1536, layout="packed", gelu=gelu)
    for dtype in ("float16", "bfloat16"):
        assert len(compiler.compile_set(compiler.needed(sizes, dtype), arch)) >= 3


def test_what_was_compiled_once_is_taken_from_the_cache_unless_it_is_damaged(monkeypatch):
    first = compiler.compile_kernel(VARIANT, 90)
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiler.compile_kernel(VARIANT, 90) == first
    (cubin,) = plugins.cache_folder("kernels").rglob("*.cubin")
    cubin.write_bytes(b"\0" + first.cubin[1:])
    monkeypatch.setattr(compiler, "_compile", lambda *_: first)
    assert compiler.compile_kernel(VARIANT, 90) == first
    assert cubin.read_bytes() == first.cubin


def test_the_cache_key_sees_source_variant_architecture_and_triton(tmp_path, monkeypatch):
    source = tmp_path / "some_kernel.py"
    source.write_text("a = 1")
    monkeypatch.syspath_prepend(tmp_path)
    variant = dataclasses.replace(VARIANT, module="some_kernel")
    keys = {compiler.cache_key(variant, 90), compiler.cache_key(variant, 80)}
    keys.add(compiler.cache_key(dataclasses.replace(variant, num_warps=8), 90))
    keys.add(compiler.cache_key(dataclasses.replace(variant, constants={"TANH": True, "BLOCK": 1024}), 90))
    source.write_text("a = 2")
    keys.add(compiler.cache_key(variant, 90))
    monkeypatch.setattr(compiler, "_triton_version", lambda: "9.9")
    keys.add(compiler.cache_key(variant, 90))
    assert len(keys) == 6


def test_a_variant_that_forgets_or_turns_arguments_is_refused():
    with pytest.raises(ValueError, match="takes"):
        compiler.compile_kernel(dataclasses.replace(VARIANT, signature={"x_ptr": "*fp16", "y_ptr": "*fp16"}), 90)
    turned = dict(reversed(VARIANT.signature.items()))
    with pytest.raises(ValueError, match="takes"):
        compiler.compile_kernel(dataclasses.replace(VARIANT, signature=turned), 90)
    with pytest.raises(UserError, match="no kernels can be built for sm_70; --arch takes 75"):
        compiler.compile_kernel(VARIANT, 70)


def test_needed_asks_only_the_named_plugins():
    sizes = compiler.Sizes(hidden=312, heads=12, head_size=32, ffn=1200, layout="packed", gelu="none")
    names = [variant.name for variant in compiler.needed(sizes, "bfloat16", ["gelu", "linear", "skip_layer_norm"])]
    assert names == ["gelu-none-bfloat16", "skip_layer_norm-312-bfloat16"]
    assert compiler.needed(dataclasses.replace(sizes, gelu="tanh"), "bfloat16", ["gelu"]) == []


# Kernel folders


def test_a_kernel_folder_reads_back_as_it_was_written(tmp_path):
    kernels.write(tmp_path, 90, [KERNEL, dataclasses.replace(KERNEL, name="other-y")])
    found = KernelSet(tmp_path, 90)
    assert dict(found) == {"gelu-x": KERNEL, "other-y": dataclasses.replace(KERNEL, name="other-y")}
    assert found.of_plugin("gelu") == [KERNEL]


def test_a_missing_architecture_or_kernel_is_named_with_what_is_there(tmp_path):
    with pytest.raises(UserError, match=r"no kernels for sm_90 \(it has none at all\); export with --arch 90"):
        KernelSet(tmp_path, 90)
    kernels.write(tmp_path, 90, [KERNEL])
    with pytest.raises(UserError, match=r"no kernels for sm_80 \(it has sm_90\); export with --arch 80"):
        KernelSet(tmp_path, 80)
    with pytest.raises(UserError, match="no kernel 'gelu-z' for sm_90, only gelu-x"):
        KernelSet(tmp_path, 90)["gelu-z"]


@pytest.mark.parametrize(("key", "value"), [
    ("entry", "a b"), ("shared", 10**9), ("shared", True), ("num_warps", 0), ("hidden", -1), ("arch", 80),
    ("signature", ["*fp16", "char*"]), ("signature", 5), ("aligned", [7]), ("name", "gelu-z"), ("constants", []),
    ("cubin_sha256", "0" * 64), ("cubin_sha256", None), ("surplus", 1),
])  # fmt: skip
def test_a_kernel_with_a_wrong_description_is_damaged(tmp_path, key, value):
    kernels.write(tmp_path, 90, [KERNEL])
    about = tmp_path / "kernels" / "sm_90" / "gelu-x.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {key: value}))
    with pytest.raises(UserError, match="damaged"):
        KernelSet(tmp_path, 90)


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff", b"[" * 100_000, b"null"])
def test_a_kernel_description_of_nonsense_is_damaged(tmp_path, content):
    kernels.write(tmp_path, 90, [KERNEL])
    (tmp_path / "kernels" / "sm_90" / "gelu-x.json").write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        KernelSet(tmp_path, 90)


def test_a_changed_or_missing_or_huge_cubin_is_damaged(tmp_path, monkeypatch):
    kernels.write(tmp_path, 90, [KERNEL])
    code = tmp_path / "kernels" / "sm_90" / "gelu-x.cubin"
    code.write_bytes(b"edoc")
    with pytest.raises(UserError, match="its cubin is not the one that was exported"):
        KernelSet(tmp_path, 90)
    code.write_bytes(b"code")
    monkeypatch.setattr(kernels, "MOST_BYTES", 3)
    with pytest.raises(UserError, match="larger than 3 bytes"):
        KernelSet(tmp_path, 90)
    code.unlink()
    with pytest.raises(UserError, match="damaged"):
        KernelSet(tmp_path, 90)


# Launching, with a driver that only writes down what it was told


@pytest.fixture
def launched(monkeypatch):
    """The launches made, each as (grid, threads, shared, stream, the arguments' bytes as numbers)."""
    made = []

    def launch_kernel(function, *numbers):
        x, y, z, threads, _, _, shared, stream, packed, _ = numbers
        kinds = (ctypes.c_uint64, ctypes.c_int32, ctypes.c_float, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
        places = (ctypes.c_void_p * len(kinds)).from_address(packed)
        values = [kind.from_address(place).value for kind, place in zip(kinds, places, strict=True)]
        made.append(((x, y, z), threads, shared, stream, values))
        return (SimpleNamespace(name="CUDA_ERROR_X") if stream == 666 else 0,)

    monkeypatch.setattr(launch, "load", lambda kernel: f"function of {kernel.name}")
    monkeypatch.setattr(launch, "driver", lambda: SimpleNamespace(cuLaunchKernel=launch_kernel))
    return made


def prepared(arguments=("x", 7, 0.5, "y"), grid=(3, 2)):
    return Prepared({"gelu-x": KERNEL}, Launch("gelu-x", grid, arguments), ["x", "unused", "y"])


def test_arguments_are_packed_in_order_with_null_pointers_at_the_end(launched):
    ready = prepared()
    ready(11, [0x100, 0x200, 0x300])
    ready(12, [0x400, 0x500, 0x600])
    assert launched == [
        ((3, 2, 1), 128, 0, 11, [0x100, 7, 0.5, 0x300, 0, 0]),
        ((3, 2, 1), 128, 0, 12, [0x400, 7, 0.5, 0x600, 0, 0]),
    ]


def test_an_empty_grid_launches_nothing(launched):
    prepared(grid=(0, 2))(11, [0x100, 0x200, 0x300])
    assert launched == []


def test_an_unaligned_address_is_refused_only_where_the_kernel_relies_on_it(launched):
    with pytest.raises(ValueError, match="at 0x108, not a multiple of 16"):
        prepared()(11, [0x108, 0, 0x300])
    loose = {"gelu-x": dataclasses.replace(KERNEL, aligned=(3,))}
    Prepared(loose, Launch("gelu-x", (1,), ("x", 7, 0.5, "y")), ["x", "y"])(11, [0x108, 0x300])
    assert len(launched) == 1


@pytest.mark.parametrize("arguments", [
    ("x", 7, 0.5), ("x", 7, 0.5, 1), ("x", "y", 0.5, "y"), ("x", 2**31, 0.5, "y"), ("x", 7, 0.5, "z"),
])  # fmt: skip
def test_arguments_that_do_not_fit_the_signature_are_refused(launched, arguments):
    with pytest.raises(ValueError):
        prepared(arguments)


def test_an_error_of_the_driver_has_its_name_and_the_kernels(launched):
    with pytest.raises(launch.CudaError, match=r"launching gelu-x on a grid of \(3, 2, 1\): CUDA_ERROR_X"):
        prepared()(666, [0x100, 0x200, 0x300])


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
        with registration.registered(trt, ["gelu"], KernelSet.of([KERNEL], where)):
            given = registration.Fields(trt, {"approximate": "tanh"})
            made = creator(trt).create_plugin("n", given.collection, trt.TensorRTPhase.RUNTIME)
            opened.append(made.clone())
    assert [instance.plugin.kernels.where for instance in opened] == ["first", "second"]


def test_attributes_survive_being_serialised(trt):
    with registration.registered(trt, ["gelu", "skip_layer_norm"]):
        for op, values in (("gelu", {"approximate": "tanh"}), ("skip_layer_norm", {"epsilon": 0.25})):
            given = registration.Fields(trt, values)
            first = creator(trt, op).create_plugin("n", given.collection, trt.TensorRTPhase.BUILD)
            again = creator(trt, op).create_plugin("n", first.get_fields_to_serialize(), trt.TensorRTPhase.RUNTIME)
            assert first.plugin.values == again.plugin.values == values


def test_fields_live_as_long_as_their_owner(trt):
    values = {"text": "tanh", "number": 3, "fraction": 0.25}
    held = [registration.Fields(trt, values) for _ in range(200)]
    noise = [(np.full(1, 7, np.int32), bytes([7, 7, 7, index % 256])) for index in range(2000)]
    for fields in held:
        read = {field.name: registration._value(field, values[field.name]) for field in fields.collection}
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
