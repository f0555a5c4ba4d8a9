"""Fine-tuning: raw data and pre-trained weights in, a run folder with a fine-tuned model out. `python train.py --help`."""
