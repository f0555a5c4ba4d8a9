"""Several attempts at one engine: what they have in common is computed once, and changes no choice."""

import export_kit as kit
import pytest
import tiny

from export import calibration, checkpoint, files, graph, precision, ranges, runners
from export.kept import Kept
from export.verify import GateError
from model.config import BertConfig

SIZES = BertConfig(vocabulary=400, hidden=64, layers=2, heads=2, ffn=96, positions=64)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("attempts")
    kit.run(folder / "run", SIZES, made={"settings": {"data": str(folder / "train.json")}})
    tiny.questions(folder / "train.json", 60)
    tiny.questions(folder / "dev.json", 24)
    return folder


def test_a_result_is_made_once_and_an_error_is_made_again():
    kept, made = Kept(), []

    def make():
        made.append(1)
        return None if len(made) < 3 else 1 / 0

    assert kept.once("a", make) is None
    assert kept.once("a", make) is None
    assert len(made) == 1
    assert kept.once(("a", 1), make) is None
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.once("b", make)
    assert len(made) == 4


@pytest.fixture
def counted(monkeypatch):
    """How often each of these was called."""
    calls: dict[str, int] = {}

    def count(owner, name):
        kept = getattr(owner, name)

        def counting(*arguments, **more):
            title = arguments[2] if name == "session_logits" else name
            calls[title] = calls.get(title, 0) + 1
            return kept(*arguments, **more)

        monkeypatch.setattr(owner, name, counting)

    for owner, name in (
        (runners.Keras, "logits"), (runners, "session_logits"), (runners.OnnxFile, "logits"), (ranges, "measure"),
        (precision, "product_times"), (calibration, "read"), (calibration, "_try"),
    ):  # fmt: skip
        count(owner, name)
    return calls


def test_three_attempts_compute_once_what_they_have_in_common(home, tmp_path, counted, monkeypatch, capsys):
    monkeypatch.setattr(precision, "ERRORS", (0.9, 0.3, 0.2))  # random weights bear no less
    given = ("--run", home / "run", "--dev", home / "dev.json", "--arch", "89", "--max-batch", "4")
    with pytest.raises(GateError, match="float8 products do not answer"):
        kit.export(*given, "--out", tmp_path / "no", "--precision", "float8", "--tolerance", "1e-3")
    said = capsys.readouterr().out
    assert [f"{error} % of error allowed" in said for error in (90, 30, 20)] == [True] * 3
    # Each attempt's own are its 8-bit graph's logits; Keras's and that graph's are both called "logits".
    assert counted == {
        "logits": 1 + 3, "onnxruntime": 1, "measure": 1, "product_times": 1, "read": 1, "_try": 1,
    }  # fmt: skip


def test_another_file_is_another_file(home, tmp_path, counted, monkeypatch):
    """A graph that came out otherwise in the second attempt would have to be run again."""
    build, built = graph.build, []

    def differing(*arguments, **more):
        model = build(*arguments, **more)
        if more["precision"] == "float32" and "quantisation" not in more:
            built.append(model)
            model.doc_string = f"attempt {len(built)}"
        return model

    monkeypatch.setattr(graph, "build", differing)
    given = ("--run", home / "run", "--dev", home / "dev.json", "--arch", "89", "--max-batch", "4")
    with pytest.raises(GateError):
        kit.export(*given, "--out", tmp_path / "no", "--precision", "float8", "--tolerance", "1e-6")
    assert counted["onnxruntime"] == len(built) == 3


def test_an_attempt_after_others_chooses_what_a_first_one_would(home, tmp_path):
    files.save(graph.build(kit.tensors(SIZES), SIZES, precision="float32", layout="packed"), tmp_path / "model.onnx")
    asked = calibration.read(checkpoint.read(home / "run"), str(home / "train.json"), 40)

    def choose(error, kept):
        found = calibration.calibrate(
            tmp_path / "model.onnx", asked.checkpoint, asked, format="float8", channels=False, layout="packed",
            gelu="erf", padded_head=32, error=error, times="no GPU", say=lambda _: None, kept=kept,
        )  # fmt: skip
        return found.quantisation.scales, found.report

    kept = Kept()
    first = choose(0.99, kept)
    half = first[1]["error"] / 2
    for error in (half, half / 2):
        assert choose(error, kept) == choose(error, None)
    assert first == choose(0.99, None)  # those after it have not written into it
