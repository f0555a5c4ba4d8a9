"""The bench: each row's figures belong to the work it names, and are written for people, for machines and as CSV."""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import serve_kit

from configs import options
from configs.errors import UserError
from data import squad
from serve import bench, bench_cases
from serve.reader import Reader
from serve.session import Session

ROOT = Path(__file__).parent.parent


def settings(*argv: object) -> bench.BenchConfig:
    return options.parse(bench.BenchConfig, [str(word) for word in argv], "serve.bench")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_rows_by_batch_and_length_and_on_questions_go_to_the_table_and_the_csv(tmp_path, capsys, layout):
    folder = serve_kit.write(tmp_path / "engine", layout)
    out = tmp_path / "results" / "serve.csv"
    flags = ("--batches", 1, 4, "--lengths", 8, 30, "--seconds", 0.02, "--data", questions(tmp_path), "--out", out)
    result = bench.main(settings("--engine", folder, *flags))
    rows = result["metrics"]["rows"]
    shapes = [(row["batch"], row["length"]) for row in rows if row["case"] == "full"]
    assert shapes == [(1, 8), (4, 8), (1, 30), (4, 30)]
    assert [(row["case"], row["text"]) for row in rows[4:]] == [
        ("window", "no"), ("question", "yes"), ("question", "no"), ("all", "yes"), ("all", "no")
    ]  # fmt: skip
    for row in rows:
        assert row["runs"] >= bench.ROUNDS
        assert row["sequences_per_s"] > 0
        assert ("p50_ms" in row) == (row["case"] != "all")
        assert row.get("p50_ms", 0) <= row.get("p90_ms", 0) <= row.get("p99_ms", 0)
    assert (rows[4]["batch"], rows[4]["runs"] > 4) == (1, True)
    with open(out, newline="", encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert {row["layout"] for row in written} == {layout}
    assert {row["precision"] for row in written} == {"float32"}  # ONNX Runtime's, not the plan's float16
    shown = capsys.readouterr().out
    assert "runtime: ONNX Runtime" in shown
    assert "left out of question without text: 1 whose windows" in shown
    assert re.search(r"dev.json: 3 questions in 18 windows, 6\.000 each, of 24 tokens on average and 24 at", shown)
    assert f"{rows[0]['p50_ms']:,}" in shown


def test_what_the_engine_does_not_take_is_left_out_by_name(tmp_path, capsys):
    folder = serve_kit.write(tmp_path / "engine")
    flags = ("--batches", 1, 9, "--lengths", 8, 100, "--seconds", 0.01)
    rows = bench.main(settings("--engine", folder, *flags))["metrics"]["rows"]
    assert [(row["batch"], row["length"]) for row in rows] == [(1, 8)]
    shown = capsys.readouterr().out
    assert shown.count("left out:") == 3
    assert "left out: 9 x 8 (9 sequences, the engine takes up to 8" in shown


def test_nothing_to_measure_is_an_error(tmp_path):
    folder = serve_kit.write(tmp_path / "engine")
    with pytest.raises(UserError, match="nothing to measure"):
        bench.main(settings("--engine", folder, "--batches", 9))


def test_throughput_counts_exactly_the_work_done_in_the_time(monkeypatch, tmp_path):
    """Work of known length on a clock of our own: 10 ms a run, so 100 batches of 4 sequences a second."""
    clock = [0.0]
    monkeypatch.setattr(bench_cases.time, "perf_counter", lambda: clock[0])
    session = Session.open(serve_kit.write(tmp_path / "engine"))
    real = session._compute

    def slow(batch):
        clock[0] += 0.010
        return real(batch)

    session._compute = slow  # type: ignore[method-assign]
    batches = [serve_kit.batch(5, 5, 5, 5)]
    once, stream = bench_cases._one_by_one(session, batches), bench_cases._pipelined(session, batches)
    case = bench_cases.Case({}, 4, 20, once, stream)
    for _ in range(3):
        case.measure(0.2)
    found = case.result()
    assert (found["p50_ms"], found["p99_ms"]) == (10.0, 10.0)
    assert found["sequences_per_s"] == pytest.approx(400.0)
    assert found["tokens_per_s"] == 2000
    whole = bench_cases.Case({}, 7, 70, None, bench_cases._again(lambda: slow(batches[0])))
    for _ in range(3):
        whole.measure(0.05)
    assert whole.result()["sequences_per_s"] == pytest.approx(700.0)
    assert time.perf_counter() == clock[0]


def test_a_pass_offline_fetches_as_many_windows_as_it_submits(tmp_path):
    session = Session.open(serve_kit.write(tmp_path / "engine"))
    reader = Reader(session.manifest.folder, session=session)
    features = reader.features(squad.read(str(questions(tmp_path)), split="dev"))
    groups, fetched, submitted = reader.batches(features.length), [], []
    submit, result = session.submit, session.result
    session.submit = lambda batch: submitted.append(len(batch)) or submit(batch)  # type: ignore[method-assign]
    session.result = lambda ticket: fetched.append(1) or result(ticket)  # type: ignore[method-assign]
    stream = bench_cases._offline(session, features, groups)()
    next(stream)
    for passes in (1, 2):
        next(stream)
        assert (len(fetched), len(submitted)) == (passes * len(groups) + 1, passes * len(groups) + 2)
    assert len(groups) > 1
    assert sum(submitted[: len(groups)]) == sum(submitted[len(groups) : -2]) == len(features)


def test_the_last_line_is_for_machines(tmp_path):
    folder = serve_kit.write(tmp_path / "engine")
    flags = ["--engine", str(folder), "--batches", "1", "--lengths", "8", "--seconds", "0.01"]
    done = subprocess.run(
        [sys.executable, "-m", "serve.bench", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["command"] == "serve.bench"
    assert found["metrics"]["rows"][0]["batch"] == 1


def questions(folder: Path) -> Path:
    """Three questions, the windows of one of them more than the engine takes at once."""
    paragraphs = [
        {"context": "the notes . " * repeat + serve_kit.PASSAGE, "qas": [
            {"id": str(repeat), "question": serve_kit.QUESTION, "answers": [{"text": "1843", "answer_start": at}]}
        ]}
        for repeat, at in ((0, 50), (1, 62), (40, 530))
    ]  # fmt: skip
    path = folder / "dev.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return path
