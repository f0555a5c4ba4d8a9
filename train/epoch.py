"""An epoch's batches on their way to the step: planned, made, copied ahead to the device or, in shares, devices."""

import contextlib
from collections.abc import Generator, Iterator
from functools import partial

import numpy as np

from data import batches, feed
from data.feed import Packed
from train.config import RunConfig
from train.hardware import Hardware


def epoch_batches(
    features, edges, config: RunConfig, machine: Hardware, epoch: int, first: int, extend=None
) -> Generator[tuple, None, None]:
    """(batch on the device or devices, real rows) from the epoch's first-th batch on; closing it ends its thread.

    extend: numpy batch -> the same with more arrays [B, S, ...] (a teacher's cached outputs).
    """
    plan = batches.plan(batches.lengths(features), config.batch_size, edges, seed=config.seed, epoch=epoch)
    real = [int((rows >= 0).sum()) for _, rows in plan[first:]]
    own = batches.batches(features, plan, first, machine.rank, machine.ranks, extend)
    with contextlib.closing(fed(own, machine)) as stream:
        yield from zip(stream, real, strict=True)


def fed(own: Iterator[dict[str, np.ndarray]], machine: Hardware) -> Generator[Packed, None, None]:
    """This process's batches ahead on its device, or in shares on its devices."""
    if machine.strategy is None:
        return feed.prefetched(own)
    devices = machine.strategy.extended.worker_devices  # of this process
    upload, unpack = partial(feed.shares_uploaded, devices), partial(feed.shares_unpacked, machine.strategy)
    return feed.prefetched(own, upload=upload, unpack=unpack)
