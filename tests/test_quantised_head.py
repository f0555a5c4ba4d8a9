"""8-bit products of another head than the span's, by the whole command; of the rest see test_quantisation.py."""

import json
from dataclasses import replace

import export_kit as kit
import task_kit

from serve.classifier import Classifier

SIZES = replace(kit.SIZES, hidden=64, ffn=96)  # all multiples of 16


def test_another_heads_products_become_8_bits_wide_too(tmp_path):
    """Calibrated on its own examples, gated by its own answers, served by its own class."""
    data, dev = (task_kit.write_csv(tmp_path / f"{name}.csv", task_kit.csv_rows(at)) for at, name in enumerate("td"))
    made = {"settings": {"data": str(data)}}
    kit.run(tmp_path / "run", SIZES, task="csv", labels=["cross", "pleased"], made=made)
    loose = ("--quantisation-error", "0.9", "--tolerance-answers", "100", "--tolerance-f1", "100")
    kit.export("--run", tmp_path / "run", "--out", tmp_path / "engine", "--precision", "int8", "--dev", dev,
               "--arch", "89", "--max-batch", "4", *loose)  # fmt: skip
    about = json.loads((tmp_path / "engine" / "engine.json").read_text())
    assert [item["precision"] for item in about["quantisation"]["products"].values()] == ["int8"] * 8
    assert (about["plugin_layers"]["linear8"] > 0, about["quantisation"]["calibrated_on"]) == (True, str(data))
    on_cpu = about["verified"]["int8_on_cpu"]
    assert 0 < on_cpu["largest_logit_difference"] < 1
    assert on_cpu["accuracy_checkpoint"] == about["verified"]["accuracy_checkpoint"]
    with Classifier(tmp_path / "engine", "onnxruntime") as classifier:
        assert classifier.classify("the film was good").label in about["labels"]
