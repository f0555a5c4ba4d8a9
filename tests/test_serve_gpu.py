"""The TensorRT session on a real GPU: `make test-gpu`. Plans are built here, with the TensorRT that is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import plan_kit
import pytest
import serve_kit

from configs.errors import UserError
from serve import fitting, gpu, manifest
from serve.cuda import Cuda, CudaError
from serve.session import Session
from serve.tensorrt_session import TensorrtSession

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parent.parent
TOLERANCE = 0.02  # of logits up to 3; float16 on a CPU is 0.003 away from float32
CASES = {
    "packed": ("packed", {}),
    "padded": ("padded", {}),
    "bfloat16": ("packed", {"precision": "bfloat16"}),
    "tanh": ("packed", {"gelu": "tanh"}),
    "no plugins": ("packed", {"names": ()}),
    "attention alone": ("packed", {"names": ("attention",)}),
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Case -> its engine folder, built once."""
    found = gpu.find()
    assert isinstance(found, gpu.Gpu), found
    built: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in built:
            layout, how = CASES[name]
            place = tmp_path_factory.mktemp("engines") / name.replace(" ", "_")
            built[name] = plan_kit.write(place, found.architecture, layout, **how)
        return built[name]

    return folder


def random_batches(count: int, seed: int = 0):
    random = np.random.default_rng(seed)
    for number in range(count):
        yield serve_kit.batch(*random.integers(1, 38, random.integers(1, 9)), seed=number)


def difference(found, reference) -> float:
    return max(float(np.abs(ours - theirs).max()) for ours, theirs in zip(found, reference, strict=True))


@pytest.mark.parametrize(("name", "contexts"), [*((name, 2) for name in CASES), ("packed", 1), ("packed", 3)])
def test_mixed_batches_under_way_together_give_onnx_runtimes_logits(folder_of, name, contexts):
    bound = 8 * TOLERANCE if name == "bfloat16" else TOLERANCE
    reference = Session.open(folder_of(name), "onnxruntime")
    batches = list(random_batches(60))
    expected = [reference.run(batch) for batch in batches]
    with Session.open(folder_of(name), "tensorrt", contexts=contexts) as session:
        assert session.why.startswith("tensorrt_rtx ")
        assert session.slots == contexts
        for _ in range(3):  # plainly, captured, replayed, shapes mixed
            tickets = [session.submit(batches[0])]
            for place, batch in enumerate(batches[1:]):
                tickets.append(session.submit(batch))
                assert difference(session.result(tickets[place]), expected[place]) < bound
            assert difference(session.result(tickets[-1]), expected[-1]) < bound
        assert "failed" not in " ".join(session.notes)
        assert not session.notes[0].startswith("0 CUDA graphs")


def test_graphs_change_no_logit(folder_of):
    stated = manifest.read(folder_of("packed"))
    fitted = fitting.fit(stated)
    with TensorrtSession.opened(stated, fitted) as graphs, TensorrtSession.opened(stated, fitted, 0) as plainly:
        for batch in random_batches(20):
            without = plainly.run(batch)
            for _ in range(4):
                assert difference(graphs.run(batch), without) <= 1e-6
        assert plainly.notes[-1].startswith("0 CUDA graphs captured")
        assert not graphs.notes[-1].startswith("0 ")


def test_a_sequence_has_the_same_logits_alone_and_among_others(folder_of):
    with Session.open(folder_of("packed"), "tensorrt") as session:
        for batch in random_batches(10):
            together = session.run(batch)
            alone = [session.run(batch.take(place, place + 1)) for place in range(len(batch))]
            joined = [np.concatenate(parts) for parts in zip(*alone, strict=True)]
            assert difference(together, joined) < TOLERANCE


def test_the_profiles_largest_and_smallest_batches_run(folder_of):
    for name, largest in (("packed", (64, 64, 64, 64, 44)), ("padded", (64,) * 8)):
        reference = Session.open(folder_of(name), "onnxruntime")
        with Session.open(folder_of(name), "tensorrt") as session:
            for lengths in (largest, (1,), (1,) * 8):
                batch = serve_kit.batch(*lengths)
                for _ in range(3):
                    assert difference(session.run(batch), reference.run(batch)) < TOLERANCE


def test_auto_takes_tensorrt_here_and_what_does_not_fit_falls_to_onnx_runtime(folder_of, tmp_path):
    with Session.open(folder_of("packed")) as session:
        assert session.runtime == "tensorrt"
        assert "plugins embed_layer_norm, attention" in session.why
    other = serve_kit.with_plan(tmp_path / "engine", architectures=[75])
    assert Session.open(other).runtime == "onnxruntime"
    with pytest.raises(UserError, match="is for sm_75, this GPU is"):
        Session.open(other, "tensorrt")


@pytest.mark.parametrize("harm", ["cut", "zeros", "half zeros"])
def test_a_plan_that_is_none_is_a_sentence_and_no_crash_though_its_hash_is_right(folder_of, tmp_path, harm):
    """In a process of its own: a crash there is a failure here."""
    source = folder_of("packed")
    plan = (source / "model.plan").read_bytes()
    half = len(plan) // 2
    content = {"cut": plan[:half], "zeros": bytes(5000), "half zeros": plan[:half] + bytes(len(plan) - half)}[harm]
    found = gpu.find()
    assert isinstance(found, gpu.Gpu)
    folder = tmp_path / "engine"
    shutil.copytree(source, folder)
    (folder / "model.plan").write_bytes(content)
    serve_kit.relist(folder, plan_kit.about(found.architecture))
    program = f"from serve.session import Session; Session.open({str(folder)!r}, 'tensorrt')"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, f"died of {done.returncode}: {done.stderr[-500:]}"
    assert "configs.errors.UserError: TensorRT" in done.stderr


def test_cuda_errors_carry_cudas_name_and_a_failed_capture_leaves_the_stream_usable():
    cuda = Cuda()
    with pytest.raises(CudaError, match="cudaMalloc failed: cudaErrorMemoryAllocation"):
        cuda.memory(1 << 60)
    stream, event = cuda.stream(), cuda.event()

    def fail() -> None:
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        cuda.capture(stream, fail)
    here, there = cuda.pinned(1 << 20), cuda.pinned(1 << 20)
    on_gpu = cuda.memory(1 << 20)
    here[1][:] = np.arange(1 << 20) % 251
    cuda.copy_in(on_gpu, here[0], 1 << 20, stream)
    graph = cuda.capture(stream, lambda: cuda.copy_out(there[0], on_gpu, 1 << 20, stream))
    cuda.launch(graph, stream)
    cuda.record(event, stream)
    cuda.synchronise(event)
    assert (there[1] == here[1]).all()
