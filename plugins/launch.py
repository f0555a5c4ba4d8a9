"""Compiled kernels on the GPU: load the machine code, pack the arguments once, launch in microseconds.

    launch = Launch("gelu-none-even-float16", grid=(15,), arguments=("x", 30720, "y"))   # a plugin says it
    ready = Prepared(kernels, launch, names=("x", "y"))                               # loaded and packed
    ready(stream, [x_pointer, y_pointer])                                             # as often as wanted

A matrix that a kernel takes by tiles (Triton's tensor descriptor) is an argument `Tiles("x", rows, columns)`: of its
address and sizes the driver makes 128 bytes, by which the GPU's tensor memory accelerator (from 9.0 on) copies tiles.

A call may be captured into a CUDA graph: what could disturb a capture (loading code, asking for shared memory) happens
in Prepared. Only cuda-bindings is needed: no Triton, no torch.
"""

import ctypes
import functools
import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import UserError
from plugins.kernels import TILES, Kernel

PLAIN_SHARED = 48 << 10  # bytes of dynamic shared memory that a kernel may use without asking
SCALARS = {"i32": ctypes.c_int32, "i64": ctypes.c_int64, "fp32": ctypes.c_float}
TENSOR_DESCRIPTOR = re.compile(r"tensordesc<(\w+)\[(\d+),(\d+)\]>")  # Triton's type of one: dtype, rows, columns
PARAMETERS = 5  # of a kernel that Triton makes of a descriptor: itself, two sizes and two steps
DESCRIPTOR, DESCRIPTOR_ALIGNMENT = 128, 64  # bytes of a CUtensorMap
DESCRIBED = {  # by Triton's names: the hardware's name of a dtype, and its bytes; it copies 8 bits whatever they mean
    "fp16": ("FLOAT16", 2), "bf16": ("BFLOAT16", 2), "fp8e4nv": ("UINT8", 1), "i8": ("UINT8", 1),
}  # fmt: skip
SWIZZLES = ("NONE", "32B", "64B", "128B")


@dataclass(frozen=True)
class Tiles:
    """The tensor of that name as a matrix, row by row; a row's bytes are a multiple of 16."""

    tensor: str
    rows: int
    columns: int


@dataclass(frozen=True)
class Launch:
    """One launch as a plugin wants it: the kernel, the grid (up to 3 axes) and the arguments in the kernel's order.

    An argument that is a text is the tensor of that name, a number is itself.
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: tuple[str | int | float | Tiles, ...]


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; the message has CUDA's name of the error and what was attempted."""


@functools.cache
def driver() -> Any:
    """cuda-bindings' driver module, imported when a GPU is first needed. Raises UserError without a driver."""
    from cuda.bindings import driver

    try:
        started = driver.cuInit(0)
    except RuntimeError as error:  # cuda-bindings looks for libcuda.so at the first call
        raise UserError("this machine has no NVIDIA driver, so it cannot run kernels; it can build them") from error
    check(started, "starting CUDA")
    return driver


def check(result: tuple, doing: str) -> Any:
    """The value of a driver call `(error, value...)`, or CudaError saying what it was doing."""
    error, *values = result
    if int(error):
        raise CudaError(f"{doing}: {getattr(error, 'name', error)}")
    return values[0] if len(values) == 1 else tuple(values)


def architecture() -> int:
    """Compute capability x 10 of the current GPU (of GPU 0 where no context is current): 90 for an H100."""
    cuda = driver()
    error, device = cuda.cuCtxGetDevice()
    if int(error):
        device = check(cuda.cuDeviceGet(0), "finding a GPU")
    attribute = cuda.CUdevice_attribute
    major, minor = (
        check(cuda.cuDeviceGetAttribute(getattr(attribute, name), device), "asking for the compute capability")
        for name in (
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR",
            "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR",
        )
    )
    return 10 * major + minor


_lock = threading.Lock()
_libraries: dict[str, Any] = {}  # by hash of the cubin; a library holds for all contexts and is never unloaded
_functions: dict[tuple[int, str], Any] = {}  # by context and hash: the code as loaded on that context's GPU


def load(kernel: Kernel) -> Any:
    """The kernel's CUfunction in the current context, loaded the first time. Not for use inside a capture."""
    cuda = driver()
    context = int(check(cuda.cuCtxGetCurrent(), "asking for the CUDA context"))
    digest = hashlib.sha256(kernel.cubin).hexdigest()
    with _lock:
        if (context, digest) in _functions:
            return _functions[context, digest]
        doing = f"loading kernel {kernel.name} for sm_{kernel.arch}"
        if digest not in _libraries:
            _libraries[digest] = check(cuda.cuLibraryLoadData(kernel.cubin, [], [], 0, [], [], 0), doing)
        handle = check(cuda.cuLibraryGetKernel(_libraries[digest], kernel.entry.encode()), doing)
        # Loading is lazy by default and would otherwise happen at the first launch, perhaps within a capture.
        function = check(cuda.cuKernelGetFunction(handle), doing)
        if kernel.shared > PLAIN_SHARED:
            wanted = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(cuda.cuFuncSetAttribute(function, wanted, kernel.shared), f"{doing}, {kernel.shared} bytes shared")
        _functions[context, digest] = function
        return function


class Prepared:
    """A launch ready to go: code loaded, arguments packed; a call only fills in addresses.

    names: the tensors whose addresses a call gives, in that order. A grid with a zero axis launches nothing.
    """

    def __init__(self, kernels: Mapping[str, Kernel], launch: Launch, names: Sequence[str]) -> None:
        kernel = kernels[launch.kernel]
        if len(launch.arguments) != len(kernel.signature):
            raise ValueError(f"{kernel.name} takes {len(kernel.signature)} arguments, not {launch.arguments}")
        self._values: list[Any] = []  # ctypes values, which the packed array points to
        self._slots: list[tuple[Any, int, bool]] = []  # (value to fill, index in names, must be a multiple of 16)
        self._maps: list[_Map] = []
        for place, (kind, argument) in enumerate(zip(kernel.signature, launch.arguments, strict=True)):
            tiles = TILES.fullmatch(kind)
            if isinstance(argument, str) != (kind[0] == "*") or isinstance(argument, Tiles) != bool(tiles):
                raise ValueError(f"{kernel.name}: argument {place} is a {kind}, not {argument!r}")
            if tiles and isinstance(argument, Tiles):
                self._maps.append(_Map(kernel.name, tiles, argument, names.index(argument.tensor)))
                self._values += self._maps[-1].values
                continue
            assert not isinstance(argument, Tiles)
            if isinstance(argument, str):
                self._values.append(value := ctypes.c_void_p())
                self._slots.append((value, names.index(argument), place in kernel.aligned))
            else:
                if kind != "fp32" and not -(2 ** (int(kind[1:]) - 1)) <= argument < 2 ** (int(kind[1:]) - 1):
                    raise ValueError(f"{kernel.name}: {argument} does not fit argument {place}, an {kind}")
                self._values.append(SCALARS[kind](argument))
        self._values += [ctypes.c_void_p() for _ in range(kernel.hidden)]
        self._packed = (ctypes.c_void_p * len(self._values))(*map(ctypes.addressof, self._values))
        self._address = ctypes.addressof(self._packed)
        self._name, self._shared, self._threads = kernel.name, kernel.shared, 32 * kernel.num_warps
        self._grid = tuple(launch.grid) + (1,) * (3 - len(launch.grid))
        self._function = load(kernel) if all(self._grid) else None
        self._launch = driver().cuLaunchKernel if all(self._grid) else None
        self._config = self._overlapping() if kernel.overlaps and all(self._grid) else None

    def __call__(self, stream: int, addresses: Sequence[int]) -> None:
        """Launch on a stream (its handle as a number). The driver copies the arguments before it returns."""
        if self._launch is None:
            return
        for value, index, aligned in self._slots:
            address = addresses[index]
            if aligned and address & 15:
                raise ValueError(f"{self._name}: tensor {index} is at {address:#x}, not a multiple of 16")
            value.value = address
        for described in self._maps:
            described.point(addresses)
        if self._config is not None:
            self._config.hStream = stream
            (error,) = driver().cuLaunchKernelEx(self._config, self._function, self._address, 0)
            if error:
                raise CudaError(f"launching {self._name} on a grid of {self._grid}: {error.name}")
            return
        x, y, z = self._grid
        (error,) = self._launch(
            self._function, x, y, z, self._threads, 1, 1, self._shared, stream, self._address, 0
        )  # fmt: skip
        if error:
            raise CudaError(f"launching {self._name} on a grid of {self._grid}: {error.name}")

    def _overlapping(self) -> Any:
        """How to launch it before the kernel ahead of it in the stream has ended, as the kernel allows."""
        cuda = driver()
        attribute = cuda.CUlaunchAttribute()
        attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config = cuda.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self._grid
        config.blockDimX, config.blockDimY, config.blockDimZ = self._threads, 1, 1
        config.sharedMemBytes = self._shared
        config.attrs, config.numAttrs = [attribute], 1
        return config


class _Map:
    """A matrix as the tensor memory accelerator is told of it: made anew when its address changes."""

    def __init__(self, kernel: str, kind: re.Match, tiles: Tiles, index: int) -> None:
        self._about = f"{kernel}: tensor {tiles.tensor!r} [{tiles.rows}, {tiles.columns}]"
        self._tiles, self._index, self._address = tiles, index, 0
        self._dtype, self._box, self._swizzle = kind[1], (int(kind[3]), int(kind[2])), SWIZZLES[int(kind[4])]
        self._row = tiles.columns * DESCRIBED[self._dtype][1]
        if self._row % 16 or tiles.rows < 1:
            raise ValueError(f"{self._about} in {self._dtype}: tiles need a row, and rows of a multiple of 16 bytes")
        room = (ctypes.c_uint8 * (DESCRIPTOR + DESCRIPTOR_ALIGNMENT))()
        start = -ctypes.addressof(room) % DESCRIPTOR_ALIGNMENT
        self._bytes = (ctypes.c_uint8 * DESCRIPTOR).from_buffer(room, start)
        sizes = (ctypes.c_int32(tiles.rows), ctypes.c_int32(tiles.columns))
        self.values = [self._bytes, *sizes, ctypes.c_int64(tiles.columns), ctypes.c_int64(1)]  # PARAMETERS of them

    def point(self, addresses: Sequence[int]) -> None:
        """Let it be the matrix at its tensor's address."""
        address = addresses[self._index]
        if address == self._address:
            return
        if address & 15:
            raise ValueError(f"{self._about} is at {address:#x}, not a multiple of 16")
        cuda, (name, _) = driver(), DESCRIBED[self._dtype]
        u32, u64 = cuda.cuuint32_t, cuda.cuuint64_t
        made = check(
            cuda.cuTensorMapEncodeTiled(
                getattr(cuda.CUtensorMapDataType, f"CU_TENSOR_MAP_DATA_TYPE_{name}"), 2, address,
                [u64(self._tiles.columns), u64(self._tiles.rows)], [u64(self._row)],
                [u32(size) for size in self._box], [u32(1), u32(1)],
                cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                getattr(cuda.CUtensorMapSwizzle, f"CU_TENSOR_MAP_SWIZZLE_{self._swizzle}"),
                cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            f"describing {self._about} by tiles",
        )  # fmt: skip
        ctypes.memmove(self._bytes, int(made.getPtr()), DESCRIPTOR)
        self._address = address
