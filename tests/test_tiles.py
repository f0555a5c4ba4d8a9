"""A matrix that a kernel takes by tiles: how it is compiled, kept in an engine folder, and described to the GPU."""

import ctypes
import dataclasses
from types import SimpleNamespace

import pytest
from cuda.bindings import driver as cuda

from configs.errors import UserError
from plugins import compile as compiler
from plugins import kernels, launch
from plugins.kernels import Kernel, KernelSet
from plugins.launch import Launch, Prepared, Tiles
from plugins.linear import large

VARIANT = large.variant("linear-x", 64, 200, x="fp16", a="fp16", y="fp16", gelu="erf")
SIGNATURE = ("tiles<fp16[128,64],3>", "*fp32", "i32", "tiles<i8[16,32],1>")
KERNEL = Kernel("linear-x", b"code", "entry", 0, 4, SIGNATURE, 1, (), {}, 90, "hash")
X, Y = Tiles("x", 300, 200), Tiles("y", 7, 48)


def test_the_hardware_copies_at_most_a_row_of_128_bytes_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("RETORT_CACHE", str(tmp_path))
    kernel = compiler.compile_kernel(VARIANT, 90)
    tiles = ("tiles<fp16[128,64],3>", "tiles<fp16[64,64],3>", "tiles<fp16[128,64],3>")  # half of the weight's columns
    assert kernel.signature == (*tiles[:2], "*fp16", "*fp32", "*fp32", tiles[2], "i32", "i32")
    assert kernel.hidden == 2
    assert compiler.compile_kernel(VARIANT, 90) == kernel  # from the cache


def test_architectures_that_cannot_use_it_have_no_such_kernel():
    assert all(list(compiler.compile_set([VARIANT], arch)) == [] for arch in (89, 120))  # 12.0 has too little memory
    with pytest.raises(ValueError, match="linear-x: tiles are for sm_90 and later; say so by `only`"):
        compiler.compile_kernel(dataclasses.replace(VARIANT, only=()), 80)


@pytest.mark.parametrize("kind", ["tiles<i8[0,64],3>", "tiles<fp32[8,64],3>", "tiles<fp16[128,64],4>", "tiles<i8[8]>"])
def test_a_description_of_impossible_tiles_is_damaged(tmp_path, kind):
    kernels.write(tmp_path, 90, [KERNEL])
    assert KernelSet(tmp_path, 90)["linear-x"] == KERNEL
    kernels.write(tmp_path, 90, [dataclasses.replace(KERNEL, signature=(kind,))])
    with pytest.raises(UserError, match="signature is"):
        KernelSet(tmp_path, 90)


@pytest.fixture
def gpu(monkeypatch):
    """What the driver was told: `described`, and the arguments of each launch in `launched`."""
    told = SimpleNamespace(described=[], launched=[])
    kept = []

    def describe(*arguments):
        told.described.append(arguments)
        kept.append((ctypes.c_uint8 * 128)(*[len(told.described)] * 128))
        return 0, SimpleNamespace(getPtr=lambda: ctypes.addressof(kept[-1]))

    def launch_kernel(*arguments):
        packed = arguments[9]
        bytes_, i32, i64, pointer = ctypes.c_uint8 * 128, ctypes.c_int32, ctypes.c_int64, ctypes.c_uint64
        kinds = (bytes_, i32, i32, i64, i64, pointer, i32, bytes_, i32, i32, i64, i64, pointer)
        places = (ctypes.c_void_p * len(kinds)).from_address(packed)
        assert places[0] % 64 == places[7] % 64 == 0
        values = [kind.from_address(place) for kind, place in zip(kinds, places, strict=True)]
        told.launched.append([set(value) if isinstance(value, bytes_) else value.value for value in values])
        return (0,)

    names = ("cuuint32_t", "cuuint64_t", "CUtensorMapDataType", "CUtensorMapInterleave", "CUtensorMapSwizzle")
    names += ("CUtensorMapL2promotion", "CUtensorMapFloatOOBfill")
    driver = SimpleNamespace(
        cuTensorMapEncodeTiled=describe, cuLaunchKernel=launch_kernel, **{name: getattr(cuda, name) for name in names}
    )
    monkeypatch.setattr(launch, "driver", lambda: driver)
    monkeypatch.setattr(launch, "load", lambda kernel: "a function")
    return told


def prepared(*arguments):
    return Prepared({"linear-x": KERNEL}, Launch("linear-x", (1,), arguments), ["x", "scale", "y"])


def test_a_matrix_is_described_by_address_sizes_and_tile_whenever_its_address_changes(gpu):
    ready = prepared(X, "scale", 5, Y)
    for x in (0x1000, 0x1000, 0x2000):
        ready(11, [x, 0x300, 0x4000])
    expected = [
        ("FLOAT16", 0x1000, [200, 300], [400], [64, 128], "128B"), ("UINT8", 0x4000, [48, 7], [48], [32, 16], "32B"),
        ("FLOAT16", 0x2000, [200, 300], [400], [64, 128], "128B"),
    ]  # fmt: skip
    for (kind, rank, address, sizes, strides, box, steps, _, swizzle, *_), meant in zip(
        gpu.described, expected, strict=True
    ):
        numbers = [[int(number) for number in each] for each in (sizes, strides, box)]
        names = kind.name.removeprefix("CU_TENSOR_MAP_DATA_TYPE_"), swizzle.name.removeprefix("CU_TENSOR_MAP_SWIZZLE_")
        assert (names[0], address, *numbers, names[1]) == meant
        assert (rank, [int(step) for step in steps]) == (2, [1, 1])
    maps = [({1}, {2}), ({1}, {2}), ({3}, {2})]
    assert gpu.launched == [[x, 300, 200, 200, 1, 0x300, 5, y, 7, 48, 48, 1, 0] for x, y in maps]


def test_what_cannot_be_taken_by_tiles_is_refused(gpu):
    with pytest.raises(ValueError, match=r"tensor 'x' \[300, 201\] in fp16: tiles need a row, and rows of a multiple"):
        prepared(Tiles("x", 300, 201), "scale", 5, Y)
    with pytest.raises(ValueError, match="tiles need a row"):
        prepared(Tiles("x", 0, 200), "scale", 5, Y)
    with pytest.raises(ValueError, match="is at 0x1008, not a multiple of 16"):
        prepared(X, "scale", 5, Y)(11, [0x1008, 0x300, 0x4000])
    for wrong in (("x", "scale", 5, Y), (X, Y, 5, Y), (X, "scale", X, Y), (X, "scale", 5, 6)):
        with pytest.raises(ValueError, match=r"argument \d is a"):
            prepared(*wrong)
    assert gpu.launched == []
