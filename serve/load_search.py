"""The highest rate that keeps a p99: how long a rate is tried, when it is tried again, and which rate comes next.

A p99 of fifty requests is the slowest of them. So a rate is tried until `SAMPLES` requests count, within a limit; and
one that has missed by so few requests that they may be chance is tried a second time, and judged by both together.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from serve.load_clients import Job, Sent

ENDS = ("refused", "late", "failed", "lost")
TRIES = 6  # rates tried between the last that kept to the p99 and the first that did not
LOST = 0.001  # share of requests without an answer that a rate may have and still be borne
SAMPLES = 1000
CHANCE = 0.05  # how often one in a hundred being late makes as many late, for a miss to be doubted


def measured(send: Callable[[Job], list[Sent]], job: Job, p99_ms: float, most_s: float) -> dict:
    """A row of the job's rate, sent for `job.seconds` or longer, up to most_s, and again where that does not tell."""
    assert job.rate
    job = replace(job, seconds=max(job.seconds, min(SAMPLES / (0.75 * job.rate), most_s)))
    sent = send(job)
    ended = max((one.at for one in sent), default=job.seconds)
    whole = job if ended > 0.9 * job.seconds else replace(job, seconds=round(ended, 3))  # `send` may give up
    row = summary(sent, whole)
    if whole is job and not bears(row, p99_ms) and doubtful(counted(sent, job), p99_ms):
        again = send(replace(job, seed=job.seed + 1))
        row = summary([*sent, *again], job, runs=2)
    return row


def doubtful(sent: list[Sent], p99_ms: float) -> bool:
    """May it be chance that so many of these are late or not answered? By a Poisson distribution of mean 1 %."""
    late, mean = sum(one.status != 200 or one.latency_ms > p99_ms for one in sent), len(sent) / 100
    fewer = sum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(late)) if mean else 1.0
    return 1 - fewer > CHANCE


def counted(sent: Iterable[Sent], job: Job) -> list[Sent]:
    """Without the first quarter of the time. Of a closed loop, those whose answers came between that and the end."""
    ramp, end = job.seconds / 4, job.seconds
    if job.rate is None:
        return [one for one in sent if ramp <= one.at + one.latency_ms / 1000 < end]
    return [one for one in sent if ramp <= one.at < end]


def summary(sent: Iterable[Sent], job: Job, runs: int = 1) -> dict:
    """A row: what counts of `sent`, the requests of so many runs of a job, by how it ended, and its latencies."""
    kept = counted(sent, job)
    latencies = [one.latency_ms for one in kept if one.status == 200]
    p50, p95, p99 = (
        round(float(np.percentile(latencies, percent)), 2) if latencies else None for percent in (50, 95, 99)
    )
    ends = [_end(one.status) for one in kept]
    return {
        "loop": "closed" if job.rate is None else "open", "clients": job.clients, "rate": job.rate, "sent": len(kept),
        "answers_per_s": round(len(latencies) / (0.75 * job.seconds * runs), 2),
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "seconds": job.seconds,
        **{name: ends.count(name) for name in ENDS},
    }  # fmt: skip


def _end(status: int) -> str:
    """How a request ended, by its status; 0: the connection broke, or the time for a response was over."""
    known = {200: "answered", 0: "lost", 429: "refused", 503: "refused", 504: "late"}
    return known.get(status, "failed")


def bears(row: dict, p99_ms: float) -> bool:
    """Does the server bear this rate: p99 kept, and hardly a request without an answer?"""
    unanswered = sum(row[name] for name in ENDS)
    return row["p99_ms"] is not None and row["p99_ms"] <= p99_ms and unanswered <= LOST * row["sent"]


def highest(
    measure: Callable[[float], dict], first: float, borne: Callable[[dict], bool], tries: int | None = None
) -> tuple[float, list[dict]]:
    """(the highest rate that is borne, a row for every rate tried): doubled or halved from `first`, then bisected.

    The rate is 0 where not even a thousandth of `first` is borne.
    """
    rows: list[dict] = []

    def fine(rate: float) -> bool:
        rows.append(measure(round(rate, 3)))
        return borne(rows[-1])

    low, high = 0.0, float("inf")
    rate = first
    while (low == 0.0 and rate > first / 1000) or high == float("inf"):
        if fine(rate):
            low = rate
        else:
            high = rate
        if low and high < float("inf"):
            break
        rate = low * 2 if low else high / 2
    for _ in range((TRIES if tries is None else tries) if low else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if fine(middle) else (low, middle)
    return round(low, 3), rows
