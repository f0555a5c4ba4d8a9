"""Algorithms that were chosen once: by an earlier process, or at export for an engine folder."""

import json

import numpy as np

from plugins import legs
from plugins.linear import choices, matmul
from plugins.linear.cases import CASES
from plugins.linear.test_linear import STREAM, model, run

__all__ = ["model"]  # a fixture


def test_a_later_process_takes_what_was_found_untimed_unless_the_file_is_damaged(model, monkeypatch, tmp_path):
    library, _ = model
    given = legs.inputs("linear", CASES[0], "float16")
    run("linear", given, "float16")
    (file,) = (tmp_path / "cublaslt").iterdir()
    assert file.name == "NVIDIA_Made_Up-130000.json"

    def later():
        monkeypatch.setattr(matmul, "_winners", {})
        monkeypatch.setattr(matmul, "_choices", {})
        library.calls.clear()
        run("linear", given, "float16")
        return library.calls

    assert later() == [(2, STREAM)]
    run("linear", given | {"x": given["x"][:3]}, "float16")  # another class joins the first in the file
    assert len(json.loads(file.read_text())) == 2
    for nonsense in ("", "[]", "{", '{"24 16 40 float16 False False": "00"}', '{"24 16 40 float16 False False": 5}'):
        file.write_text(nonsense)
        assert len(later()) > 3 * matmul.CALLS
        assert later() == [(2, STREAM)]


def test_an_engine_folders_choice_comes_before_the_disks_and_only_on_its_gpu_and_version(model, monkeypatch, tmp_path):
    library, _ = model
    monkeypatch.setattr(choices, "_offered", {})
    given = legs.inputs("linear", CASES[0], "float16")
    run("linear", given, "float16")
    gpu, version, found = matmul.winners()
    assert (gpu, version, [array.tolist()[0] for array in found.values()]) == ("NVIDIA Made Up", 130000, [2])
    file = tmp_path / choices.FILE
    choices.write(file, gpu, version, {key: np.array([3] + 7 * [0], np.uint64) for key in found})

    def later(*about):
        for memory in ("_winners", "_choices"):
            monkeypatch.setattr(matmul, memory, {})
        library.calls.clear()
        note = choices.offer(file, *about)
        run("linear", given, "float16")
        return note, library.calls

    note, calls = later("NVIDIA Other", 130000)
    assert note.startswith("cublaslt.json is for cuBLASLt 130000 on NVIDIA Made Up, here is cuBLASLt 130000 on")
    assert calls == [(2, STREAM)]  # the disk's
    assert later(gpu, 130100)[1] == [(2, STREAM)]
    assert later(gpu, version) == ("", [(3, STREAM)])
    monkeypatch.setattr(choices, "_offered", {})
    for nonsense in ("", "[]", '{"algorithms": 5}', '{"algorithms": {"24": "zz"}}', " " * (choices.MOST_BYTES + 1)):
        file.write_text(nonsense)
        assert later(gpu, version) == (
            "cublaslt.json holds no algorithms; they are timed when they are first needed", [(2, STREAM)]
        )


def test_a_cache_that_cannot_be_written_costs_the_timing_alone(model, monkeypatch, tmp_path):
    library, _ = model
    (tmp_path / "cublaslt").write_text("a file where a folder is meant")
    run("linear", legs.inputs("linear", CASES[0], "float16"), "float16")
    assert library.calls[-1] == (2, STREAM)
