"""One product with bias and GELU by cuBLASLt: described once for a shape, then called with hardly any Python.

Which algorithm is fastest depends on the shape and the GPU. cuBLASLt guesses well, and lists what it would try next;
the first few are timed the first time that a shape runs, unless it is being captured. The choice holds for all layers,
for about as many tokens and, kept on disk, for later processes (`choices.py`).
"""

import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from plugins.launch import check, driver
from plugins.linear.choices import Choices
from plugins.linear.product import Product
from plugins.registration import WORKSPACE_ALIGNMENT

WORKSPACE = 32 << 20  # bytes: what NVIDIA advises for 9.0 and later; shared by all layers of an engine
ALIGNMENT = 16  # bytes: what the algorithms may rely on, and a call checks
CANDIDATES = 16  # algorithms to time for a shape, the likeliest first; 1 takes cuBLASLt's own choice
CALLS, REPLAYS = 10, 3  # calls in a timed graph, at most, and times it is replayed; the fastest replay counts
ENOUGH = 1.5e11  # multiplications and additions in a timed graph, a quarter of a millisecond on an H200
FINALISTS, FINAL_REPLAYS = 4, 20  # the best few are timed again: they often differ by less than three replays tell
ADVICE = "widths that are multiples of 8 always have one"

_lock = threading.RLock()
_handles: dict[int, int] = {}  # by CUDA context; a handle is for the GPU it was made on
_winners: dict[tuple, np.ndarray] = {}  # by context and size class: the fastest algorithm, as cuBLASLt describes it
_choices: dict[int, Choices] = {}  # by context: what earlier processes have found on its GPU
_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


class MatmulError(RuntimeError):
    """cuBLASLt refused a call; the message has the shapes and cuBLASLt's name of the error."""


class Matmul:
    """A product's descriptors and algorithm, in the current CUDA context. For one thread at a time.

    Raises ValueError where cuBLASLt knows no algorithm for the product.
    """

    def __init__(self, product: Product) -> None:
        self.product, self._cuda = product, driver()
        self._library = library = cublaslt()
        self._context = int(check(self._cuda.cuCtxGetCurrent(), "asking for the CUDA context"))
        with _lock:
            if self._context not in _handles:
                _handles[self._context] = library.create()
            self._handle = _handles[self._context]
        self._beta = _ONE if product.skip else _ZERO  # of the C that is added
        # Without a residual C is D, or null where they differ in dtype: cuBLASLt refuses such a C in D's place.
        self._in_place = int(product.matrices[2] == product.matrices[3])
        self._descriptor = library.matmul_desc_create(*_float32_compute())
        self._layouts = [  # of A, B, C and D
            library.matrix_layout_create(data_type(dtype), *matrix) for dtype, matrix in product.matrices
        ]
        weakref.finalize(self, _destroy, library, self._descriptor, self._layouts).atexit = False
        self._describe("EPILOGUE", int(library.Epilogue[product.epilogue]))
        self._pointers: dict[str, int] = {}
        self._tell()
        self._candidates = self._ask()
        self._algorithm = self._candidates[0]
        self._chosen = len(self._candidates) == 1

    def __call__(
        self, stream: int, x: int, weight: int, bias: int, y: int, workspace: int, residual: int | None = None
    ) -> None:
        """Enqueue on a stream, all by address; workspace has WORKSPACE bytes from a multiple of WORKSPACE_ALIGNMENT.
        May be captured into a CUDA graph.

        residual [T, M] is for a product with `skip`, and is not y: algorithms are timed more than once.

        The first call for a size class that is not being captured waits for the stream and times the candidates.
        """
        c = residual if self.product.skip and residual is not None else y * self._in_place
        if (x | weight | bias | y | c) % ALIGNMENT:
            raise ValueError(f"{self.product}: an address is not a multiple of {ALIGNMENT}")
        if workspace % WORKSPACE_ALIGNMENT:  # cuBLASLt says "invalid value", and not of what
            raise ValueError(f"{self.product}: workspace {workspace:#x} is not a multiple of {WORKSPACE_ALIGNMENT}")
        self._point("BIAS_POINTER", bias)
        call = (weight, x, c, y, workspace)
        if not self._chosen:
            self._choose(stream, call)
        self._multiply(self._algorithm, stream, *call)

    def _multiply(self, algorithm: np.ndarray, stream: int, a: int, b: int, c: int, d: int, workspace: int) -> None:
        layout_a, layout_b, layout_c, layout_d = self._layouts
        try:
            self._library.matmul(
                self._handle, self._descriptor, _ONE.ctypes.data, a, layout_a, b, layout_b,
                self._beta.ctypes.data, c, layout_c, d, layout_d, algorithm.ctypes.data, workspace, WORKSPACE, stream,
            )  # fmt: skip
        except self._library.cuBLASLtError as error:
            raise MatmulError(f"{self.product}: cuBLASLt failed: {error}") from error

    def _tell(self) -> None:
        """What cuBLASLt is to know beside matrices and epilogue."""
        self._point("BIAS_POINTER", ALIGNMENT)  # not null, so that cuBLASLt believes in it; nothing is read there

    def _point(self, name: str, address: int) -> None:
        """Set an address on the GPU that the descriptor holds, where it is another than before."""
        if self._pointers.get(name) != address:
            self._describe(name, address)
            self._pointers[name] = address

    def _describe(self, name: str, value: int) -> None:
        attribute = int(self._library.MatmulDescAttribute[name])
        held = np.array([value], self._library.get_matmul_desc_attribute_dtype(attribute))
        self._library.matmul_desc_set_attribute(self._descriptor, attribute, held.ctypes.data, held.nbytes)

    def _ask(self) -> list[np.ndarray]:
        """The algorithms that cuBLASLt thinks fit, the likeliest first; each as it wants it back."""
        library = self._library
        wishes = {"MAX_WORKSPACE_BYTES": WORKSPACE} | {f"MIN_ALIGNMENT_{m}_BYTES": ALIGNMENT for m in "ABCD"}
        preference = library.matmul_preference_create()
        try:
            for name, value in wishes.items():
                attribute = int(library.MatmulPreferenceAttribute[name])
                held = np.array([value], library.get_matmul_preference_attribute_dtype(attribute))
                library.matmul_preference_set_attribute(preference, attribute, held.ctypes.data, held.nbytes)
            found: Any = np.zeros(CANDIDATES, library.matmul_heuristic_result_dtype)
            count = np.zeros(1, np.int32)
            library.matmul_algo_get_heuristic(
                self._handle, self._descriptor, *self._layouts,
                preference, CANDIDATES, found.ctypes.data, count.ctypes.data,
            )  # fmt: skip
        except library.cuBLASLtError as error:
            raise ValueError(f"{self.product}: cuBLASLt knows no algorithm ({error}); {ADVICE}") from error
        finally:
            library.matmul_preference_destroy(preference)
        good = [found[i : i + 1]["algo"].copy() for i in range(count[0]) if found[i]["state"] == 0]
        if not good:
            raise ValueError(f"{self.product}: cuBLASLt knows no algorithm; {ADVICE}")
        return good

    def _choose(self, stream: int, call: tuple[int, int, int, int, int]) -> None:
        """Take the size class's algorithm, timing the candidates if it has none yet and nobody is capturing."""
        key = (self._context, *self.product.size_class)
        with _lock:
            if self._context not in _choices:
                _choices[self._context] = Choices(_gpu_name(self._cuda), int(self._library.get_version()))
            kept = _choices[self._context]
            if key not in _winners and (known := kept.get(self.product.size_class)) is not None:
                _winners[key] = _algorithm(self._candidates[0], known)
            if key not in _winners:
                if int(check(self._cuda.cuStreamIsCapturing(stream), "asking whether a stream is capturing")):
                    return  # cuBLASLt's first candidate for now
                check(self._cuda.cuStreamSynchronize(stream), "waiting before algorithms are timed")
                times = [self._time(one, call, REPLAYS) for one in self._candidates]
                best = [self._candidates[place] for place in np.argsort(times, stable=True)[:FINALISTS]]
                times = [self._time(one, call, FINAL_REPLAYS) for one in best]
                _winners[key] = best[int(np.argmin(times))]
                kept.put(self.product.size_class, _winners[key])
            winner = _winners[key]
        if self._fits(winner):
            self._algorithm = winner
        self._chosen = True

    def _time(self, algorithm: np.ndarray, call: tuple[int, int, int, int, int], replays: int) -> float:
        product = self.product
        calls = math.ceil(ENOUGH / max(1, 2 * product.tokens * product.inputs * product.outputs))
        return milliseconds(self._cuda, lambda stream: self._multiply(algorithm, stream, *call), replays, calls)

    def _fits(self, algorithm: np.ndarray) -> bool:
        """Whether an algorithm chosen for about as many tokens does for these."""
        result: Any = np.zeros(1, self._library.matmul_heuristic_result_dtype)
        try:
            self._library.matmul_algo_check(
                self._handle, self._descriptor, *self._layouts,
                algorithm.ctypes.data, result.ctypes.data,
            )  # fmt: skip
        except self._library.cuBLASLtError:
            return False
        return bool(result[0]["state"] == 0 and result[0]["workspace_size"] <= WORKSPACE)


def winners() -> tuple[str, int, dict[tuple, np.ndarray]]:
    """(GPU, cuBLASLt's version, size class -> algorithm as uint64 [8]): what was chosen in the current CUDA context."""
    cuda = driver()
    context = int(check(cuda.cuCtxGetCurrent(), "asking for the CUDA context"))
    with _lock:
        found = {key[1:]: one["data_"].reshape(-1).copy() for key, one in _winners.items() if key[0] == context}
    return _gpu_name(cuda), int(cublaslt().get_version()), found


def milliseconds(cuda: Any, call: Callable[[int], None], replays: int, calls: int = CALLS) -> float:
    """Time of one call(stream) on the GPU, inf where it fails.

    `calls` of them, at most CALLS, are replayed from a CUDA graph, so Python's own time does not count. They find their
    inputs in the L2 cache, which flatters all candidates alike.
    """
    calls = min(calls, CALLS)
    stream = check(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "making a stream")
    events = [check(cuda.cuEventCreate(0), "making an event") for _ in range(2)]
    graph = run = None
    try:
        call(int(stream))  # outside of the capture: this may load code
        mode = cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        check(cuda.cuStreamBeginCapture(stream, mode), "capturing what is timed")
        try:
            for _ in range(calls):
                call(int(stream))
        finally:
            ended, graph = cuda.cuStreamEndCapture(stream)
        check((ended,), "capturing what is timed")
        run = check(cuda.cuGraphInstantiate(graph, 0), "instantiating what is timed")
        best = math.inf
        for replay in range(replays + 1):
            check(cuda.cuEventRecord(events[0], stream), "timing")
            check(cuda.cuGraphLaunch(run, stream), "timing")
            check(cuda.cuEventRecord(events[1], stream), "timing")
            check(cuda.cuStreamSynchronize(stream), "timing")
            if replay:  # the first one warms up
                best = min(best, check(cuda.cuEventElapsedTime(*events), "timing") / calls)
        return best
    except MatmulError:
        return math.inf
    finally:
        for destroy, thing in ((cuda.cuGraphExecDestroy, run), (cuda.cuGraphDestroy, graph)):
            if thing is not None and int(thing):
                destroy(thing)
        for event in events:
            cuda.cuEventDestroy(event)
        cuda.cuStreamDestroy(stream)


def _gpu_name(cuda: Any) -> str:
    device = check(cuda.cuCtxGetDevice(), "asking for the GPU")
    return check(cuda.cuDeviceGetName(128, device), "asking for its name").split(b"\0")[0].decode()


def _algorithm(like: np.ndarray, words: np.ndarray) -> np.ndarray:
    """An algorithm of the same type as another one, with this content."""
    made = like.copy()
    made["data_"][...] = words
    return made


def cublaslt() -> Any:
    """nvmath's bindings; the library itself is opened by the first call."""
    from nvmath.bindings import cublasLt

    return cublasLt


def data_type(dtype: str) -> int:
    """cudaDataType_t of "float16", "bfloat16" or "float8"."""
    from nvmath import CudaDataType

    names = {"float16": "CUDA_R_16F", "bfloat16": "CUDA_R_16BF", "float8": "CUDA_R_8F_E4M3"}
    return int(CudaDataType[names[dtype]])


def _float32_compute() -> tuple[int, int]:
    """Sums and the epilogue in float32, and float32 factors before them."""
    from nvmath import CudaDataType
    from nvmath.bindings.cublas import ComputeType

    return int(ComputeType.COMPUTE_32F), int(CudaDataType.CUDA_R_32F)


def _destroy(library: Any, descriptor: int, layouts: list[int]) -> None:
    library.matmul_desc_destroy(descriptor)
    for layout in layouts:
        library.matrix_layout_destroy(layout)
