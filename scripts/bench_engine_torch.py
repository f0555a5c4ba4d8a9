"""The same encoder in plain PyTorch, eager and compiled: what `bench_engine` and `compare` measure engines against.

The one file that imports torch for them, which is no dependency: it is used where it is installed. Attention is
PyTorch's own `scaled_dot_product_attention`, products have their bias, as anybody would write it.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from configs.errors import UserError
from export.graph import Tensors
from model.config import BertConfig
from scripts.bench_engine_plans import Shape, inputs
from scripts.bench_engine_timer import Entrant

# Name in the table -> mode of torch.compile, None for none. What "reduce-overhead" adds to "default" is a CUDA graph,
# and all entrants have one.
MODES = {
    "torch.compile": "default",
    "torch.compile, max-autotune": "max-autotune-no-cudagraphs",
    "torch, not compiled": None,
}


def load() -> Any:
    """The module. Raises: UserError where it is missing."""
    if importlib.util.find_spec("torch") is None:
        raise UserError("torch is not installed here; install it, or leave it out of the peers")
    torch: Any = importlib.import_module("torch")
    for config, settings in (
        # A shape is a compilation; beyond the limit torch would go on uncompiled.
        ("torch._dynamo.config", {"recompile_limit": 256, "accumulated_recompile_limit": 256, "cache_size_limit": 256}),
        ("torch._inductor.config", {"autotune_num_choices_displayed": 0}),
    ):
        module = importlib.import_module(config)
        for name, value in settings.items():
            if hasattr(module, name):  # names have changed between versions
                setattr(module, name, value)
    return torch


def encoder(torch: Any, tensors: Tensors, config: BertConfig, gelu: str, head: Any = None) -> Any:
    """A module (token_ids, segment_ids int64 [B, S]) -> [B, S, H], or what the head makes of it; float32 on the CPU."""
    nn, functional = torch.nn, torch.nn.functional
    heads, size, epsilon = config.heads, config.head_size, config.layer_norm_epsilon

    def held(array: np.ndarray) -> Any:
        return nn.Parameter(torch.from_numpy(np.array(array, np.float32, order="C")), requires_grad=False)

    def linear(source: str) -> Any:
        kernel = tensors[f"{source}.kernel"]
        layer = nn.Linear(*kernel.shape)
        layer.weight, layer.bias = held(kernel.T), held(tensors[f"{source}.bias"])
        return layer

    def norm(source: str) -> Any:
        layer = nn.LayerNorm(config.hidden, eps=epsilon)
        layer.weight, layer.bias = held(tensors[f"{source}.scale"]), held(tensors[f"{source}.offset"])
        return layer

    class Layer(nn.Module):
        def __init__(self, index: int) -> None:
            super().__init__()
            here = f"layers.{index}"
            self.qkv, self.out = linear(f"{here}.attention.qkv"), linear(f"{here}.attention.out")
            self.widen, self.narrow = linear(f"{here}.ffn.in"), linear(f"{here}.ffn.out")
            self.after_attention, self.after_ffn = norm(f"{here}.attention.norm"), norm(f"{here}.ffn.norm")

        def forward(self, x: Any) -> Any:
            batch, length, width = x.shape
            q, k, v = self.qkv(x).view(batch, length, 3, heads, size).permute(2, 0, 3, 1, 4)  # [B, N, S, D] each
            context = functional.scaled_dot_product_attention(q, k, v)
            x = self.after_attention(x + self.out(context.transpose(1, 2).reshape(batch, length, width)))
            inner = functional.gelu(self.widen(x), approximate="none" if gelu == "erf" else "tanh")
            return self.after_ffn(x + self.narrow(inner))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("token", "position", "segment"):
                setattr(self, name, held(tensors[f"embeddings.{name}"]))
            self.norm = norm("embeddings.norm")
            self.layers = nn.ModuleList(Layer(index) for index in range(config.layers))
            self.head: Any = head(torch) if head else None

        def forward(self, token_ids: Any, segment_ids: Any) -> Any:
            x = functional.embedding(token_ids, self.token) + functional.embedding(segment_ids, self.segment)
            x = self.norm(x + self.position[: token_ids.shape[1]])
            for layer in self.layers:
                x = layer(x)
            return x if self.head is None else self.head(x)

    return Encoder().eval()


class Peers:
    """The module of one size, in the precision that is timed, on GPU 0 or on the CPU.

    head: (torch) -> (x [B, S, H] -> the outputs by name, float32); None for the encoder alone.
    """

    def __init__(
        self, torch: Any, tensors: Tensors, config: BertConfig, precision: str,
        head: Callable[[Any], Callable[[Any], dict[str, Any]]] | None = None, device: str = "cuda",
    ) -> None:  # fmt: skip
        self._torch, self._tensors, self._config, self._device = torch, tensors, config, device
        self._dtype = getattr(torch, precision)
        self._head = head
        self._modules: dict[str, Any] = {}

    def entrant(self, name: str, gelu: str, shape: Shape, given: dict[str, np.ndarray] | None = None) -> Entrant:
        """One of MODES for a shape, with the output of a replay; on a GPU captured on a stream of its own.

        given: padded inputs, of this shape; None: those of `inputs`.
        """
        torch = self._torch
        if gelu not in self._modules:
            module = encoder(torch, self._tensors, self._config, gelu, self._head)
            self._modules[gelu] = module.to(self._device, self._dtype)
        call = compiled(torch, self._modules[gelu], MODES[name])
        given = given or inputs(self._config, shape, "padded")
        ids = [torch.from_numpy(given[key].astype(np.int64)).to(self._device) for key in ("token_ids", "segment_ids")]
        if self._device == "cpu":
            return self._on_the_cpu(call, ids)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # the copies are there
        with torch.no_grad():
            with torch.cuda.stream(stream):
                for _ in range(3):
                    call(*ids)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                y = call(*ids)

        def replay() -> None:
            with torch.cuda.stream(stream):  # a graph is replayed on torch's current stream
                graph.replay()

        with torch.cuda.stream(stream):
            for tensor in y.values() if isinstance(y, dict) else (y,):
                tensor.fill_(float("nan"))
        replay()
        stream.synchronize()
        return Entrant(replay, stream.cuda_stream, self._numpy(y), keep=(graph, call, ids, y))

    def _on_the_cpu(self, call: Any, ids: list) -> Entrant:
        def run() -> Any:
            with self._torch.no_grad():
                return call(*ids)

        run()
        return Entrant(run, None, self._numpy(run()))

    def _numpy(self, y: Any) -> Any:
        if isinstance(y, dict):
            return {name: tensor.float().cpu().numpy() for name, tensor in y.items()}
        return y.float().cpu().numpy().reshape(-1, self._config.hidden)


def compiled(torch: Any, module: Any, mode: str | None) -> Any:
    """The module for one shape, in one piece: where torch would have to fall back to eager, it raises."""
    return torch.compile(module, mode=mode, fullgraph=True, dynamic=False) if mode else module
