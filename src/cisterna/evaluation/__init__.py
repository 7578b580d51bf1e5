"""What a checkpoint answers and how it scores; the baselines beside it."""
