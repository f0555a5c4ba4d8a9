"""The encoder, its heads and the ways to fill it with published weights; knows nothing of training."""
