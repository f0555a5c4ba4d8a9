"""One timer for everything that `bench_engine` compares: CUDA graphs, whoever captured them, taking turns."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plugins.launch import check, driver

ROUNDS = 4
WARM_MS, SAMPLE_MS = 100.0, 2.0  # before each turn, and the least time between two events


@dataclass
class Entrant:
    """Something ready to be timed: `replay()` puts one forward pass on `stream`."""

    replay: Callable[[], Any]
    stream: int
    output: np.ndarray  # float32 [B * S, H], of one replay over poisoned memory
    keep: Any = field(default=None, repr=False)  # what the replay needs alive


def milliseconds(stream: int, replay: Callable[[], Any], samples: int, replays: int) -> np.ndarray:
    """[samples] time of one replay on the GPU, each the mean of `replays` in a row; nobody waits before the end."""
    cuda = driver()
    events = [check(cuda.cuEventCreate(0), "making an event") for _ in range(samples + 1)]
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


def take_turns(entrants: list[Entrant], samples: int) -> list[tuple[np.ndarray, int]]:
    """For each entrant ([ROUNDS, samples / ROUNDS] milliseconds, replays a sample), measured in turns."""
    order = random.Random(0)
    found: list[list[np.ndarray]] = [[] for _ in entrants]
    replays = []
    for entrant in entrants:
        once = float(np.median(milliseconds(entrant.stream, entrant.replay, 5, 1)))
        replays.append(max(1, math.ceil(SAMPLE_MS / max(once, 1e-3))))
    for _ in range(ROUNDS):
        for index in order.sample(range(len(entrants)), len(entrants)):
            entrant, repeat = entrants[index], replays[index]
            milliseconds(entrant.stream, entrant.replay, math.ceil(WARM_MS / SAMPLE_MS), repeat)
            found[index].append(milliseconds(entrant.stream, entrant.replay, -(-samples // ROUNDS), repeat))
    return [(np.stack(rounds), repeat) for rounds, repeat in zip(found, replays, strict=True)]
