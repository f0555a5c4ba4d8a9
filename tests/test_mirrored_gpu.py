"""All GPUs of a machine, as many as there are, learn what one learns from the same batches. `make test-gpu`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from own_process import alone

from heads import default
from model.config import NAMED
from model.heads import HeadModel
from scripts.bench_train_step import Variant, on_devices, random_rows
from train import precision
from train.config import TrainConfig
from train.hardware import Hardware, use_fused_attention
from train.prepare import make_step

pytestmark = pytest.mark.gpu
STEPS, RATE = 6, 1e-3


def learnt(machine: Hardware, compute: str, xla: bool, rows: int = 16) -> tuple[np.ndarray, dict]:
    """What each of a few steps reports, and all copies of the weights after them; fixed weights, no dropout."""
    chosen = precision.choose(compute, machine.gpu)
    size = replace(NAMED["bert-tiny"], dropout=0.0, attention_dropout=0.0)
    fused, _ = use_fused_attention(machine.gpu, xla, chosen, 0.0)
    settings = TrainConfig(model="bert-tiny", data="-", out="-", batch_size=rows, lr=RATE, warmup=0.0)
    with machine.scope():
        model = HeadModel(default(), size, chosen.policy, fused)
        step = make_step(model, settings, chosen, xla, machine, 1000)
    random = np.random.default_rng(0)
    for name, variable in model.names().items():
        center = 1.0 if name.endswith(".scale") else 0.0
        variable.assign(random.normal(center, 0.05, variable.shape).astype(np.float32))
    batch = on_devices(random_rows(Variant("bert-tiny", compute, batch=rows, tokens=64)), machine)
    reports = np.stack([step(batch, number).numpy() for number in range(STEPS)])
    local = machine.strategy.experimental_local_results if machine.strategy else lambda variable: [variable]
    return reports, {name: [copy.numpy() for copy in local(variable.value)] for name, variable in model.names().items()}


def compare(mirrored: Hardware, compute: str, xla: bool, report_bound: float, weight_bound: float) -> None:
    reports, weights = learnt(replace(mirrored, strategy=None), compute, xla)
    many_reports, many_weights = learnt(mirrored, compute, xla)
    assert reports[0, 0] - reports[-1, 0] > 0.5  # it learns: a loss that stands still would prove nothing
    np.testing.assert_allclose(many_reports, reports, rtol=report_bound)
    for name, copies in many_weights.items():
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0], err_msg=name)
        # Adam takes a whole step for a gradient that is noise alone, and that of a bias may be: a key's, for one.
        if name.endswith(".kernel") or name.startswith("embeddings"):
            error = np.sqrt(np.mean((copies[0] - weights[name][0]) ** 2))
            assert error <= weight_bound * RATE * STEPS, name


@pytest.mark.parametrize(("compute", "report_bound", "weight_bound"), [("float16", 2e-2, 0.2), ("float32", 2e-3, 0.05)])
def test_all_gpus_have_the_losses_and_weights_of_one_with_the_same_batch(compute, report_bound, weight_bound):
    program = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_mirrored_gpu import compare\nfrom train.hardware import prepare\n"
        f"compare(prepare('gpu', 'mirrored', False, 1), {compute!r}, True, {report_bound}, {weight_bound})"
    )
    alone(["-c", program])
