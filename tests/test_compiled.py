"""Functions compiled by a batch's layout, and the forward pass over a plan of batches."""

import numpy as np
import pytest
import tensorflow as tf

from data import batches, feed
from train import forward
from train.compiled import ByLayout


def packed(**arrays: np.ndarray) -> feed.Packed:
    (batch,) = feed.unpacked(feed.uploaded([arrays]))
    return batch


@pytest.mark.parametrize("jit", [False, True])
def test_a_function_is_traced_once_for_each_layout_and_gives_what_its_body_says(jit):
    traced = []

    def body(batch):
        traced.append(sorted(batch))
        return tf.reduce_sum(batch["x"]) + tf.cast(tf.reduce_sum(batch["n"]), tf.float32)

    call, ones = ByLayout(body, jit=jit), np.ones((2, 3), np.float32)
    for times in range(3):
        assert float(call(packed(x=ones * times, n=np.arange(4, dtype=np.int32)))) == 6 * times + 6
        assert float(call(packed(x=ones[:1] * times, n=np.arange(4, dtype=np.int64)))) == 3 * times + 6
        assert float(call(packed(x=ones[:1] * times, n=np.arange(3, dtype=np.int64)))) == 3 * times + 3
    assert len(traced) == len(call.made) == 3


def test_run_eagerly_the_body_is_plain_python():
    seen = []
    tf.config.run_functions_eagerly(True)
    try:
        ByLayout(lambda batch: seen.append(batch["x"].numpy().tolist()))(packed(x=np.ones(2, np.float32)))
    finally:
        tf.config.run_functions_eagerly(False)
    assert seen == [[1, 1]]


class Windows:
    """Windows of tokens that are their number; a batch of them, padded with zeros."""

    @staticmethod
    def assemble(rows: np.ndarray, pad_to: int) -> dict[str, np.ndarray]:
        ids = np.repeat(np.maximum(rows, 0)[:, None], pad_to, axis=1).astype(np.int32)
        return dict.fromkeys((*forward.IDS, "row"), ids)


@pytest.mark.parametrize("kept", [1, 100, 1 << 30], ids=["each by itself", "some together", "all together"])
def test_results_come_with_their_rows_however_many_wait_on_the_device(monkeypatch, kept):
    monkeypatch.setattr(forward, "KEPT_BYTES", kept)
    lengths = np.arange(2, 40)
    plan = batches.plan(lengths, 4, (8, 40), shuffle=False)

    def model(batch):
        return {"sum": tf.reduce_sum(batch["token_ids"], axis=1), "ids": batch["token_ids"]}

    run = forward.Forward(model, False)
    for _ in range(2):
        found = list(run(Windows, plan, "windows"))  # type: ignore[arg-type]
        assert [rows.tolist() for rows, _ in found] == [rows.tolist() for _, rows in plan]
        for (rows, results), (pad_to, _) in zip(found, plan, strict=True):
            assert results["ids"].shape == (4, pad_to)
            np.testing.assert_array_equal(results["sum"], np.maximum(rows, 0) * pad_to)


def test_no_result_is_read_before_the_next_batch_is_started(monkeypatch):
    told, read = [], forward._read
    monkeypatch.setattr(forward, "_read", lambda kept: told.append(len(kept)) or read(kept))
    plan = batches.plan(np.full(20, 8), 4, (8,), shuffle=False)
    assert len(list(forward.Forward(lambda batch: batch["token_ids"], False)(Windows, plan, "windows"))) == 5  # type: ignore[arg-type]
    assert told == [5]
