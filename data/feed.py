"""Batches on their way to the device, or devices, ahead of whoever uses them; the only TensorFlow file in data/.

    for batch in feed.prefetched(batches.batches(features, plan)):     # feed.Packed, on the device
        step(batch)                                                    # takes it apart inside its compiled function

A thread makes batches and copies them, several at a time. What has four bytes a number, which is all of a usual batch,
travels as one tensor, and stays one: each operation that would take it apart costs the host more time than a small
model's step has. So a batch is one tensor and a `Layout`, and whoever computes with it calls `apart` where XLA sees it,
for which a slice at a known place is no work at all.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from data.batches import rank_rows

PARCEL_BYTES = 8 << 20  # batches that carry a teacher's hidden states are copied one by one
# Batches made before they are wanted. With each copy the GPU stands still for about a millisecond, hence many at once;
# the first step need not wait for so many.
AHEAD, FIRST = 64, 4

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """What lies in a batch's tensor of numbers, one array after the other; equal for batches of one shape."""

    arrays: tuple[tuple[str, tuple[int, ...], bool], ...] = ()  # name, shape, whether int32 (else float32)

    @property
    def size(self) -> int:
        return sum(math.prod(shape) for _, shape, _ in self.arrays)

    def apart(self, numbers: tf.Tensor) -> dict[str, tf.Tensor]:
        """float32 [size] -> name -> float32 or int32 of the array's shape, bit by bit."""
        found = {}
        pieces = tf.split(numbers, [math.prod(shape) for _, shape, _ in self.arrays]) if self.arrays else []
        for (name, shape, whole), piece in zip(self.arrays, pieces, strict=True):
            tensor = tf.reshape(piece, shape)
            found[name] = tf.bitcast(tensor, tf.int32) if whole else tensor
        return found


@dataclass(frozen=True)
class Packed:
    """A batch on a device, or of several devices' shares: then `numbers` and `others` are per-replica values."""

    numbers: Any  # float32 [layout.size]
    layout: Layout
    others: dict[str, Any]  # what is neither float32 nor int32, by itself

    @classmethod
    def of(cls, batch: "Packed | Mapping[str, tf.Tensor]") -> "Packed":
        """A batch that already is tensors, as it is."""
        return batch if isinstance(batch, Packed) else cls(tf.zeros([0]), Layout(), dict(batch))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one of its tensors; of several devices' the share's of one."""
        for other, shape, _ in self.layout.arrays:
            if other == name:
                return shape
        return tuple(of_devices(self.others[name])[0].shape)

    def apart(self) -> dict[str, tf.Tensor]:
        return self.layout.apart(self.numbers) | self.others


def of_devices(value: Any) -> Sequence[tf.Tensor]:
    """The tensors of a per-replica value, or the one tensor."""
    return getattr(value, "values", None) or [value]


@dataclass(frozen=True)
class Parcel:
    """Batches on the device, the numbers of all in one tensor."""

    numbers: tf.Tensor  # float32 [of all batches]
    layouts: list[Layout]
    others: list[dict[str, tf.Tensor]]  # a dict a batch


def uploaded(batches: list[Arrays]) -> Parcel:
    """Batches to the device in one copy.

    Every copy from the host waits until the GPU has done all that it was given before, and the host with it; and int32
    tensors, if copied by themselves, go when a step asks for them, and lie on the host for a function over several
    devices. So they travel as float32, of which TensorFlow has the kernels.
    """
    layouts, others, numbers = [], [], list[np.ndarray]()
    for batch in batches:
        small = {name: np.asarray(value, order="C") for name, value in batch.items()
                 if value.dtype in (np.int32, np.float32)}  # fmt: skip
        numbers += [value.reshape(-1).view(np.float32) for value in small.values()]
        layouts.append(Layout(tuple((name, value.shape, value.dtype == np.int32) for name, value in small.items())))
        others.append({name: tf.constant(value) for name, value in batch.items() if name not in small})
    return Parcel(tf.constant(np.concatenate(numbers or [[]]), tf.float32), layouts, others)


def unpacked(parcel: Parcel) -> list[Packed]:
    """The batches of a parcel, by one operation, in the thread that uses them.

    By that one and no other: once, on a GPU, `tf.reshape` in a thread beside it was handed a tensor of the other's for
    its shape (TensorFlow 2.21). A thread beside may copy; it must not compute.
    """
    pieces = tf.split(parcel.numbers, [layout.size for layout in parcel.layouts]) if parcel.layouts else []
    return [Packed(*each) for each in zip(pieces, parcel.layouts, parcel.others, strict=True)]


def shares_uploaded(devices: Sequence[str], batches: list[Arrays]) -> list[tuple[str, Parcel]]:
    """Each device's share of the batches (`rank_rows`) to that device, in one copy each."""
    found, count = [], len(devices)
    for index, device in enumerate(devices):
        share = [{name: rank_rows(value, index, count) for name, value in batch.items()} for batch in batches]
        with tf.device(device):
            found.append((device, uploaded(share)))
    return found


def shares_unpacked(strategy: tf.distribute.Strategy, shares: list[tuple[str, Parcel]]) -> list[Packed]:
    """The batches of the devices' parcels, each with its devices' shares as per-replica values."""
    found = []
    for device, parcel in shares:
        with tf.device(device):
            found.append(unpacked(parcel))

    def per_replica(values: list) -> Any:
        return strategy.experimental_distribute_values_from_function(
            lambda context: values[context.replica_id_in_sync_group % len(values)]
        )

    together = []
    for same in zip(*found, strict=True):
        one = same[0]
        others = {name: per_replica([share.others[name] for share in same]) for name in one.others}
        together.append(Packed(per_replica([share.numbers for share in same]), one.layout, others))
    return together


def parcels(stream: Iterator[Arrays], ahead: int) -> Iterator[list[Arrays]]:
    """Batches in lists of FIRST, of twice as many, and so on up to half of `ahead`; or of PARCEL_BYTES.

    The next list is copied while this one is computed.
    """
    parcel: list[Arrays] = []
    size, enough = 0, FIRST
    for batch in stream:
        parcel.append(batch)
        size += sum(value.nbytes for value in batch.values())
        if len(parcel) >= enough or 2 * len(parcel) >= ahead or size >= PARCEL_BYTES:
            yield parcel
            parcel, size, enough = [], 0, 2 * enough
    if parcel:
        yield parcel


def prefetched(
    stream: Iterator[Arrays], ahead: int = AHEAD, upload: Callable = uploaded, unpack: Callable = unpacked
) -> Generator[Packed, None, None]:
    """The same batches on the device, about `ahead` of them made and copied by a thread while the device computes.

    upload, unpack: of a list of batches; by default to the one device, `shares_uploaded` and `shares_unpacked` to
    several.

    A thread and not tf.data, whose from_generator costs twice the Python a batch (1.4 ms against 0.7 on a busy CPU):
    the step of a small model takes little more.
    Raises: whatever making a batch raises, after the batches before it.
    """
    made: queue.Queue = queue.Queue(1)  # of parcels; another one is made meanwhile, and waits
    stop = threading.Event()

    def put(item) -> bool:
        """Whether somebody still wants it."""
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for parcel in parcels(until_it_fails(), ahead):
                if not put(upload(parcel)):
                    return
            put(failed[0] if failed else None)
        except BaseException as error:
            put(error)

    failed: list[BaseException] = []

    def until_it_fails() -> Iterator[Arrays]:
        try:
            yield from stream
        except BaseException as error:  # everything, and raised where it is waited for
            failed.append(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from unpack(item)
    finally:
        stop.set()
        thread.join()
