"""Benchmarks of training with a selector: `train-client bench`."""
