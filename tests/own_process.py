"""What tests run in a process of its own, because it does not bear others in its process."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def alone(arguments: list[str]) -> str:
    """stdout of Python in a process of its own. PyTorch beside other tests' TensorFlow has died of a signal, and all
    tests after it with it; and TensorFlow's GPUs cannot be set up once another test has used them. Raises:
    AssertionError with the output's end where it fails."""
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stdout[-500:]} {done.stderr[-1500:]}"
    return done.stdout
