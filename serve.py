"""`python serve.py --engine DIR` is `python -m serve`: an engine folder answers questions."""

import runpy

if __name__ == "__main__":
    runpy.run_module("serve", run_name="__main__", alter_sys=True)
