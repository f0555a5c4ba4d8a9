"""`python export.py --run RUN --out DIR` is `python -m export ...`: a run folder in, an engine folder out."""

import runpy

if __name__ == "__main__":
    runpy.run_module("export", run_name="__main__", alter_sys=True)
