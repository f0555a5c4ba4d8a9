"""engine.json and the files it lists: whatever does not fit is a sentence, and nothing else is opened before."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import serve_kit

from configs.errors import UserError
from serve import manifest
from serve.manifest import read

ROOT = Path(__file__).parent.parent


def changed(folder, **changes):
    """engine.json with top-level fields exchanged; None takes a field out."""
    about = json.loads((folder / "engine.json").read_text())
    about |= changes
    (folder / "engine.json").write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
    return folder


def test_a_whole_folder_is_read(tmp_path):
    found = read(serve_kit.write(tmp_path / "engine"))
    assert (found.layout, found.window) == ("packed", 24)
    assert (found.profile.tokens, found.profile.length) == ((1, 64, 160), None)
    assert found.longest == serve_kit.POSITIONS
    assert found.target is None
    assert set(found.files) == {"model.onnx", "vocab.txt"}


def test_a_padded_engine_takes_sequences_up_to_its_profile_only(tmp_path):
    assert read(serve_kit.write(tmp_path / "engine", "padded")).longest == 32


@pytest.mark.parametrize(("field", "value", "seen"), [
    ("format", 2, "format 2, this version reads 1"),
    ("layout", "ragged", "'layout' is 'ragged'; needed is 'packed' or 'padded'"),
    ("layout", None, "'layout' is missing"),
    ("task", "mnli", "'task' is 'mnli'"),
    ("window", True, "'window' is True"),
    ("window", 24.0, "'window' is 24.0; needed is a whole number from 5"),
    ("stride", 0, "'stride' is 0"),
    ("no_answer_threshold", "-1", "'no_answer_threshold' is '-1'; needed is a finite number"),
    ("no_answer_threshold", 10**400, "needed is a finite number"),
    ("labels", ["a", 1], "needed is a list of at most 1000 texts"),
    ("tokenizer", {"lowercase": "yes"}, "'lowercase' is 'yes'"),
    ("sizes", {"vocabulary": 60}, "sizes: 'hidden' is missing"),
    ("sizes", [1], "'sizes' is [1]; needed is an object"),
    ("profile", {"batch": [1, 4, 8]}, "profile: 'tokens' is missing"),
    ("profile", {"batch": [1, 4, 8], "tokens": [64, 1, 160]}, "smallest, usual, largest"),
    ("profile", {"batch": [0, 4, 8], "tokens": [1, 64, 160]}, "smallest, usual, largest"),
    ("files", {}, "'model.onnx' is missing"),
    ("files", {"model.onnx": {"bytes": 1, "sha256": "AB" * 32}, "vocab.txt": {}}, "needed is a SHA-256"),
])  # fmt: skip
def test_a_field_of_another_kind_is_named_with_what_is_needed(tmp_path, field, value, seen):
    folder = changed(serve_kit.write(tmp_path / "engine"), **{field: value})
    with pytest.raises(UserError) as error:
        read(folder)
    assert seen in str(error.value)
    assert "export the engine again" in str(error.value)


@pytest.mark.parametrize("name", [
    "../outside", "/etc/passwd", "a/../../b", "kernels//x", "C:x", "a\\b", ".hidden", "a\0b", "", "a/b/c/d/e", "x/",
    "a b", "a\n",
])  # fmt: skip
def test_a_file_name_that_is_no_plain_name_inside_the_folder_is_refused(tmp_path, name):
    folder = serve_kit.write(tmp_path / "engine")
    files = json.loads((folder / "engine.json").read_text())["files"]
    with pytest.raises(UserError, match="no plain name inside the folder"):
        read(changed(folder, files=files | {name: {"bytes": 1, "sha256": "0" * 64}}))


@pytest.mark.parametrize("name", ["model.onnx", "model.plan", "vocab.txt", "kernels/sm_90/gelu.cubin"])
@pytest.mark.parametrize(("harm", "seen"), [
    (lambda path: path.unlink(), "lacks {name}"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1]), "it is cut off"),
    (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "it is another file"),
    (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\x7f"), "was changed after the export"),
], ids=["missing", "truncated", "longer", "changed"])  # fmt: skip
def test_a_harmed_file_is_named(tmp_path, name, harm, seen):
    folder = serve_kit.with_plan(tmp_path / "engine")
    (folder / "kernels/sm_90").mkdir(parents=True)
    (folder / "kernels/sm_90/gelu.cubin").write_bytes(b"code")
    serve_kit.relist(folder, json.loads((folder / "engine.json").read_text()))
    read(folder)
    harm(folder / name)
    with pytest.raises(UserError) as error:
        read(folder)
    assert seen.format(name=name) in str(error.value)
    assert name in str(error.value)


def test_a_link_out_of_the_folder_is_refused_even_to_the_same_bytes(tmp_path):
    folder = serve_kit.write(tmp_path / "engine")
    os.rename(folder / "vocab.txt", tmp_path / "vocab.txt")
    (folder / "vocab.txt").symlink_to(tmp_path / "vocab.txt")
    with pytest.raises(UserError, match="leads out of the engine folder"):
        read(folder)


def test_a_folder_that_is_itself_a_link_is_read(tmp_path):
    serve_kit.write(tmp_path / "engine")
    (tmp_path / "current").symlink_to(tmp_path / "engine")
    assert read(tmp_path / "current").window == 24


@pytest.mark.parametrize(("content", "seen"), [
    (b'{"format": 1', "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[" * 100_000, "is not JSON"),
    (b"[]", "needed is an object"), (b'{"format": NaN}', "NaN is no JSON number"), (b"", "is not JSON"),
], ids=["cut", "bytes", "deep", "list", "nan", "empty"])  # fmt: skip
def test_an_engine_json_that_is_none_is_a_sentence(tmp_path, content, seen):
    folder = serve_kit.write(tmp_path / "engine")
    (folder / "engine.json").write_bytes(content)
    with pytest.raises(UserError, match=seen):
        read(folder)


def test_an_engine_json_of_many_megabytes_is_not_read(tmp_path, monkeypatch):
    folder = serve_kit.write(tmp_path / "engine")
    monkeypatch.setattr(manifest, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="more than 100"):
        read(folder)


def test_a_folder_that_is_none_says_what_writes_one(tmp_path):
    with pytest.raises(UserError, match=r"export\.py --run"):
        read(tmp_path / "nothing")
    with pytest.raises(UserError, match="it is no engine folder"):
        read(tmp_path)


def test_serving_imports_no_training_and_no_export(tmp_path):
    """In a process of its own, since other tests bring TensorFlow; an answer, so that late imports count."""
    folder = serve_kit.write(tmp_path / "engine")
    program = f"""
import sys
import serve.__main__, serve.bench
from serve.reader import Reader
assert Reader({str(folder)!r}).answer({serve_kit.QUESTION!r}, {serve_kit.PASSAGE!r}).text == "Ada Lovelace"
unwanted = {{"tensorflow", "keras", "torch", "export", "train", "distill", "model", "tensorflow_datasets", "onnx"}}
print(sorted(unwanted & {{name.split(".")[0] for name in sys.modules}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
