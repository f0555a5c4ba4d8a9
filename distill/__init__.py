"""Distillation: a fine-tuned teacher in, a small student that keeps its score out. `python distill.py --help`."""
