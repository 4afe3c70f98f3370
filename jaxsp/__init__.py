"""Distributed saddle-point optimization, games and GAN training in JAX.

A method is an optax transformation that sees one worker; `Workers` runs it on all of
them. `jaxsp.gan` and `jaxsp.robust`, which need the extras `jaxsp[gan]` and
`jaxsp[robust]`, are imported when they are first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxsp import (
    aggregators,
    comm,
    compressors,
    distributed,
    methods,
    metrics,
    problems,
    projections,
    theory,
    topology,
    transforms,
)
from jaxsp.comm import channel
from jaxsp.operators import MinMax, game, gradient, saddle
from jaxsp.transforms import (
    alternating_extragradient,
    average,
    compressed_gossip,
    error_feedback_average,
    extragradient,
    gossip,
    sync,
)
from jaxsp.workers import Workers

if TYPE_CHECKING:
    from jaxsp import gan, robust

__version__ = "0.1.0"

__all__ = [
    "MinMax",
    "Workers",
    "aggregators",
    "alternating_extragradient",
    "average",
    "channel",
    "comm",
    "compressed_gossip",
    "compressors",
    "distributed",
    "error_feedback_average",
    "extragradient",
    "game",
    "gan",
    "gossip",
    "gradient",
    "methods",
    "metrics",
    "problems",
    "projections",
    "robust",
    "saddle",
    "sync",
    "theory",
    "topology",
    "transforms",
]


def __getattr__(name: str) -> Any:
    if name in ("gan", "robust"):
        return importlib.import_module(f"jaxsp.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
