"""What the run computes on: device, number of them, XLA, attention; each choice is printed with its reason."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

import tensorflow as tf

from configs.errors import UserError
from train.precision import Precision

FUSED_CAPABILITY = 8  # compute capability from which cuDNN's flash attention exists (Ampere)


@dataclass(frozen=True)
class Hardware:
    """Where and how steps run."""

    gpu: bool
    strategy: tf.distribute.Strategy | None
    rank: int  # of this process among the workers
    ranks: int
    chief: bool  # writes files and shows progress

    def scope(self):
        """Context in which variables are made."""
        return self.strategy.scope() if self.strategy else tf.device(None)

    @property
    def replicas(self) -> int:
        return self.strategy.num_replicas_in_sync if self.strategy else 1


def prepare(device: str, distribute: str, deterministic: bool, seed: int) -> Hardware:
    """Set TensorFlow up; must come before any tensor is made.

    Raises: UserError when a GPU was asked for and none is visible, or workers are asked for without TF_CONFIG.
    """
    gpus = tf.config.list_physical_devices("GPU")
    if device == "gpu" and not gpus:
        raise UserError(
            "no GPU is visible to TensorFlow, --device gpu needs one; check nvidia-smi, and that the set-up was made "
            "with `make setup DEVICE=cuda`, or leave --device out"
        )
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
        gpus = []
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)  # share the GPU with whoever is on it
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    tf.keras.utils.set_random_seed(seed)
    if distribute == "none":
        return Hardware(bool(gpus), None, 0, 1, True)
    if distribute == "mirrored":
        return Hardware(bool(gpus), _mirrored(), 0, 1, True)
    return _worker(bool(gpus))


@contextlib.contextmanager
def memory_told() -> Iterator[None]:
    """What TensorFlow says of a full GPU as a sentence; also a decorator. Raises: UserError."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, tf.errors.InternalError) as error:
        said = " ".join(str(error.message).split())
        if isinstance(error, tf.errors.InternalError) and "out of memory" not in said.lower():
            raise
        raise UserError(
            f"the device's memory does not suffice ({said[:200]}). nvidia-smi shows what else is on a GPU; a smaller "
            "--batch-size with --accumulate, --recompute, or shorter windows (--window) need less"
        ) from error


@functools.cache
def _mirrored() -> tf.distribute.Strategy:
    """One a process. A second would number its collectives from the start again, and TensorFlow refuses one that has
    the number, but not the dtype, of an earlier one."""
    return tf.distribute.MirroredStrategy()


def _worker(gpu: bool) -> Hardware:
    try:
        stated = json.loads(os.environ["TF_CONFIG"])
        chiefs, workers = stated["cluster"].get("chief", []), stated["cluster"].get("worker", [])
        kind, index = stated["task"].get("type", "worker"), int(stated["task"]["index"])
        ranks = len(chiefs) + len(workers)
        rank = {"chief": index, "worker": len(chiefs) + index}[kind]  # TensorFlow counts the chief first, too
        if not 0 <= rank < ranks:
            raise ValueError(f"{kind} {index} is not in the cluster")
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            "--distribute multiworker needs TF_CONFIG in the environment, the same list for every worker and its own "
            'index: {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}'
        ) from error
    ways = tf.distribute.experimental.CommunicationImplementation
    # Left to itself TensorFlow sums in rings of gRPC messages on GPUs, too: half a second a step of BERT-base.
    options = tf.distribute.experimental.CommunicationOptions(implementation=ways.NCCL if gpu else ways.AUTO)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return Hardware(gpu, strategy, rank, ranks, rank == 0)


def use_xla(asked: bool | None, gpu: bool) -> tuple[bool, str]:
    """Whether steps are compiled by XLA, and why."""
    if asked is not None:
        return asked, "--jit" if asked else "--no-jit"
    return gpu, "on a GPU" if gpu else "not on a CPU, where oneDNN's operations are faster"


def use_fused_attention(gpu: bool, jit: bool, precision: Precision, rate: float) -> tuple[bool, str]:
    """Whether attention is cuDNN's fused kernel, and why. `rate` is the dropout of attention probabilities.

    With a rate the kernel serves evaluation alone, see `model/cudnn_attention.py`.
    """
    if not gpu:
        return False, "in blocks of queries (no GPU)"
    if not jit:
        return False, "in blocks of queries (cuDNN's kernel is reached through XLA alone)"
    if precision.compute == "float32":
        return False, "in blocks of queries (cuDNN's kernel takes no float32)"
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    major = details.get("compute_capability", (0, 0))[0]
    if major < FUSED_CAPABILITY:
        return False, f"in blocks of queries (cuDNN's kernel needs compute capability 8.0, this GPU has {major}.x)"
    if rate:
        return True, (
            f"in blocks of queries in training (it drops {rate:g} of the probabilities, cuDNN's kernel cannot here; "
            "--attention-dropout 0 trains with it), cuDNN's fused kernel in evaluation"
        )
    return True, "cuDNN's fused kernel"
