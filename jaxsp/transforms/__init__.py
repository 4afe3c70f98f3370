"""Building blocks of the methods: optax transformations, one a file."""

from jaxsp.transforms.alternating_extragradient import (
    AlternatingExtragradientState,
    alternating_extragradient,
)
from jaxsp.transforms.average import AverageState, average
from jaxsp.transforms.extragradient import ExtragradientState, extragradient
from jaxsp.transforms.gossip import GossipState, gossip
from jaxsp.transforms.optimistic_adam import OptimisticAdamState, optimistic_adam
from jaxsp.transforms.past_extragradient import (
    PastExtragradientState,
    past_extragradient,
)
from jaxsp.transforms.sync import SyncState, sync

__all__ = [
    "AlternatingExtragradientState",
    "AverageState",
    "ExtragradientState",
    "GossipState",
    "OptimisticAdamState",
    "PastExtragradientState",
    "SyncState",
    "alternating_extragradient",
    "average",
    "extragradient",
    "gossip",
    "optimistic_adam",
    "past_extragradient",
    "sync",
]
