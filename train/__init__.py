"""Fine-tuning: raw data and pre-trained weights in, a run folder with a fine-tuned model out. See `train.py --help`."""
