"""Triton source to machine code, ahead of time: on any Linux machine, for any GPU, without a GPU and without torch.

    variant = gelu.kernel.variants({"x": (4, 312)}, "float16", approximate="none")[0]
    kernel = compile_kernel(variant, arch=90)      # plugins.kernels.Kernel: cubin and how to call it

A kernel with a constant PDL overlaps with its neighbours from 9.0 on (programmatic dependent launch): it says when the
next kernel may start, prepares itself, and waits for the one before to be done before it touches what that one wrote.

A compilation takes 0.1 to 1 s and is kept in ~/.cache/retort/kernels (or $RETORT_CACHE/kernels) under a hash of what it
depends on: the kernel's source file, the variant, Triton's version and the architecture. So a kernel.py is
self-contained: it may not call Triton functions of another file.
"""

import functools
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from configs.errors import UserError
from plugins import ARCHITECTURES, PLUGINS, cache_folder
from plugins.kernels import Kernel, KernelSet, write
from plugins.launch import PARAMETERS, TENSOR_DESCRIPTOR

# Shared memory of a multiprocessor that one program may take, bytes (CUDA programming guide, table of capabilities).
SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, 121: 99}  # KiB
OVERLAPPING = 90  # the first architecture with programmatic dependent launch
TILING = 90  # the first whose hardware copies tiles of a matrix by itself (the tensor memory accelerator)
SHORT = {  # Triton's names of our dtypes
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "float8": "fp8e4nv", "int8": "i8",
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What of a model decides which kernels its engine needs."""

    hidden: int  # H
    heads: int  # N
    head_size: int  # D as the graph has it: padded to a multiple of 8
    ffn: int  # I
    layout: str  # packed | padded
    gelu: str  # none (erf) | tanh, as the op's attribute `approximate`
    format: str = ""  # float8 | int8 of the numbers that some of the products multiply; "" where none does


@dataclass(frozen=True)
class Variant:
    """One specialisation of a Triton kernel: what is fixed at compile time, and how.

    `name` begins with the plugin's folder and a dash: "skip_layer_norm-312-float16".
    """

    name: str
    module: str  # plugins.gelu.kernel
    function: str  # the @triton.jit function there
    # Of the arguments a caller gives, in their order: {"x": "*fp16", "n": "i32"}. "tensordesc<fp16[128,64]>" is a
    # matrix that is taken by tiles of that size.
    signature: Mapping[str, str]
    constants: Mapping[str, int | float | bool | str]  # its tl.constexpr arguments; PDL is set by the architecture
    aligned: tuple[str, ...] = ()  # pointers that are multiples of 16; a launch with another one is refused
    num_warps: int = 4
    num_stages: int = 2  # at most; fewer where the architecture's shared memory holds no more
    only: tuple[int, ...] = ()  # the architectures that it is for, where not for all


def needed(sizes: Sizes, dtype: str, names: Collection[str] = tuple(PLUGINS)) -> list[Variant]:
    """The variants that an engine of this model in `dtype` ("float16" | "bfloat16") needs with the named plugins.

    Each folder's kernel.py tells its own, by `needed(sizes, dtype)`; a folder without a kernel.py needs none.
    """
    found = []
    for name in names:
        if importlib.util.find_spec(f"plugins.{name}.kernel"):
            found += importlib.import_module(f"plugins.{name}.kernel").needed(sizes, dtype)
    return found


def compile_set(variants: Collection[Variant], arch: int) -> KernelSet:
    """All of them that are for one architecture."""
    made = [compile_kernel(variant, arch) for variant in variants if not variant.only or arch in variant.only]
    return KernelSet.of(made, where="the compiled set")


def compile_kernel(variant: Variant, arch: int) -> Kernel:
    """The kernel from the cache, or compiled. Raises UserError for an architecture that is not on our list."""
    if arch not in ARCHITECTURES:
        raise UserError(f"no kernels can be built for sm_{arch}; --arch takes {', '.join(map(str, ARCHITECTURES))}")
    key = cache_key(variant, arch)
    folder = cache_folder("kernels") / key[:2] / key
    if (folder / "kernels").is_dir():
        try:
            return KernelSet(folder, arch)[variant.name]
        except UserError:
            pass  # damaged, or half written by a process that was killed: compile again
    kernel = _compile(variant, arch)
    write(folder, arch, [kernel])
    return kernel


def source_hash(variant: Variant) -> str:
    """SHA-256 of the file with the variant's kernel."""
    spec = importlib.util.find_spec(variant.module)
    if spec is None or spec.origin is None:
        raise ImportError(f"{variant.name}: there is no module {variant.module}")
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def cache_key(variant: Variant, arch: int) -> str:
    """A hash of everything the machine code depends on."""
    about = asdict(variant) | {"source": source_hash(variant), "arch": arch, "triton": _triton_version()}
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


@functools.cache
def _triton_version() -> str:
    import triton

    return triton.__version__


def _compile(variant: Variant, arch: int) -> Kernel:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    function = getattr(importlib.import_module(variant.module), variant.function)
    names = list(function.arg_names)
    given = [name for name in names if name in variant.signature]
    if given != list(variant.signature) or set(names) - set(given) != set(variant.constants):
        raise ValueError(f"{variant.name}: {variant.function} takes {names}, the variant states another list")
    constants = dict(variant.constants)
    if "PDL" in constants:
        constants["PDL"] = arch >= OVERLAPPING
    source = ASTSource(
        fn=function,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in variant.aligned},
    )
    overlaps = bool(constants.get("PDL"))
    for stages in range(variant.num_stages, 0, -1):
        options = {"num_warps": variant.num_warps, "num_stages": stages, "launch_pdl": overlaps}
        with triton.knobs.compilation.scope():
            triton.knobs.compilation.disable_line_info = True  # it holds this machine's paths
            compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
        if compiled.metadata.shared <= SHARED[arch] << 10:
            break
    meta = compiled.metadata
    if meta.global_scratch_size or meta.profile_scratch_size:
        raise ValueError(f"{variant.name} needs scratch memory, which our launches do not give")
    kinds = _kinds(variant, meta.tensordesc_meta)
    return Kernel(
        name=variant.name,
        cubin=compiled.asm["cubin"],
        entry=meta.name,
        shared=meta.shared,
        num_warps=meta.num_warps,
        signature=kinds,
        hidden=_parameters(compiled.asm["ptx"]) - sum(PARAMETERS if kind.startswith("tiles") else 1 for kind in kinds),
        aligned=tuple(given.index(name) for name in variant.aligned),
        constants=dict(constants),
        overlaps=overlaps,
        arch=arch,
        source_hash=source_hash(variant),
    )


def _kinds(variant: Variant, tiles: Sequence[Mapping]) -> tuple[str, ...]:
    """A kernel's signature. tiles: what Triton says of each of the variant's tensor descriptors, in order."""
    found, left = [], list(tiles)
    for kind in variant.signature.values():
        if match := TENSOR_DESCRIPTOR.fullmatch(kind):
            if not left:
                raise ValueError(f"{variant.name}: tiles are for sm_{TILING} and later; say so by `only`")
            about = left.pop(0)
            rows, columns = about["block_size"]
            kind = f"tiles<{match[1]}[{rows},{columns}],{about['swizzle']}>"
        found.append(kind)
    return tuple(found)


def _parameters(ptx: str) -> int:
    """How many parameters the entry takes: ours, and the pointers Triton appends (2 in 3.6; null will do)."""
    entry = re.search(r"\.entry\s+\S+?\(\s*(.*?)\)", ptx, re.DOTALL)
    if not entry:
        raise ValueError("Triton's PTX has no entry")
    return entry.group(1).count(".param")
