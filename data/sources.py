"""Where SQuAD comes from: a JSON file, packed or not, the built-in set, tensorflow-datasets; all as one dictionary.

Nothing here trusts what it reads: sizes are bounded, nothing is executed, and every failure says what to do.
"""

import gzip
import json
import socket
import zlib
from pathlib import Path
from typing import Any
from urllib.request import getproxies

from configs.errors import UserError

MOST_BYTES = 2 * 1024**3  # of JSON after decompression; the official SQuAD files have 40 MB
MOST_RATIO = 200  # decompressed to compressed size; English JSON has 4, a bomb has 1,000
RATIO_FROM_BYTES = 64 * 1024**2  # below this size no ratio is suspicious
NEEDED = (
    'SQuAD is {"version": "1.1", "data": [{"title", "paragraphs": '
    '[{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}'
)
SQUAD_HOST = "rajpurkar.github.io"  # where tensorflow-datasets fetches SQuAD
BUILTIN_PARTS = ("train", "dev", "dev-facts", "dev-patterns", "dev-handwritten")


def from_file(path: Path) -> Any:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "missing"
        raise UserError(
            f"data file {path} is {kind}; give a SQuAD .json or .json.gz, tfds:squad, tfds:squad/v2.0 or builtin:train"
        )
    try:
        text = read_bytes(path).decode("utf-8-sig")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; SQuAD files are UTF-8 JSON, convert it") from error
    except json.JSONDecodeError as error:
        near_end = error.pos >= len(error.doc.rstrip()) - 1 or "Unterminated" in error.msg
        hint = "it looks cut off, fetch it again" if near_end else "it is not JSON there"
        raise UserError(
            f"{path}: {error.msg} at line {error.lineno}, column {error.colno} of {len(error.doc)} characters; {hint}"
        ) from error
    except RecursionError as error:
        raise UserError(f"{path}: nested too deeply to be SQuAD; {NEEDED}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: broken gzip ({error}); it looks cut off or is not gzip, fetch it again") from error
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def read_bytes(path: Path, kind: str = "SQuAD", content: str = "JSON") -> bytearray:
    """The file's content, decompressed if it is gzip (by its first bytes, not its name), never above MOST_BYTES."""
    size = path.stat().st_size
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b" or path.suffix == ".gz"
        raw.seek(0)
        stream = gzip.GzipFile(fileobj=raw) if packed else raw
        found = bytearray()
        while block := stream.read(1 << 20):
            found += block
            if len(found) > MOST_BYTES:
                raise UserError(f"{path}: more than {MOST_BYTES:,} bytes of {content}; split it")
            if packed and len(found) > max(RATIO_FROM_BYTES, MOST_RATIO * size):
                raise UserError(
                    f"{path}: {size:,} bytes unpack to more than {len(found):,}; this is no {kind} file, refused"
                )
    return found


def from_builtin(part: str, limit: int | None) -> Any:
    if part not in BUILTIN_PARTS:
        raise UserError(f"no built-in data {part!r}; choose builtin: and one of {', '.join(BUILTIN_PARTS)}")
    from data.builtin import load

    return load(part, count=limit) if part == "train" and limit else load(part)


def from_tfds(name: str, split: str) -> Any:
    """tensorflow-datasets as the JSON's dictionary."""
    configs = {"squad": "squad", "squad/v1.1": "squad", "squad/v2.0": "squad/v2.0"}
    splits = {"train": "train", "dev": "validation", "validation": "validation"}
    if name not in configs or split not in splits:
        raise UserError(
            f"tfds:{name} (split {split!r}) is not known; use tfds:squad or tfds:squad/v2.0 with split train or dev"
        )
    rows = tfds_rows(
        configs[name], splits[split], SQUAD_HOST, "download a SQuAD JSON on another machine and give its path", name
    )
    paragraphs = []
    for row in rows:
        texts, starts = row["answers"]["text"], row["answers"]["answer_start"]
        answers = [{"text": t.decode(), "answer_start": int(s)} for t, s in zip(texts, starts, strict=True)]
        qa = {"id": row["id"].decode(), "question": row["question"].decode(), "answers": answers}
        if "is_impossible" in row:
            qa["is_impossible"] = bool(row["is_impossible"])
        paragraphs.append({"context": row["context"].decode(), "qas": [qa]})
    version = "2.0" if configs[name].endswith("v2.0") else "1.1"
    return {"version": version, "data": [{"title": "", "paragraphs": paragraphs}]}


def tfds_rows(config: str, split: str, host: str, instead: str, said: str = "") -> list[dict]:
    """The rows of a split of tensorflow-datasets, fetched from `host` if they are not there. Raises: UserError.

    It is imported here alone, since it brings TensorFlow along.
    """
    said, instead = said or config, f"{instead} instead"
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(config)
        if not builder.is_prepared():
            _reach(host)
            builder.download_and_prepare()
        return list(tfds.as_numpy(builder.as_dataset(split=split)))
    except ImportError as error:  # tfds imports parts of itself only when they are used
        raise UserError(f"tfds:{said}: {error}; install it with pip, or {instead}") from error
    except Exception as error:  # tfds raises whatever its downloader does
        first_line = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"tfds:{said} could not be fetched ({type(error).__name__}: {first_line[:200]}); "
            f"check the network, or {instead}"
        ) from error


def _reach(host: str) -> None:
    """Fails within seconds where there is no network; tfds would try again for many minutes."""
    if not getproxies():  # through a proxy nothing can be said from here
        socket.create_connection((host, 443), timeout=10).close()
