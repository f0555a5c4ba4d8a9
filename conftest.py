"""What all tests, in tests/ and plugins/, share: quiet TensorFlow, a GPU where one is asked for, published weights."""

import functools
import os
import shutil
import subprocess

import pytest

# Read when TensorFlow and Keras are first imported, so they stand before any test module.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # leave room on the GPU for whoever else is on it


@functools.cache
def visible_gpus() -> int:
    """How many NVIDIA GPUs a process started here would see."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or not shutil.which("nvidia-smi"):
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


@pytest.fixture(autouse=True)
def _gpu_or_error(request):
    """A GPU test without a GPU errs: a run that was meant for one must not look green without it."""
    if request.node.get_closest_marker("gpu") and not visible_gpus():
        pytest.fail("this test needs an NVIDIA GPU and nvidia-smi shows none; leave `-m gpu` out to run the rest")


@pytest.fixture
def minilm(monkeypatch):
    """The folder of the published weights, if they are in the cache; pip is cut off, so that nothing is fetched.

    Else the test is skipped: `make test` needs no more than the lock file. In CI the quickstart has fetched them, and
    `.ci/run` runs these tests after it.
    """
    from configs.errors import UserError
    from scripts.fetch_weights import minilm_folder

    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    try:
        return minilm_folder()
    except UserError:
        pytest.skip("all-MiniLM-L6-v2 is not in the cache; python -m scripts.fetch_weights brings it")
