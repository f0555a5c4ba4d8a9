"""`engine.json`: what an engine folder says of itself, read with suspicion and compared with what lies there.

    manifest = read("engines/student")      # Manifest, or a UserError that says what is wrong and what to do

Every file that the engine needs is listed with its size and SHA-256, so that a file cut off on its way, or exchanged,
ends here in a sentence and never inside a library that trusts what it reads. What concerns the plan alone (this GPU,
this TensorRT, the plugins' sources) is asked in `serve/fitting.py`, when a plan is about to be used.
"""

import hashlib
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import heads
from configs.errors import UserError
from heads import Head, Output
from serve.json_fields import Fields

NAME = "engine.json"
FORMAT = 1  # raise it when the meaning of a field changes
MOST_BYTES = 4 * 1024**2  # of engine.json: a hundred kernels make 30 kB
MOST_FILES = 2000
LAYOUTS = ("packed", "padded")
PRECISIONS = ("float32", "float16", "bfloat16", "float8", "int8")
TARGETS = ("tensorrt", "tensorrt_rtx")
MODEL, PLAN, VOCABULARY = "model.onnx", "model.plan", "vocab.txt"
COUNTS = ("vocabulary", "hidden", "layers", "heads", "ffn", "positions", "segments")
# Letters, digits and `._-` in every part: no root, no drive, no "..", nothing hidden, nothing to be quoted.
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*){0,3}")
AGAIN = "export the engine again, or copy the whole folder again"


class Range(NamedTuple):
    """Smallest, usual and largest size of an axis that the plan was built for."""

    least: int
    usual: int
    most: int


@dataclass(frozen=True)
class Profile:
    """Which inputs the engine takes. Packed: `tokens` in one row and `batch` sequences; padded: `batch` x `length`."""

    batch: Range
    tokens: Range | None  # packed alone
    length: Range | None  # padded alone


@dataclass(frozen=True)
class File:
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`engine.json`, checked field by field. Fields of it that are not here only describe how the engine was made."""

    folder: Path
    task: str
    labels: tuple[str, ...]
    layout: str
    precision: str  # of the plan; model.onnx is float32 always
    sizes: dict[str, int]  # COUNTS
    tokenizer: dict[str, Any]  # {lowercase, strip_accents, chinese}
    window: int
    stride: int
    query: int
    max_answer_tokens: int
    no_answer_threshold: float | None  # a no-answer score above it means "no answer"; None: there is always one
    profile: Profile
    files: dict[str, File]
    target: str | None = None  # which TensorRT the plan is for; None: the folder has no plan
    tensorrt: str = ""  # its version
    architectures: tuple[int, ...] = ()  # compute capabilities, 90 for 9.0, with plan and kernels
    plugins: dict[str, str] = field(default_factory=dict)  # plugin in the plan -> SHA-256 of its sources
    head: dict[str, Any] = field(default_factory=dict)  # settings of the task's head (`heads/`)

    @cached_property
    def entry(self) -> Head:
        """The task's entry in `heads/`, with the engine's labels and settings."""
        return heads.of_run(self)

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """What a session returns, in order."""
        return self.entry.outputs(self.sizes["hidden"])

    @property
    def longest(self) -> int:
        """Tokens that one sequence may have."""
        most = self.profile.length.most if self.profile.length else self.sizes["positions"]
        return min(most, self.sizes["positions"])


def read(folder: str | Path) -> Manifest:
    """engine.json of a folder, checked, and every file that it lists compared in size and SHA-256.

    Reads all of them once: about a second for a gigabyte. Raises: UserError for whatever does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no engine folder at {folder}; python export.py --run RUN --out {folder} writes one")
    path = folder / NAME
    if not path.is_file():
        raise UserError(f"{folder} has no {NAME}, so it is no engine folder; export.py writes one")
    if path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than {MOST_BYTES:,}; {AGAIN}")
    try:
        raw = json.loads(path.read_bytes().decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); it looks cut off; {AGAIN}") from error
    manifest = parse(raw, folder)
    check_files(manifest)
    return manifest


def parse(raw: Any, folder: Path) -> Manifest:
    """A parsed engine.json as a Manifest; no file but `folder` itself is looked at. Raises: UserError."""
    top = Fields(raw, str(folder / NAME), AGAIN)
    if top.raw.get("format") != FORMAT:
        raise UserError(
            f"{folder / NAME} has format {top.raw.get('format')!r}, this version reads {FORMAT}; "
            "export the engine again with this version"
        )
    layout = top.choice("layout", LAYOUTS)
    sizes = top.object("sizes")
    tokenizer = top.object("tokenizer")
    for name, value in tokenizer.raw.items():
        if value is not None and not isinstance(value, bool):
            raise tokenizer.wrong(name, "true, false or null")
    files = _files(top.object("files", MOST_FILES))
    has_plan = PLAN in files
    plugins = top.object("plugins", 100) if has_plan else Fields({}, "")
    settings = top.object("head", 100) if "head" in top.raw else Fields({}, "")
    for name, value in settings.raw.items():
        if not isinstance(value, str | int | float | None):
            raise settings.wrong(name, "text or a number")
    manifest = Manifest(
        folder=folder,
        task=top.choice("task", heads.tasks()),
        labels=top.texts("labels"),
        layout=layout,
        precision=top.choice("precision", PRECISIONS),
        sizes={name: sizes.whole(name, 1) for name in COUNTS},
        tokenizer=dict(tokenizer.raw),
        window=top.whole("window", 5, 1 << 16),
        stride=top.whole("stride", 1, 1 << 16),
        query=top.whole("query", 1, 1 << 16),
        max_answer_tokens=top.whole("max_answer_tokens", 1, 1 << 16),
        no_answer_threshold=top.number("no_answer_threshold", default=None),
        profile=_profile(top.object("profile"), layout),
        files=files,
        target=top.choice("target", TARGETS) if has_plan else None,
        tensorrt=top.text("tensorrt", 100) if has_plan else "",
        architectures=top.wholes("architectures") if has_plan else (),
        plugins={name: plugins.sha256(name) for name in plugins.raw},
        head=dict(settings.raw),
    )
    if len(set(manifest.labels)) < len(manifest.labels):
        raise top.wrong("labels", "names that differ")
    _ = manifest.outputs  # a head whose labels or settings do not fit says so now
    return manifest


def check_files(manifest: Manifest) -> None:
    """Compare every listed file with its size and SHA-256. Raises: UserError for the first that differs, by name."""
    names = sorted(manifest.files)
    for name in names:  # sizes first: a missing or cut file is found without reading gigabytes
        path, stated = manifest.folder / name, manifest.files[name]
        if not path.is_file():
            raise UserError(f"{manifest.folder} lacks {name}, which {NAME} lists; {AGAIN}")
        if not path.resolve().is_relative_to(manifest.folder.resolve()):
            raise UserError(f"{path} is a link that leads out of the engine folder; put the file itself there")
        if (size := path.stat().st_size) != stated.bytes:
            what = "cut off" if size < stated.bytes else "another file"
            raise UserError(f"{path} has {size:,} bytes, {NAME} says {stated.bytes:,}: it is {what}; {AGAIN}")
    with ThreadPoolExecutor(2) as pool:  # hashing leaves Python's lock
        for name, seen in zip(names, pool.map(lambda name: sha256(manifest.folder / name), names), strict=True):
            if seen != manifest.files[name].sha256:
                raise UserError(
                    f"{manifest.folder / name} has SHA-256 {seen[:12]}..., {NAME} says "
                    f"{manifest.files[name].sha256[:12]}...: it was changed after the export; {AGAIN}"
                )


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(listed: Fields) -> dict[str, File]:
    for name in listed.raw:
        if not PLAIN.fullmatch(name):
            raise UserError(f"{listed.where}: {name[:100]!r} is no plain name inside the folder; {AGAIN}")
    for name in (MODEL, VOCABULARY):
        if name not in listed.raw:
            raise listed.wrong(name, "its size and SHA-256")
    entries = {name: listed.object(name) for name in listed.raw}
    return {name: File(entry.whole("bytes", 0, 1 << 40), entry.sha256("sha256")) for name, entry in entries.items()}


def _profile(fields: Fields, layout: str) -> Profile:
    def axis(key: str) -> Range:
        values = fields.wholes(key)
        if len(values) != 3 or not 1 <= values[0] <= values[1] <= values[2] <= 1 << 24:
            raise fields.wrong(key, "three whole numbers from 1 on: smallest, usual, largest")
        return Range(*values)

    packed = layout == "packed"
    return Profile(axis("batch"), axis("tokens") if packed else None, None if packed else axis("length"))


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
