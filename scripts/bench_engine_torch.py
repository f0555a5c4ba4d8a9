"""The same encoder in plain PyTorch, eager and compiled: what `bench_engine` measures the plans against.

The one file that imports torch, which is no dependency: it is used where it is installed. Attention is PyTorch's own
`scaled_dot_product_attention`, products have their bias, as anybody would write it.
"""

import importlib
import importlib.util
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
        raise UserError("torch is not installed here; install it, or take --peers none")
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


def encoder(torch: Any, tensors: Tensors, config: BertConfig, gelu: str) -> Any:
    """A module (token_ids, segment_ids int64 [B, S]) -> [B, S, H], with our weights, float32 on the CPU."""
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

        def forward(self, token_ids: Any, segment_ids: Any) -> Any:
            x = functional.embedding(token_ids, self.token) + functional.embedding(segment_ids, self.segment)
            x = self.norm(x + self.position[: token_ids.shape[1]])
            for layer in self.layers:
                x = layer(x)
            return x

    return Encoder().eval()


class Peers:
    """The module of one size on GPU 0, in the precision that is timed."""

    def __init__(self, torch: Any, tensors: Tensors, config: BertConfig, precision: str) -> None:
        self._torch, self._tensors, self._config = torch, tensors, config
        self._dtype = getattr(torch, precision)
        self._modules: dict[str, Any] = {}

    def entrant(self, name: str, gelu: str, shape: Shape) -> Entrant:
        """One of MODES captured for a shape on a stream of its own, with the output of a replay."""
        torch = self._torch
        if gelu not in self._modules:
            module = encoder(torch, self._tensors, self._config, gelu)
            self._modules[gelu] = module.to("cuda", self._dtype)
        call = compiled(torch, self._modules[gelu], MODES[name])
        given = inputs(self._config, shape, "padded")
        ids = [torch.from_numpy(given[key].astype(np.int64)).to("cuda") for key in ("token_ids", "segment_ids")]
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
            y.fill_(float("nan"))
        replay()
        stream.synchronize()
        output = y.float().cpu().numpy().reshape(-1, self._config.hidden)
        return Entrant(replay, stream.cuda_stream, output, keep=(graph, call, ids, y))


def compiled(torch: Any, module: Any, mode: str | None) -> Any:
    """The module for one shape, in one piece: where torch would have to fall back to eager, it raises."""
    return torch.compile(module, mode=mode, fullgraph=True, dynamic=False) if mode else module
