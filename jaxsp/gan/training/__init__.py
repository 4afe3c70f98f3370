"""The training loop, and what it leaves: checkpoints, records, plots, costs."""
