"""A GPU test without a GPU errs, here as in tests/: a run that was meant for one must not look green without it."""

import shutil
import subprocess

import pytest


@pytest.fixture(autouse=True)
def _gpu_or_error(request):
    if not request.node.get_closest_marker("gpu"):
        return
    listed = ""
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    if "GPU " not in listed:
        pytest.fail("this test needs an NVIDIA GPU and nvidia-smi shows none; leave `-m gpu` out to run the rest")
