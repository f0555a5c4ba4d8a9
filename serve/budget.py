"""How many tokens a batch should have on this device: measured when a server starts, in about a second of batches.

On a GPU a batch must be large to be worth its launch; on a CPU a few hundred tokens keep the cores busy, and packed
attention written in standard ONNX gets dearer with every token more. Both show in the same figure, tokens a second.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from configs.errors import UserError
from serve.packed import Packed
from serve.session import Session
from serve.warming import filled

LENGTH = 128  # tokens of the sequences it is measured with: about what a question with its paragraph has
SMALLEST = 128
NEAR = 0.93  # of the best speed: a smaller batch that reaches it is better, since it is done sooner
ENOUGH_S = 0.03  # of one size, where there is time for it
WARM = 2  # rounds: TensorRT prepares a shape in its first run, then captures a graph for each of its slots
PREPARING_S = 15.0  # for all sizes together: a first run may compile kernels for seconds, which says nothing of speed


@dataclass(frozen=True)
class Budget:
    tokens: int  # of a batch
    seconds_a_token: float  # at that size
    measured: tuple[tuple[int, float], ...]  # (tokens of a batch, tokens a second), from small to large


def measure(session: Session, limit_s: float = 0.8, clock: Callable[[], float] = time.perf_counter) -> Budget:
    """The smallest batch that is nearly as fast, in tokens a second, as the fastest.

    Sizes double from 128 tokens to what the engine takes. On TensorRT as many batches are under way as it has contexts.
    It ends early when a size is clearly slower than the best, two in a row bring nothing, or the next one, which is
    guessed from the last, would not be done within `limit_s` of running (on TensorRT what prepares a shape is apart,
    within `PREPARING_S`); the first size is measured however slow it is.
    """
    most, begin, preparing = limits(session), clock(), 0.0
    prepared = session.runtime == "tensorrt"
    speeds: list[tuple[int, float]] = []
    tokens = min(SMALLEST, most)
    while True:
        several = _batches(session, tokens, session.slots if prepared else max(session.slots - 1, 1))
        seconds, runs, warm = 0.0, 0, WARM if prepared else int(not speeds)
        fastest = float("inf")
        while runs < warm + 1 or seconds < ENOUGH_S:
            start = clock()
            for ticket in [session.submit(batch) for batch in several]:
                session.result(ticket)
            took = clock() - start
            runs += 1
            if runs <= warm and prepared:
                preparing += took
            if runs > warm:  # the fastest of a few: another process disturbs one of them, never helps
                seconds, fastest = seconds + took, min(fastest, took)
        speeds.append((tokens, sum(batch.tokens for batch in several) / fastest))
        best = max(speed for _, speed in speeds)
        fruitless = len(speeds) > 2 and max(speed for _, speed in speeds[-2:]) < 1.02 * max(s for _, s in speeds[:-2])
        late = clock() - begin - preparing + 2 * fastest > limit_s or preparing > PREPARING_S
        if tokens == most or fruitless or speeds[-1][1] < 0.8 * best or late:
            break
        tokens = min(2 * tokens, most)
    chosen, speed = next((size, speed) for size, speed in speeds if speed >= NEAR * best)
    return Budget(chosen, 1 / speed, tuple(speeds))


def limits(session: Session) -> int:
    """Tokens that a batch may have at most, padding included where the engine is padded."""
    profile = session.manifest.profile
    return profile.tokens.most if profile.tokens else profile.batch.most * session.manifest.longest


def chosen(session: Session, budget: int | str) -> Budget:
    """`budget` as a number, or measured if it is "auto". Raises: UserError where it is neither."""
    if budget == "auto":
        return measure(session)
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < 1:
        raise UserError(f"the token budget is {budget!r}; give a number of tokens from 1 on, or auto")
    return Budget(min(budget, limits(session)), 1e-5, ())


def _batches(session: Session, tokens: int, many: int) -> list[Packed]:
    """Batches of about so many tokens in sequences of like length."""
    manifest = session.manifest
    length = min(LENGTH, manifest.longest, tokens)
    count = min(max(tokens // length, 1), manifest.profile.batch.most)
    length = min(max(tokens // count, 1), manifest.longest)  # few sequences allowed: longer ones
    if manifest.profile.length:
        length = max(length, manifest.profile.length.least)
    return [filled(manifest, count * length, count)] * many
