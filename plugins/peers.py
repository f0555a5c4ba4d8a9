"""The same operators in PyTorch, for the benches alone: what a person has without us, on the same inputs and GPU.

torch is no dependency: where it is not installed, benches have no peer column. Each peer is PyTorch's own operator, or
the two or three that a module would call; none is compiled.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from plugins import formats


def load() -> Any:
    """torch, or None where it is not installed or sees no GPU."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")
    return torch if torch.cuda.is_available() else None


def tensor(torch: Any, array: np.ndarray) -> Any:
    """On the GPU; numpy's float8, which torch does not know, by its bytes."""
    if array.dtype == formats.DTYPES["float8"]:
        return torch.from_numpy(array.view(np.uint8)).to("cuda").view(torch.float8_e4m3fn)
    return torch.from_numpy(array).to("cuda")


def call(torch: Any, op: str, case: Any, given: Mapping[str, Any]) -> Callable[[], Any] | None:
    """A call without arguments on the case's inputs, tensors by name; None where torch has nothing like it."""
    functional = torch.nn.functional
    g = dict(given)
    if op in ("skip_layer_norm", "linear_skip_layer_norm", "embed_layer_norm"):
        g["gamma"], g["beta"] = (g[name].to(next(t.dtype for t in given.values() if t.is_floating_point()))
                                 for name in ("gamma", "beta"))  # fmt: skip

    def norm(s: Any) -> Any:
        return functional.layer_norm(s, s.shape[-1:], g["gamma"], g["beta"], case.attributes["epsilon"])

    def attend() -> Any:
        batch, length = len(case.lengths), case.lengths[0]
        q, k, v = g["qkv"].view(batch, length, 3, case.heads, case.head_size).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch * length, -1)

    def embed() -> Any:
        ids = [g[f"{name}_ids"] for name in ("token", "segment", "position")]
        tables = [g[f"{name}_table"] for name in ("token", "segment", "position")]
        return norm(sum(functional.embedding(i, table) for i, table in zip(ids, tables, strict=True)))

    def product8() -> Any:
        """cuBLASLt's product of float8 numbers, as far as PyTorch has it: one scale, GELU apart."""
        x = g["x"].reshape(-1, g["x"].shape[-1])
        one = torch.ones((), device="cuda")
        y = torch._scaled_mm(x, g["weight"].t(), g["scale"][0], one, bias=g["bias"], out_dtype=g["bias"].dtype,
                             use_fast_accum=True)  # fmt: skip
        return y.reshape(*g["x"].shape[:-1], -1)

    def gelu8(approximate: str) -> Any:
        y = functional.gelu(product8(), approximate=approximate) * g["inverse_scale"]
        return y.clamp(-formats.MOST["float8"], formats.MOST["float8"]).to(torch.float8_e4m3fn)

    weight = None if "weight" not in g or "format" in case.attributes else g["weight"].t().contiguous()  # [M, K]
    calls: dict[str, Callable[[], Any]] = {
        "gelu": lambda: functional.gelu(g["x"], approximate=case.attributes["approximate"]),
        "skip_layer_norm": lambda: norm(g["x"] + g["bias"] + g["residual"]),
        "embed_layer_norm": embed,
        "linear": lambda: functional.linear(g["x"], weight, g["bias"]),
        "linear_gelu": lambda: functional.gelu(functional.linear(g["x"], weight, g["bias"]), **case.attributes),
        "linear_skip_layer_norm": lambda: norm(functional.linear(g["x"], weight, g["bias"]) + g["residual"]),
        "attention": attend,
        "linear8": product8,
        "linear8_gelu": lambda: functional.gelu(product8(), approximate="tanh"),
        "linear8_gelu8": lambda: gelu8(case.attributes["approximate"]),
    }
    if op.startswith("linear8") and (case.attributes["format"] != "float8" or g["scale"].numel() > 1):
        return None  # torch has no public product of int8, and scales of outputs for bfloat16 alone
    if op == "attention" and (case.padded_to or case.tail or len(set(case.lengths)) > 1):
        return None  # torch's takes batches of one length, or a mask
    return calls.get(op)


def time_us(
    torch: Any, op: str, case: Any, given: Mapping[str, np.ndarray], cold_bytes: int, most_copies: int, samples: int
) -> float | None:
    """Median microseconds of a call, or None. Timed as ours are: a CUDA graph over copies that don't fit into L2."""
    size = sum(tensor.nbytes for tensor in given.values())
    calls = []
    for _ in range(min(most_copies, math.ceil(cold_bytes / max(size, 1)))):
        made = call(torch, op, case, {name: tensor(torch, array) for name, array in given.items()})
        if made is None:
            return None
        calls.append(made)
    rounds = math.ceil(20 / len(calls))
    with torch.no_grad():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            calls[0]()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for one in rounds * calls:
                one()
        taken = []
        with torch.cuda.stream(stream):
            for _ in range(samples + 2):
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                graph.replay()
                end.record()
                stream.synchronize()
                taken.append(1000 * begin.elapsed_time(end) / (rounds * len(calls)))
    return float(np.median(taken[2:]))
