"""Building blocks of the methods: optax transformations, one a file."""

from jaxsp.transforms.alternating import AlternatingState, alternating
from jaxsp.transforms.alternating_extragradient import (
    AlternatingExtragradientState,
    alternating_extragradient,
)
from jaxsp.transforms.anchored_extragradient import (
    AnchoredExtragradientState,
    anchored_extragradient,
)
from jaxsp.transforms.average import AverageState, average
from jaxsp.transforms.compressed_average import (
    CompressedAverageState,
    compressed_average,
)
from jaxsp.transforms.compressed_gossip import CompressedGossipState, compressed_gossip
from jaxsp.transforms.difference_average import (
    DifferenceAverageState,
    difference_average,
)
from jaxsp.transforms.error_feedback_average import (
    ErrorFeedbackAverageState,
    error_feedback_average,
)
from jaxsp.transforms.extragradient import ExtragradientState, extragradient
from jaxsp.transforms.federated_average import (
    FederatedAverageState,
    federated_average,
)
from jaxsp.transforms.gossip import GossipState, gossip
from jaxsp.transforms.optimistic_adam import OptimisticAdamState, optimistic_adam
from jaxsp.transforms.past_extragradient import (
    PastExtragradientState,
    past_extragradient,
)
from jaxsp.transforms.sync import SyncState, sync
from jaxsp.transforms.two_step_feedback import TwoStepFeedbackState, two_step_feedback

__all__ = [
    "AlternatingExtragradientState",
    "AlternatingState",
    "AnchoredExtragradientState",
    "AverageState",
    "CompressedAverageState",
    "CompressedGossipState",
    "DifferenceAverageState",
    "ErrorFeedbackAverageState",
    "ExtragradientState",
    "FederatedAverageState",
    "GossipState",
    "OptimisticAdamState",
    "PastExtragradientState",
    "SyncState",
    "TwoStepFeedbackState",
    "alternating",
    "alternating_extragradient",
    "anchored_extragradient",
    "average",
    "compressed_average",
    "compressed_gossip",
    "difference_average",
    "error_feedback_average",
    "extragradient",
    "federated_average",
    "gossip",
    "optimistic_adam",
    "past_extragradient",
    "sync",
    "two_step_feedback",
]
