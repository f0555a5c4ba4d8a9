"""What every command has in common: settings in, log lines on stderr, one line of JSON out, an exit code that tells.

    if __name__ == "__main__":
        command.run("train", TrainConfig, main)  # main(config) -> {"out": folder, "metrics": {...}}

The last line of stdout is `{command, out, metrics, seconds, versions}`, or `{command, error, exit_code}` of a failure:
2 for a wrong command line, 130 after Ctrl-C, 1 for anything else. Whatever a person should read stands above it.
"""

import errno
import json
import logging as pylogging
import math
import platform
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, logging
from etils import eapp

from configs import __version__, options
from configs.errors import UserError

# Named in the result if the command used them; asking must not import them.
LIBRARIES = ("numpy", "tensorflow", "keras", "tokenizers", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "triton")


def run(command: str, config_class: type, main: Callable[[Any], dict[str, Any] | None]) -> None:
    """Parse the settings, call main with them, and leave the process with the exit code. Once per process."""
    try:
        config = options.parse(config_class, sys.argv[1:], command)
    except UserError as error:
        sys.exit(_failed(command, error))

    def within_absl(config: Any) -> int:
        _log_beside_the_bar()
        start = time.monotonic()
        try:
            result = main(config) or {}
            done = {"command": command, "out": result.get("out"), "metrics": result.get("metrics", {})}
            _last_line(done | {"seconds": round(time.monotonic() - start, 3), "versions": versions()})
            return 0
        except (Exception, KeyboardInterrupt) as error:
            return _failed(command, error)

    eapp.better_logging()
    # parse() above has read absl's own flags too, so absl is only handed the outcome.
    app.run(within_absl, argv=[command], flags_parser=lambda _: config)


def versions() -> dict[str, str]:
    """Ours, Python's, and those of the libraries that this process has imported."""
    found = {"retort": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        if name in sys.modules and (version := getattr(sys.modules[name], "__version__", None)):
            found[name] = str(version)
    return found


def plain(value: Any) -> Any:
    """The value as JSON can say it: numpy's numbers as Python's, paths as text, and null for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, bool | int | str | None):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if hasattr(value, "numpy"):  # TensorFlow's eager tensors
        return plain(value.numpy())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _failed(command: str, error: BaseException) -> int:
    """Tell the person on stderr and the machine on stdout; a traceback only for what no user could have caused."""
    message = " ".join(str(error).split()) or type(error).__name__
    code = 1
    if isinstance(error, UserError):
        code = error.exit_code
        logging.debug("raised here:", exc_info=error)
    elif isinstance(error, KeyboardInterrupt):
        message, code = "interrupted", 130
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        message = f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; make room first"
    else:
        message = f"{type(error).__name__}: {message}"
        logging.error("this should not have happened:", exc_info=error)
    logging.flush()
    print(f"error: {message}", file=sys.stderr, flush=True)
    _last_line({"command": command, "error": message, "exit_code": code})
    return code


def _last_line(result: dict[str, Any]) -> None:
    sys.stderr.flush()
    print(json.dumps(plain(result), ensure_ascii=False, allow_nan=False), flush=True)


class _BesideBar:
    """A stream for log lines: they step around a progress bar if there is one, and always go to stderr."""

    def write(self, text: str) -> None:
        if tqdm := sys.modules.get("tqdm"):
            tqdm.tqdm.write(text, file=sys.stderr, end="")
        else:
            sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:
        pass


def _log_beside_the_bar() -> None:
    """Mend two habits of etils' logging: each line comes twice, and beside tqdm it goes to stdout, under our last."""
    handler = logging.get_absl_handler().python_handler
    handler.setStream(_BesideBar())
    pylogging.getLogger().removeHandler(handler)  # absl's own handler, which stays, passes each record to this one
