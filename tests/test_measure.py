"""scripts/measure_squad.py: several seeds over one compiled step must be what train.py does with each of them."""

import csv
from unittest import mock

import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from scripts import measure_squad
from train.hardware import Hardware

RECIPE = """
window = 64
stride = 32
query = 24
batch_size = 8
lr = 5e-3
buckets = 1
epochs = 1
"""


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A folder with the runs of seeds 1 and 2 out of one process, and their CSV."""
    folder = tmp_path_factory.mktemp("measure")
    tiny.weights(folder / "model")
    tiny.questions(folder / "train.json", 40)
    tiny.questions(folder / "dev.json", 8, part="dev-facts")
    (folder / "small.toml").write_text(RECIPE, encoding="utf-8")
    config = measure_squad.MeasureConfig(
        recipe=str(folder / "small.toml"),
        flags=f"no-amp cache={folder / 'cache'}",
        train=str(folder / "train.json"),
        dev=str(folder / "dev.json"),
        model=str(folder / "model"),
        seeds=(1, 2),
        out=str(folder / "scores.csv"),
        runs=str(folder / "runs"),
    )
    machine = Hardware(False, None, rank=0, ranks=1, chief=True)
    with mock.patch.object(measure_squad.hardware, "prepare", return_value=machine):
        measure_squad.main(config)
    return folder


def test_a_second_seed_in_the_same_process_learns_what_a_run_of_its_own_learns(measured):
    argv = tiny.arguments(measured, "alone", count=40) + ["--seed", "2", "--epochs", "1"]
    argv[argv.index("--data") + 1] = str(measured / "train.json")
    tiny.train(argv)
    alone = load_file(measured / "alone" / "last" / "model.safetensors")
    runs = sorted(path for path in (measured / "runs").iterdir() if path.name.endswith("-2"))
    together = load_file(runs[0] / "last" / "model.safetensors")
    first = load_file(runs[0].with_name(runs[0].name[:-1] + "1") / "last" / "model.safetensors")
    for name in alone:  # threads add up in any order: equal but for rounding, which Adam's division enlarges
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert np.abs(first["span.kernel"] - alone["span.kernel"]).max() > 1e-2, "another seed is another run"


def test_every_seed_has_a_line_with_its_scores(measured):
    with open(measured / "scores.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["1", "2"]
    assert {row["updates"] for row in rows} == {"5"}
    assert all(0 <= float(row["f1"]) <= 100 for row in rows)


def test_skips_are_counted_apart_once_the_scale_has_found_its_level(tmp_path):
    lines = [(40, 1), (100, 2), (120, 2), (200, 5)]
    text = "".join(f'{{"step": {step}, "skipped_steps": {count}}}\n' for step, count in lines)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert measure_squad.skips_after(tmp_path, 100) == 3
