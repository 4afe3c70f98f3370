r"""Step sizes, refresh probabilities and contraction factors from a game's constants.

Worker $m$ has an operator $F_m$ with Lipschitz constant $L_m$. Their mean
$F = \frac1M \sum_m F_m$ is $\mu$-strongly monotone ($\mu = 0$: monotone), and
$\tilde L^2 = \frac1M \sum_m L_m^2$. The compressor of worker $m$ is unbiased with
$\mathbb E|Q_m(v)|^2 \le q_m |v|^2$, or contractive with
$\mathbb E|C(v) - v|^2 \le (1 - 1/\delta)|v|^2$. A refresh is an exchange of
uncompressed operators; it follows an iteration with probability $1 - \tau$.

Each docstring says whether its constants are proved, follow from a proved bound, or are
this library's choice.

Example:
  >>> from jaxsp import theory
  >>> theory.masha1(1.0, 0.1, q=10.0, workers=40)
  StepSize(learning_rate=0.20203..., refresh=0.1, contraction=0.98989...)

References:
  Beznosikov, Richtárik, Diskin, Ryabinin, Gasnikov, *Distributed methods with
  compressed communication for solving variational inequalities, with theoretical
  guarantees*, NeurIPS 2022, arXiv 2110.03313.
"""

from jaxsp.theory.decentralized import (
    DecentralizedStep,
    TimeVaryingStep,
    optimal_decentralized,
    optimal_time_varying,
)
from jaxsp.theory.masha import StepSize, extra_step, masha1, masha2, pp_masha1
from jaxsp.theory.similarity import (
    OptimisticStep,
    ServerStep,
    optimistic_masha,
    three_pillars,
)

__all__ = [
    "DecentralizedStep",
    "OptimisticStep",
    "ServerStep",
    "StepSize",
    "TimeVaryingStep",
    "extra_step",
    "masha1",
    "masha2",
    "optimal_decentralized",
    "optimal_time_varying",
    "optimistic_masha",
    "pp_masha1",
    "three_pillars",
]
