"""cuBLASLt on a CPU, as far as `linear` calls it: what its documentation says of each argument, in numpy.

Matrices are column by column: element (i, j) lies at i + j * leading dimension. D = epilogue(alpha A B + beta C), and a
bias has one number for each row of D. Addresses are those of host memory. The names and numbers of attributes are the
real library's. It is what the tests on a CPU have in place of `nvmath.bindings.cublasLt`.
"""

import ctypes
import math
from typing import Any

import ml_dtypes
import numpy as np
from nvmath import CudaDataType
from nvmath.bindings import cublasLt
from nvmath.bindings.cublas import ComputeType

TYPES = {
    int(CudaDataType.CUDA_R_16F): np.float16,
    int(CudaDataType.CUDA_R_16BF): ml_dtypes.bfloat16,
    int(CudaDataType.CUDA_R_8F_E4M3): ml_dtypes.float8_e4m3fn,
}
FLOAT8 = ml_dtypes.float8_e4m3fn
ATTRIBUTE, SCALE = cublasLt.MatmulDescAttribute, cublasLt.MatmulMatrixScale
TRANSPOSED = 1  # CUBLAS_OP_T


class NumpyCublasLtError(Exception):
    """In place of cuBLASLtError, whose text the real library writes."""


class NumpyCublasLt:
    """The functions of the module that `linear` calls. `live` are things made and not destroyed."""

    cuBLASLtError = NumpyCublasLtError  # noqa: N815
    Epilogue, MatmulDescAttribute = cublasLt.Epilogue, cublasLt.MatmulDescAttribute
    MatmulPreferenceAttribute = cublasLt.MatmulPreferenceAttribute
    MatmulMatrixScale = cublasLt.MatmulMatrixScale
    matmul_heuristic_result_dtype = cublasLt.matmul_heuristic_result_dtype
    get_matmul_desc_attribute_dtype = staticmethod(cublasLt.get_matmul_desc_attribute_dtype)
    get_matmul_preference_attribute_dtype = staticmethod(cublasLt.get_matmul_preference_attribute_dtype)

    def __init__(
        self, algorithms: tuple[int, ...] = (1, 2, 3), fitting: tuple[int, ...] = (1, 2, 3), architecture: int = 90
    ) -> None:
        """algorithms: the numbers that the heuristic finds; fitting: those that `matmul_algo_check` accepts."""
        self.algorithms, self.fitting, self.architecture = algorithms, fitting, architecture
        self.live: dict[int, Any] = {}
        self.calls: list[tuple[int, int]] = []  # (algorithm, stream)
        self.wishes: dict[str, int] = {}  # what the heuristic was told last

    def _new(self, thing: Any) -> int:
        number = max(self.live, default=0) + 1
        self.live[number] = thing
        return number

    def create(self) -> int:
        return 1000

    def get_version(self) -> int:
        return 130000

    def matmul_desc_create(self, compute: int, scale: int) -> int:
        assert (compute, scale) == (ComputeType.COMPUTE_32F, CudaDataType.CUDA_R_32F)
        return self._new({})

    def matrix_layout_create(self, kind: int, rows: int, columns: int, leading: int) -> int:
        assert leading >= rows
        return self._new((TYPES[kind], rows, columns, leading))

    def matmul_preference_create(self) -> int:
        return self._new({})

    def _destroy(self, number: int) -> None:
        del self.live[number]

    matmul_desc_destroy = matrix_layout_destroy = matmul_preference_destroy = _destroy

    def matmul_desc_set_attribute(self, descriptor: int, attribute: int, buffer: int, size: int) -> None:
        self._set(descriptor, attribute, buffer, size, self.get_matmul_desc_attribute_dtype)

    def matmul_preference_set_attribute(self, preference: int, attribute: int, buffer: int, size: int) -> None:
        self._set(preference, attribute, buffer, size, self.get_matmul_preference_attribute_dtype)

    def _set(self, number: int, attribute: int, buffer: int, size: int, dtype_of: Any) -> None:
        (value,) = np.frombuffer(ctypes.string_at(buffer, size), dtype_of(attribute))
        self.live[number][attribute] = int(value)

    def matmul_algo_get_heuristic(self, handle, descriptor, a, b, c, d, preference, most, results, count) -> None:
        self.wishes = {cublasLt.MatmulPreferenceAttribute(key).name: v for key, v in self.live[preference].items()}
        found = _memory(results, (most,), self.matmul_heuristic_result_dtype)
        matrices = [self.live[layout] for layout in (a, b, c, d)]
        algorithms = () if self._why_not(self.live[descriptor], *matrices) else self.algorithms[:most]
        found["algo"]["data_"][: len(algorithms), 0] = algorithms
        _memory(count, (1,), np.int32)[0] = len(algorithms)

    def matmul_algo_check(self, handle, descriptor, a, b, c, d, algorithm, result) -> None:
        if _memory(algorithm, (8,), np.uint64)[0] not in self.fitting:
            raise NumpyCublasLtError("CUBLAS_STATUS_NOT_SUPPORTED")

    def matmul(
        self, handle, descriptor, alpha, a, a_layout, b, b_layout, beta, c, c_layout, d, d_layout,
        algorithm, workspace, workspace_bytes, stream,
    ) -> None:  # fmt: skip
        """D = epilogue(alpha A B + beta C), in float32, rounded once."""
        told = self.live[descriptor]
        layouts = [self.live[layout] for layout in (a_layout, b_layout, c_layout, d_layout)]
        assert not (why := self._why_not(told, *layouts)), why
        if workspace % 256 or (c == d and layouts[2] != layouts[3]):  # as seen of 13.x on an H200
            raise NumpyCublasLtError("CUBLAS_STATUS_INVALID_VALUE")
        left, right = self._matrix(a, a_layout), self._matrix(b, b_layout)
        after = self._matrix(d, d_layout)
        if told.get(int(ATTRIBUTE.TRANSA)) == TRANSPOSED:
            left = left.T
        sums = _memory(alpha, (1,), np.float32) * (left.astype(np.float32) @ right.astype(np.float32))
        if left.dtype == FLOAT8:
            sums = sums * _scales(told, "A", left.shape[0])[:, None] * _scales(told, "B", right.shape[1])[None, :]
        if scale := _memory(beta, (1,), np.float32)[0]:
            sums = sums + scale * self._matrix(c, c_layout).astype(np.float32)
        # Without BIAS_DATA_TYPE a bias has the dtype of D, or where D is float8 that of C.
        usual = self.live[c_layout if after.dtype == FLOAT8 else d_layout][0]
        kind = TYPES[told[int(ATTRIBUTE.BIAS_DATA_TYPE)]] if int(ATTRIBUTE.BIAS_DATA_TYPE) in told else usual
        bias = _memory(told[int(ATTRIBUTE.BIAS_POINTER)], (len(after),), kind)
        sums = sums + bias.astype(np.float32)[:, None]
        match cublasLt.Epilogue(told[int(cublasLt.MatmulDescAttribute.EPILOGUE)]):
            case cublasLt.Epilogue.BIAS:
                pass
            case cublasLt.Epilogue.GELU_BIAS:
                sums = sums * (1 + np.tanh(math.sqrt(2 / math.pi) * (sums + 0.044715 * sums**3))) / 2
            case other:  # a plugin that asks for another one needs it modelled here, or its test would prove nothing
                raise NotImplementedError(f"{other}: this model of cuBLASLt has BIAS and GELU_BIAS alone")
        if after.dtype == FLOAT8:
            sums = np.clip(sums * _scales(told, "D", 1), -448, 448)  # conversions saturate
        after[...] = sums.astype(after.dtype)
        self.calls.append((int(_memory(algorithm, (8,), np.uint64)[0]), stream))

    def _why_not(self, told: dict, a: tuple, b: tuple, c: tuple, d: tuple) -> str:
        """Why cuBLASLt has no algorithm; what its documentation demands of float8, and "" where it is content."""
        if a[0] != FLOAT8:
            return "only float8 is multiplied transposed here" if int(ATTRIBUTE.TRANSA) in told else ""
        modes = {told.get(int(ATTRIBUTE[f"{matrix}_SCALE_MODE"]), int(SCALE.SCALAR_32F)) for matrix in "AB"}
        outer = modes == {int(SCALE.OUTER_VEC_32F)}
        if told.get(int(ATTRIBUTE.TRANSA)) != TRANSPOSED or int(ATTRIBUTE.TRANSB) in told:
            return "float8 is multiplied in the TN format alone: A transposed, B not"
        if b[0] != FLOAT8 or any(size % 16 for size in (a[1], a[2], b[1], d[1], a[3], b[3], d[3])):
            return "float8: widths and leading dimensions are multiples of 16"
        if c[0] not in (np.float16, ml_dtypes.bfloat16) or d[0] not in (FLOAT8, c[0]):
            return "float8: C is float16 or bfloat16, D is that or float8"
        if not outer and modes != {int(SCALE.SCALAR_32F)}:
            return "outer vectors scale both A and B, or neither"
        if outer and (d[0] == FLOAT8 or self.architecture != 90):
            return "outer vectors: on 9.0 alone, and D is not float8"
        bias = TYPES.get(told.get(int(ATTRIBUTE.BIAS_DATA_TYPE), -1), c[0])
        return "" if bias == c[0] else "float8: the bias has the dtype of C"

    def _matrix(self, address: int, layout: int) -> np.ndarray:
        """[rows, columns], a view of memory."""
        dtype, rows, columns, leading = self.live[layout]
        return _memory(address, (columns, leading), dtype)[:, :rows].T


def _scales(told: dict, matrix: str, count: int) -> np.ndarray:
    """The factors of A's rows, B's columns or D: one number, or one for each; 1 where no address was given."""
    address = told.get(int(ATTRIBUTE[f"{matrix}_SCALE_POINTER"]), 0)
    outer = told.get(int(ATTRIBUTE[f"{matrix}_SCALE_MODE"])) == int(SCALE.OUTER_VEC_32F)
    return _memory(address, (count if outer else 1,), np.float32) if address else np.ones(1, np.float32)


def _memory(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array at an address, to read and to write. What lies below 4096 is nobody's memory."""
    assert address >= 4096, f"address {address}"
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(address)), dtype).reshape(shape)


class Clock:
    """cuda-bindings' driver as far as timing algorithms needs it; `milliseconds` are those of each algorithm."""

    CUstream_flags = type("CUstream_flags", (), {"CU_STREAM_NON_BLOCKING": 1})
    CUstreamCaptureMode = type("CUstreamCaptureMode", (), {"CU_STREAM_CAPTURE_MODE_THREAD_LOCAL": 1})

    def __init__(self, library: NumpyCublasLt, milliseconds: dict[int, float]) -> None:
        self.library, self.milliseconds = library, milliseconds
        self.capturing = False  # what the caller's stream says of itself
        self.replayed = 0  # the algorithm of the last graph
        self.live = 0  # streams, events and graphs made and not destroyed

    def __getattr__(self, name: str) -> Any:
        """Calls that make or destroy something, or need no answer."""
        if name.endswith("Create") or name in ("cuStreamEndCapture", "cuGraphInstantiate"):
            return lambda *_: (0, self._made())
        if name.endswith("Destroy"):
            return lambda *_: self._made(-1)
        if name in ("cuEventRecord", "cuStreamSynchronize", "cuStreamBeginCapture"):
            return lambda *_: (0,)
        raise AttributeError(name)

    def _made(self, number: int = 1) -> int:
        self.live += number
        return 77

    def cuCtxGetCurrent(self):  # noqa: N802
        return 0, 7

    def cuCtxGetDevice(self):  # noqa: N802
        return 0, 0

    def cuDeviceGetName(self, length, device):  # noqa: N802
        return 0, b"NVIDIA Made Up\0\0"

    def cuStreamIsCapturing(self, stream):  # noqa: N802
        return 0, int(self.capturing)

    def cuGraphLaunch(self, graph, stream):  # noqa: N802
        self.replayed = self.library.calls[-1][0]
        return (0,)

    def cuEventElapsedTime(self, start, end):  # noqa: N802
        return 0, self.milliseconds[self.replayed]
