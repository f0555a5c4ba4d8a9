"""scripts/bench_engine.py as far as one gets without a GPU: real plans, ONNX Runtime in place of running them."""

import csv
import importlib.util
from contextlib import nullcontext

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from bench_engine_kit import Gpu
from own_process import alone

from configs.errors import UsageError, UserError
from model.config import BertConfig
from plugins import tensorrt_flavour
from scripts import bench_engine, bench_engine_plans, bench_engine_timer, nvidia_smi
from scripts.bench_engine_plans import ALL, ALL8, Encoder, Shape, Variant
from scripts.bench_engine_timer import Entrant

SIZES = BertConfig(vocabulary=50, hidden=64, layers=2, heads=2, ffn=96, positions=32)
SHAPES = [Shape(2, 16), Shape(3, 8)]
PACKED, MASKED = Variant("ours", layout="packed", plugins=ALL), Variant("mask")
EIGHT = [Variant(name, layout="packed", plugins=ALL8, format=name) for name in ("float8", "int8")]
PLAIN = [Variant("none", mask=False), Variant("bare", mask=False, casts=False)]


def compute(model: onnx.ModelProto, given: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {item.name: given[item.name] for item in session.get_inputs()})
    return np.asarray(found).reshape(-1, SIZES.hidden)


@pytest.fixture(scope="module")
def encoder():
    return Encoder(SIZES, "float16", SHAPES)


@pytest.mark.parametrize("variant", [PACKED, MASKED, *PLAIN], ids=lambda variant: variant.name)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_every_network_computes_the_reference_in_float32_and_about_in_float16(encoder, variant, gelu):
    variant = Variant(variant.name, gelu, variant.layout, variant.plugins, variant.mask, variant.casts)
    for shape in SHAPES:
        given = bench_engine_plans.inputs(SIZES, shape, variant.layout)
        for precision, bound in (("float32", 1e-5), ("float16", 1e-2)):
            found = compute(bench_engine_plans.fix(encoder.model(variant, precision), shape), given)
            assert found.shape == (shape.batch * shape.length, SIZES.hidden)
            error = bench_engine_plans.worst_error(found.astype(np.float32), encoder.reference(gelu, shape))
            assert error < bound
            assert precision == "float32" or error > 1e-5


@pytest.mark.parametrize("eight", EIGHT, ids=lambda variant: variant.name)
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
def test_8_bit_products_compute_the_reference_roughly(encoder, eight, gelu):
    eight = Variant(eight.name, gelu, "packed", ALL8, format=eight.format)
    for shape in SHAPES:
        given = bench_engine_plans.inputs(SIZES, shape, "packed")
        found = compute(bench_engine_plans.fix(encoder.model(eight, "float16"), shape), given)
        error = bench_engine_plans.worst_error(found.astype(np.float32), encoder.reference(gelu, shape))
        assert 5e-3 < error < bench_engine.WRONG[eight.format] / 2


def test_the_baseline_has_no_mask_and_if_told_no_casts(encoder):
    for variant, casts in zip(PLAIN, (True, False), strict=True):
        model = encoder.model(variant, "float16")
        onnx.checker.check_model(model, full_check=True)
        assert [item.name for item in model.graph.input] == ["token_ids", "segment_ids"]
        ops = [node.op_type for function in model.functions for node in function.node]
        assert "Where" not in ops
        assert ("Cast" in [op for op in ops if op == "Cast"][1:]) == casts  # one cast brings the scale, an attribute
        kinds = {tensor.data_type for tensor in model.graph.initializer}
        assert (onnx.TensorProto.FLOAT in kinds) == casts


def test_a_baseline_that_is_another_network_is_not_accepted(encoder, monkeypatch):
    monkeypatch.setattr(bench_engine_plans, "UNMASKED", {"visible_scores": "scores32"})
    with pytest.raises(ValueError, match="other names"):
        encoder.model(PLAIN[0], "float16")


def test_one_wrong_token_and_one_nan_are_an_error(encoder):
    right = encoder.reference("erf", SHAPES[0])
    assert bench_engine_plans.worst_error(right, right) == 0
    for value, least in ((0.0, 0.1), (np.nan, np.inf)):
        wrong = right.copy()
        wrong[5, :40] = value
        assert bench_engine_plans.worst_error(wrong, right) >= least


def test_plans_are_built_with_exactly_the_plugins_of_a_variant(encoder):
    trt = tensorrt_flavour.load("tensorrt_rtx")
    some = ("attention", "gelu")
    for variant, shape, layers in (
        (
            PACKED,
            None,
            {"embed_layer_norm": 1, "attention": 2, "linear": 2, "linear_gelu": 2, "linear_skip_layer_norm": 4},
        ),
        (
            EIGHT[0],
            None,
            {
                "embed_layer_norm8": 1,
                "attention8": 2,
                "linear8_skip_layer_norm": 1,
                "linear8_skip_layer_norm8": 3,
                "linear8": 2,
                "linear8_gelu8": 2,
            },
        ),
        (
            EIGHT[1],
            None,
            {
                "embed_layer_norm8": 1,
                "attention8": 2,
                "skip_layer_norm": 1,
                "skip_layer_norm8": 3,
                "linear8": 6,
                "linear8_gelu8": 2,
            },
        ),
        (Variant("some", plugins=some), SHAPES[0], {"attention": 2, "gelu": 2}),
        *((variant, SHAPES[0], {}) for variant in PLAIN),
    ):
        plan, found = encoder.build(trt, variant, shape, 89)
        assert len(plan) > 10000
        assert found == layers
    names = [kernel.split("-")[0] for kernel in encoder.kernels(Variant("some", plugins=some), 80)]
    assert set(names) == set(some)


def test_profiles_reach_from_the_smallest_to_the_largest_shape():
    shapes = [Shape(32, 128), Shape(32, 384), Shape(1, 128)]
    packed, padded = (bench_engine_plans.profile(layout, shapes) for layout in ("packed", "padded"))
    assert (tuple(packed.batch), packed.tokens and tuple(packed.tokens)) == ((1, 32, 32), (128, 12288, 12288))
    assert (tuple(padded.batch), padded.length and tuple(padded.length)) == ((1, 32, 32), (128, 384, 384))


@pytest.fixture
def bench(monkeypatch, tmp_path):
    """run(config changes, spoil) -> (result, rows, what was opened): plans are not built, ONNX Runtime computes."""
    gpu, opened = Gpu(), []
    monkeypatch.setitem(bench_engine.NAMED, "tiny", SIZES)
    monkeypatch.setattr(bench_engine, "Device", lambda: gpu)
    monkeypatch.setattr(bench_engine_timer, "driver", lambda: gpu)
    seen = nvidia_smi.Clocks([1980.0, 1500.0], [700.0])
    monkeypatch.setattr(nvidia_smi, "clocks", {gpu.bus: nullcontext(seen)}.__getitem__)
    monkeypatch.setattr(Encoder, "build", lambda self, trt, variant, shape, arch: ((variant, shape), {}))
    monkeypatch.setattr(Encoder, "kernels", lambda self, variant, arch: None)
    spoiled: dict = {}

    class Fake:
        def __init__(self, trt, plan, names, kernels):
            self.variant, shape = plan
            opened.append((self.variant.name, self.variant.gelu, str(shape)))

        def entrant(self, device, given, shape, dtype):
            what = spoiled.get(self.variant.name)
            if isinstance(what, Exception):
                raise what
            output = compute(Encoder(SIZES, "float16", SHAPES).model(self.variant, "float16"), given)
            cost = 4.0 if "no plugins" in self.variant.name else 2.0
            return Entrant(lambda: gpu.spend(cost), 7, output * (what or 1))

    monkeypatch.setattr(bench_engine_plans, "Opened", Fake)

    def run(spoil=None, **changes):
        spoiled.update(spoil or {})
        settings = {"sizes": ("tiny",), "shapes": ("2x16", "3x8"), "peers": "none", "samples": 50} | changes
        out = tmp_path / "engine.csv"
        try:
            result = bench_engine.main(bench_engine.BenchConfig(out=str(out), **settings))
        except UserError as error:
            result = str(error)
        rows = list(csv.DictReader(out.open(newline=""))) if out.exists() else []
        return result, rows, opened

    return run


def test_a_run_times_everything_in_order_and_says_how_many_times_faster(bench, capsys):
    result, rows, opened = bench()
    groups = [shape for count in (5, 6, 4) for shape in ["2x16"] * count + ["3x8"] * count]
    assert [row["shape"] for row in rows] == groups
    assert {row["verdict"] for row in rows} == {"right"}
    left_out = {f"without {name}" for name in ALL if name not in ("skip_layer_norm", "gelu")}  # in no plan of all
    assert {row["variant"] for row in rows if row["variant"].startswith("without ")} == left_out
    assert any(row["variant"] == "no plugins, mask" for row in rows)
    assert {float(row["p50_ms"]) for row in rows if "no plugins" in row["variant"]} == {4.0}
    times = result["metrics"]["tiny 2x16"]["all plugins, packed, tanh"]
    assert (times["ms"], times["times_none"]) == (2.0, 2.0)
    assert opened.count(("all plugins, packed", "erf", "None")) == 1  # one plan for all shapes
    assert opened.count(("no plugins, no mask", "erf", "2x16")) == 1
    assert rows[0]["gpu"] == "made up"
    assert {(row["clock_mhz"], row["power_w"]) for row in rows} == {("1500-1980", "700-700")}
    assert rows[0]["tensorrt"].startswith("tensorrt_rtx 1.")
    printed = capsys.readouterr().out
    assert "without attention, erf" in printed
    assert "2.00 x" in printed


def test_8_bits_are_timed_beside_16_in_one_command(bench):
    _, rows, opened = bench(precision="float8", parts=("eight",), shapes=("2x16",))
    assert [row["precision"] for row in rows] == ["float16", "float16", "float8", "float8"]
    assert {row["verdict"] for row in rows} == {"right"}
    assert ("all plugins, packed, float8", "tanh", "None") in opened


def test_what_is_wrong_or_fails_is_a_row_that_says_so_and_an_error_after_all_the_others(bench, capsys):
    spoil = {"no plugins, no mask": 1.1, "all plugins, packed": ValueError("no such algorithm")}
    said, rows, _ = bench(spoil, parts=("goal",), parser="1.2.3")
    verdicts = {row["variant"]: row["verdict"] for row in rows}
    assert verdicts["no plugins, no mask"] == "wrong"
    assert verdicts["all plugins, packed"] == "failed: ValueError: no such algorithm"
    assert verdicts["no plugins, no mask, one plan for all shapes"] == "right"
    assert len(rows) == 10
    assert all(row["tensorrt"].endswith("parser 1.2.3") for row in rows)
    assert "wrong or failed: tiny 2x16 all plugins, packed erf failed: ValueError: no such algorithm; " in said
    assert "; tiny 2x16 no plugins, no mask erf wrong " in said


def test_what_is_to_be_left_out_is_not_opened(bench):
    left = ("no plugins, no mask", "all plugins, packed@erf")
    _, rows, opened = bench(parts=("goal",), leave_out=left)
    assert {(row["variant"], row["gelu"]) for row in rows} == {
        ("all plugins, packed", "tanh"), ("no plugins, no mask, one plan for all shapes", "tanh"),
    }  # fmt: skip
    assert {name for name, _, _ in opened} == {row["variant"] for row in rows}


def test_what_does_not_fit_into_the_time_is_named_and_nothing_else(bench, capsys):
    result, rows, opened = bench(minutes=1e-9)
    assert (rows, opened, result["metrics"]) == ([], [], {})
    assert "tiny 2x16 all plugins, packed erf; tiny 2x16 all plugins, packed tanh" in capsys.readouterr().out


def test_a_baseline_slower_than_it_can_be_does_not_count(capsys):
    row = {"size": "bert-base", "shape": "32x128", "gelu": "erf", "verdict": "right", "worst_error": "1e-3"}
    rows = [row | {"variant": "no plugins, no mask", "p50_ms": time, "p20_ms": "1", "p80_ms": "1"} for time in ("2.6",)]
    bench_engine.table(rows)
    assert "more than the 2.5" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"sizes": ("bert-huge",)}, {"shapes": ("32",)}, {"parts": ("all",)}])
def test_settings_that_are_none_are_refused(wrong):
    with pytest.raises(UsageError):
        bench_engine.checked(bench_engine.BenchConfig(**wrong))


def test_a_file_with_other_columns_is_refused_before_anything_is_timed(bench, tmp_path):
    out = tmp_path / "engine.csv"
    out.write_text("started,size,p50_ms\n")
    said, _, opened = bench(parts=("goal",))
    assert "engine.csv has the columns started,size,p50_ms" in said
    assert (opened, out.read_text()) == ([], "started,size,p50_ms\n")


@pytest.mark.gpu
def test_a_small_size_is_right_on_this_gpu(tmp_path):
    peers = "torch" if importlib.util.find_spec("torch") else "none"  # no dependency: make setup does not install it
    program = (
        "from model.config import BertConfig; from scripts import bench_engine as bench\n"
        f"bench.NAMED['tiny'] = {SIZES!r}; out = {str(tmp_path / 'engine.csv')!r}\n"
        f"config = bench.BenchConfig(out, ('tiny',), ('2x16', '3x8'), minutes=5, peers={peers!r})\n"
        "assert 'tiny 3x8' in bench.main(config)['metrics']"
    )
    alone(["-c", program])
