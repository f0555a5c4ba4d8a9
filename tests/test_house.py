"""The house rules that a machine can check: imports go one way, recipes introduce themselves, files stay short."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("configs", "data", "distill", "export", "heads", "model", "plugins", "scripts", "serve", "train")
FILES = sorted(
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()
) or sorted(path for folder in (*FOLDERS, "tests") for path in (ROOT / folder).rglob("*.py"))  # fmt: skip
RECIPES = sorted((ROOT / "configs").glob("*.toml"))

# A folder and what it may import of ours besides itself; configs holds settings and errors, and everyone may use it.
MAY_IMPORT = {
    "configs": set(),
    "data": {"configs"},
    "model": {"configs"},
    "plugins": {"configs"},
    "heads": {"configs", "data"},
    "train": {"configs", "data", "heads", "model"},
    "distill": {"configs", "data", "heads", "model", "train"},
    "serve": {"configs", "data", "heads", "plugins"},
    "export": {"configs", "data", "heads", "model", "plugins", "serve"},
}
# The one script that others may import, to find the weights it fetches; so it may import nothing of ours but configs.
LEAF = "scripts.fetch_weights"
TENSORFLOW = {"tensorflow", "keras"}
# Whole folders, or single files, where neither TensorFlow, Keras nor torch may appear.
WITHOUT_TENSORFLOW = ("configs", "data", "plugins", "serve")
TENSORFLOW_AFTER_ALL = {"data/feed.py"}


def imports(source: str) -> set[str]:
    """The names of all modules that a source imports, anywhere in it, as `package.module`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def wrong_imports(path: str, source: str) -> list[str]:
    """What a file of ours imports against the rules of the house."""
    folder = path.split("/")[0]
    tops = {name.split(".")[0] for name in imports(source) if not name.startswith(LEAF)}
    wrong = sorted(tops & set(FOLDERS) - {"configs"}) if path == LEAF.replace(".", "/") + ".py" else []
    if folder in MAY_IMPORT:
        wrong += sorted(tops & set(FOLDERS) - MAY_IMPORT[folder] - {folder})
    if folder in WITHOUT_TENSORFLOW and path not in TENSORFLOW_AFTER_ALL:
        wrong += sorted(tops & (TENSORFLOW | {"torch"}))
    if folder == "serve":
        wrong += sorted({"data.batches", "data.feed"} & imports(source))
    if folder == "heads":  # serve reads them, too: what they need of these stands inside their functions
        tops = [node for node in ast.parse(source).body if isinstance(node, ast.Import | ast.ImportFrom)]
        top = "\n".join(map(ast.unparse, tops))
        wrong += sorted({name.split(".")[0] for name in imports(top)} & (TENSORFLOW | {"onnx", "torch"}))
    return wrong


def test_imports_go_one_way():
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
    assert "configs/options.py" in sources
    found = {path: wrong for path, source in sources.items() if (wrong := wrong_imports(path, source))}
    assert not found


@pytest.mark.parametrize(("path", "source", "wrong"), [
    ("data/squad.py", "from train import loop", ["train"]),
    ("model/bert.py", "def f():\n    import train.loop", ["train"]),
    ("train/loop.py", "import export.graph\nimport distill", ["distill", "export"]),
    ("data/squad.py", "import tensorflow.data as d", ["tensorflow"]),
    ("data/feed.py", "import tensorflow as tf", []),
    ("data/batches.py", "import tensorflow as tf", ["tensorflow"]),
    ("serve/reader.py", "from data import batches, tokenize", ["data.batches"]),
    ("serve/session.py", "from export.engine import load\nimport keras", ["export", "keras"]),
    ("train/__main__.py", "from scripts.fetch_weights import minilm_folder", []),
    ("train/__main__.py", "from scripts import quickstart", ["scripts"]),
    ("scripts/fetch_weights.py", "from train import config", ["train"]),
    ("distill/step.py", "from train.step import Step\nimport keras", []),
    ("heads/tag.py", "import tensorflow as tf", ["tensorflow"]),
    ("heads/tag.py", "def loss():\n    import tensorflow as tf\n    from onnx import helper", []),
    ("heads/tag.py", "def loss():\n    from model import bert", ["model"]),
])  # fmt: skip
def test_the_import_check_sees(path, source, wrong):
    assert wrong_imports(path, source) == wrong


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_source_hardware_time_score_and_command(path):
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    told = re.findall(r"^# (source|hardware|time|score|command)\s+\S", header, flags=re.MULTILINE)
    assert told == ["source", "hardware", "time", "score", "command"]
    assert f"--config {path.stem}" in header


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_is_short_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_lock_files_pin_by_hash_and_name_no_place():
    for name in ("cpu", "cuda", "ray"):
        lines = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        pinned = [line for line in lines if line and line[0] not in " #"]
        assert len(pinned) > 50
        assert all(re.fullmatch(r"[a-z0-9._-]+==[^ ]+ \\", line) for line in pinned)  # no markers that skip it silently
        assert sum("--hash=sha256:" in line for line in lines) >= len(pinned)
        assert not [line for line in lines if re.search(r"https?:|file:|index-url|find-links|^-e", line)]


@pytest.mark.parametrize("readme", sorted(ROOT.glob("README.md")), ids=lambda path: path.name)
def test_the_readme_mentions_every_top_level_folder(readme):
    text = readme.read_text(encoding="utf-8")
    there = [folder for folder in (*FOLDERS, "tests", "requirements") if (ROOT / folder).is_dir()]
    assert [folder for folder in there if f"{folder}/" not in text] == []
