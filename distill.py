"""`python distill.py --amp` is `python -m distill --amp`: a fine-tuned teacher in, a small student's run folder out."""

import runpy

if __name__ == "__main__":
    runpy.run_module("distill", run_name="__main__", alter_sys=True)
