"""Those that `compare` times: our engine, and each peer for one shape, ready to be replayed on the same ids.

A peer is what a person has without us, in its best form: a graph or compilation for that one shape, no mask, and on a
GPU everything in its memory and replayed as a CUDA graph. Ours is the folder's plan, one for all shapes.
"""

import importlib.util
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from configs.errors import UserError
from export import engine, files
from plugins.device import Device
from scripts import bench_engine_torch
from scripts.bench_engine_opened import Opened
from scripts.bench_engine_plans import Shape, given, profile
from scripts.bench_engine_timer import Entrant
from scripts.compare_network import Network
from serve import fitting, gpu
from serve.fitting import Fitted
from serve.manifest import PLAN
from serve.onnx_session import OnnxSession
from serve.packed import Packed

OURS, EAGER, PLAIN = "Retort", "PyTorch SDPA, eager", "TensorRT, no plugins"
MODES = {"default": "torch.compile", "max-autotune": "torch.compile, max-autotune"}  # in bench_engine_torch.MODES
CUDA = "CUDAExecutionProvider"
DISTINCT = 8  # sequences of a batch that differ; the others repeat them, so that few are computed for the comparison


class Entrants:
    """Of one engine on one device. fitted: on a GPU, None: on the CPU, with so many threads."""

    def __init__(self, network: Network, fitted: Fitted | None, device: Device | None, threads: int | None) -> None:
        self.network, self.fitted, self.device, self.threads = network, fitted, device, threads
        self.notes: list[str] = []
        self._cpu = OnnxSession(network.manifest, providers=["CPUExecutionProvider"], threads=threads)
        self._plan: Opened | None = None
        self._torch: bench_engine_torch.Peers | None = None
        self.versions = ""

    def ids(self, shape: Shape, seed: int) -> np.ndarray:
        """int32 [B, S]: the same for all."""
        random = np.random.default_rng(seed + shape.length)
        some = random.integers(0, self.network.config.vocabulary, (DISTINCT, shape.length), np.int32)
        return some[np.arange(shape.batch) % DISTINCT]

    def reference(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """The outputs in float32, by model.onnx on the CPU."""
        some = ids[:DISTINCT]
        shape = Shape(*some.shape)
        found = self.network.named(self._cpu.run(_packed(some)), shape)
        return {name: array[np.arange(len(ids)) % DISTINCT] for name, array in found.items()}

    def offered(self, peers: list[str], modes: tuple[str, ...]) -> Iterator[tuple[str, str, Callable]]:
        """(name, precision, make(shape, ids) -> Entrant), ours first."""
        ours = self.network.manifest.precision if self.fitted else "float32"
        theirs = self.network.precision if self.fitted else "float32"
        yield OURS, ours, self._ours
        if "trt" in peers:
            yield PLAIN, theirs, self._tensorrt
        if "torch" in peers:
            yield EAGER, theirs, lambda shape, ids: self._pytorch("torch, not compiled", shape, ids)
            for mode in modes:
                yield (f"torch.compile ({mode})", theirs,
                       lambda shape, ids, mode=mode: self._pytorch(MODES[mode], shape, ids))  # fmt: skip
        if "ort" in peers:
            yield f"ONNX Runtime ({'CUDA' if self.fitted else 'CPU'})", theirs, self._onnx

    def refuse(self, peers: list[str]) -> None:
        """Raises: UserError that names all peers which this machine lacks."""
        import onnxruntime as ort

        missing = []
        if "torch" in peers and importlib.util.find_spec("torch") is None:
            missing.append("torch is not installed here; install it (it is none of our requirements)")
        if "trt" in peers and not self.fitted:
            missing.append("trt needs a GPU that runs this engine's plan")
        if "ort" in peers and self.fitted and CUDA not in ort.get_available_providers():
            there = ", ".join(ort.get_available_providers())
            missing.append(f"ort on a GPU needs {CUDA}, here are {there}; install onnxruntime-gpu instead")
        if missing:
            raise UserError(f"--compare: {'; '.join(missing)}. Or leave what is missing out of --compare")

    def _ours(self, shape: Shape, ids: np.ndarray) -> Entrant:
        network, batch = self.network, _packed(ids)
        if self.fitted is None:
            return Entrant(lambda: self._cpu.run(batch), None, network.named(self._cpu.run(batch), shape))
        if self._plan is None:
            manifest = network.manifest
            if note := fitting.take_choices(manifest, self.fitted.gpu.name):
                self.notes.append(note)
            plan = (manifest.folder / PLAN).read_bytes()
            self._plan = Opened(self.fitted.trt, plan, tuple(manifest.plugins), self.fitted.kernels)
        layout = network.manifest.layout
        return self._captured(self._plan, shape, given(ids, layout), layout)

    def _captured(self, opened: Opened, shape: Shape, inputs: dict[str, np.ndarray], layout: str) -> Entrant:
        assert self.device is not None
        entrant = opened.entrant_of(self.device, inputs, self.network.shapes(shape, layout))
        entrant.output = self.network.named(entrant.output, shape)
        return entrant

    def _tensorrt(self, shape: Shape, ids: np.ndarray) -> Entrant:
        """A plan for this shape alone, built here."""
        assert self.fitted is not None
        trt, network = self.fitted.trt, self.network
        model = network.padded(network.precision, shape)
        wanted = [item.name for item in model.graph.input]
        with tempfile.TemporaryDirectory() as folder:
            source, out = Path(folder) / "model.onnx", Path(folder) / "model.plan"
            files.save(model, source)
            plan = engine.Plan((), (self.fitted.gpu.architecture,), profile("padded", [shape]))
            engine.build(trt, source, out, plan, {})
            opened = Opened(trt, out.read_bytes(), (), None)
        inputs = given(ids, "padded")
        return self._captured(opened, shape, {name: inputs[name] for name in wanted}, "padded")

    def _pytorch(self, mode: str, shape: Shape, ids: np.ndarray) -> Entrant:
        network = self.network
        if self._torch is None:
            torch = bench_engine_torch.load()
            self.versions = f"torch {torch.__version__}"
            self._torch = bench_engine_torch.Peers(
                torch, network.tensors, network.config, network.precision if self.fitted else "float32",
                network.torch_head(), "cuda" if self.fitted else "cpu",
            )  # fmt: skip
        entrant = self._torch.entrant(mode, network.gelu, shape, given(ids, "padded"))
        entrant.output = network.named(entrant.output, shape)
        return entrant

    def _onnx(self, shape: Shape, ids: np.ndarray) -> Entrant:
        """The padded graph for this shape; on a GPU with inputs and outputs there, and as a CUDA graph if it can be."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = self.threads or gpu.cores()
        options.add_session_config_entry("session.force_spinning_stop", "1")  # or it spins while another has its turn
        model = self.network.padded(self.network.precision if self.fitted else "float32", shape)
        inputs = {item.name: given(ids, "padded")[item.name] for item in model.graph.input}
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "model.onnx"
            files.save(model, source)
            if self.fitted is None:
                session = ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
                return Entrant(
                    lambda: session.run(None, inputs), None, self._named(session, session.run(None, inputs), shape)
                )
            try:
                return self._bound(ort, str(source), options, inputs, shape, {"enable_cuda_graph": "1"})
            except Exception as error:  # its own types derive from nothing else; part of the graph is on the CPU
                self.notes.append(f"ONNX Runtime captures no CUDA graph of {shape}: {str(error).splitlines()[0][:200]}")
                return self._bound(ort, str(source), options, inputs, shape, {})

    def _bound(self, ort: Any, source: str, options: Any, inputs: dict, shape: Shape, cuda: dict[str, str]) -> Entrant:
        session = ort.InferenceSession(source, options, providers=[(CUDA, cuda)])
        binding = session.io_binding()
        held = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in inputs.items()}
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name, (axes, dtype) in self.network.shapes(shape, "padded").items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_shape_and_type(axes, dtype, "cuda", 0))
        for _ in range(3):
            session.run_with_iobinding(binding)
        found = self._named(session, binding.copy_outputs_to_cpu(), shape)
        return Entrant(lambda: session.run_with_iobinding(binding), None, found, keep=(session, held))

    def _named(self, session: Any, arrays: Any, shape: Shape) -> dict[str, np.ndarray]:
        names = [item.name for item in session.get_outputs()]
        return self.network.named(dict(zip(names, arrays, strict=True)), shape)


def _packed(ids: np.ndarray) -> Packed:
    return Packed(**given(ids, "packed"))
