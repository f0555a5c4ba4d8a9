"""TensorRT's progress while it builds a plan, as progress bars; Ctrl-C stops it at the next step.

A build is a tree of phases (optimise the graph, time tactics, ...) that report from TensorRT's own threads; every phase
that is open has one bar.
"""

import contextlib
import threading
from typing import Any

from tqdm import tqdm


def monitor(trt: Any) -> Any:
    """An `IProgressMonitor` for a builder's config; keep it until the build is over.

    Its `stopped` is the exception, Ctrl-C for one, that made it ask TensorRT to stop, or None; its `steps` counts.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self):
            trt.IProgressMonitor.__init__(self)
            self.bars: dict[str, tqdm] = {}
            self.lock = threading.RLock()
            self.stopped: BaseException | None = None
            self.steps = 0

        # An exception that leaves one of these three would pass through TensorRT's C++, so none does.
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with self.held():
                self.bars[phase_name] = tqdm(
                    desc=phase_name[:40], total=num_steps, unit="step", leave=False, mininterval=0.5, delay=0.5
                )

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self.held():
                self.steps += 1
                if bar := self.bars.get(phase_name):
                    bar.update(step + 1 - bar.n)
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            with self.held():
                if bar := self.bars.pop(phase_name, None):
                    bar.close()

        @contextlib.contextmanager
        def held(self):
            try:
                with self.lock:
                    yield
            except BaseException as error:  # KeyboardInterrupt among them
                self.stopped = error

        def close(self) -> None:
            """Remove the bars that a stopped or failed build has left."""
            while self.bars:
                self.bars.popitem()[1].close()

    return Monitor()
