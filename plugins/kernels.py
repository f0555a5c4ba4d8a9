"""The kernels of an engine folder: machine code by name, read and checked before a GPU sees it.

    engine/kernels/sm_90/gelu-none-even-float16.cubin    the machine code
    engine/kernels/sm_90/gelu-none-even-float16.json     how to call it, and the hash of both

A cubin runs on the architecture it was made for and, from 9.0 on, on no other: none is ever guessed.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from configs.errors import UserError

MOST_KERNELS = 256  # of one architecture; an engine has about ten
MOST_BYTES = 16 << 20  # of one file; ours have under 200 kB
SCALARS = {"i32": 32, "i64": 64, "fp32": 32}  # what else than a pointer an argument can be, and its bits
# A matrix that is read or written by tiles: Triton's name of its dtype, rows and columns that the hardware copies at
# once, and how it spreads them over the banks of shared memory (CUtensorMapSwizzle).
TILES = re.compile(r"tiles<(fp16|bf16|fp8e4nv|i8)\[([1-9]\d{0,2}),([1-9]\d{0,2})\],([0-3])>")
NAME = re.compile(r"[a-z][a-z0-9_]*(-[a-z0-9_]+)*")


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel. The part of its name before the first dash is the folder it comes from."""

    name: str
    cubin: bytes = field(repr=False)
    entry: str  # the function's name within the cubin
    shared: int  # dynamic shared memory, bytes
    num_warps: int  # of 32 threads
    signature: tuple[str, ...]  # types of the arguments a caller gives: "*fp16", "i32", "fp32", "tiles<fp16[128,64],3>"
    hidden: int  # pointers that Triton appends to them; always null for our kernels
    aligned: tuple[int, ...] = ()  # arguments whose address must be a multiple of 16
    constants: Mapping[str, int | float | bool | str] = field(default_factory=dict)  # compiled in; BLOCK gives the grid
    arch: int = 0
    source_hash: str = ""  # SHA-256 of the kernel.py it was compiled from
    overlaps: bool = False  # it waits by itself for the kernel before it, so it may be launched before that has ended


class KernelSet(Mapping[str, Kernel]):
    """Kernels by name, for one architecture.

    KernelSet(folder)            those of an engine folder for the current GPU
    KernelSet(folder, arch=90)   the same for a named architecture; needs no GPU
    KernelSet.of(kernels)        from memory
    Raises UserError when there are none for the architecture, or a file is damaged.
    """

    def __init__(self, folder: Path | str, arch: int | None = None) -> None:
        if arch is None:
            from plugins.launch import architecture  # needs a driver, so only where one is asked for

            arch = architecture()
        self.where, self.arch = str(folder), arch
        place = Path(folder) / "kernels" / f"sm_{arch}"
        files = sorted(place.glob("*.json"))[: MOST_KERNELS + 1]
        if not files:
            built = sorted(path.name for path in (Path(folder) / "kernels").glob("sm_*"))
            there = f"it has {', '.join(built)}" if built else "it has none at all"
            raise UserError(f"{folder} has no kernels for sm_{arch} ({there}); export with --arch {arch}")
        if len(files) > MOST_KERNELS:
            raise UserError(f"{place} holds more than {MOST_KERNELS} kernels; export the engine again")
        self._kernels = {path.stem: _read(path, arch) for path in files}

    @classmethod
    def of(cls, kernels: Iterable[Kernel], where: str = "memory") -> "KernelSet":
        self = cls.__new__(cls)
        self._kernels = {kernel.name: kernel for kernel in kernels}
        self.where, self.arch = where, next((kernel.arch for kernel in self._kernels.values()), 0)
        return self

    def __getitem__(self, name: str) -> Kernel:
        if name not in self._kernels:
            raise UserError(
                f"{self.where} has no kernel {name!r} for sm_{self.arch}, only {', '.join(sorted(self._kernels))}; "
                "the engine was exported for another model, precision or set of plugins: export it again"
            )
        return self._kernels[name]

    def __contains__(self, name: object) -> bool:
        return name in self._kernels

    def __iter__(self) -> Iterator[str]:
        return iter(self._kernels)

    def __len__(self) -> int:
        return len(self._kernels)

    def of_plugin(self, folder: str) -> list[Kernel]:
        """The kernels of one plugin's folder."""
        return [kernel for name, kernel in self._kernels.items() if name.split("-")[0] == folder]


def write(folder: Path | str, arch: int, kernels: Iterable[Kernel]) -> list[Path]:
    """Write kernels/sm_<arch>/ of an engine folder; gives the files written. The cubin first, so that no description
    stands without its code."""
    place = Path(folder) / "kernels" / f"sm_{arch}"
    place.mkdir(parents=True, exist_ok=True)
    written = []
    for kernel in kernels:
        if kernel.arch != arch or not NAME.fullmatch(kernel.name):
            raise ValueError(f"kernel {kernel.name!r} for sm_{kernel.arch} cannot stand in {place}")
        code, about = place / f"{kernel.name}.cubin", place / f"{kernel.name}.json"
        code.write_bytes(kernel.cubin)
        about.write_text(json.dumps(_about(kernel), indent=1) + "\n", encoding="utf-8")
        written += [code, about]
    return written


def _about(kernel: Kernel) -> dict:
    about = {item.name: getattr(kernel, item.name) for item in fields(kernel) if item.name != "cubin"}
    return about | {"constants": dict(kernel.constants), "cubin_sha256": hashlib.sha256(kernel.cubin).hexdigest()}


def _read(path: Path, arch: int) -> Kernel:
    """One kernel from its two files, every field checked: a wrong one would be a fault on the GPU, not an error."""
    code = path.with_suffix(".cubin")
    try:
        if max(path.stat().st_size, code.stat().st_size) > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES} bytes")
        about, cubin = json.loads(path.read_text(encoding="utf-8")), code.read_bytes()
        if not isinstance(about, dict) or about.pop("cubin_sha256", None) != hashlib.sha256(cubin).hexdigest():
            raise ValueError("its cubin is not the one that was exported")
        kernel = Kernel(
            **about | {"cubin": cubin, "signature": tuple(about["signature"]), "aligned": tuple(about["aligned"])}
        )
        problems = list(_problems(kernel, path.stem, arch))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"kernel {path} is damaged ({error}); export the engine again") from error
    if problems:
        raise UserError(f"kernel {path} is damaged ({'; '.join(problems)}); export the engine again")
    return kernel


def _problems(kernel: Kernel, name: str, arch: int) -> Iterator[str]:
    """What is wrong with a kernel's description."""
    for key, low, high in (("shared", 0, 228 << 10), ("num_warps", 1, 32), ("hidden", 0, 4), ("arch", arch, arch)):
        value = getattr(kernel, key)
        if type(value) is not int or not low <= value <= high:
            yield f"{key} is {value!r}, not {low} to {high}"
    if kernel.name != name or not NAME.fullmatch(name):
        yield f"it calls itself {kernel.name!r}"
    if not isinstance(kernel.entry, str) or not kernel.entry.isidentifier():
        yield f"entry is {kernel.entry!r}"
    if not all(
        isinstance(item, str) and (item[:1] == "*" or item in SCALARS or TILES.fullmatch(item))
        for item in kernel.signature
    ):
        yield f"signature is {kernel.signature!r}"
    if not all(type(item) is int and 0 <= item < len(kernel.signature) for item in kernel.aligned):
        yield f"aligned is {kernel.aligned!r}"
    if type(kernel.overlaps) is not bool:
        yield f"overlaps is {kernel.overlaps!r}"
    if not isinstance(kernel.constants, dict):
        yield f"constants is {kernel.constants!r}"
