"""What nvidia-smi says: the driver's version, and a GPU's clock and power while something is timed on it."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ASKED = "clocks.sm,power.draw"
EVERY_MS = 200


def driver_version() -> str:
    """NVIDIA's driver, as in 580.159.04; "" where nvidia-smi does not tell."""
    if not shutil.which("nvidia-smi"):
        return ""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30).stdout
    return said.split()[0] if said.split() else ""


@dataclass
class Clocks:
    """What nvidia-smi said every fifth of a second, while something was timed; empty where there is none."""

    mhz: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def text(self) -> dict[str, str]:
        """The CSV's columns: from the least to the most."""
        return {name: f"{min(seen):.0f}-{max(seen):.0f}" if seen else ""
                for name, seen in (("clock_mhz", self.mhz), ("power_w", self.watts))}  # fmt: skip


@contextmanager
def clocks(gpu: str = "0") -> Iterator[Clocks]:
    """Log a GPU's clock and power while the block runs; filled in when it ends. gpu: `Device.bus`, or its number."""
    found = Clocks()
    if not shutil.which("nvidia-smi"):
        yield found
        return
    asked = ["nvidia-smi", "-i", gpu, f"--query-gpu={ASKED}", "--format=csv,noheader,nounits", f"--loop-ms={EVERY_MS}"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        try:
            yield found
        finally:
            child.terminate()
            said, _ = child.communicate()
            if not said.strip():  # it kept its lines to itself
                said = subprocess.run(asked[:-1], capture_output=True, text=True, check=False, timeout=30).stdout
    for line in said.splitlines():
        try:
            mhz, watts = map(float, line.split(","))
        except ValueError:  # cut off, or "[N/A]"
            continue
        found.mhz.append(mhz)
        found.watts.append(watts)
