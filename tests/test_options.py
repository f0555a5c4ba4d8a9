"""Defaults, recipes and flags: which wins, what is refused, and the traps of the libraries below."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from configs import options
from configs.errors import UsageError
from configs.options import parse, setting

RECIPES = sorted(Path(options.__file__).parent.glob("*.toml"))


@dataclass(frozen=True)
class Config:
    """Fine-tune something."""

    data: str = setting(required=True, metavar="FILE", help="training questions")
    amp: str | None = setting(None, bare="auto", choices=("auto", "float16", "bfloat16"), help="mixed precision")
    batch_size: int = setting(32, least=1, help="sequences a step, 10 % of memory")
    lr: float = setting(3e-5, above=0, help="peak learning rate")
    dropout: float = setting(0.1, least=0, most=0.5, help="share of values dropped")
    jit: bool = setting(False, help="compile with XLA")
    bias_correction: bool = setting(True, help="as Adam has it")
    limit: int | None = setting(None, help="use only so many questions")
    buckets: tuple[int, ...] = setting((), help="padded lengths, tokens")


def given(*argv: str) -> Config:
    return parse(Config, ["--data", "x.json", *argv], "train")


def refusal(*argv: str) -> str:
    with pytest.raises(UsageError) as caught:
        given(*argv)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def recipe(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_defaults_hold_when_nothing_else_is_given():
    assert given() == Config(data="x.json")


def test_a_bare_amp_means_auto_and_not_none():
    assert given("--amp").amp == "auto"
    assert given("--amp", "--jit").amp == "auto"
    assert given("--amp", "float16").amp == given("--amp=float16").amp == "float16"


def test_no_amp_switches_a_recipes_amp_off(recipe):
    assert given("--config", recipe('amp = "float16"')).amp == "float16"
    assert given("--config", recipe('amp = "float16"'), "--no-amp").amp is None
    assert given("--config", recipe("amp = true")).amp == "auto"
    assert given("--config", recipe("amp = false")).amp is None


def test_a_switch_may_have_a_third_state_by_default(recipe):
    @dataclass(frozen=True)
    class Three:
        """On, off, or as the machine is."""

        jit: str = setting("auto", bare="on", off="off", choices=("auto", "on", "off"), help="compile")

    for argv, value in ([], "auto"), (["--jit"], "on"), (["--no-jit"], "off"), (["--jit=auto"], "auto"):
        assert parse(Three, argv, "train").jit == value
    assert parse(Three, ["--config", recipe("jit = false")], "train").jit == "off"


def test_dashes_and_underscores_are_the_same():
    assert given("--batch-size", "4").batch_size == given("--batch_size=4").batch_size == 4
    assert not given("--no-bias-correction").bias_correction
    assert not given("--no_bias_correction").bias_correction


@pytest.mark.parametrize(("argv", "value"), [
    (["--jit"], True), (["--no-jit"], False), (["--jit", "--no-jit"], False),
    (["--jit=yes"], True), (["--jit", "0"], False)
])  # fmt: skip
def test_a_switch_has_a_positive_and_a_negative_form(argv, value):
    assert given(*argv).jit is value


def test_a_negative_form_takes_no_value():
    assert "--no-jit takes no value" in refusal("--no-jit=true")
    assert "--no-amp takes no value" in refusal("--no-amp", "float16")


def test_lists_and_optional_numbers_arrive_in_their_types():
    config = given("--buckets", "96", "192", "--limit", "7", "--lr", "1")
    assert (config.buckets, config.limit, config.lr) == ((96, 192), 7, 1.0)
    assert isinstance(config.lr, float)


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults(recipe):
    path = recipe("batch_size = 8\nlr = 1e-4\nbuckets = [64, 128]\n")
    config = given("--config", path, "--lr", "2e-4")
    assert (config.batch_size, config.lr, config.dropout, config.buckets) == (8, 2e-4, 0.1, (64, 128))
    assert given(f"--config={path}") == given("--config", path)


def test_a_recipe_can_give_what_is_needed(recipe):
    assert parse(Config, ["--config", recipe('data = "from.json"')], "train").data == "from.json"


def test_a_missing_needed_setting_is_named_with_its_meaning():
    with pytest.raises(UsageError, match="--data is needed: training questions"):
        parse(Config, [], "train")


@pytest.mark.parametrize(("argv", "nearest"), [
    (["--batchsize", "3"], "--batch-size"), (["--nojit"], "--no-jit"), (["-amp"], "--amp"), (["--limits=3"], "--limit"),
    (["--drop_out", "0"], "--dropout"),
])  # fmt: skip
def test_an_unknown_flag_is_named_with_the_nearest(argv, nearest):
    message = refusal(*argv)
    assert f"unknown flag {argv[0].partition('=')[0]}" in message
    assert f"did you mean {nearest}?" in message


def test_flags_are_not_abbreviated():
    assert "unknown flag --batch" in refusal("--batch", "3")


def test_a_word_that_belongs_to_no_flag_is_refused():
    assert "'train.json'" in refusal("train.json")
    assert "'b.json'" in refusal("--lr", "1", "--", "b.json")


@pytest.mark.parametrize(("argv", "words"), [
    (["--lr", "fast"], "--lr takes a number; got 'fast'"),
    (["--lr", "nan"], "--lr takes a finite number"),
    (["--lr", "0"], "--lr must be more than 0"),
    (["--dropout", "0.6"], "--dropout must be at most 0.5"),
    (["--batch-size", "0"], "--batch-size must be at least 1"),
    (["--batch-size", "2.5"], "--batch-size takes a whole number; got '2.5'"),
    (["--amp", "float61"], "got 'float61' (did you mean float16?)"),
    (["--jit", "maybe"], "takes true or false; got 'maybe'"),
    (["--limit"], "--limit expected one argument"),  # simple-parsing alone would read None
    (["--buckets", "96", "x"], "--buckets takes a whole number; got 'x'"),
    (["--config"], "--config takes a recipe's name or a file"),
    (["--verbosity=loud"], "verbosity"),
])  # fmt: skip
def test_a_wrong_value_is_refused_with_what_was_seen(argv, words):
    assert words in refusal(*argv)


def test_absls_own_flags_still_work():
    assert given("--verbosity=0").data == "x.json"


@pytest.mark.parametrize(("text", "words"), [
    ("batchsize = 3", "no setting is called batchsize (did you mean batch_size?)"),
    ("batch_size = 2.0", "batch_size takes a whole number; got 2.0"),
    ("batch_size = true", "batch_size takes a whole number; got True"),
    ('jit = "yes"', "jit takes true or false; got 'yes'"),
    ("data = 3", "data takes text; got 3"),
    ('buckets = [1, "x"]', "buckets takes a whole number; got 'x'"),
    ("buckets = 5", "buckets takes a list"),
    ("[train]\nlr = 1.0", "no setting is called train"),
    ("lr = inf", "lr takes a finite number"),
    ("lr = ", "is no recipe"),
    ("lr = 1.0\nlr = 2.0", "is no recipe"),
])  # fmt: skip
def test_a_recipe_is_checked_like_flags(recipe, text, words):
    message = refusal("--config", recipe(text))
    assert words in message
    assert "recipe.toml" in message


def test_a_recipe_is_data_and_never_run(recipe, tmp_path):
    refusal("--config", recipe(f"import pathlib; pathlib.Path('{tmp_path}/ran').touch()"))
    assert not (tmp_path / "ran").exists()


def test_a_recipe_goes_by_name_from_any_folder(tmp_path, monkeypatch):
    (tmp_path / "known.toml").write_text("batch_size = 5", encoding="utf-8")
    monkeypatch.setattr(options, "RECIPES", tmp_path)
    for name in ("known", "known.toml", str(tmp_path / "known")):
        assert given("--config", name).batch_size == 5
    assert "did you mean known?" in refusal("--config", "knwon")


def test_a_setting_called_like_an_absl_flag_is_a_mistake_of_ours():
    for name in ("log_dir", "verbosity", "help", "config", "no_cache"):
        taken = dataclass(type("Taken", (), {"__annotations__": {name: str}, name: setting("", help="x")}))
        with pytest.raises(TypeError, match="choose another"):
            parse(taken, [], "train")


def test_a_setting_without_help_is_a_mistake_of_ours():
    @dataclass
    class Bare:
        lr: float = 1.0

    with pytest.raises(TypeError, match="has no help"):
        parse(Bare, [], "train")


def test_checks_across_settings_see_the_finished_settings_once(recipe):
    seen = []

    @dataclass(frozen=True)
    class Checked:
        """Two that must agree."""

        window: int = setting(384, help="tokens")
        stride: int = setting(128, help="tokens")

        def __post_init__(self):
            seen.append((self.window, self.stride))
            if self.stride >= self.window:
                raise ValueError(f"stride {self.stride} must be below window {self.window}")

    # The recipe alone would be refused; with the flag it is right.
    parse(Checked, ["--config", recipe("window = 100"), "--stride", "50"], "train")
    assert seen == [(100, 50)]
    with pytest.raises(UsageError, match="stride 128 must be below window 100"):
        parse(Checked, ["--window", "100"], "train")


def test_help_is_the_manual(capsys, recipe):
    with pytest.raises(SystemExit) as left:
        given("--config", recipe("lr = 0.5"), "--help")
    manual = capsys.readouterr().out
    assert left.value.code == 0
    assert "python train.py" in manual
    assert "Fine-tune something." in manual
    for words in ("--batch-size INT", "sequences a step, 10 % of memory (at least 1; default: 32)", "--data FILE",
                  "needed", "--amp [TEXT], --no-amp", "alone: auto", "--jit, --no-jit", "default: false",
                  "--config NAME", "default: 0.5"):  # fmt: skip
        assert words in manual
    assert not re.search(r"--batch_size|--nojit|\bstray\b|\['args'\]|TEMP", manual)


def test_recipes_that_should_be_there_are_there():
    names = {path.stem for path in RECIPES}
    expected = {f"squad{v}-bert-{size}" for v in ("11", "20") for size in ("base", "large")}
    assert expected | {"minilm-squad11", "minilm-squad20", "quickstart"} <= names


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses_for_the_command_that_its_header_names(path):
    from distill.config import DistillConfig
    from train.config import TrainConfig

    named = re.search(rf"python (train|distill)\.py --config {path.stem}\b", path.read_text(encoding="utf-8"))
    assert named, "the header gives the command"
    argv = ["--config", path.stem, "--data", "x.json", "--dev", "y.json", "--out", "runs/x"]
    if named[1] == "train":
        assert parse(TrainConfig, argv, "train").epochs > 0
    else:
        assert parse(DistillConfig, [*argv, "--teacher", "runs/y"], "distill").task_epochs > 0
