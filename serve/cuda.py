"""CUDA as far as a session needs it: memory, streams, events and graphs, through cuda-bindings and nothing else.

Addresses are whole numbers. Every call that fails is a `CudaError` with CUDA's own name for it.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np


class CudaError(RuntimeError):
    """A CUDA call failed. Most of these are final for the process."""


class Cuda:
    """The first visible GPU."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self._cuda = runtime
        self._done = runtime.cudaError_t.cudaSuccess
        self._call(runtime.cudaSetDevice, 0)

    def memory(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""
        return int(self._call(self._cuda.cudaMalloc, size))

    def pinned(self, size: int) -> tuple[int, np.ndarray]:
        """(address, uint8 [size]) of memory of the host's that is never paged out, so that copies need not wait."""
        address = int(self._call(self._cuda.cudaHostAlloc, size, 0))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def free(self, address: int) -> None:
        self._call(self._cuda.cudaFree, address)

    def free_pinned(self, address: int) -> None:
        self._call(self._cuda.cudaFreeHost, address)

    def stream(self) -> Any:
        """A stream that does not wait for the default one."""
        return self._call(self._cuda.cudaStreamCreateWithFlags, self._cuda.cudaStreamNonBlocking)

    def event(self) -> Any:
        return self._call(self._cuda.cudaEventCreateWithFlags, self._cuda.cudaEventDisableTiming)

    def copy_in(self, gpu: int, host: int, size: int, stream: Any) -> None:
        """Begin to copy `size` bytes from the host's address to the GPU's."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(self._cuda.cudaMemcpyAsync, gpu, host, size, kind, stream)

    def copy_out(self, host: int, gpu: int, size: int, stream: Any) -> None:
        """Begin to copy `size` bytes from the GPU's address to the host's."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._call(self._cuda.cudaMemcpyAsync, host, gpu, size, kind, stream)

    def fill(self, gpu: int, size: int, stream: Any) -> None:
        """Begin to set `size` bytes of the GPU's memory to zero."""
        self._call(self._cuda.cudaMemsetAsync, gpu, 0, size, stream)

    def record(self, event: Any, stream: Any) -> None:
        """The event happens when all that was put on the stream so far is done."""
        self._call(self._cuda.cudaEventRecord, event, stream)

    def synchronise(self, event: Any) -> None:
        """The host waits for the event; other threads of Python run meanwhile."""
        self._call(self._cuda.cudaEventSynchronize, event)

    def finish(self, stream: Any) -> None:
        """The host waits for all that is on the stream."""
        self._call(self._cuda.cudaStreamSynchronize, stream)

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """A graph of what `work` puts on the stream; nothing of it is run. Raises what `work` raises, and CudaError."""
        # Thread-local: another thread may allocate meanwhile. This one may not, which is why shapes run plainly first.
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call(self._cuda.cudaStreamBeginCapture, stream, mode)
        try:
            work()
        except BaseException:
            self._cuda.cudaStreamEndCapture(stream)  # or the stream stays in capture for ever
            raise
        graph = self._call(self._cuda.cudaStreamEndCapture, stream)
        try:
            return self._call(self._cuda.cudaGraphInstantiate, graph, 0)
        finally:
            self._call(self._cuda.cudaGraphDestroy, graph)

    def launch(self, graph: Any, stream: Any) -> None:
        self._call(self._cuda.cudaGraphLaunch, graph, stream)

    def free_graph(self, graph: Any) -> None:
        self._call(self._cuda.cudaGraphExecDestroy, graph)

    def free_stream(self, stream: Any) -> None:
        self._call(self._cuda.cudaStreamDestroy, stream)

    def free_event(self, event: Any) -> None:
        self._call(self._cuda.cudaEventDestroy, event)

    def _call(self, function: Callable, *arguments: Any) -> Any:
        status, *values = function(*arguments)
        if status != self._done:
            raise CudaError(f"{function.__name__} failed: {getattr(status, 'name', status)}")
        return values[0] if values else None
