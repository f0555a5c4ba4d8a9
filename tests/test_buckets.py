"""The sizes that batches are rounded up to, and how a batch lies in one."""

import itertools

import numpy as np
import pytest
import serve_kit

from serve import buckets
from serve.buckets import Buckets
from serve.manifest import read


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return {layout: read(serve_kit.write(place / layout, layout)) for layout in ("packed", "padded")}


def test_buckets_hold_every_batch_of_the_profile_and_waste_little(manifests):
    assert buckets.steps(1, 700, buckets.TOKEN_STEPS)[-4:] == (448, 512, 640, 700)
    sizes = buckets.steps(1, 16384, buckets.TOKEN_STEPS)
    assert len(sizes) <= 64
    assert all(later - size <= max(64, size / 4) for size, later in itertools.pairwise(sizes))
    assert buckets.doubling(1, 32) == (1, 2, 4, 8, 16, 32)
    assert buckets.doubling(3, 20) == (3, 4, 8, 16, 20)
    found = Buckets(manifests["packed"])
    largest = found.largest()
    assert largest.key == (160, 8)
    random = np.random.default_rng(0)
    for batch in [serve_kit.batch(20, 64, 64), *(serve_kit.random_batch(random) for _ in range(100))]:
        bucket = found.of(batch)
        assert bucket.key[0] >= batch.tokens
        assert bucket.key[1] >= len(batch)
        assert bucket.input_words <= largest.input_words
        assert all(word % buckets.ALIGN == 0 for word, _ in [*bucket.inputs.values(), *bucket.outputs.values()])


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_bucket_leaves_nothing_of_the_batch_before(manifests, layout):
    found = Buckets(manifests[layout])
    words = np.full(found.largest().input_words, 2**30, np.int32)
    for batch in (serve_kit.batch(20, 20, 19), serve_kit.batch(3, 2, 1)):
        bucket = found.of(batch)
        bucket.write(batch, words)
        arrays = bucket._arrays(words, bucket.inputs)
        assert arrays["token_ids"].sum() == batch.token_ids.sum()
        assert arrays["segment_ids"].sum() == batch.segment_ids.sum()
        if layout == "packed":
            assert arrays["cu_seqlens"].tolist() == [*batch.cu_seqlens, batch.tokens]  # 3 sequences in a bucket of 4
        else:
            assert arrays["padding_mask"].sum(axis=1).tolist() == [*batch.lengths, 0]
