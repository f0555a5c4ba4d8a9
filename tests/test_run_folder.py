"""The run folder: what is written is read back, and what does not fit is refused."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.errors import UserError
from heads import default
from model import run_folder, weights
from scripts.make_golden import CASES, SIZES, random_tensors, write_folder

SPAN = default()


def run_of(tmp_path):
    """A run folder as train writes it, and what was published."""
    published = weights.load(str(write_folder(tmp_path / "published", SIZES | CASES["erf"], random_tensors())), SPAN)
    folder = tmp_path / "run"
    (folder / "best").mkdir(parents=True)
    save_file(published.tensors, folder / "best" / "model.safetensors")
    tokenizer = {"lowercase": False, "strip_accents": None, "chinese": True}
    info = run_folder.RunInfo(published.config.to_dict(), tokenizer, 384, 128, 64, 30, no_answer_threshold=-1.5)
    run_folder.write(folder, info)
    return folder, published, info


def edit(folder, **changes):
    stated = json.loads((folder / "config.json").read_text()) | changes
    stated = {name: value for name, value in stated.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")


def test_a_run_folder_gives_back_what_was_written(tmp_path):
    folder, published, info = run_of(tmp_path)
    read = weights.load(str(folder), SPAN)
    assert read.tensors.keys() == published.tensors.keys()
    for name, tensor in published.tensors.items():
        np.testing.assert_array_equal(read.tensors[name], tensor)
    assert (read.config, read.left_over, read.tokenizer) == (published.config, [], info.tokenizer)
    assert run_folder.read(folder) == info
    assert run_folder.read(folder).bert == published.config
    assert sorted(path.name for path in folder.iterdir()) == ["best", "config.json"]


@pytest.mark.parametrize(("changes", "message"), [
    ({"model": ...}, "has no key 'model' with the sizes"),
    ({"model": {"depth": 3}}, "has no key 'model' with the sizes"),
    ({"model": {"hidden": 48, "layers": 3, "heads": 4}}, "token has shape (60, 48), the configuration needs (30522,"),
])  # fmt: skip
def test_a_run_folder_whose_sizes_do_not_fit_is_refused(tmp_path, changes, message):
    folder, *_ = run_of(tmp_path)
    edit(folder, **changes)
    with pytest.raises(UserError, match=re.escape(message)):
        weights.load(str(folder), SPAN)


@pytest.mark.parametrize(("change", "message"), [
    ({"layers.1.ffn.in.bias": None}, "1 tensors are missing (layers.1.ffn.in.bias)"),
    ({"pooler.kernel": np.zeros((48, 48), np.float32)}, "1 are unknown (pooler.kernel)"),
    ({"span.bias": np.zeros(3, np.float32)}, "span.bias has shape (3,), the configuration needs (2,)"),
])  # fmt: skip
def test_weights_of_a_run_that_do_not_fit_are_named(tmp_path, change, message):
    folder, published, _ = run_of(tmp_path)
    tensors = {name: value for name, value in (published.tensors | change).items() if value is not None}
    save_file(tensors, folder / "best" / "model.safetensors")
    with pytest.raises(UserError, match=re.escape(message)):
        weights.load(str(folder), SPAN)


@pytest.mark.parametrize(("changes", "message"), [
    ({"format": "retort-run-0"}, "has format 'retort-run-0', this version reads 'retort-run-1'"),
    ({"colour": 1}, r"has unknown keys \['colour'\]; it was written by another version"),
    ({"window": ...}, "is incomplete: .*'window'"),
])  # fmt: skip
def test_a_run_configuration_of_another_kind_is_refused(tmp_path, changes, message):
    folder, *_ = run_of(tmp_path)
    edit(folder, **changes)
    with pytest.raises(UserError, match=message):
        run_folder.read(folder)


def test_no_run_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no run folder at .*; train.py and distill.py write one"):
        run_folder.read(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        run_folder.read(tmp_path)
