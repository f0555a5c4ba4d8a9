"""The batch plan: every window once, little padding, and the same rest after a stop."""

import itertools
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
