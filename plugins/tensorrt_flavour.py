"""TensorRT by either of its names: `tensorrt` for data-centre GPUs, `tensorrt_rtx` for RTX GPUs, built with anywhere.

    trt = load("tensorrt_rtx")      # the module; both have the same classes

TensorRT-RTX's ONNX parser opens "libtensorrt_rtx.so" when it meets a plugin node, but the wheel has only
"libtensorrt_rtx.so.1", and the parser answers by abort(), which no Python can catch. So a folder of links is put into
the cache, the short name among them, and the parser is loaded from there: it looks beside itself first.
"""

import ctypes
import functools
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.errors import UserError
from plugins import cache_folder

TARGETS = ("tensorrt", "tensorrt_rtx")
MODULES = {"tensorrt": ("tensorrt",), "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings")}
LIBRARIES = ("libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1")
OPENED_BY_PARSER = "libtensorrt_rtx.so"
RTLD_DI_ORIGIN = 6  # of dlinfo(3): the folder a library was loaded from, which $ORIGIN in its RPATH means
INSTALL = {
    "tensorrt": "it comes from NVIDIA's own index: pip install tensorrt --extra-index-url https://pypi.nvidia.com",
    "tensorrt_rtx": "pip install tensorrt-rtx-cu13==1.7.1.*",
}
# What one flavour or version has and another lacks, and an attribute of the module that gives it away.
FEATURES = {
    "refit": "Refitter",
    "version_compatible": "BuilderFlag.VERSION_COMPATIBLE",
    "weight_streaming": "BuilderFlag.WEIGHT_STREAMING",
    "runtime_cache": "IRuntimeCache",
}


@functools.cache
def load(target: str) -> ModuleType:
    """The module of a flavour ("tensorrt" | "tensorrt_rtx"), ready to parse plugin nodes.

    Raises UserError when it is not installed, or its parser would abort the process.
    """
    if target not in TARGETS:
        raise UserError(f"there is no TensorRT called {target!r}; --target takes {' or '.join(TARGETS)}")
    name = next((name for name in MODULES[target] if importlib.util.find_spec(name)), None)
    if name is None:
        raise UserError(f"{target} is not installed; {INSTALL[target]}")
    if target == "tensorrt_rtx":
        _preload_parser()
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise UserError(f"{name} is installed but does not load ({error}); {INSTALL[target]}") from error
    if target == "tensorrt_rtx":
        _check_short_name()
    return module


def version(trt: Any) -> str:
    """The version of the library that builds and runs plans, which may differ from the wheel's: "1.7.1.116"."""
    return str(trt.__version__)


def has(trt: Any, feature: str) -> bool:
    """Whether this TensorRT knows "refit", "version_compatible", "weight_streaming" or "runtime_cache" by name.

    What it does with it is another matter: 1.7.1 of TensorRT-RTX refits only where a GPU is, and knows version
    compatibility by name alone. A trial build shows it.
    """
    found = trt
    for part in FEATURES[feature].split("."):
        found = getattr(found, part, None)
    return found is not None


def runtime_config(trt: Any, engine: Any) -> tuple[Any, Any]:
    """(how execution contexts of an engine are to be made, what must outlive them all: a runtime cache, or None).

    TensorRT-RTX makes kernels for a shape when it first meets it. It is told to do so at once and completely (a graph
    captured before that would keep the slower kernel, and a context that goes while one is being made has crashed
    1.6.1), and to capture no graphs of its own, since whoever runs a plan here does. Full TensorRT needs nothing.
    """
    config, cache = engine.create_runtime_config(), None
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):  # TensorRT-RTX alone
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED
        cache = config.create_runtime_cache()
        config.set_runtime_cache(cache)
    return config, cache


def logger(trt: Any, *, verbose: bool = False) -> Any:
    """A TensorRT logger that prints nothing and keeps what is said from now on: `.errors`, `.warnings`.

    TensorRT takes one logger per process for part of its messages, whichever came first; so each logger hears what
    any of them is told, and none is ever freed while TensorRT may hold it.
    """
    made = _logger_class(trt)(verbose)
    _loggers.append(made)
    return made


_loggers: list[Any] = []
MOST_MESSAGES = 50  # that a logger keeps, the latest
ABOUT_ITSELF = "differs from one already registered"
PLUGIN = "plugin "  # how a message of ours begins
AROUND_A_PLUGIN = 3  # messages, ours and TensorRT's after it; those before are of something else


@functools.cache
def _logger_class(trt: Any) -> type:
    class Logger(trt.ILogger):
        def __init__(self, verbose: bool) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []
            self.verbose = verbose

        def log(self, severity: Any, message: str) -> None:
            for each in list(_loggers):
                if each.verbose:
                    print(f"[{severity.name}] {message}", flush=True)
                if severity <= trt.ILogger.Severity.WARNING and ABOUT_ITSELF not in message:
                    _keep(each.warnings if severity == trt.ILogger.Severity.WARNING else each.errors, message)

    return Logger


def _keep(kept: list[str], message: str) -> None:
    kept.append(message)
    del kept[:-MOST_MESSAGES]


def tell(op: str, error: Exception) -> None:
    """All loggers hear what a plugin of ours raised: of that TensorRT says only that there was something."""
    for each in list(_loggers):
        _keep(each.errors, f"{PLUGIN}{op}: {type(error).__name__}: {error}")


def reason(log: Any) -> str:
    """Why TensorRT refused what it was asked, from what its logger heard last; first what a plugin of ours said."""
    last = log.errors[-AROUND_A_PLUGIN:]
    said = [message for message in last if message.startswith(PLUGIN)][-1:] + last[-1:]
    return "; ".join(" ".join(message.split())[:300] for message in dict.fromkeys(said)) or "it gave no reason"


def _preload_parser() -> None:
    """Load TensorRT-RTX's libraries through links in the cache, among them the name that the parser opens.

    The wheel's own folder may be read-only and shared, so nothing is written there. Without the libraries' wheel they
    come from LD_LIBRARY_PATH, and the link must be there already: `_check_short_name` sees to that.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    place = next((place for place in places if (place / LIBRARIES[0]).is_file()), None)
    if place is None or (place / OPENED_BY_PARSER).exists():
        return
    links = cache_folder("libraries") / str(place.resolve()).strip("/").replace("/", "_")
    links.mkdir(parents=True, exist_ok=True)
    for link, target in [(name, name) for name in LIBRARIES] + [(OPENED_BY_PARSER, LIBRARIES[0])]:
        if not (links / link).exists():
            scratch = links / f"{link}.{os.getpid()}.{threading.get_ident()}"
            scratch.symlink_to(place / target)
            scratch.replace(links / link)  # at once, so that a process beside this one never sees half of it
    for name in LIBRARIES:
        ctypes.CDLL(str(links / name))  # libraries loaded later by these names are these


def _check_short_name() -> None:
    """An error now instead of an abort later: would the parser find the name that it opens?

    It looks where it was loaded from, then where all libraries are looked for. If something imported TensorRT-RTX
    before `load` could put the links in place, it was loaded from the wheel and nothing can move it any more.
    """
    parser = ctypes.CDLL(LIBRARIES[1], mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
    origin = ctypes.create_string_buffer(4096)
    asked = ctypes.CDLL(None).dlinfo(ctypes.c_void_p(parser._handle), RTLD_DI_ORIGIN, origin)
    if asked == 0 and (Path(os.fsdecode(origin.value)) / OPENED_BY_PARSER).exists():
        return
    try:
        ctypes.CDLL(OPENED_BY_PARSER)
    except OSError as error:
        raise UserError(
            f"TensorRT-RTX's ONNX parser would abort at a plugin: it opens {OPENED_BY_PARSER}, which is not beside it "
            f"in {os.fsdecode(origin.value)}; load TensorRT-RTX with plugins.tensorrt_flavour.load before anything "
            "imports it, or make a link of that name there"
        ) from error
