"""The README's commands, found and run: which they are, what is picked, and what becomes of one that fails."""

from pathlib import Path

import pytest

from configs.errors import UsageError, UserError
from scripts import remeasure
from scripts.remeasure import RemeasureConfig, commands, picked

README = """
# A project

    python before.py

## Measured

`python -m scripts.remeasure` runs them. Figures, by `python -m a.b --x 1` and `python -m shown --engine DIR`:

    python -m a.c --data train-v1.1.json.gz    # why
    python -m a.b --x 1
    python d.py --one \\
      --two
    other command

See `python` and `python -m more ...`.

### Below

    python e.py

## After

    python after.py
"""
FOUND = [
    "python -m a.b --x 1", "python -m a.c --data train-v1.1.json.gz", "python d.py --one --two", "python e.py"
]  # fmt: skip


def test_the_commands_of_the_section_are_found_once_in_order_and_examples_are_not():
    assert commands(README) == FOUND
    with pytest.raises(UserError, match="no section"):
        commands("# nothing")


def test_a_command_is_picked_by_number_or_words():
    assert picked(FOUND, ("2", "--two")) == [(2, FOUND[1]), (3, FOUND[2])]
    assert picked(FOUND, ()) == list(enumerate(FOUND, 1))
    for pick in ("5", "nowhere"):
        with pytest.raises(UsageError, match=f"--pick {pick} is in none of the 4"):
            picked(FOUND, (pick,))


def test_every_command_of_our_readme_names_a_module_or_a_file_that_is_there():
    found = commands((remeasure.ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(found) > 12
    for line in found:
        words = line.split()
        name = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
        there = [remeasure.ROOT / name, (remeasure.ROOT / name).with_suffix("")]
        assert any(path.exists() for path in there), line


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    """A project whose README measures by four small programs."""
    programs = {
        "good.py": "import sys; print('seen', *sys.argv[1:])",
        "bad.py": "raise SystemExit('it is broken')",
        "slow.py": "import time; print('begun', flush=True); time.sleep(60)",
        "silent.py": "",
    }
    for name, source in programs.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    lines = "".join(f"    python {name} dev-v1.1.json.gz\n" for name in programs)
    (tmp_path / "README.md").write_text(f"## Measured\n\n{lines}", encoding="utf-8")
    monkeypatch.setattr(remeasure, "ROOT", tmp_path)
    return tmp_path


def test_what_fails_or_takes_too_long_is_named_and_the_rest_goes_on(root, capsys):
    config = RemeasureConfig(logs=str(root / "logs"), dev="mine.json", limit_s=2)
    with pytest.raises(UserError, match=r"not measured: 2 \(exit code 1\), 3 \(ended at its limit\); "):
        remeasure.main(config)
    out = capsys.readouterr().out
    assert "seen mine.json" in out
    assert "it is broken" in out
    assert "begun" in out
    assert "(nothing printed)" in out
    assert (root / "logs" / "01.log").read_text(encoding="utf-8") == "seen mine.json\n"


def test_what_has_not_begun_in_time_is_left_out(root):
    with pytest.raises(UserError, match=r"1 \(no time left\), 4 \(no time left\)"):
        remeasure.main(RemeasureConfig(pick=("1", "4"), minutes=1e-9, logs=str(root / "logs")))
    assert not (root / "logs").exists()


def test_a_list_runs_nothing(root, capsys):
    assert remeasure.main(RemeasureConfig(list=True, logs=str(root / "logs")))["metrics"] == {"commands": 4}
    assert "  2  python bad.py dev-v1.1.json.gz" in capsys.readouterr().out
    assert not (root / "logs").exists()
