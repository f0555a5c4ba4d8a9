"""A GPU without a framework: memory, one stream and CUDA graphs through cuda-bindings, for tests and benches.

    with Device() as gpu:
        x = gpu.upload(numpy_array)                      # an address
        graph = gpu.capture(lambda: launch(gpu.stream, [x]))
        graph.replay()
        y = gpu.download(x, numpy_array.shape, numpy_array.dtype)
"""

from collections.abc import Callable
from typing import Any, Self

import numpy as np

from plugins.launch import check, driver


class Device:
    """GPU `index`, its primary context made current for this thread. Leaving the block frees what was allocated."""

    def __init__(self, index: int = 0) -> None:
        self._cuda = cuda = driver()
        self._device = check(cuda.cuDeviceGet(index), f"finding GPU {index}")
        self._context = check(cuda.cuDevicePrimaryCtxRetain(self._device), "making a context")
        check(cuda.cuCtxSetCurrent(self._context), "making the context current")
        self._stream = check(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "making a stream")
        self.stream = int(self._stream)
        self._addresses: list[int] = []

    @property
    def bus(self) -> str:
        """Where it sits, as in 0000:1b:00.0: nvidia-smi's name for it, whatever CUDA_VISIBLE_DEVICES says."""
        said = check(self._cuda.cuDeviceGetPCIBusId(16, self._device), "asking for the bus of the GPU")
        return bytes(said).split(b"\0")[0].decode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.free()

    def free(self) -> None:
        """Give all memory back."""
        self.wait()
        for address in self._addresses:
            check(self._cuda.cuMemFree(address), "freeing memory")
        self._addresses.clear()

    def empty(self, size: int) -> int:
        """The address of `size` bytes with all bits set: NaN as float, -1 as integer."""
        address = int(check(self._cuda.cuMemAlloc(max(size, 1)), f"allocating {size} bytes"))
        self._addresses.append(address)
        self.poison(address, size)
        return address

    def poison(self, address: int, size: int) -> None:
        """Set all bits, so that what a kernel forgets to write is seen."""
        if size:
            check(self._cuda.cuMemsetD8Async(address, 0xFF, size, self._stream), "filling memory")
            self.wait()

    def upload(self, array: np.ndarray) -> int:
        """The address of a copy of the array, in an allocation of its own: sanitizers see every step beyond it."""
        array = np.ascontiguousarray(array)
        address = self.empty(array.nbytes)
        if array.nbytes:
            check(self._cuda.cuMemcpyHtoD(address, array.ctypes.data, array.nbytes), "copying to the GPU")
        return address

    def download(self, address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """What lies there once the stream is done."""
        self.wait()
        array = np.empty(shape, dtype)
        if array.nbytes:
            check(self._cuda.cuMemcpyDtoH(array.ctypes.data, address, array.nbytes), "copying from the GPU")
        return array

    def wait(self) -> None:
        """Until the stream is done; a fault of a kernel launched before is raised here."""
        check(self._cuda.cuStreamSynchronize(self._stream), "waiting for the GPU")

    def capture(self, call: Callable[[], None]) -> "Graph":
        """What `call` puts on the stream, as a graph. In the strictest mode: a call that allocates or waits fails."""
        cuda = self._cuda
        check(
            cuda.cuStreamBeginCapture(self._stream, cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL),
            "beginning a capture",
        )
        try:
            call()
        finally:
            graph = check(cuda.cuStreamEndCapture(self._stream), "ending a capture")
        return Graph(self, check(cuda.cuGraphInstantiate(graph, 0), "instantiating a graph"))

    def attribute(self, name: str) -> int:
        """A device attribute by the end of its CUDA name: "MULTIPROCESSOR_COUNT"."""
        wanted = getattr(self._cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(check(self._cuda.cuDeviceGetAttribute(wanted, self._device), f"asking for {name}"))

    @property
    def architecture(self) -> int:
        return 10 * self.attribute("COMPUTE_CAPABILITY_MAJOR") + self.attribute("COMPUTE_CAPABILITY_MINOR")

    @property
    def name(self) -> str:
        return check(self._cuda.cuDeviceGetName(128, self._device), "asking for its name").split(b"\0")[0].decode()

    @property
    def driver_version(self) -> str:
        """The newest CUDA that the driver knows: "13.0"."""
        version = int(check(self._cuda.cuDriverGetVersion(), "asking for the driver's version"))
        return f"{version // 1000}.{version % 1000 // 10}"


class Graph:
    """A captured sequence of launches."""

    def __init__(self, device: Device, executable: Any) -> None:
        self._device, self._executable = device, executable

    def replay(self) -> None:
        check(self._device._cuda.cuGraphLaunch(self._executable, self._device._stream), "replaying a graph")

    def times_us(self, samples: int) -> np.ndarray:
        """How long each of `samples` replays took on the GPU, microseconds; two before them don't count."""
        cuda, stream = self._device._cuda, self._device._stream
        start, end = (check(cuda.cuEventCreate(0), "making an event") for _ in range(2))
        taken = []
        for _ in range(samples + 2):
            check(cuda.cuEventRecord(start, stream), "recording an event")
            self.replay()
            check(cuda.cuEventRecord(end, stream), "recording an event")
            check(cuda.cuEventSynchronize(end), "waiting for an event")
            taken.append(1000 * check(cuda.cuEventElapsedTime(start, end), "reading the time"))
        return np.array(taken[2:])
