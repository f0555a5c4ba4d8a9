"""`make demo`: the quickstart's last step, a server that prints its page's address and ends by Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import urllib.request

import serve_kit
from test_server_process import ROOT

CODE = "import sys; from scripts.quickstart import serve; serve(sys.argv[1], 0); print('over')"


def test_the_quickstart_ends_with_the_address_of_a_page_until_ctrl_c(tmp_path):
    folder = serve_kit.write(tmp_path / "tiny")
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout
    try:
        address = next(found[0] for line in process.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
        assert "<title>Ask the engine</title>" in urllib.request.urlopen(address).read().decode()
        os.killpg(process.pid, signal.SIGINT)  # what a terminal sends
        rest = process.stdout.read()
        assert process.wait(20) == 0
        assert "over" in rest
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
