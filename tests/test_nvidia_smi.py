"""scripts/nvidia_smi.py with an nvidia-smi that is a shell script."""

import time

from scripts import nvidia_smi


def test_clocks_are_logged_while_something_is_timed(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    lines = ('echo "$@" > $(dirname $0)/asked', 'echo "1980, 690.5"', 'echo "1650, 700.1"', 'echo "[N/A], 1"')
    smi.write_text("\n".join(("#!/bin/sh", *lines, "exec sleep 10\n")))
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with nvidia_smi.clocks("0000:1b:00.0") as clocks:
        time.sleep(0.3)
    assert "-i 0000:1b:00.0 " in (tmp_path / "asked").read_text()
    assert clocks.text() == {"clock_mhz": "1650-1980", "power_w": "690-700"}


def test_without_nvidia_smi_nothing_is_logged_and_no_driver_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with nvidia_smi.clocks() as clocks:
        pass
    assert clocks.text() == {"clock_mhz": "", "power_w": ""}
    assert nvidia_smi.driver_version() == ""


def test_the_driver_is_the_first_gpus(tmp_path, monkeypatch):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 580.159.04\necho 580.159.04\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert nvidia_smi.driver_version() == "580.159.04"
