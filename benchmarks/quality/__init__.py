"""Which scores does retraining confirm? `make bench-quality`: five trained networks, their ground truth, every method."""
