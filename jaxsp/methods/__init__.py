r"""The papers' methods by name, each a composition of transformations.

All are called alike, `update(F(z), state, z, operator_fn=F)`, where `F` is the worker's
own operator (`jaxsp.saddle`, `jaxsp.game`) and `z` the worker's parameters. Methods
with two oracle calls an iteration take the second through `operator_fn`, a function of
the point alone; methods with one ignore it. A worker count of 1 is legal everywhere.

`eval_params(state, params)` is the point to report.
"""

from jaxsp.methods.dposg import cp_oadam, dp_oadam, dposg, rand_dp_oadam
from jaxsp.methods.evaluation import eval_params
from jaxsp.methods.extra_step import (
    decentralized_extra_step,
    extra_step,
    extra_step_local_sgd,
)

__all__ = [
    "cp_oadam",
    "decentralized_extra_step",
    "dp_oadam",
    "dposg",
    "eval_params",
    "extra_step",
    "extra_step_local_sgd",
    "rand_dp_oadam",
]
