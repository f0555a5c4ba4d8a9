"""The window table: which stretch of which context goes with which question, and where the answer lies in it.

All of it is arithmetic on whole columns; nothing here loops over examples.

    [CLS] question [SEP] context tokens first .. first + count [SEP]
"""

from dataclasses import dataclass

import numpy as np

from configs.errors import UserError

SPECIAL_TOKENS = 3  # [CLS] and two [SEP]


@dataclass(frozen=True, slots=True)
class FeatureOptions:
    window: int = 384  # tokens a window has at most, special ones included
    stride: int = 128  # context tokens from one window's start to the next one's
    query: int = 64  # question tokens kept

    def check(self) -> None:
        if self.stride < 1 or self.query < 1:
            raise UserError(f"stride {self.stride} and query {self.query} must be at least 1 token")
        if self.window < self.query + SPECIAL_TOKENS + 1:
            raise UserError(
                f"window {self.window} is too small for a question of up to {self.query} tokens, {SPECIAL_TOKENS} "
                f"special ones and a piece of context; make window "
                f"at least {self.query + SPECIAL_TOKENS + 1}, or query smaller"
            )


def cut(options: FeatureOptions, query_length: np.ndarray, context_length: np.ndarray) -> tuple[np.ndarray, ...]:
    """Windows of every example: (example, first, count), one row a window, examples in order.

    query_length and context_length [Q] are tokens of each example's question (already truncated) and context.
    """
    room = options.window - query_length - SPECIAL_TOKENS  # [Q] context tokens that fit
    step = np.minimum(room, options.stride)  # never jump over a token
    windows = 1 + np.maximum(0, -(-(context_length - room) // step))  # [Q]; the last one reaches the end
    example = np.repeat(np.arange(len(windows)), windows)  # [W]
    ordinal = np.arange(len(example)) - np.repeat(np.cumsum(windows) - windows, windows)
    first = ordinal * step[example]
    count = np.minimum(room[example], context_length[example] - first)
    return example.astype(np.int32), first.astype(np.int32), count.astype(np.int32)


def answer_tokens(
    offsets: np.ndarray, context_start: np.ndarray, context: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and last context token of each example's answer, given as characters begin (inclusive) to end (exclusive).

    The first token that reaches past `begin`, the last one that starts before `end`; (-1, -1) where begin < 0 or where
    no token lies.
    """
    if not len(offsets) or begin.max(initial=-1) < 0:
        return np.full(len(begin), -1), np.full(len(begin), -1)
    # One sorted axis for all contexts: context c occupies characters c * width to (c + 1) * width.
    width = int(offsets.max()) + 2
    shift = np.repeat(np.arange(len(context_start) - 1), np.diff(context_start)) * width
    base = context.astype(np.int64) * width
    first = np.searchsorted(offsets[:, 1] + shift, base + np.maximum(begin, 0), side="right") - context_start[context]
    last = (
        np.searchsorted(offsets[:, 0] + shift, base + np.minimum(end, width - 1), side="left")
        - 1
        - context_start[context]
    )
    found = (begin >= 0) & (first <= last)
    return np.where(found, first, -1), np.where(found, last, -1)


def label(
    first: np.ndarray, count: np.ndarray, query_length: np.ndarray, answer_first: np.ndarray, answer_last: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Answer positions in each window; (0, 0), which is [CLS], unless it holds the whole answer. All arguments [W]."""
    inside = (answer_first >= first) & (answer_last < first + count) & (answer_first >= 0)
    shift = query_length + 2 - first
    start = np.where(inside, answer_first + shift, 0).astype(np.int32)
    return start, np.where(inside, answer_last + shift, 0).astype(np.int32)


def bounds(example: np.ndarray, examples: int) -> np.ndarray:
    """int [examples + 1]: the windows of example i are rows bounds[i] to bounds[i + 1]. example [W]: each window's."""
    return np.searchsorted(example, np.arange(examples + 1))


def max_context(first: np.ndarray, count: np.ndarray, this: int) -> np.ndarray:
    """Among the windows of one example: True for the tokens that no window shows with more context than window `this`.

    first and count [windows]; returns bool [count[this]]. A token's context is the smaller of its distances to the
    window's two ends, plus a hundredth of the window's length; the first window wins a tie.
    """
    begin, end = first[this], first[this] + count[this]
    if begin == end:  # a context without a token, of control characters for example
        return np.zeros(0, bool)
    near = np.flatnonzero((first < end) & (first + count > begin))  # the windows that share a token with this one
    token = np.arange(begin, end)[None, :]  # [1, count]
    left = token - first[near, None]
    right = first[near, None] + count[near, None] - 1 - token
    score = np.where(
        (left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * count[near, None], -1.0
    )  # [near, count]
    return near[np.argmax(score, axis=0)] == this
