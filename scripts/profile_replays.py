"""Which kernels an encoder's CUDA graph holds and how long each takes: PyTorch's profiler over replays in a row.

    python -m scripts.profile_replays --shapes 32x384 --precision float8

The networks are `bench_engine`'s, random weights of a named size. What `serve.bench --profile` cannot see is seen here:
kernels that TensorRT would put round the plugins. The first replays after a pause run at a cool GPU's clock; --replays
in a row do not.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from configs import command
from configs.options import setting
from export.quantisation import BASE, FORMATS
from model.config import NAMED
from plugins import tensorrt_flavour
from plugins.device import Device
from scripts import bench_engine, bench_engine_torch
from scripts.bench_engine_plans import ALL, ALL8, Encoder, Variant

WARM = 20  # replays before those that count
SHOWN = 12


@dataclass(frozen=True)
class ProfileConfig:
    """Print the kernels of an encoder's CUDA graph, by time. Needs a GPU and PyTorch.

    Example:

      python -m scripts.profile_replays --shapes 32x384 1x128 --precision float16 --gelu tanh
    """

    size: str = setting("bert-base", choices=tuple(NAMED), help="size by name")
    shapes: tuple[str, ...] = setting(("32x384",), help="batch x length")
    precision: str = setting("float16", choices=("float16", "bfloat16", *FORMATS), help="of the products")
    gelu: str = setting("tanh", choices=("tanh", "erf"), help="form of GELU")
    replays: int = setting(50, least=1, help="that are recorded, in a row")
    target: str = setting("tensorrt_rtx", choices=tensorrt_flavour.TARGETS, help="which TensorRT")


def main(config: ProfileConfig) -> dict:
    shapes = bench_engine.checked(bench_engine.BenchConfig(sizes=(config.size,), shapes=config.shapes))
    torch = bench_engine_torch.load()
    trt = tensorrt_flavour.load(config.target)
    eight = config.precision in FORMATS
    metrics = {}
    with Device() as device:
        encoder = Encoder(NAMED[config.size], BASE if eight else config.precision, shapes)
        how: dict[str, Any] = {"format": config.precision} if eight else {}
        variant = Variant("all plugins", config.gelu, "packed", ALL8 if eight else ALL, **how)
        for shape in shapes:
            entrant = encoder.entrant(trt, device, variant, shape)
            for _ in range(WARM):
                entrant.replay()
            torch.cuda.synchronize()
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
                for _ in range(config.replays):
                    entrant.replay()
                torch.cuda.synchronize()
            kernels = summed((event.name, event.device_time) for event in profile.events())
            whole = sum(us for _, us in kernels.values()) / config.replays
            metrics[str(shape)] = round(whole, 1)
            print(f"\n{config.size} {shape}, {config.precision}, {config.gelu}: {whole:.1f} us of kernels a replay")
            for name, (count, us) in list(kernels.items())[:SHOWN]:
                print(f"{us / config.replays:9.1f} us {count / config.replays:6.1f} x {us / count:8.2f}  {name[:100]}")
            del entrant
    return {"out": None, "metrics": metrics}


def summed(events: Iterable[tuple[str, float]]) -> dict[str, tuple[int, float]]:
    """Kernel -> (how often, microseconds in all), the dearest first; what took no time was no kernel."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for name, us in events:
        if us > 0:
            found[name].append(us)
    return {name: (len(times), sum(times)) for name, times in sorted(found.items(), key=lambda item: -sum(item[1]))}


if __name__ == "__main__":
    command.run("scripts.profile_replays", ProfileConfig, main)
