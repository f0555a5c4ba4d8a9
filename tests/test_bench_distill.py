"""The table of what a step of distillation costs: a row for what is learnt, over teacher and student by themselves."""

import csv
from dataclasses import replace

from configs import options
from distill import student
from scripts import bench_distill


def test_a_row_for_everything_that_is_learnt_with_its_ratio(tmp_path, monkeypatch):
    small = replace(bench_distill.NAMED["bert-tiny"], vocabulary=1100, hidden=24, heads=2, ffn=32)
    monkeypatch.setitem(bench_distill.NAMED, "minilm-l6", small)
    monkeypatch.setitem(student.NAMED, "minilm-3l-384", {"layers": 1, "hidden": 16, "heads": 2, "ffn": 32})
    monkeypatch.setattr(bench_distill, "LEARNT", {
        name: bench_distill.LEARNT[name] for name in ("student alone", "prediction", "hidden states and attention")
    })  # fmt: skip
    words = "--precisions float32 --batch 2 --tokens 8 --steps 1 --repetitions 1 --no-jit --out".split()
    config = options.parse(bench_distill.BenchConfig, [*words, str(tmp_path / "d.csv")], "scripts.bench_distill")
    told = bench_distill.main(config)["metrics"]
    with open(tmp_path / "d.csv", newline="", encoding="utf-8") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher forward", "student alone", "prediction", "hidden states and attention"]
    halves = sum(float(rows[name]["step_ms"]) for name in ("teacher forward", "student alone"))
    for name in ("prediction", "hidden states and attention"):
        assert float(rows[name]["ratio"]) == told[f"float32 {name}"]
        assert abs(float(rows[name]["ratio"]) - float(rows[name]["step_ms"]) / halves) < 1e-3
    assert (rows["prediction"]["allowed"], rows["teacher forward"]["allowed"]) == ("1.6", "")
