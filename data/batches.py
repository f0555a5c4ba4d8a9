"""Windows in batches of like length, so that little padding is computed; the only TensorFlow file in data/.

The plan of an epoch is a numpy function of seed and epoch: going on after a stop is an index into it, not a saved
tf.data state.
"""

import contextlib
import math
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import UserError
from data.features import Features
from data.sequences import Sequences

if TYPE_CHECKING:
    import tensorflow as tf

Windows = Features | Sequences

Extend = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
PARCEL_BYTES = 8 << 20  # batches that carry a teacher's hidden states are copied one by one
Plan = list[tuple[int, np.ndarray]]  # (pad_to, rows [batch_size] with -1 where the last batch is not full)


def edges(lengths: np.ndarray, most: int = 4, multiple: int = 32, window: int = 384) -> tuple[int, ...]:
    """At most `most` padded lengths that minimise the tokens computed when every window is padded to the next one.

    Edges are multiples of `multiple` (the last may be the window itself); a compiled step exists once for each.
    """
    lengths = np.asarray(lengths)
    longest = int(lengths.max(initial=1))
    if longest > window:
        raise ValueError(
            f"the longest window has {longest} tokens, more than window={window}; pass the window of the features"
        )
    candidates = sorted(
        {min(-(-int(n) // multiple) * multiple, window) for n in np.unique(lengths)} or {min(multiple, window)}
    )
    below = np.searchsorted(np.sort(lengths), candidates, side="right")  # windows that fit each candidate
    # cost[j] is the fewest tokens for all windows up to candidate j, using at most `used` edges of which j is the last
    cost = [int(below[j]) * edge for j, edge in enumerate(candidates)]
    chosen: list[tuple[int, ...]] = [(edge,) for edge in candidates]
    for _ in range(most - 1):
        previous, before = list(cost), list(chosen)
        for j, edge in enumerate(candidates):
            for i in range(j):
                tokens = previous[i] + int(below[j] - below[i]) * edge
                if tokens < cost[j]:
                    cost[j], chosen[j] = tokens, (*before[i], edge)
    return chosen[-1]


def plan(
    lengths: np.ndarray, batch_size: int, edges: Sequence[int], seed: int = 0, epoch: int = 0, *, shuffle: bool = True
) -> Plan:
    """Every window once, in ceil(W / batch_size) batches of one padded length each; only the last may be partly -1.

    What does not fill a batch of its bucket moves up to the next longer one. `shuffle=False` keeps short before long.
    """
    lengths = np.asarray(lengths)
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} is not possible; it must be at least 1")
    if len(lengths) and lengths.max() > max(edges):
        raise ValueError(
            f"a window has {lengths.max()} tokens, the longest edge is {max(edges)}; make the edges from these lengths"
        )
    random = np.random.default_rng([seed % 2**63, epoch])
    order = random.permutation(len(lengths)) if shuffle else np.argsort(lengths, kind="stable")
    bucket = np.searchsorted(edges, lengths[order])  # [W] the first edge that is long enough
    batches: Plan = []
    left = np.zeros(0, np.int64)
    for index, edge in enumerate(edges):
        rows = np.concatenate([left, order[bucket == index]])
        full = len(rows) // batch_size * batch_size
        batches += [(int(edge), chunk) for chunk in rows[:full].reshape(-1, batch_size)]
        left = rows[full:]
    if shuffle:
        batches = [batches[i] for i in random.permutation(len(batches))]
    if len(left):
        pad_to = int(edges[int(np.searchsorted(edges, lengths[left].max()))])
        batches.append((pad_to, np.concatenate([left, np.full(batch_size - len(left), -1)])))
    return batches


def lengths(features: Windows) -> np.ndarray:
    """[examples] what each training example is padded to: its window, or the longest of those that go together."""
    together = features.together
    return features.length if together == 1 else features.length.reshape(-1, together).max(axis=1)


def rank_rows(rows: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """One worker's share of a batch: every `ranks`-th row, so that fillers are spread evenly too."""
    if len(rows) % ranks:
        raise UserError(f"batch size {len(rows)} cannot be split over {ranks} workers; make it a multiple of {ranks}")
    return rows[rank::ranks]


def batches(
    features: Windows,
    plan: Plan,
    first_step: int = 0,
    rank: int = 0,
    ranks: int = 1,
    extend: Extend | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """The plan from `first_step` on as numpy batches: Features.assemble plus `weight` float32 [B], 0 for fillers.

    Of examples of two windows, token arrays have 2 B rows: all first windows, then all second ones. extend: adds
    arrays [rows, ...] of the caller's to a batch.
    """
    for pad_to, rows in plan[first_step:]:
        rows = rank_rows(rows, rank, ranks)
        batch = features.assemble(windows_of(rows, features.together), pad_to)
        batch = batch | {"weight": (rows >= 0).astype(np.float32)}
        yield extend(batch) if extend else batch


def windows_of(rows: np.ndarray, together: int) -> np.ndarray:
    """Rows of examples as rows of their windows, -1 for fillers: [together * B]."""
    if together == 1:
        return rows
    return np.concatenate([np.where(rows < 0, -1, rows * together + place) for place in range(together)])


@dataclass(frozen=True)
class Parcel:
    """Batches on the device in one tensor, and where each of their arrays lies in it."""

    flat: "tf.Tensor"  # float32 [all numbers]
    arrays: list[tuple[int, str, tuple[int, ...], bool]]  # batch, name, shape, whether int32; in flat's order
    others: list[dict[str, "tf.Tensor"]]  # what travelled by itself, a dict a batch


def uploaded(batches: list[dict[str, np.ndarray]]) -> Parcel:
    """Batches to the device in one copy.

    Every copy from the host waits until the GPU has done all that it was given before, and the host with it; and int32
    tensors, if copied by themselves, go when a step asks for them. So what has four bytes a number, which is all of a
    usual batch, travels together, as float32, of which TensorFlow has the kernels.
    """
    import tensorflow as tf

    places = [(place, name, np.asarray(value, order="C")) for place, batch in enumerate(batches)
              for name, value in batch.items() if value.dtype in (np.int32, np.float32)]  # fmt: skip
    numbers = [array.reshape(-1).view(np.float32) for _, _, array in places]
    together = {(place, name) for place, name, _ in places}
    return Parcel(
        tf.constant(np.concatenate(numbers or [[]]), tf.float32),
        [(place, name, array.shape, array.dtype == np.int32) for place, name, array in places],
        [
            {name: tf.constant(value) for name, value in batch.items() if (place, name) not in together}
            for place, batch in enumerate(batches)
        ],
    )


def unpacked(parcel: Parcel, integers: "tf.DType | None" = None) -> "list[dict[str, tf.Tensor]]":
    """The batches of a parcel, taken apart on the device, by the thread that uses them.

    integers: what int32 becomes, bit by bit; none: int32 again. A function over several devices takes int32 from the
    host alone: TensorFlow would fetch it from the GPU before every call, and wait for all that the GPU has to do.

    By that one and no other: once, on a GPU, `tf.reshape` in a thread beside it was handed a tensor of the other's for
    its shape (TensorFlow 2.21). A thread beside may copy; it must not compute.
    """
    import tensorflow as tf

    found = [dict(tensors) for tensors in parcel.others]
    sizes = [math.prod(shape) for _, _, shape, _ in parcel.arrays]
    pieces = tf.split(parcel.flat, sizes) if sizes else []
    for (place, name, shape, whole), piece in zip(parcel.arrays, pieces, strict=True):
        tensor = tf.reshape(piece, shape)
        found[place][name] = tf.bitcast(tensor, integers or tf.int32) if whole else tensor
    return found


def shares_uploaded(devices: Sequence[str], batches: list[dict[str, np.ndarray]]) -> list[tuple[str, Parcel]]:
    """Each device's share of the batches (`rank_rows`) to that device, in one copy each."""
    import tensorflow as tf

    found, count = [], len(devices)
    for index, device in enumerate(devices):
        share = [{name: rank_rows(value, index, count) for name, value in batch.items()} for batch in batches]
        with tf.device(device):
            found.append((device, uploaded(share)))
    return found


def shares_unpacked(shares: list[tuple[str, Parcel]]) -> "list[tuple[dict[str, tf.Tensor], ...]]":
    """For each batch its shares, a dict a device; uint32 where there was int32, see `unpacked`."""
    import tensorflow as tf

    found = []
    for device, parcel in shares:
        with tf.device(device):
            found.append(unpacked(parcel, tf.uint32))
    return list(zip(*found, strict=True))


def parcels(stream: Iterator[dict[str, np.ndarray]], ahead: int) -> Iterator[list[dict[str, np.ndarray]]]:
    """Batches in lists of half of `ahead`, or of PARCEL_BYTES: the next list is copied while this one is computed."""
    parcel: list[dict[str, np.ndarray]] = []
    size = 0
    for batch in stream:
        parcel.append(batch)
        size += sum(value.nbytes for value in batch.values())
        if 2 * len(parcel) >= ahead or size >= PARCEL_BYTES:
            yield parcel
            parcel, size = [], 0
    if parcel:
        yield parcel


def prefetched(
    stream: Iterator[dict[str, np.ndarray]],
    ahead: int = 16,
    upload: Callable = uploaded,
    unpack: Callable = unpacked,
) -> Generator[Any, None, None]:
    """The same batches as tensors, about `ahead` of them made and copied by a thread while the device computes.

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

    def until_it_fails() -> Iterator[dict[str, np.ndarray]]:
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
