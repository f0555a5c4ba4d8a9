"""Kernels of all plugins: compiling them, the folder they travel in, packing a launch."""

import ctypes
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from cuda.bindings import driver as cuda

import plugins
from configs.errors import UserError
from plugins import compile as compiler
from plugins import kernels, launch
from plugins.gelu import kernel as gelu_kernel
from plugins.kernels import Kernel, KernelSet
from plugins.launch import Launch, Prepared
from plugins.linear import kernel as linear_kernel

ROOT = Path(__file__).parent.parent
VARIANT = gelu_kernel.variants({}, "float16", approximate="none")[0]
SIGNATURE = ("*fp16", "i32", "fp32", "*fp16")
KERNEL = Kernel("gelu-x", b"code", "entry", 0, 4, SIGNATURE, 2, (0, 3), {"BLOCK": 8}, 90, "hash")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))


# Compiling


@pytest.mark.parametrize("arch", [75, 90, 120])
def test_a_kernel_compiles_without_a_gpu_for_old_and_new(arch):
    kernel = compiler.compile_kernel(VARIANT, arch)
    assert kernel.cubin[:4] == b"\x7fELF"
    assert (kernel.entry, kernel.arch, kernel.hidden) == ("gelu_kernel", arch, 2)
    assert (kernel.signature, kernel.aligned, kernel.constants["BLOCK"]) == (
        ("*fp16", "i32", "*fp16", "fp32"), (0, 2), 2048,
    )  # fmt: skip
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
    turned = dict(reversed(list(VARIANT.signature.items())))
    with pytest.raises(ValueError, match="takes"):
        compiler.compile_kernel(dataclasses.replace(VARIANT, signature=turned), 90)
    with pytest.raises(UserError, match="no kernels can be built for sm_70; --arch takes 75"):
        compiler.compile_kernel(VARIANT, 70)


def test_needed_asks_only_the_named_plugins():
    sizes = compiler.Sizes(hidden=312, heads=12, head_size=32, ffn=1200, layout="packed", gelu="none")
    names = [variant.name for variant in compiler.needed(sizes, "bfloat16", ["gelu", "attention", "skip_layer_norm"])]
    assert [name.split("-")[0] for name in names] == ["gelu", "gelu", "attention", "attention", "skip_layer_norm"]
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
    ("signature", ["*fp16", "char*"]), ("signature", 5), ("aligned", [7]), ("overlaps", 1), ("name", "gelu-z"),
    ("constants", []),
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

    def launch_early(config, function, packed, _):
        (attribute,) = config.attrs
        assert attribute.value.programmaticStreamSerializationAllowed == 1
        x, y, z = config.gridDimX, config.gridDimY, config.gridDimZ
        assert (config.blockDimY, config.blockDimZ) == (1, 1)
        return launch_kernel(
            function, x, y, z, config.blockDimX, 1, 1, config.sharedMemBytes, int(config.hStream), packed, "early"
        )  # fmt: skip

    driver = SimpleNamespace(cuLaunchKernel=launch_kernel, cuLaunchKernelEx=launch_early)
    for name in ("CUlaunchAttribute", "CUlaunchAttributeID", "CUlaunchConfig"):
        setattr(driver, name, getattr(cuda, name))
    monkeypatch.setattr(launch, "driver", lambda: driver)
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


def test_a_kernel_that_waits_by_itself_is_launched_early(launched):
    kernel = dataclasses.replace(KERNEL, overlaps=True)
    Prepared({"gelu-x": kernel}, Launch("gelu-x", (3, 2), ("x", 7, 0.5, "y")), ["x", "y"])(11, [0x100, 0x300])
    assert launched == [((3, 2, 1), 128, 0, 11, [0x100, 7, 0.5, 0x300, 0, 0])]


@pytest.mark.parametrize(("arch", "early"), [(89, False), (90, True)])
def test_kernels_overlap_from_9_0_on_and_only_those_that_can(arch, early):
    kernel = compiler.compile_kernel(VARIANT, arch)
    assert (kernel.overlaps, kernel.constants["PDL"]) == (early, early)


def test_fewer_stages_are_taken_where_shared_memory_holds_no_more():
    variant = linear_kernel.variants({"weight": (768, 768)}, "float16", stages=5)[0]
    stages = {arch: compiler.compile_kernel(variant, arch).shared for arch in (75, 89, 90)}
    assert stages[75] < stages[89] < stages[90]


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
