"""Sizes are prepared before anybody waits: whatever batch a batcher makes, its bucket was run when it opened."""

import numpy as np
import pytest
import serve_kit
from fake_cuda import FakeCuda, FakePlan

from serve.batcher import Batcher
from serve.buckets import SHORTEST, Buckets
from serve.manifest import read
from serve.reader import Reader
from serve.tensorrt_session import TensorrtSession
from serve.warming import every_size


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return {layout: serve_kit.write(place / layout, layout) for layout in ("packed", "padded")}


def opened(folder, **how):
    cuda = FakeCuda(0)
    plan = FakePlan(cuda, contexts=how.pop("contexts", 2))
    return TensorrtSession(read(folder), plan, cuda, **how), plan


def random_batches(manifest, most_tokens, count=300):
    """Batches of random sequences, each at least as long as is prepared for, padding included within most_tokens."""
    random = np.random.default_rng(0)
    most_tokens = min(most_tokens, manifest.profile.tokens.most) if manifest.profile.tokens else most_tokens
    while count:
        sequences = int(random.integers(1, manifest.profile.batch.most + 1))
        lengths = random.integers(SHORTEST, manifest.longest + 1, sequences)
        computed = lengths.sum() if manifest.profile.tokens else len(lengths) * (-(-lengths.max() // 32) * 32)
        if computed <= most_tokens:
            count -= 1
            yield serve_kit.batch(*lengths.tolist())


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("most_tokens", [64, 200, 100_000])
def test_every_bucket_that_a_batch_falls_into_is_among_the_sizes(folders, layout, most_tokens):
    manifest = read(folders[layout])
    buckets = Buckets(manifest)
    keys = [buckets.of(batch).key for batch in every_size(manifest, most_tokens)]
    assert len(set(keys)) == len(keys)
    within = min(most_tokens, manifest.profile.batch.most * manifest.longest // 2)
    seen = {buckets.of(batch).key for batch in random_batches(manifest, within, 100)}
    if layout == "padded":  # a batch is filled up to a power of two of rows, which may be beyond what was asked for
        seen = {(rows, length) for rows, length in seen if rows * length <= most_tokens}
    assert seen <= set(keys)


@pytest.mark.parametrize("contexts", [1, 2, 4])
def test_a_batcher_has_what_its_batches_need_when_it_opens(folders, contexts):
    session, plan = opened(folders["packed"], contexts=contexts)
    with Batcher(Reader(folders["packed"], session=session), token_budget=200) as batcher:
        before = len(plan.executed)
        assert before
        for batch in random_batches(session.manifest, 200, 40):
            batcher.submit_packed(batch).result(10)
        assert len(plan.executed) == before  # all of them replayed graphs
    session.close()


def test_a_second_batcher_of_a_session_prepares_nothing_again(folders):
    session, plan = opened(folders["padded"])
    session.warm(every_size(session.manifest, 200))
    before = len(plan.executed)
    session.warm(every_size(session.manifest, 200))
    assert len(plan.executed) == before
    session.close()


@pytest.mark.parametrize(("how", "limit_s", "said"), [
    ({}, -1.0, "0 sizes were prepared, others not: -1 s were over"),
    ({"most_graphs": 4}, 60.0, "2 sizes were prepared, others not: 4 graphs are kept at most"),
])  # fmt: skip
def test_what_was_not_prepared_is_said(folders, how, limit_s, said):
    session, _ = opened(folders["packed"], **how)
    session.warm(every_size(session.manifest, 200), limit_s)
    assert said in session.notes
    session.close()
