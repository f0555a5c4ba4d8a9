"""scripts/check_engine.py on a CPU: an engine that answers as its checkpoint passes, and no other one does."""

import itertools
import json
import zipfile
from typing import Any
from unittest import mock

import export_kit as kit
import numpy as np
import pytest
import tiny

from configs.errors import UsageError, UserError
from scripts import check_engine
from scripts import check_engine_reference as reference_file
from scripts.check_engine import CheckConfig, Span, best_span
from serve.onnx_session import OnnxSession


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run, 20 questions, engines of both layouts without a plan, and Keras's logits."""
    folder = tmp_path_factory.mktemp("check")
    kit.run(folder / "run")
    tiny.questions(folder / "dev.json", 20)
    for layout in ("packed", "padded"):
        kit.export(
            "--run", folder / "run", "--out", folder / layout, "--layout", layout, "--no-verify", "--target", "none",
            "--max-batch", "6", "--max-length", "64",
        )  # fmt: skip
    settings: dict[str, Any] = {"run": str(folder / "run"), "dev": str(folder / "dev.json")}
    result = check_engine.main(CheckConfig(**settings, write_reference=str(folder / "logits")))
    assert result["metrics"]["windows"] >= 20
    return folder


def check(home, layout="packed", **changes) -> tuple[Any, dict]:
    """(the command's result or its complaint, the JSON)."""
    settings: dict[str, Any] = {
        "run": str(home / "run"), "dev": str(home / "dev.json"), "engine": str(home / layout), "batches": 25,
        "out": str(home / "check.json"), "reference": str(home / "logits"), "runtime": "onnxruntime",
    }  # fmt: skip
    try:
        result: Any = check_engine.main(CheckConfig(**settings | changes))
    except UserError as error:
        result = str(error)
    return result, json.loads((home / "check.json").read_text())


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_right_engine_passes_in_single_windows_and_in_batches(home, layout, capsys):
    result, report = check(home, layout)
    assert result["metrics"]["f1"] == result["metrics"]["f1_reference"]
    assert report["complaints"] == []
    assert report["reference"] == "Keras, from logits"
    found = report["batches"]
    assert found["batches"] == 25
    assert 25 < found["sequences"] < 25 * 6
    assert 10 < found["tokens"] / found["sequences"] < 64
    assert found["clear"] > 0.9 * found["sequences"]
    assert (found["clear_disagree"], found["close_disagree"]) == (0, 0)
    assert found["largest_to_alone"] < 1e-4
    assert 0 < found["largest_to_reference"] < 1e-4
    assert 5 <= len(found["cases"]) <= 15
    assert max(case["to_alone"] for case in found["cases"]) == found["largest_to_alone"]
    assert "batches: 25 of" in capsys.readouterr().out


def spoiled(change):
    """OnnxSession whose logits `change(start, end, batch)` has changed."""
    right = OnnxSession._compute

    def compute(self, batch):
        start, end = (side.copy() for side in right(self, batch))
        change(start, end, batch)
        return start, end

    return mock.patch.object(OnnxSession, "_compute", compute)


def leak(start, end, batch):
    """The last of four or more windows gets another answer: its second context token far above the rest."""
    if len(batch) > 3:
        start[-2] += 100
        end[-2] += 100


def shift(start, end, batch):
    start += 0.01


def nan(start, end, batch):
    if len(batch) == 5:
        end[0] = np.nan


@pytest.mark.parametrize(("change", "said"), [
    (leak, ["batches differ from windows alone by 1", "clear best spans are others in a batch"]),
    (shift, ["windows alone differ from float32 by 0.01", "batches differ from float32 by 0.01"]),
    (nan, ["batches differ from windows alone by inf"]),
], ids=lambda value: getattr(value, "__name__", ""))  # fmt: skip
def test_an_engine_that_mixes_up_its_windows_is_caught_and_the_cases_named(home, change, said):
    with spoiled(change):
        complaint, report = check(home, batches=40)
    for words in said:
        assert words in complaint
    if change is leak:
        case = next(case for case in report["batches"]["cases"] if case["disagrees"])
        assert case["batch_windows"] > 3
        assert case["to_alone"] == pytest.approx(100, rel=1e-3)
    if change is shift:
        assert "windows alone by" not in complaint  # alone and together it is the same


def test_a_lost_point_of_f1_and_batches_that_time_did_not_allow_are_complaints(home):
    found = check_engine.Found(batches=3, largest_to_alone=0.1)
    config = CheckConfig(run="r", dev="d", engine="e", batches=4, tolerance_f1=0.1)
    said = check_engine.complaints(config, -0.2, 0.0, found, 0.1, 0.1)
    assert said == ["F1 is 0.2 points below float32 (tolerance 0.1)", "only 3 of 4 batches in 5 minutes"]
    assert len(check_engine.complaints(config, float("nan"), 0.2, found, 0.05, 0.1)) == 4
    assert "only 0 of 25 batches" in check(home, minutes=1e-9)[0]


def test_batches_fit_the_engine_and_mix_all_lengths(home):
    features = mock.MagicMock(length=np.array([10] * 50 + [40] + [64] * 2, np.int32))
    features.__len__ = lambda self: 53
    profile = mock.Mock(batch=mock.Mock(most=8), tokens=mock.Mock(most=100))
    session = mock.Mock(manifest=mock.Mock(profile=profile))
    random = np.random.default_rng(0)
    drawn = [check_engine.random_rows(features, session, random) for _ in range(300)]
    assert all(1 <= len(rows) <= 8 and len(set(rows)) == len(rows) for rows in drawn)
    assert all(features.length[rows].sum() <= 100 for rows in drawn)
    assert {len(rows) for rows in drawn} == set(range(1, 9))
    rare = sum(bool((rows >= 50).any()) for rows in drawn)
    assert rare > 120  # 3 of 53 windows, in two fifths of the batches


def test_the_best_span_and_its_lead_are_those_of_a_search_through_all():
    random = np.random.default_rng(0)
    for length, most in ((1, 1), (1, 5), (7, 3), (20, 30)):
        start, end = random.normal(size=(2, length)).astype(np.float32)
        pairs = [(i, j) for i, j in itertools.product(range(length), repeat=2) if i <= j < i + most]
        ranked = sorted(pairs, key=lambda pair: float(start[pair[0]]) + float(end[pair[1]]), reverse=True)
        scores = [float(start[i]) + float(end[j]) for i, j in ranked]
        found = best_span(start, end, most)
        assert (found.first, found.last) == ranked[0]
        assert found.margin == pytest.approx(scores[0] - scores[1] if len(scores) > 1 else np.inf)
    found = best_span(np.array([np.nan, 1.0]), np.array([0.0, 0.0]), 2)
    assert (found.first, found.last) == (1, 1)
    assert best_span(np.zeros(0), np.zeros(0), 3) == Span(0, 0, 0.0)


def test_logits_of_another_run_and_files_that_hold_none_are_refused(home, tmp_path, monkeypatch):
    kit.run(tmp_path / "run", query=20)
    complaint, _ = check(home, run=str(tmp_path / "run"))
    with np.load(home / "logits") as stored:
        arrays: dict[str, Any] = dict(stored)
    assert complaint.startswith(f"{home / 'logits'} is of another run")
    start = arrays["start"]
    for changes in ({"key": arrays["key"][::-1]}, {"start": start[1:]}, {"start": start.astype("f8")}):
        changed: Any = arrays | changes
        np.savez(tmp_path / "wrong.npz", **changed)
        with pytest.raises(UserError, match="write it again"):
            check_engine.main(CheckConfig(
                str(home / "run"), str(home / "dev.json"), str(home / "packed"), reference=str(tmp_path / "wrong.npz"),
                runtime="onnxruntime",
            ))  # fmt: skip
    changed = arrays | {"start": np.array([{}], object)}
    np.savez(tmp_path / "pickled.npz", **changed)
    (tmp_path / "text.npz").write_text("no archive")
    for name in ("pickled.npz", "text.npz", "missing.npz"):
        with pytest.raises(UserError, match="holds no logits"):
            reference_file.read(tmp_path / name, mock.Mock())
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("start.npy", bytes(5000))
    monkeypatch.setattr(reference_file, "MOST_BYTES", 4000)
    with pytest.raises(UserError, match="unpacks to more than 4,000 bytes"):
        reference_file.read(tmp_path / "bomb.npz", mock.Mock())


def test_without_a_file_the_reference_is_keras_and_without_tensorflow_onnx_runtime(home, monkeypatch):
    assert check(home, reference=None, batches=2)[1]["reference"] == "Keras"
    monkeypatch.setattr(reference_file.importlib.util, "find_spec", lambda name: None)
    assert check(home, reference=None, batches=2)[1]["reference"].startswith("ONNX Runtime")


def test_another_gelu_than_the_checkpoints_is_allowed_what_export_allows_it(home):
    session = mock.Mock(runtime="tensorrt", manifest=mock.Mock(precision="float16", folder=home / "packed"))
    config = CheckConfig(run="r", dev="d", engine="e")
    assert check_engine.tolerances(config, session, "erf") == (0.1, 0.1)
    assert check_engine.tolerances(config, session, "tanh") == (0.1, 0.5)
    given = CheckConfig(run="r", dev="d", engine="e", tolerance=0.2)
    assert check_engine.tolerances(given, session, "tanh") == (0.2, 0.2)


def test_an_engine_or_a_file_to_write_is_needed_and_not_both():
    for engine, write in ((None, None), ("engine", "file")):
        with pytest.raises(UsageError):
            CheckConfig(run="r", dev="d", engine=engine, write_reference=write)
