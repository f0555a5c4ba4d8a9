"""The batcher's bench: every variant is what its name says, and its figures are those of its own requests."""

import csv
import time
from concurrent.futures import wait

import pytest
import serve_kit
from test_serve_bench import questions

from configs import options
from configs.errors import UserError
from scripts import bench_batcher
from serve import gpu


def run(folder, *flags: object, padded: str = "padded") -> dict:
    packed = serve_kit.write(folder / "packed")
    other = serve_kit.write(folder / padded, padded)
    same = ("--engine", packed, "--padded", other, "--data", questions(folder), "--out", folder / "out.csv")
    words = (*same, "--clients", 6, "--counts", 2, 4, "--delays", 0, 30, "--seconds", 0.6, "--rounds", 1, *flags)
    return bench_batcher.main(
        options.parse(bench_batcher.BatcherBenchConfig, [str(word) for word in words], "scripts.bench_batcher")
    )


def test_rows_are_by_variant_with_padding_only_where_windows_are_counted(tmp_path):
    result = run(tmp_path)
    with open(tmp_path / "out.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [(row["variant"], row["delay_ms"]) for row in rows]
    counted = [(f"count {count}", delay) for count in (2, 4) for delay in ("0.0", "30.0")]
    calls = [(f"tokens, {gpu.cores()} calls", "")] if gpu.cores() > 1 else []
    assert names == [("tokens", ""), *calls, ("none", ""), ("reader", ""), ("none, padded", ""), *counted]
    for row in rows:
        assert int(row["answers"]) > 0
        assert float(row["p50_ms"]) <= float(row["p99_ms"])
        assert (float(row["padding"]) > 0) == row["variant"].startswith("count")
        assert (row["clients"], row["client_process"]) == ("6", "threads of the same process")
    by_name = {row["variant"]: float(row["mean_batch"] or 0) for row in rows}
    assert by_name["count 2"] > by_name["none, padded"]  # two windows, and one
    assert {"tokens over none", "tokens over count", "tokens p99 to none"} <= set(result["metrics"])


def test_ratios_are_to_the_best_of_each_kind():
    rows = [
        {"variant": name, "answers_per_s": rate, "p99_ms": p99}
        for name, rate, p99 in (
            ("tokens", 60.0, 50.0), ("tokens, 2 calls", 72.0, 40.0), ("none", 40.0, 80.0), ("reader", 30.0, 10.0),
            ("count 4", 20.0, 1.0), ("count 8", 48.0, 1.0),
        )
    ]  # fmt: skip
    assert bench_batcher.ratios(rows) == {
        "tokens over none": 1.5, "tokens p99 to none": 0.625, "tokens over count": 1.25,
        "tokens, 2 calls over none": 1.8, "tokens, 2 calls p99 to none": 0.5, "tokens, 2 calls over count": 1.5,
    }  # fmt: skip


def test_count_batches_need_the_same_models_padded_engine(tmp_path):
    with pytest.raises(UserError, match="is no padded engine"):
        run(tmp_path, padded="packed")


def test_batches_by_count_wait_for_their_delay_and_keep_the_order_of_arrival(tmp_path):
    packed, padded = serve_kit.write(tmp_path / "packed"), serve_kit.write(tmp_path / "padded", "padded")
    words = ("--engine", packed, "--padded", padded, "--data", "x", "--counts", 4, "--delays", 150)
    config = options.parse(bench_batcher.BatcherBenchConfig, [str(word) for word in words], "scripts.bench_batcher")
    *_, counted = bench_batcher.variants(config)
    assert counted.open
    reports = []
    with counted.open() as batcher:
        batcher.on_batch(reports.append)
        begin = time.perf_counter()
        batcher.submit({"question": serve_kit.QUESTION, "context": serve_kit.PASSAGE}).result(5)
        assert time.perf_counter() - begin > 0.15  # though nothing else is there
        batches = [serve_kit.batch(length) for length in (4, 30, 5, 30, 4)]
        futures = [batcher.submit_packed(batch) for batch in batches]
        wait(futures, 5)
        assert time.perf_counter() - begin > 0.3
    assert [(report.sequences, report.slots) for report in reports[1:]] == [(4, 120), (1, 4)]
