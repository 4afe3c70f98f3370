"""Building blocks of the methods: optax transformations, one a file."""

from jaxsp.comm.refresh import Refresh
from jaxsp.transforms.accelerated_dual_gossip import (
    AcceleratedDualGossipState,
    AcceleratedDualSteps,
    accelerated_dual_gossip,
)
from jaxsp.transforms.alternating import AlternatingState, alternating
from jaxsp.transforms.alternating_extragradient import (
    AlternatingExtragradientState,
    alternating_extragradient,
)
from jaxsp.transforms.apply_if_all_finite import (
    ApplyIfAllFiniteState,
    apply_if_all_finite,
)
from jaxsp.transforms.average import AverageState, average
from jaxsp.transforms.compressed_gossip import CompressedGossipState, compressed_gossip
from jaxsp.transforms.delay import DelayState, delay
from jaxsp.transforms.difference_average import (
    DifferenceAverageState,
    difference_average,
)
from jaxsp.transforms.drift_correction import (
    DriftCorrectionState,
    drift_correction,
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
from jaxsp.transforms.gradient_tracking import (
    GradientTrackingState,
    gradient_tracking,
)
from jaxsp.transforms.lookahead import LookaheadState, lookahead
from jaxsp.transforms.optimistic_adam import OptimisticAdamState, optimistic_adam
from jaxsp.transforms.optimistic_dual_averaging import (
    OptimisticDualAveragingState,
    optimistic_dual_averaging,
)
from jaxsp.transforms.optimistic_snapshot import (
    OptimisticSnapshotState,
    optimistic_snapshot,
)
from jaxsp.transforms.past_extragradient import (
    PastExtragradientState,
    past_extragradient,
)
from jaxsp.transforms.primal_dual_gossip import (
    PrimalDualGossipState,
    PrimalDualSteps,
    primal_dual_gossip,
)
from jaxsp.transforms.prox_skip import ProxSkipState, prox_skip
from jaxsp.transforms.server_steps import LocalSteps, ServerStepsState, server_steps
from jaxsp.transforms.snapshot_extragradient import (
    SnapshotExtragradientState,
    snapshot_extragradient,
)
from jaxsp.transforms.sync import SyncMemory, SyncState, sync
from jaxsp.transforms.sync_players import SyncPlayersState, sync_players
from jaxsp.transforms.two_step_feedback import TwoStepFeedbackState, two_step_feedback

__all__ = [
    "AcceleratedDualGossipState",
    "AcceleratedDualSteps",
    "AlternatingExtragradientState",
    "AlternatingState",
    "ApplyIfAllFiniteState",
    "AverageState",
    "CompressedGossipState",
    "DelayState",
    "DifferenceAverageState",
    "DriftCorrectionState",
    "ErrorFeedbackAverageState",
    "ExtragradientState",
    "FederatedAverageState",
    "GossipState",
    "GradientTrackingState",
    "LocalSteps",
    "LookaheadState",
    "OptimisticAdamState",
    "OptimisticDualAveragingState",
    "OptimisticSnapshotState",
    "PastExtragradientState",
    "PrimalDualGossipState",
    "PrimalDualSteps",
    "ProxSkipState",
    "Refresh",
    "ServerStepsState",
    "SnapshotExtragradientState",
    "SyncMemory",
    "SyncPlayersState",
    "SyncState",
    "TwoStepFeedbackState",
    "accelerated_dual_gossip",
    "alternating",
    "alternating_extragradient",
    "apply_if_all_finite",
    "average",
    "compressed_gossip",
    "delay",
    "difference_average",
    "drift_correction",
    "error_feedback_average",
    "extragradient",
    "federated_average",
    "gossip",
    "gradient_tracking",
    "lookahead",
    "optimistic_adam",
    "optimistic_dual_averaging",
    "optimistic_snapshot",
    "past_extragradient",
    "primal_dual_gossip",
    "prox_skip",
    "server_steps",
    "snapshot_extragradient",
    "sync",
    "sync_players",
    "two_step_feedback",
]
