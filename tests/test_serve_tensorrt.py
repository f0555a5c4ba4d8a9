"""The TensorRT session's order of work, on a GPU made of numpy: slots, events, graphs."""

import shutil
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import plan_kit
import pytest
import serve_kit
from fake_cuda import FakeCuda, FakePlan

import plugins
from configs.errors import UserError
from plugins import tensorrt_flavour
from serve import fitting, gpu, tensorrt_session
from serve.gpu import Gpu
from serve.manifest import read
from serve.tensorrt_session import TensorrtSession

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    place = tmp_path_factory.mktemp("engines")
    return {layout: read(serve_kit.write(place / layout, layout)) for layout in ("packed", "padded")}


def session(manifest, seed=0, **how):
    cuda = FakeCuda(seed)
    plan = FakePlan(cuda, fail_in_capture=how.pop("fail_in_capture", False), contexts=how.pop("contexts", 2))
    return TensorrtSession(manifest, plan, cuda, **how), cuda, plan


def assert_right(found, batch):
    for got, want in zip(found, serve_kit.expected(batch), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize(("seed", "contexts"), [*((seed, 2) for seed in range(6)), (6, 1), (7, 3)])
def test_batches_under_way_together_get_their_own_logits_whatever_the_gpu_does_first(manifests, layout, seed, contexts):
    random = np.random.default_rng(seed)
    tested, _, _ = session(manifests[layout], seed, contexts=contexts)
    waiting = []
    for _ in range(60):
        batch = serve_kit.random_batch(random)
        waiting.append((tested.submit(batch), batch))
        while waiting and random.random() < 0.45:  # in any order, some long after others were submitted
            ticket, batch = waiting.pop(random.integers(len(waiting)))
            assert_right(tested.result(ticket), batch)
    for ticket, batch in waiting:
        assert_right(tested.result(ticket), batch)
        assert_right(tested.result(ticket), batch)


@pytest.mark.parametrize("contexts", [1, 2, 3])
def test_a_stream_makes_the_next_batch_while_all_slots_are_at_work_and_keeps_the_order(manifests, contexts):
    tested, _, _ = session(manifests["packed"], contexts=contexts)
    assert tested.slots == contexts
    random, made, fetched = np.random.default_rng(0), [], 0

    def batches():
        for number in range(9):
            if number:
                assert len(made) - fetched >= min(number, contexts)
            made.append(serve_kit.random_batch(random))
            yield made[-1]

    for logits in tested.stream(batches()):
        assert_right(logits, made[fetched])
        fetched += 1
        assert len(made) - fetched <= contexts
    assert fetched == len(made) == 9
    assert list(tested.stream([])) == []


def test_a_shape_runs_plainly_once_and_then_by_a_graph_for_each_slot(manifests):
    tested, cuda, plan = session(manifests["packed"])
    for seed in range(8):
        batch = serve_kit.batch(5, 9, seed=seed)
        assert_right(tested.run(batch), batch)
    assert plan.executed == [(64, 2)] * 5  # in slot 0; in slot 1 and captured there; again in slot 0 and captured
    assert (cuda.captured, cuda.launched) == (2, 5)
    assert_right(tested.run(serve_kit.batch(5, 9, 3)), serve_kit.batch(5, 9, 3))
    assert plan.executed[-1] == (64, 4)
    assert tested.notes == ["2 CUDA graphs captured for 2 shapes"]


def test_what_is_warmed_has_a_graph_in_either_slot(manifests):
    tested, cuda, plan = session(manifests["packed"])
    batches = [serve_kit.batch(*lengths) for lengths in ((5, 6), (7, 3), (60, 40, 30))]  # of two buckets
    tested.warm(batches)
    assert cuda.captured == 4
    before = len(plan.executed)
    for batch in batches + batches[::-1]:
        assert_right(tested.run(batch), batch)
    assert len(plan.executed) == before


def test_the_number_of_graphs_is_bounded_and_the_one_unused_for_longest_goes(manifests):
    tested, cuda, plan = session(manifests["packed"], most_graphs=4)

    def run(*lengths, times=4):
        for seed in range(times):
            batch = serve_kit.batch(*lengths, seed=seed)
            assert_right(tested.run(batch), batch)
            assert sum(kind == "graph" for kind, _ in cuda.alive) <= 4

    for lengths in ((3,), (3, 3), (3,), (40, 30)):  # two graphs a shape; the last one's place is that of (3, 3)
        run(*lengths)
    before = len(plan.executed)
    run(3)
    assert len(plan.executed) == before
    run(3, 3)
    assert len(plan.executed) > before


def test_no_graphs_are_captured_where_none_are_allowed(manifests):
    tested, cuda, plan = session(manifests["packed"], most_graphs=0)
    for _ in range(4):
        assert_right(tested.run(serve_kit.batch(5)), serve_kit.batch(5))
    assert (cuda.captured, len(plan.executed)) == (0, 4)


def test_a_capture_that_fails_is_noted_once_and_the_batch_is_computed_all_the_same(manifests):
    tested, cuda, _ = session(manifests["packed"], fail_in_capture=True)
    for seed in range(5):
        batch = serve_kit.batch(4, 4, seed=seed)
        assert_right(tested.run(batch), batch)
    assert cuda.captured == 0
    assert [note for note in tested.notes if "not capturable" in note] == [
        "CUDA graphs are off: the capture of (64, 2) failed (not capturable)"
    ]


def test_a_batch_that_is_refused_leaves_the_session_as_it_was(manifests):
    tested, _, _ = session(manifests["packed"])
    good = serve_kit.batch(5, 6)
    ticket = tested.submit(good)
    for lengths in ((65,), (1,) * 9):
        with pytest.raises(UserError):
            tested.submit(serve_kit.batch(*lengths))
    assert_right(tested.result(ticket), good)


def test_closing_keeps_what_was_submitted_and_gives_everything_back(manifests):
    tested, cuda, plan = session(manifests["packed"])
    batches = [serve_kit.batch(5, seed=seed) for seed in range(5)]
    with tested:
        tickets = [tested.submit(batch) for batch in batches]
    tested.close()
    for ticket, batch in zip(tickets, batches, strict=True):
        assert_right(tested.result(ticket), batch)
    assert not cuda.alive
    assert plan.saved == 1
    with pytest.raises(RuntimeError, match="this session is closed"):
        tested.submit(batches[0])


def test_threads_may_share_a_session(manifests):
    tested, _, _ = session(manifests["packed"])
    failures = []

    def work(seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            batch = serve_kit.random_batch(random)
            try:
                assert_right(tested.run(batch), batch)
            except AssertionError as error:
                failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_a_real_plan_fits_a_gpu_of_its_architecture_and_is_refused_in_a_sentence_where_none_is(tmp_path, monkeypatch):
    """As far as one gets without a GPU: built, found to fit a made-up one, and handed to TensorRT, whole and cut."""
    folder = plan_kit.write(tmp_path / "engine", 120)
    monkeypatch.setattr(gpu, "find", lambda: Gpu("NVIDIA GeForce RTX 5090", 120))
    stated = read(folder)
    fitted = fitting.fit(stated)
    assert fitted.kernels is not None
    assert fitted.kernels.arch == 120
    program = f"""
from pathlib import Path
from serve import fitting, gpu, manifest, plan
gpu.find = lambda: gpu.Gpu("made up", 120)
stated = manifest.read({str(folder)!r})
fitted = fitting.fit(stated)
whole = Path({str(folder)!r}, "model.plan").read_bytes()
for content in (whole, whole[:1000], b""):
    Path.read_bytes = lambda path: content
    try:
        plan.Plan(stated, fitted, 2)
    except Exception as error:
        print(type(error).__name__, error)
"""
    monkeypatch.setattr(fitting, "source_hash", lambda name: "0" * 64)
    with pytest.raises(fitting.MisfitError, match=r"plugins/embed_layer_norm/ has changed"):
        fitting.fit(stated)
    monkeypatch.undo()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line.split(" ")[0] for line in done.stdout.splitlines()] == ["UserError"] * 3


def test_a_session_whose_device_hangs_is_not_closed_at_the_end_of_the_process(manifests):
    for abandoned in (False, True):
        tested, *_ = session(manifests["packed"])
        tested.abandoned = abandoned
        tensorrt_session._close(weakref.ref(tested))
        assert bool(tested._slots) == abandoned


def test_kernels_that_are_missing_or_not_listed_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find", lambda: Gpu("made up", 120))
    version = tensorrt_flavour.version(tensorrt_flavour.load("tensorrt_rtx"))
    names = {"gelu": fitting.source_hash("gelu")}
    folder = serve_kit.with_plan(tmp_path / "engine", architectures=[120], tensorrt=version, plugins=names)
    with pytest.raises(UserError, match="no kernels for sm_120"):
        fitting.fit(read(folder))
    stray = folder / "kernels/sm_120/gelu-none-float16.json"
    stray.parent.mkdir(parents=True)
    stray.write_text("{}")
    with pytest.raises(UserError, match="is not listed in"):
        fitting.fit(read(folder))


def test_a_plugins_hash_is_of_what_engines_run(tmp_path, monkeypatch):
    place = tmp_path / "plugins"
    shutil.copytree(Path(plugins.__file__).parent / "gelu", place / "gelu")
    monkeypatch.setattr(plugins, "__file__", str(place / "__init__.py"))
    before = fitting.source_hash("gelu")
    for name in ("bench.py", "README.md", "test_gelu.py", "reference.py"):
        (place / "gelu" / name).write_text("# changed")
        assert fitting.source_hash("gelu") == before, name
    seen = {before}
    for name in ("kernel.py", "plugin.py", "function.py", "helper.py"):
        (place / "gelu" / name).write_text("# changed")
        seen.add(fitting.source_hash("gelu"))
    assert len(seen) == 5


def test_a_plugins_hash_is_of_the_plugins_that_its_code_imports_too(tmp_path, monkeypatch):
    place = tmp_path / "plugins"
    for name in ("gelu", "linear", "linear8", "attention"):
        shutil.copytree(Path(plugins.__file__).parent / name, place / name)
    monkeypatch.setattr(plugins, "__file__", str(place / "__init__.py"))
    before = {name: fitting.source_hash(name) for name in ("gelu", "linear", "linear8", "attention")}
    (place / "gelu" / "kernel.py").write_text("# changed")  # linear's erf form is built on it, and linear8 on linear
    changed = {name for name, digest in before.items() if fitting.source_hash(name) != digest}
    assert changed == {"gelu", "linear", "linear8"}
