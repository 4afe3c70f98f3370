"""The training loop, what it leaves (checkpoints, records, plots) and what it costs."""

from jaxsp.gan.training import checkpoint, cost, directory, loop, plots, records
from jaxsp.gan.training.loop import Result, TrainConfig, TrainingDivergedError, train

__all__ = [
    "Result",
    "TrainConfig",
    "TrainingDivergedError",
    "checkpoint",
    "cost",
    "directory",
    "loop",
    "plots",
    "records",
    "train",
]
