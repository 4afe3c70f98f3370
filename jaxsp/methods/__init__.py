r"""The papers' methods by name, each a composition of transformations.

All are called alike, `update(F(z), state, z, operator_fn=F)`, where `F` is the worker's
own operator (`jaxsp.saddle`, `jaxsp.game`) and `z` the worker's parameters. Methods
with two oracle calls an iteration take the second through `operator_fn`, a function of
the point alone; methods with one ignore it. A worker count of 1 is legal everywhere.

`eval_params(state, params)` is the point to report.
"""

from jaxsp.methods.baselines import (
    compressed_extragradient,
    diana_sgda,
    ef21_sgda,
    error_feedback_extragradient,
    qsgda,
)
from jaxsp.methods.dposg import cp_oadam, dp_oadam, dposg, rand_dp_oadam
from jaxsp.methods.dqgan import cp_oadam_gq, dqgan, dqgan_adam
from jaxsp.methods.dual_averaging import qoda
from jaxsp.methods.evaluation import eval_params
from jaxsp.methods.extra_step import (
    decentralized_extra_step,
    extra_step,
    extra_step_local_sgd,
    local_extra_adam,
)
from jaxsp.methods.local import fedgda_gt, proxskip_vip
from jaxsp.methods.masha import masha1, masha2, pp_masha1, vr_masha1, vr_masha2
from jaxsp.methods.optimal_decentralized import (
    optimal_decentralized,
    optimal_time_varying,
    vr_optimal_decentralized,
)
from jaxsp.methods.players import pearl_sgd
from jaxsp.methods.similarity import optimistic_masha, three_pillars
from jaxsp.methods.tracking import (
    tracked_dp_oadam,
    tracked_extragradient,
    tracked_optimistic,
)

__all__ = [
    "compressed_extragradient",
    "cp_oadam",
    "cp_oadam_gq",
    "decentralized_extra_step",
    "diana_sgda",
    "dp_oadam",
    "dposg",
    "dqgan",
    "dqgan_adam",
    "ef21_sgda",
    "error_feedback_extragradient",
    "eval_params",
    "extra_step",
    "extra_step_local_sgd",
    "fedgda_gt",
    "local_extra_adam",
    "masha1",
    "masha2",
    "optimal_decentralized",
    "optimal_time_varying",
    "optimistic_masha",
    "pearl_sgd",
    "pp_masha1",
    "proxskip_vip",
    "qoda",
    "qsgda",
    "rand_dp_oadam",
    "three_pillars",
    "tracked_dp_oadam",
    "tracked_extragradient",
    "tracked_optimistic",
    "vr_masha1",
    "vr_masha2",
    "vr_optimal_decentralized",
]
