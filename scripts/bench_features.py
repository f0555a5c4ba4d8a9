"""How fast questions become windows, and in how much memory: `python scripts/bench_features.py --vocab vocab.txt`.

The text is made up: every question has a context of its own with as many words as in SQuAD, common words as often as in
English, and three words in a hundred that never come back, as names and numbers do in an encyclopaedia.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.features import featurise
from data.squad import Answer, Dataset, Example
from data.tokenize import Tokenizer

WORDS_A_CONTEXT = 120  # SQuAD v1.1 has 117 on average
COMMON_WORDS = 30_000
RARE = 0.03


def make(questions: int, seed: int) -> Dataset:
    random = np.random.default_rng(seed)
    letters = list("eeeeaaaiioonnttssrrhlldcumfpgwybvk")
    common = np.array(["".join(random.choice(letters, n)) for n in random.integers(2, 10, COMMON_WORDS)])
    frequency = 1 / np.arange(1, COMMON_WORDS + 1)
    frequency /= frequency.sum()
    examples = []
    for i in range(questions):
        words = list(common[random.choice(COMMON_WORDS, WORDS_A_CONTEXT, p=frequency)])
        for at in np.flatnonzero(random.random(WORDS_A_CONTEXT) < RARE):
            words[at] = f"{words[at].capitalize()}{random.integers(10**6)},"
        context = " ".join(words) + "."
        start = context.index(words[WORDS_A_CONTEXT // 2])
        answer = Answer(words[WORDS_A_CONTEXT // 2], start)
        examples.append(Example(str(i), "", context, " ".join(words[5:15]) + "?", (answer,), False))
    return Dataset(examples, "1.1", source="made up")


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vocab", required=True, help="vocab.txt of a BERT checkpoint")
    parser.add_argument("--questions", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tokenizer = Tokenizer(options.vocab)
    dataset = make(options.questions, options.seed)
    before = peak_gib()
    print(f"{options.questions} questions made; the process peaks at {before:.2f} GiB so far")
    with tempfile.TemporaryDirectory() as cache:
        begin = time.perf_counter()
        features = featurise(dataset, tokenizer, cache_dir=cache)
        cold = time.perf_counter() - begin
        begin = time.perf_counter()
        featurise(dataset, tokenizer, cache_dir=cache)
        warm = time.perf_counter() - begin
    rate, cores = options.questions / cold, len(os.sched_getaffinity(0))
    print(f"cold: {cold:.1f} s, {rate:,.0f} questions/s on {cores} cores, {len(features):,} windows")
    print(f"from the cache: {warm:.1f} s; the process peaks at {peak_gib():.2f} GiB")
    metrics = {
        "questions_per_s": round(rate),
        "peak_gib": round(peak_gib(), 2),
        "windows": len(features),
        "cores": cores,
    }
    print(json.dumps({"command": "bench_features", "metrics": metrics, "seconds": round(cold + warm, 1)}))


if __name__ == "__main__":
    main()
