"""Does an engine folder's plan fit this machine? Asked before the plan is opened, and answered in a sentence.

A plan is machine code for one architecture, written by one version of one TensorRT, and calls plugins by their names:
whatever differs would be a wrong answer or a crash inside the library. The files were checked by `serve/manifest.py`.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import plugins
from configs.errors import UserError
from serve import gpu
from serve.manifest import Manifest

if TYPE_CHECKING:
    from plugins.kernels import KernelSet

# Files of a plugin's folder that no engine runs; all the others decide what one computes, or how it is called.
BESIDE = ("__init__.py", "bench.py", "cases.py", "reference.py")
FROM_PLUGIN = re.compile(r"^from plugins\.(\w+)", re.MULTILINE)  # a plugin that another one's code is built on


class MisfitError(UserError):
    """The plan cannot be used here; `reason` says why, the message also what to do."""

    def __init__(self, reason: str, cure: str) -> None:
        super().__init__(f"{reason}; {cure}, or run it with ONNX Runtime (--runtime onnxruntime)")
        self.reason = reason


@dataclass(frozen=True)
class Fitted:
    """What a plan that fits is opened with."""

    trt: ModuleType
    gpu: gpu.Gpu
    kernels: "KernelSet | None"  # None where no plugin of the plan has kernels of ours


def fit(manifest: Manifest) -> Fitted:
    """The TensorRT, GPU and kernels for a manifest's plan. Raises: UserError for the first thing amiss."""
    plan = f"the plan in {manifest.folder}"
    if manifest.target is None:
        raise MisfitError(f"{manifest.folder} has no model.plan", "export with --target tensorrt or tensorrt_rtx")
    found = gpu.find()
    if isinstance(found, str):
        raise MisfitError(f"no NVIDIA GPU here ({found})", "check nvidia-smi")
    if found.architecture not in manifest.architectures:
        built = ", ".join(f"sm_{arch}" for arch in manifest.architectures) or "none"
        seen = f"this GPU is {found.name}, sm_{found.architecture}"
        raise MisfitError(f"{plan} is for {built}, {seen}", f"export with --arch {found.architecture}")
    _expect_sources(manifest)
    from plugins import tensorrt_flavour  # it loads libraries of hundreds of megabytes

    try:
        trt = tensorrt_flavour.load(manifest.target)
    except UserError as error:
        raise MisfitError(f"{plan} needs {manifest.target}: {error}", "install it") from error
    if (here := tensorrt_flavour.version(trt)) != manifest.tensorrt:
        built = f"{plan} was built by {manifest.target} {manifest.tensorrt}, here is {here}"
        raise MisfitError(f"{built}, and a plan is read by its own version alone", "export again here")
    return Fitted(trt, found, _kernels(manifest, found.architecture))


def take_choices(manifest: Manifest, gpu_name: str) -> str:
    """Have cuBLASLt's algorithms that the folder brings used for this process; "", or a note why they are not."""
    from plugins.linear import choices, matmul

    if choices.FILE not in manifest.files:
        return ""
    try:
        version = int(matmul.cublaslt().get_version())
    except (ImportError, RuntimeError, OSError) as error:
        return f"{choices.FILE} is not used: cuBLASLt does not say its version ({error})"
    return choices.offer(manifest.folder / choices.FILE, gpu_name, version)


def source_hash(plugin: str) -> str:
    """SHA-256 of what a plugin contributes to an engine: the Python files of its folder, but BESIDE and tests, and of
    those folders whose code they import."""
    digest = hashlib.sha256()
    for path in _sources(plugin):
        digest.update(f"{path.parent.name}/{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def _sources(plugin: str) -> list[Path]:
    found: dict[str, list[Path]] = {}
    wanted = {plugin}
    while wanted:
        folder = Path(plugins.__file__).parent / (name := wanted.pop())
        files = [path for path in folder.glob("*.py") if path.name not in BESIDE and not path.name.startswith("test_")]
        found[name] = files
        imported = {match[1] for path in files for match in FROM_PLUGIN.finditer(path.read_text(encoding="utf-8"))}
        wanted |= (imported & set(plugins.PLUGINS)) - set(found)
    return sorted(path for files in found.values() for path in files)


def _expect_sources(manifest: Manifest) -> None:
    plan = f"the plan in {manifest.folder}"
    for name, stated in manifest.plugins.items():
        if name not in plugins.PLUGINS:
            raise MisfitError(f"{plan} uses a plugin {name!r}, unknown here", "export again")
        if source_hash(name) != stated:
            raise MisfitError(f"plugins/{name}/ has changed since {plan} was built", "export again")


def _kernels(manifest: Manifest, architecture: int) -> "KernelSet | None":
    """The kernels for this GPU, which must be files that engine.json lists. Raises: UserError."""
    if not any(path.name == "kernel.py" for name in manifest.plugins for path in _sources(name)):
        return None
    from plugins.kernels import KernelSet

    place = manifest.folder / "kernels" / f"sm_{architecture}"
    for path in sorted(place.glob("*")):
        name = path.relative_to(manifest.folder).as_posix()
        if name not in manifest.files:
            raise UserError(f"{name} in {manifest.folder} is not listed in engine.json; take it out, or export again")
    return KernelSet(manifest.folder, architecture)
