"""Windows that wait for a batch: who goes first, and which of them go together.

    queue = WindowQueue()
    queue.push(window)                                   # kept in the order of window.turn, a time
    windows = queue.cut(256, 32, padded=False)           # at most 256 tokens of at most 32 windows

Whoever is first in turn leads the next batch, so nobody waits for ever; who joins the leader may be picked from a
little further behind, because a batch filled to its budget is done sooner for all.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

LOOK = 64  # windows behind the leader that may be picked before others: each costs a microsecond or two
SPARE = 64  # entries of no use that may lie in a heap before it is looked through

T = TypeVar("T")


class Heap(Generic[T]):
    """The item of the least key first; items of one key in the order they came. `gone(item)`: it is of no use any more.

    Such items are passed over. Whoever makes one so says it by `lost`, and when they are the greater part they are
    thrown out together: a crowd that comes and leaves at once must not fill the memory.
    """

    def __init__(self, gone: Callable[[T], bool]) -> None:
        self._gone, self._entries, self._count, self._lost = gone, list[tuple[float, int, T]](), itertools.count(), 0

    def __len__(self) -> int:
        """Entries, those of no use included."""
        return len(self._entries)

    def push(self, key: float, item: T) -> None:
        heapq.heappush(self._entries, (key, next(self._count), item))

    def first(self) -> tuple[float, T] | None:
        """The next one to be popped, with its key; None: nobody is there."""
        while self._entries and self._gone(self._entries[0][2]):
            heapq.heappop(self._entries)
            self._lost = max(self._lost - 1, 0)
        return (self._entries[0][0], self._entries[0][2]) if self._entries else None

    def pop(self) -> T | None:
        if self.first() is None:
            return None
        return heapq.heappop(self._entries)[2]

    def lost(self, count: int = 1) -> None:
        self._lost += count
        if self._lost > SPARE + len(self._entries) // 2:
            self._entries = [entry for entry in self._entries if not self._gone(entry[2])]
            heapq.heapify(self._entries)
            self._lost = 0


@dataclass(slots=True, eq=False)
class Window:
    """A sequence of a request, waiting. `owner` is whoever is to have its logits."""

    owner: Any
    index: int  # which of the request's sequences
    length: int  # tokens
    turn: float  # the less the sooner
    ready: float = 0.0  # when it entered the queue
    gone: bool = False  # taken into a batch, or not wanted any more


class WindowQueue:
    """Not safe to share between threads: whoever owns it holds a lock."""

    def __init__(self) -> None:
        self._heap: Heap[Window] = Heap(lambda window: window.gone)
        self._arrived: deque[Window] = deque()
        self.tokens = 0  # of the windows that wait
        self.count = 0

    def push(self, window: Window) -> None:
        self._heap.push(window.turn, window)
        self._arrived.append(window)
        self.tokens += window.length
        self.count += 1

    def drop(self, windows: list[Window]) -> None:
        """Windows that nobody wants any more; those already taken are passed over."""
        there = [window for window in windows if not window.gone]
        for window in there:
            self._leave(window)
        self._heap.lost(len(there))
        if len(self._arrived) > 2 * self.count + SPARE:
            self._arrived = deque(window for window in self._arrived if not window.gone)

    def oldest(self) -> float:
        """When the one that has waited for longest came; infinity: nobody waits."""
        while self._arrived and self._arrived[0].gone:
            self._arrived.popleft()
        return self._arrived[0].ready if self._arrived else float("inf")

    def cut(self, most_tokens: int, most_windows: int, *, padded: bool, alike: bool = True) -> list[Window]:
        """Take out the next batch, led by the first in turn, which goes even if it is longer than `most_tokens`.

        Packed, the tokens of all count, and whoever is next in turn and still fits joins. Padded, every row counts as
        long as the longest, and with `alike` those nearest to the leader in length join; without, the next in turn.
        """
        if (leader := self._heap.pop()) is None:
            return []
        taken, back = [leader], list[Window]()
        longest, tokens = leader.length, leader.length
        for window in self._alike(leader, most_windows) if padded and alike else iter(self._heap.pop, None):
            most = max(longest, window.length)
            fits = (most * (len(taken) + 1) if padded else tokens + window.length) <= most_tokens
            if fits and len(taken) < most_windows:
                taken.append(window)
                longest, tokens = most, tokens + window.length
                continue
            back.append(window)
            full = len(taken) == most_windows or tokens == most_tokens or len(back) == LOOK
            if not (padded and alike) and (full or padded):
                break
        for window in taken:
            self._leave(window)
        self.oldest()  # lets go of those in front that are gone, and of their requests
        for window in back:
            self._heap.push(window.turn, window)
        return sorted(taken, key=lambda window: window.turn)

    def _alike(self, leader: Window, most_windows: int) -> list[Window]:
        """Some that are next in turn, taken out of the heap: the nearest to the leader in length first."""
        some = list(itertools.islice(iter(self._heap.pop, None), most_windows + LOOK))
        return sorted(some, key=lambda window: abs(window.length - leader.length))

    def _leave(self, window: Window) -> None:
        window.gone = True
        self.tokens -= window.length
        self.count -= 1
