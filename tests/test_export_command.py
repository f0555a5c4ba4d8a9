"""`python export.py`: what lies in the engine folder, that it is put there whole, and what the command says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import export_kit as kit
import numpy as np
import pytest
import tiny

import plugins
from configs.errors import UsageError, UserError
from data.features import FeatureOptions, featurise
from data.squad import read
from data.tokenize import Tokenizer
from export import __main__ as command
from plugins.kernels import KernelSet
from serve import fitting
from serve import manifest as manifests
from serve.packed import Packed
from serve.session import Session

WITHOUT = {"skip_layer_norm", "gelu", "linear8"}  # plugins that a float16 engine has no node of
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    kit.run(folder / "run", labels=["a"])
    tiny.questions(folder / "dev.json", 20)
    return folder


def export(home, out, *more):
    return kit.export("--run", home / "run", "--out", out, "--dev", home / "dev.json", *more)


@pytest.fixture(scope="module")
def exported(home):
    """An engine with everything: plan, all plugins, kernels for one GPU."""
    return home / "engine", export(home, home / "engine", "--arch", "89", "--max-batch", "4")


def stated(folder) -> dict:
    return json.loads((folder / "engine.json").read_text())


def test_the_folder_holds_what_serve_reads(exported):
    folder, result = exported
    read = manifests.read(folder)  # checks every hash
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(read.files) == names - {"engine.json"}
    assert {"model.onnx", "model.float16.onnx", "model.plan", "vocab.txt"} <= names
    assert (read.layout, read.precision) == ("packed", "float16")
    assert (read.target, read.architectures) == ("tensorrt_rtx", (89,))
    assert (read.window, read.stride, read.query, read.max_answer_tokens) == (64, 32, 24, 20)
    assert (read.task, read.labels, read.no_answer_threshold) == ("squad", ("a",), None)
    assert read.profile == manifests.Profile(manifests.Range(1, 1, 4), manifests.Range(1, 21, 256), None)
    assert read.plugins == {name: fitting.source_hash(name) for name in plugins.PLUGINS if name not in WITHOUT}
    assert KernelSet(folder, 89).of_plugin("attention")
    assert result["out"] == str(folder)
    assert result["metrics"]["plan_bytes"] == (folder / "model.plan").stat().st_size


def test_engine_json_says_what_was_built_from_what_and_that_the_plan_was_not_run(exported):
    about = stated(exported[0])
    assert about["plan"] == {"built": True, "was_run": False}
    layers = {"embed_layer_norm": 1, "attention": 2, "linear": 2, "linear_gelu": 2, "linear_skip_layer_norm": 4}
    assert about["plugin_layers"] == layers
    assert exported[1]["metrics"]["plugin_layers"] == layers
    assert about["checkpoint"]["sha256"] == manifests.sha256(exported[0].parent / "run" / "best" / "model.safetensors")
    verified = about["verified"]
    assert verified["runtime"] == "onnxruntime"
    assert verified["plan"].startswith("not run: no GPU here: ")
    assert verified["largest_logit_difference"] < 1e-4
    assert (verified["answers_changed"], verified["questions"]) == (0, 20)
    assert verified["f1"] == pytest.approx(verified["f1_checkpoint"])
    assert 1e-4 < verified["float16_on_cpu"]["largest_logit_difference"] < 0.1
    assert {"onnx", "keras", "tensorrt_rtx", "triton"} <= set(about["versions"])


def test_both_layouts_give_the_same_logits(home, exported, tmp_path):
    export(home, tmp_path / "padded", "--layout", "padded", "--target", "none", "--no-verify")
    about = stated(tmp_path / "padded")
    assert (about["plan"], about["verified"], about["layout"]) == ({"built": False, "was_run": False}, None, "padded")
    dataset = read(str(home / "dev.json"))
    tokenizer = Tokenizer.from_config(about["tokenizer"], home / "run" / "vocab.txt")
    batch = Packed.windows(featurise(dataset, tokenizer, FeatureOptions(64, 32, 24)), np.arange(4))
    one, other = (Session.open(folder, "onnxruntime").run(batch) for folder in (exported[0], tmp_path / "padded"))
    np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)


def test_a_float32_plan_is_built_from_the_model_itself(home, tmp_path):
    export(home, tmp_path / "e", "--precision", "float32", "--arch", "80,120", "--no-verify")
    names = sorted(path.name for path in (tmp_path / "e").iterdir())
    assert names == ["engine.json", "model.onnx", "model.plan", "vocab.txt"]
    assert (stated(tmp_path / "e")["plugins"], stated(tmp_path / "e")["architectures"]) == ({}, [80, 120])


def test_another_gelu_is_gated_and_recorded(home, tmp_path):
    metrics = export(home, tmp_path / "e", "--gelu", "tanh", "--arch", "89")["metrics"]
    assert 1e-5 < metrics["largest_logit_difference"] < 0.5
    assert stated(tmp_path / "e")["gelu"] == "tanh"
    assert stated(tmp_path / "e")["sizes"]["gelu"] == "erf"
    assert set(stated(tmp_path / "e")["plugins"]) == set(plugins.PLUGINS) - WITHOUT


def test_an_engine_is_replaced_when_told_to_and_only_by_a_whole_one(home, tmp_path):
    out = tmp_path / "e"
    export(home, out, "--target", "none", "--no-verify")
    before = (out / "engine.json").read_bytes()
    with pytest.raises(UsageError, match="exists; add --overwrite to replace it"):
        export(home, out, "--target", "none", "--no-verify")
    with pytest.raises(UserError, match=r"dev\.json is missing|data file .* is missing"):
        kit.export("--run", home / "run", "--out", out, "--overwrite", "--dev", tmp_path / "dev.json")
    with pytest.raises(UserError, match=r"it lies|does not answer"):  # the gate: no logit may differ by this little
        export(home, out, "--overwrite", "--target", "none", "--tolerance", "1e-12")
    assert (out / "engine.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "e.failed"]
    export(home, out, "--overwrite", "--layout", "padded", "--target", "none", "--no-verify")
    assert stated(out)["layout"] == "padded"


def test_a_users_folder_where_a_failed_engine_would_go_is_left_alone(home, tmp_path):
    (tmp_path / "e.failed").mkdir()
    (tmp_path / "e.failed" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"the place for a failed engine, .*e\.failed was not written by this command"):
        export(home, tmp_path / "e")
    assert (tmp_path / "e.failed" / "thesis.txt").is_file()


def test_a_plugin_without_a_kernel_for_the_model_is_refused_before_anything_is_built(home, tmp_path, monkeypatch):
    def needed(sizes, dtype, names):
        assert (sizes.head_size, sizes.layout, sizes.gelu, dtype) == (32, "packed", "none", "float16")
        raise ValueError("gelu knows no such width")

    monkeypatch.setattr(command.compiler, "needed", needed)
    with pytest.raises(UserError, match="for this model: gelu knows no such width; leave that plugin out of --plugins"):
        export(home, tmp_path / "e", "--no-verify")
    assert not list(tmp_path.iterdir())


def test_a_folder_for_hugging_face_is_written_alone_or_beside_an_engine(home, tmp_path):
    assert kit.export("--run", home / "run", "--hf", tmp_path / "hf") == {"out": str(tmp_path / "hf"), "metrics": {}}
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    with pytest.raises(UsageError, match=r"--hf .* exists; add --overwrite"):
        kit.export("--run", home / "run", "--hf", tmp_path / "hf")
    both = ("--hf", tmp_path / "hf", "--overwrite", "--target", "none", "--no-verify")
    assert export(home, tmp_path / "e", *both)["out"] == str(tmp_path / "e")
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--hf .* was not written by this command"):
        kit.export("--run", home / "run", "--hf", tmp_path / "hf", "--overwrite")


def test_without_the_gate_no_tensorflow_is_needed_and_the_last_line_tells_the_result(home, tmp_path):
    argv = [sys.executable, "export.py", "--run", str(home / "run"), "--out", str(tmp_path / "e")]
    argv += ["--target", "none", "--no-verify"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["command"], last["out"]) == ("export", str(tmp_path / "e"))
    assert {"onnx", "numpy"} <= set(last["versions"])
    assert not {"tensorflow", "keras"} & set(last["versions"])  # it names what the process has imported
