"""`python train.py --amp` is `python -m train --amp`: raw data and weights in, a fine-tuned run folder out."""

import runpy

if __name__ == "__main__":
    runpy.run_module("train", run_name="__main__", alter_sys=True)
