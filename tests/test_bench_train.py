"""The training bench: its CSV, its table, its PyTorch step, the kernels it counts; times themselves are not tested."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import tensorflow as tf
import tiny

from configs.errors import UsageError, UserError
from configs.options import parse
from heads import default
from model.config import NAMED, BertConfig
from model.heads import HeadModel
from scripts import bench_train, bench_train_peer, bench_train_real, bench_train_step, bench_train_torch, profile_step
from scripts.bench_train import BenchConfig, main, read, table, write
from train import environment, hardware

SMALL = "--models bert-tiny --precisions float32 --batch 2 --tokens 16 --steps 1 --repetitions 1".split()


def bench(*argv: object) -> dict:
    return main(parse(BenchConfig, [*SMALL, *map(str, argv)], "scripts.bench_train"))


def row(**given) -> dict:
    blank = dict.fromkeys(bench_train.COLUMNS, "")
    return blank | {"part": "full", "framework": "retort", "model": "m", "precision": "float16"} | given


def test_full_and_memory_write_a_row_each_and_say_what_they_are(tmp_path, capsys, monkeypatch):
    out = tmp_path / "speed.csv"
    small = replace(NAMED["bert-tiny"], vocabulary=1100, hidden=16, layers=1, ffn=32)
    monkeypatch.setitem(bench_train_step.NAMED, "bert-tiny", small)
    with tiny.eager():
        metrics = bench("--parts", "full", "memory", "--xla", "off", "--out", out)["metrics"]
    rows = read(out)
    assert [(r["part"], r["detail"]) for r in rows] == [
        ("full", "blocks attention, no XLA"), ("memory", "blocks attention recompute, no XLA")
    ]  # fmt: skip
    assert [float(r["seq_per_s"]) for r in rows] == list(metrics.values())
    assert all(float(r["step_ms"]) > 0 and float(r["first_step_s"]) > 0 for r in rows)
    assert "recompute" in capsys.readouterr().out


def test_a_row_takes_the_place_of_its_predecessor_and_of_no_other(tmp_path):
    path = tmp_path / "speed.csv"
    for given in ({"seq_per_s": 1}, {"seq_per_s": 2, "precision": "bfloat16"}, {"seq_per_s": 3}):
        write(path, row(**given))
    assert sorted((r["precision"], r["seq_per_s"]) for r in read(path)) == [("bfloat16", "2"), ("float16", "3")]


def test_the_table_says_how_much_faster_ours_is():
    torch = {"framework": "torch.compile", "seq_per_s": 100.0}
    assert "full m float16: 1.250 x torch.compile" in table([row(seq_per_s=125.0), row(**torch)])
    seeds = [row(part="real", seq_per_s=rate) for rate in (150.0, 250.0)] + [row(part="real", **torch)]
    assert "real m float16: 2.000 x torch.compile" in table(seeds)
    assert " x " not in table([row(seq_per_s=125.0)])


def test_all_gpus_are_timed_beside_one_with_as_many_rows_on_each(tmp_path, monkeypatch, capsys):
    def prepare(device, distribute, *_):
        strategy = Mock(num_replicas_in_sync=4) if distribute == "mirrored" else None
        return hardware.Hardware(False, strategy, 0, 1, True)

    def measure(variant, machine, *_):
        return bench_train_step.Timed(12.5 if machine.strategy else 10.0, 1.0, 1.5, 2.0, "fused")

    monkeypatch.setattr(hardware, "prepare", prepare)
    monkeypatch.setattr(bench_train.tf.config, "list_physical_devices", lambda _: ["GPU"] * 4)
    monkeypatch.setattr(bench_train, "measure", measure)
    bench("--parts", "mirrored", "--out", tmp_path / "s.csv")
    assert [(r["detail"], r["batch"], r["seq_per_s"]) for r in read(tmp_path / "s.csv")] == [
        ("1 GPU, fused attention", "2", "200.0"), ("4 GPUs, mirrored, fused attention", "8", "640.0")
    ]  # fmt: skip
    assert "mirrored bert-tiny float32, 4 GPUs: 3.20 x one" in capsys.readouterr().out


def test_one_gpu_is_no_machine_for_the_part_mirrored(monkeypatch):
    monkeypatch.setattr(bench_train.tf.config, "list_physical_devices", lambda _: ["GPU"])
    monkeypatch.setattr(hardware, "prepare", lambda *_: pytest.fail("begun"))
    with pytest.raises(UserError, match="at least 2 GPUs and TensorFlow sees 1"):
        bench("--parts", "full", "mirrored")


def test_what_fails_is_named_and_the_others_are_measured(tmp_path, monkeypatch, capsys):
    def measure(variant, *_):
        if variant.model == "bert-tiny":
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")
        return bench_train_step.Timed(10.0, 1.0, 1.5, 2.0, "fused")

    monkeypatch.setattr(bench_train, "measure", measure)
    monkeypatch.setattr(bench_train_peer, "check", lambda: None)
    monkeypatch.setattr(bench_train_peer, "step", lambda *_: 1 / 0)
    out = tmp_path / "s.csv"
    argv = ["--parts", "full", "memory", "--models", "bert-tiny", "bert-mini", "--compare", "torch", "--out", out]
    with pytest.raises(UserError, match=r"4 failed: full bert-tiny float32, XLA on \(out of memory.*; 2 rows are in"):
        bench(*argv)
    assert [(r["part"], r["model"], r["seq_per_s"]) for r in read(out)] == [
        ("full", "bert-mini", "200.0"), ("memory", "bert-mini", "200.0")
    ]  # fmt: skip
    assert "failed: full bert-mini float32, PyTorch: division by zero" in capsys.readouterr().out


def test_a_plot_that_cannot_be_drawn_costs_no_figure(tmp_path, monkeypatch, capsys):
    plot_train = pytest.importorskip("scripts.plot_train")
    monkeypatch.setattr(bench_train, "measure", lambda *_: bench_train_step.Timed(10.0, 1.0, 1.5, 2.0, "fused"))
    monkeypatch.setattr(plot_train, "draw", lambda *_: [][0])
    assert bench("--out", tmp_path / "s.csv")["metrics"]
    assert "no plot: IndexError" in capsys.readouterr().out


def test_a_missing_torch_is_told_before_anything_is_timed(monkeypatch):
    monkeypatch.setattr(bench_train_peer.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(bench_train, "measure", lambda *_: pytest.fail("timed"))
    with pytest.raises(UserError, match="torch is not installed here"):
        bench("--compare", "torch")


def test_a_pytorch_process_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(bench_train_peer, "check", lambda: None)
    with pytest.raises(UserError, match=r"not done after 0.01 s"):
        bench_train_peer.run({}, {}, limit_s=0.01)


def test_a_gpu_that_tensorflow_does_not_see_is_no_reason_to_time_the_cpu(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: 1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    without = hardware.Hardware(False, None, 0, 1, True)
    with pytest.raises(UserError, match="TensorFlow sees no GPU, nvidia-smi shows GPU 0: NVIDIA H200"):
        bench_train_step.refuse_idle_gpu(without)
    bench_train_step.refuse_idle_gpu(hardware.Hardware(True, None, 0, 1, True))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    bench_train_step.refuse_idle_gpu(without)


def test_code_that_xla_compiled_with_other_flags_is_not_taken(tmp_path, monkeypatch):
    folders = set()
    for flags in ("", "--xla_gpu_enable_triton_gemm=false", "--xla_dump_to=/tmp/hlo"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        folders.add(environment.compiled_code(tmp_path))
    assert len(folders) == 3
    assert {folder.parent for folder in folders} == {tmp_path / "xla"}


@pytest.mark.parametrize(("argv", "named"), [
    (["--parts", "fool"], "--parts fool is not known; choose from full, memory"),
    (["--parts", "real"], "need questions: --train FILE --dev FILE"),
])  # fmt: skip
def test_impossible_requests_are_named(argv, named):
    with pytest.raises(UsageError, match=named):
        bench(*argv)


def test_real_windows_and_overheads_come_from_the_loop_of_train(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_train_real, "REPETITIONS", 1)
    tiny.arguments(tmp_path, count=24)
    recipe = tmp_path / "small.toml"
    recipe.write_text("# a test\nwindow = 64\nstride = 32\nquery = 24\nbatch_size = 8\nepochs = 2\nlog_every = 1\n")
    data = tmp_path / "train-24.json"
    argv = ["--parts", "real", "input", "--recipe", recipe, "--weights", tmp_path / "model", "--seeds", 1]
    argv += ["--train", data, "--dev", data, "--flags", f"buckets=2 cache={tmp_path}", "--out", tmp_path / "s.csv"]
    with tiny.eager():
        bench(*argv)
    real, *inputs = read(tmp_path / "s.csv")
    assert (real["part"], real["compiled_shapes"], real["precision"]) == ("real", "2", "float32")
    assert real["value"].startswith("F1 ")
    assert [r["detail"] for r in inputs] == [
        "batches ready made", "with the input", "with input and logging", "an evaluation, against an epoch"
    ]  # fmt: skip
    assert all(r["value"].endswith("%") for r in inputs[1:])


def test_our_names_of_weights_are_all_found_in_torchs_module():
    names = bench_train_torch.torch_name
    assert names("embeddings.token") == "token.weight"
    assert names("embeddings.norm.offset") == "norm.bias"
    assert names("layers.3.attention.norm.scale") == "layers.3.attention_norm.weight"
    assert names("layers.3.ffn.in.bias") == "layers.3.ffn_in.bias"
    assert names("span.kernel") == "span.weight"


def test_torchs_step_has_our_logits_and_learns(tmp_path):
    torch = pytest.importorskip("torch")
    sizes = BertConfig(vocabulary=50, hidden=16, layers=2, heads=2, ffn=32, positions=16, dropout=0.0)
    job = {"precision": "float32", "compile": False, "lr": 1e-2, "warmup": 1, "total": 50}
    trainer = bench_train_torch.Trainer(torch, sizes, job)
    ours = HeadModel(default(), sizes)
    random = np.random.default_rng(0)
    for variable in ours.names().values():
        variable.assign(random.normal(0, 0.3, variable.shape))
    trainer.load({name: variable.numpy() for name, variable in ours.names().items()})
    ids = random.integers(0, 50, (3, 16)).astype(np.int32)
    mask = np.array([[1] * n + [0] * (16 - n) for n in (16, 9, 4)], np.int32)
    start, end = ours(tf.constant(ids), tf.constant(ids % 2), tf.constant(mask))
    given = {"token_ids": ids, "segment_ids": ids % 2, "padding_mask": mask}
    batch = bench_train_torch.on_device(trainer, {name: torch.from_numpy(value) for name, value in given.items()})
    trainer.model.eval()
    for got, want in zip(trainer.model.logits(**batch), (start, end), strict=True):
        np.testing.assert_allclose(got.detach().cpu().numpy()[mask > 0], want.numpy()[mask > 0], atol=2e-4)
    trainer.model.train()
    batch |= {name: torch.tensor([1, 2, 3]) for name in ("start_positions", "end_positions")}
    losses = [float(trainer.step(batch)[0]) for _ in range(20)]
    assert losses[-1] < losses[0] / 2


def test_kernels_are_summed_by_kind_and_by_name_without_their_numbers():
    named = [("loop_add_fusion_12", 30.0), ("loop_add_fusion_3", 10.0), ("sm90_xmma_gemm_f16", 100.0), ("odd", 1.0)]
    text = profile_step.summary([profile_step.Kernel(0.0, us, name) for name, us in named], steps=2)
    assert "0.050             0.5  matrix product" in text
    assert "0.020             1.0         20.0  loop_add_fusion" in text
    names = "cudnn_generated_fort_native_sdpa", "input_reduce_fusion", "ncclDevKernel_AllReduce_Sum_f16_RING", "odd"
    kinds = [profile_step.kind(name) for name in names]
    assert kinds == ["attention", "reduction", "collective", "other"]


def test_the_gpu_stands_still_between_kernels_of_all_streams():
    kernel = profile_step.Kernel
    kernels = [
        kernel(5_000.0, 1_000.0, "all_reduce"),
        kernel(0.0, 1_000.0, "loop_add_fusion_1"),
        kernel(200.0, 3_000.0, "gemm"),  # on another stream, beside the first and after it
        kernel(3_210.0, 90.0, "odd"),  # too soon to be a pause
        kernel(6_500.0, 10.0, "loop_add_fusion_2"),
    ]
    lines = profile_step.pauses(kernels, steps=2).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["0.850", "0.5", "all_reduce"], ["0.250", "0.5", "loop_add_fusion"], ["1.100", "in", "all"],
    ]  # fmt: skip


def test_a_trace_is_read_stream_by_stream_of_the_first_gpu(tmp_path: Path):
    protocol = profile_step.protocol()
    space = protocol.XSpace()
    for device, line in (
        ("/device:GPU:0", "Stream #7(Compute)"),
        ("/device:GPU:0", "XLA Ops"),
        ("/host:CPU", "Stream"),
    ):
        plane = space.planes.add(name=device)
        plane.event_metadata[1].name = f"{device} {line}"
        line = plane.lines.add(name=line, timestamp_ns=7_000)
        line.events.add(metadata_id=1, offset_ps=500_000, duration_ps=2_500_000)
    path = tmp_path / "t.xplane.pb"
    path.write_bytes(space.SerializeToString())
    assert profile_step.read(path) == [profile_step.Kernel(7.5, 2.5, "/device:GPU:0 Stream #7(Compute)")]


@pytest.mark.slow
def test_the_first_step_of_a_process_is_timed_from_its_start(tmp_path):
    from scripts import bench_train_first
    from scripts.bench_train_step import Variant

    seen = bench_train_first.one_process(Variant("bert-tiny", "float32", batch=2, tokens=16, xla=False), tmp_path)
    assert 0 < seen["step_seconds"] < seen["seconds"]
    assert json.dumps(seen)


def test_the_plot_has_a_bar_for_every_rate_and_a_panel_for_every_model(tmp_path):
    pytest.importorskip("matplotlib")
    from scripts import plot_train

    rates = {"m": (123.0, 456.0), "n": (789.0,)}
    rows = [
        row(model=name, detail=str(rate), seq_per_s=rate, device="a GPU") for name in rates for rate in rates[name]
    ] + [row(part="first", value="3 s")]
    text = plot_train.draw(rows, tmp_path / "speed.svg").read_text(encoding="utf-8")
    assert all(f"<!-- {rate:.0f} -->" in text for each in rates.values() for rate in each)
    assert text.count("<!-- sequences a second -->") == 2
