"""What bad input gets from export: a sentence that says what was seen and what to do, and nothing is written."""

import re
from types import SimpleNamespace
from typing import Any

import export_kit as kit
import numpy as np
import pytest

from configs import options
from configs.errors import UsageError, UserError
from export import checkpoint, out_folder, profile
from export.config import ExportConfig, PlanConfig
from serve.manifest import Range

SIZES = kit.SIZES
NAN, INFINITE = (np.full((SIZES.hidden,), value, np.float32) for value in (np.nan, np.inf))


@pytest.fixture
def run(tmp_path):
    return kit.run(tmp_path / "run")


def test_a_run_is_read_with_its_weights_tokeniser_and_hash(run):
    read = checkpoint.read(run)
    assert read.config == SIZES
    assert read.tensors.keys() == kit.tensors(SIZES).keys()
    assert read.tokenizer.size == SIZES.vocabulary
    assert re.fullmatch("[0-9a-f]{64}", read.sha256)


@pytest.mark.parametrize(("stated", "message"), [
    ({"task": "sst2"}, "was trained for the task 'sst2', whose head the graph does not know; it knows glue/cola"),
    ({"window": 65}, "has windows of 65 tokens, the weights have 64 position vectors"),
    ({"stride": "32"}, "stride is '32'; needed is a whole number above 0"),
    ({"max_answer_tokens": 0}, "max_answer_tokens is 0; needed"),
    ({"tokenizer": {"language": "en"}}, "tokenizer settings ['language'] are not known"),
    ({"format": "retort-run-9"}, "has format 'retort-run-9'"),
    ({"model": SIZES.to_dict() | {"heads": 5}}, "width 52 cannot be split over 5 heads"),
    ({"model": SIZES.to_dict() | {"layers": 3}}, "the number of layers (3)"),
])  # fmt: skip
def test_a_run_configuration_that_does_not_fit_is_refused(run, stated, message):
    kit.edit(run, **stated)
    with pytest.raises(UserError, match=re.escape(message)):
        checkpoint.read(run)


@pytest.mark.parametrize(("weights", "message"), [
    ({"layers__1__ffn__norm__scale": NAN}, "layers.1.ffn.norm.scale holds NaN: the run diverged or the file"),
    ({"layers__0__attention__norm__offset": INFINITE}, "layers.0.attention.norm.offset holds infinite values"),
    ({"span__kernel": None, "span__bias": None}, "lacks span.kernel or span.bias: it has no head for 'squad'"),
    ({"span__kernel": None}, "1 tensors are missing (span.kernel)"),
    ({"classifier__kernel": NAN}, "1 are unknown (classifier.kernel)"),
    ({"span__bias": np.zeros(2, np.float16)}, "span.bias is float16; best/ holds float32 master weights"),
])  # fmt: skip
def test_weights_that_cannot_be_exported_are_named(run, weights, message):
    kit.change_weights(run, **weights)
    with pytest.raises(UserError, match=re.escape(message)):
        checkpoint.read(run)


@pytest.mark.parametrize(("gone", "message"), [
    ("config.json", "config.json is missing"),
    ("best/model.safetensors", "the run has saved no best weights yet; let it finish, or --resume it"),
    ("vocab.txt", "vocab.txt is missing; copy the vocabulary that the run was trained with there"),
])  # fmt: skip
def test_a_missing_file_is_named(run, gone, message):
    (run / gone).unlink()
    with pytest.raises(UserError, match=re.escape(message)):
        checkpoint.read(run)


def test_a_truncated_file_a_large_vocabulary_and_no_run_at_all_are_refused(run, tmp_path):
    with (run / "vocab.txt").open("a") as file:
        file.write("onemore\n")
    with pytest.raises(UserError, match=r"has 401 pieces, the embeddings have 400 rows; take the vocab\.txt that bel"):
        checkpoint.read(run)
    weights = run / "best" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        checkpoint.read(run)
    with pytest.raises(UserError, match="no run folder at"):
        checkpoint.read(tmp_path / "nowhere")


def settings(*argv: str) -> ExportConfig:
    return options.parse(ExportConfig, ["--run", "r", *argv], "export")


@pytest.mark.parametrize(("argv", "message"), [
    ((), "--out for an engine folder is needed, or --hf"),
    (("--out", "e", "--plugins", "gelu,atention"), "no plugin 'atention' (did you mean attention?); there are"),
    (("--out", "e", "--plugins", ""), "--plugins: no plugin ''"),
    (("--out", "e", "--arch", "80,95"), "--arch: '95' is not known; there are 75, 80, 86, 89, 90, 100, 120 or 121"),
    (("--out", "e", "--arch", "native"), "--arch: 'native' is not known"),
    (("--out", "e", "--precision", "float32", "--plugins", "all"), "the plugins compute in float16 and bfloat16; take"),
    (("--out", "e", "--precision", "int4"), "--precision takes float16, bfloat16, float32, float8, int8 or auto; got"),
    (("--out", "e", "--target", "tensorrtx"), "tensorrt_rtx or none; got 'tensorrtx' (did you mean tensorrt?)"),
    (("--out", "e", "--tolerance", "0"), "--tolerance must be more than 0"),
])  # fmt: skip
def test_settings_that_cannot_be_met_are_refused(argv, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        settings(*argv)


def test_plugins_and_architectures_are_read_as_they_are_meant():
    assert settings("--out", "e").plugin_names() == settings("--out", "e", "--plugins", "all").plugin_names()
    assert len(settings("--out", "e").plugin_names()) == 7
    assert settings("--out", "e", "--precision", "float32").plugin_names() == ()
    assert settings("--out", "e", "--plugins", "none").plugin_names() == ()
    assert settings("--out", "e", "--plugins", "linear, attention").plugin_names() == ("attention", "linear")
    assert settings("--out", "e").architectures() is None
    assert settings("--out", "e", "--arch", "9.0,sm_80, 90").architectures() == (80, 90)


def test_tolerances_follow_the_precision_unless_they_are_given():
    plain = settings("--out", "e")
    assert [plain.tolerances(name, False).logit for name in ("float32", "float16", "bfloat16")] == [1e-3, 0.1, 0.5]
    assert plain.tolerances("float32", False).answers < plain.tolerances("bfloat16", False).answers
    assert plain.tolerances("float32", True).logit == 0.5
    told = settings("--out", "e", "--tolerance", "0.02", "--tolerance-answers", "0", "--tolerance-f1", "2")
    for name in ("float32", "bfloat16"):
        given = told.tolerances(name, True)
        assert (given.logit, given.answers, given.f1) == (0.02, 0.0, 2.0)


READ: Any = SimpleNamespace(info=SimpleNamespace(window=384), config=SimpleNamespace(positions=512))


def choose(layout="packed", **given):
    return profile.choose(PlanConfig(**given), READ, layout)


def test_a_profile_holds_the_runs_windows():
    assert choose() == profile.Profile(Range(1, 8, 32), Range(1, 8 * 128, 32 * 384), None)
    assert choose("padded") == profile.Profile(Range(1, 8, 32), None, Range(1, 128, 384))
    small = choose(max_batch=1, max_tokens=400, usual_length=384)
    assert small == profile.Profile(Range(1, 1, 1), Range(1, 384, 400), None)
    assert choose(max_tokens=500).tokens == Range(1, 500, 500)
    assert choose("padded", max_length=512, usual_batch=32).batch == Range(1, 32, 32)


@pytest.mark.parametrize(("layout", "given", "message"), [
    ("packed", {"max_length": 383}, "--max-length 383: the run's windows have up to 384 tokens"),
    ("padded", {"max_length": 513}, "its weights 512 positions; choose a length from 384 to 512"),
    ("packed", {"max_tokens": 383}, "--max-tokens 383 does not hold one window of 384 tokens"),
    ("padded", {"max_tokens": 4096}, "--max-tokens is for --layout packed"),
    ("packed", {"max_batch": 4, "usual_batch": 5}, "--usual-batch 5 is more than --max-batch 4"),
])  # fmt: skip
def test_a_profile_that_cannot_be_is_refused(layout, given, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        choose(layout, **given)


def test_nothing_of_a_users_is_overwritten(tmp_path):
    def check(out, overwrite=True, ours=True, run=None):
        out_folder.check("--out", out, overwrite, lambda folder: ours, {"--run": run})

    out, inside = tmp_path / "out", tmp_path / "out" / "run"
    check(out, overwrite=False)  # free
    out.mkdir()
    check(out, overwrite=False)  # empty
    inside.mkdir()
    with pytest.raises(UsageError, match="out exists; add --overwrite to replace it, or name another"):
        check(out, overwrite=False)
    with pytest.raises(UsageError, match="was not written by this command, it is not overwritten"):
        check(out, ours=False)
    for run in (inside, out):
        with pytest.raises(UsageError, match=r"would replace --run .*run|would replace --run .*out"):
            check(out, run=str(run))
    check(out, run=str(tmp_path))
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(out)
    for name, kind in (("file", "a file"), ("link", "a link")):
        with pytest.raises(UsageError, match=f"is {kind}; name a folder that is free"):
            check(tmp_path / name)


def test_a_folder_arrives_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "out"
    with out_folder.scratch(out) as folder:
        (folder / "new").write_text("1")
        assert not out.exists()
        out_folder.move(folder, out)
    with pytest.raises(IsADirectoryError), out_folder.scratch(out) as folder:
        folder.write_text("2")
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["new"]
    with out_folder.scratch(out) as folder:
        (folder / "newest").write_text("3")
        modes = (folder / "newest").stat().st_mode
        (folder / "newest").chmod(0o600)  # as safetensors and onnx do
        out_folder.move(folder, out)
    assert [path.name for path in out.iterdir()] == ["newest"]
    assert (out / "newest").stat().st_mode == modes
    assert [path.name for path in out.parent.iterdir()] == ["out"]
