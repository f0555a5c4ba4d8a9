"""One timer for all that `bench_engine` and `compare` compare: CUDA graphs, whoever captured them, taking turns.

What is no graph on a stream (anything on a CPU; ONNX Runtime, which waits for its own) is timed by the host's clock.
"""

import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugins.launch import check, driver

ROUNDS = 4
WARM_MS, SAMPLE_MS = 500.0, 2.0  # before all turns together, and the least time between two events
ALONE_MS = 300.0  # of an entrant's replays with nothing between them, after as many that do not count


@dataclass
class Entrant:
    """Something ready to be timed: `replay()` puts one forward pass on `stream`; None: it is done when it returns."""

    replay: Callable[[], Any]
    stream: int | None
    output: Any  # float32 [B * S, H] or the outputs by name, of one replay over poisoned memory
    keep: Any = field(default=None, repr=False)  # what the replay needs alive


def milliseconds(stream: int | None, replay: Callable[[], Any], samples: int, replays: int) -> np.ndarray:
    """[samples] time of one replay on the GPU, each the mean of `replays` in a row; nobody waits before the end.

    A replay before them, which does not count, keeps the GPU busy while the host prepares the first one that does.
    """
    if stream is None:
        return _by_the_hosts_clock(replay, samples, replays)
    cuda = driver()
    events = [check(cuda.cuEventCreate(0), "making an event") for _ in range(samples + 1)]
    replay()
    check(cuda.cuEventRecord(events[0], stream), "recording an event")
    for event in events[1:]:
        for _ in range(replays):
            replay()
        check(cuda.cuEventRecord(event, stream), "recording an event")
    check(cuda.cuEventSynchronize(events[-1]), "waiting for an event")
    apart = itertools.pairwise(events)
    taken = [check(cuda.cuEventElapsedTime(*pair), "reading the time") / replays for pair in apart]
    for event in events:
        check(cuda.cuEventDestroy(event), "destroying an event")
    return np.array(taken)


def _by_the_hosts_clock(replay: Callable[[], Any], samples: int, replays: int) -> np.ndarray:
    taken = []
    for _ in range(samples):
        begin = time.perf_counter()
        for _ in range(replays):
            replay()
        taken.append(1000 * (time.perf_counter() - begin) / replays)
    return np.array(taken)


def take_turns(entrants: list[Entrant], samples: int) -> list[tuple[np.ndarray, int]]:
    """For each entrant ([ROUNDS, samples / ROUNDS] milliseconds, replays a sample).

    They take turns of one sample, in a new order each time, so that all meet the same GPU: as warm, and as short of
    power, which under products of 16-bit numbers lowers an H200's clock by an eighth.
    """
    order = random.Random(0)
    found: list[list[np.ndarray]] = [[] for _ in entrants]
    replays = []
    for entrant in entrants:
        once = float(np.median(milliseconds(entrant.stream, entrant.replay, 5, 1)))
        replays.append(max(1, math.ceil(SAMPLE_MS / max(once, 1e-3))))
    turns = ROUNDS * -(-samples // ROUNDS)
    warm_up = math.ceil(WARM_MS / SAMPLE_MS / max(1, len(entrants)))
    for turn in range(-warm_up, turns):
        for index in order.sample(range(len(entrants)), len(entrants)):
            taken = milliseconds(entrants[index].stream, entrants[index].replay, 1, replays[index])
            if turn >= 0:
                found[index].append(taken)
    return [(np.stack(times).reshape(ROUNDS, -1), repeat) for times, repeat in zip(found, replays, strict=True)]


def alone(entrant: Entrant, once: float) -> float:
    """Median milliseconds of a replay while nothing else runs; once: about how many it takes.

    In turns an entrant that needs little power runs at the clock that the others leave it; here at its own.
    """
    samples = max(10, math.ceil(ALONE_MS / SAMPLE_MS))
    replays = max(1, math.ceil(SAMPLE_MS / once))
    taken = [milliseconds(entrant.stream, entrant.replay, samples, replays) for _ in range(2)]
    return float(np.median(taken[-1]))
