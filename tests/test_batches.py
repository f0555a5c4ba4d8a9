"""The batch plan: every window once, little padding, and the same rest after a stop."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from data_kit import dataset, example, letters

from configs.errors import UserError
from data import batches
from data.features import FeatureOptions, featurise


def cases():
    random = np.random.default_rng(3)
    for windows in (1, 2, 7, 31, 32, 33, 500):
        for batch_size in (1, 4, 32):
            lengths = (
                random.integers(6, 385, windows)
                if windows % 2
                else np.minimum(random.geometric(0.01, windows) + 5, 384)
            )
            yield lengths, batch_size, batches.edges(lengths)


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_window_comes_once_in_the_fewest_batches_and_only_the_last_is_partial(shuffle: bool):
    for lengths, batch_size, edges in cases():
        plan = batches.plan(lengths, batch_size, edges, seed=1, epoch=2, shuffle=shuffle)
        rows = np.concatenate([rows for _, rows in plan])
        assert sorted(rows[rows >= 0]) == list(range(len(lengths)))
        assert len(plan) == -(-len(lengths) // batch_size)
        assert all(len(rows) == batch_size for _, rows in plan)
        assert all((rows >= 0).all() for _, rows in plan[:-1])
        assert (plan[-1][1] >= 0).any()


def test_no_window_is_longer_than_its_padding_and_there_are_at_most_four_paddings():
    for lengths, batch_size, edges in cases():
        plan = batches.plan(lengths, batch_size, edges)
        assert all(lengths[rows[rows >= 0]].max() <= pad_to for pad_to, rows in plan)
        assert {pad_to for pad_to, _ in plan} <= set(edges)
        assert len(edges) <= 4


def test_a_plan_depends_on_seed_and_epoch_and_on_nothing_else():
    lengths = np.random.default_rng(0).integers(6, 385, 300)

    def rows(seed: int, epoch: int) -> list[int]:
        return np.concatenate([r for _, r in batches.plan(lengths, 8, (128, 384), seed, epoch)]).tolist()

    np.random.seed(5)  # the global state plays no part
    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)
    assert rows(-1, 0) != rows(1, 0)


def test_batches_of_all_lengths_are_mixed_over_the_epoch():
    lengths = np.repeat([30, 60, 90, 120], 200)
    order = [pad_to for pad_to, _ in batches.plan(lengths, 8, (32, 64, 96, 128))]
    assert {32, 64, 96, 128} == set(order[:25])


def test_the_edges_are_the_best_of_all_choices():
    random = np.random.default_rng(4)
    for _ in range(20):
        lengths = random.integers(1, 257, int(random.integers(1, 40)))
        edges = batches.edges(lengths, most=3, multiple=32, window=256)

        def cost(edges, lengths=lengths) -> float:
            at = np.searchsorted(edges, lengths)
            return np.inf if at.max() == len(edges) else float(np.array(edges)[at].sum())

        multiples = range(32, 257, 32)
        best = min(cost(choice) for n in (1, 2, 3) for choice in itertools.combinations(multiples, n))
        assert cost(edges) == best
        assert list(edges) == sorted(set(edges))


def test_the_last_edge_never_exceeds_the_window():
    assert batches.edges(np.array([10, 100])) == (32, 128)
    assert batches.edges(np.array([10, 100]), window=100) == (32, 100)
    assert batches.edges(np.array([20]), most=1) == (32,)
    with pytest.raises(ValueError, match="longest window has 101 tokens"):
        batches.edges(np.array([101]), window=100)


def test_buckets_compute_less_than_padding_everything_to_the_window():
    lengths = np.random.default_rng(1).integers(60, 385, 1000)
    plan = batches.plan(lengths, 32, batches.edges(lengths))
    assert sum(pad_to * len(rows) for pad_to, rows in plan) < 0.75 * 384 * 1000


def test_impossible_requests_are_named():
    with pytest.raises(UserError, match="batch size 0"):
        batches.plan(np.array([5]), 0, (32,))
    with pytest.raises(ValueError, match="40 tokens, the longest edge is 32"):
        batches.plan(np.array([40]), 1, (32,))
    with pytest.raises(UserError, match="batch size 6 cannot be split over 4 workers"):
        batches.rank_rows(np.arange(6), 0, 4)
    assert batches.plan(np.zeros(0, int), 4, (32,)) == []


@pytest.fixture
def features(tmp_path: Path):
    texts = ["ab" * n for n in range(1, 15)]
    return featurise(dataset(*(example(t, t) for t in texts)), letters(tmp_path), FeatureOptions(24, 6, 4))


def test_going_on_from_step_k_gives_the_rest_of_the_epoch(features):
    plan = batches.plan(features.length, 4, batches.edges(features.length, multiple=8, window=24), seed=9)
    whole = list(batches.batches(features, plan))
    rest = list(batches.batches(features, plan, first_step=3))
    assert len(rest) == len(whole) - 3 > 0
    for a, b in zip(whole[3:], rest, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_the_workers_shares_make_up_the_batch_and_fillers_have_no_weight(features):
    plan = batches.plan(features.length, 4, batches.edges(features.length, multiple=8, window=24))
    shares = [list(batches.batches(features, plan, rank=rank, ranks=2)) for rank in range(2)]
    for (pad_to, rows), one, two in zip(plan, *shares, strict=True):
        assert sorted(np.concatenate([one["row"], two["row"]])) == sorted(rows)
        assert one["token_ids"].shape == two["token_ids"].shape == (2, pad_to)
        assert one["weight"].tolist() == (one["row"] >= 0).astype(float).tolist()


def test_prefetched_batches_are_the_numpy_batches_in_order(features):
    pytest.importorskip("tensorflow")
    plan = batches.plan(features.length, 4, batches.edges(features.length, multiple=8, window=24))
    expected = list(batches.batches(features, plan, first_step=1))
    got = list(batches.prefetched(batches.batches(features, plan, first_step=1), ahead=2))
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert set(a) == set(b)
        assert all(np.array_equal(a[key], b[key]) and a[key].dtype.as_numpy_dtype == b[key].dtype for key in b)


def test_what_is_uploaded_together_is_the_same_bits_of_the_same_types():
    pytest.importorskip("tensorflow")
    random = np.random.default_rng(0)
    awkward = np.array([0x7FA00000, 0xFFC00001, 0x80000000, 0x7F800000, 1], np.uint32)  # as floats: NaNs, -0, inf
    given = [
        {"ids": awkward.view(np.int32), "empty": np.zeros((0, 3), np.int32), "x": awkward.view(np.float32)},
        {"ids": random.integers(-(2**31), 2**31 - 1, (4, 7), dtype=np.int32).T, "half": np.ones((3, 5), np.float16)},
        {"one": np.array(3, np.int32), "many": np.arange(3, dtype=np.int64)},
    ]
    for tensors, arrays in zip(batches.unpacked(batches.uploaded(given)), given, strict=True):
        assert set(tensors) == set(arrays)
        for name, array in arrays.items():
            got = tensors[name].numpy()
            assert (got.dtype, got.shape, got.tobytes()) == (array.dtype, array.shape, array.tobytes()), name


def test_the_thread_beside_copies_and_never_computes(monkeypatch):
    tf = pytest.importorskip("tensorflow")
    threads = set()
    for name in ("split", "reshape", "bitcast"):
        usual = getattr(tf, name)
        monkeypatch.setattr(
            tf, name, lambda *given, usual=usual: (threads.add(threading.current_thread().name), usual(*given))[1]
        )
    stream = batches.prefetched(iter([{"x": np.ones((2, 3), np.int32)}] * 5), ahead=4)
    assert [batch["x"].shape for batch in stream] == [(2, 3)] * 5
    assert threads == {threading.current_thread().name}


def test_a_parcel_is_half_of_what_is_made_ahead_and_heavy_batches_go_alone():
    def some(numbers, count):
        return iter([{"x": np.zeros(numbers, np.float32)}] * count)

    assert [len(parcel) for parcel in batches.parcels(some(1, 19), 16)] == [8, 8, 3]
    assert [len(parcel) for parcel in batches.parcels(some(1, 3), 1)] == [1, 1, 1]
    assert [len(parcel) for parcel in batches.parcels(some(batches.PARCEL_BYTES // 4, 2), 16)] == [1, 1]
    assert [len(parcel) for parcel in batches.parcels(some(batches.PARCEL_BYTES // 12, 4), 16)] == [4]


def test_an_error_in_the_making_of_a_batch_is_raised_where_the_batch_is_wanted():
    pytest.importorskip("tensorflow")

    def broken():
        yield {"x": np.ones(2, np.float32)}
        raise UserError("the second batch is broken")

    stream = batches.prefetched(broken())
    np.testing.assert_array_equal(next(stream)["x"], [1, 1])
    with pytest.raises(UserError, match="second batch"):
        next(stream)


def test_nobody_goes_on_making_batches_that_nobody_wants():
    pytest.importorskip("tensorflow")
    made = []

    def endless():
        while True:
            made.append(len(made))
            yield {"x": np.zeros(1, np.float32)}

    stream = batches.prefetched(endless(), ahead=3)
    next(stream)
    stream.close()
    count = len(made)
    assert count <= 6
    assert "batches" not in {thread.name for thread in threading.enumerate()}
    assert len(made) == count
