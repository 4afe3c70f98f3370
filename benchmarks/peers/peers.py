"""jaxsp beside what people use: optax, cooper, DrJAX, PyTorch's DDP and its hooks.

    python benchmarks/peers/peers.py [--peers optax cooper drjax ddp] [--output FILE]

Both sides of a row play the same game from the same start on the same data by the same
rule. First they must agree to 1e-6 of the point, in float64, or the script ends. Then
they take turns in float32 on one core each, and a ratio is the median over turns, of
seconds and of seconds of CPU (user and system, all threads) per iteration.

Where jaxsp stands beside PyTorch it runs twice: its iterations in one compiled loop,
which goals are about, and, in rows that say so, a call of Python for each, as PyTorch
runs them. DDP is in `ddp.py`, which this script starts.

All packages are on PyPI: pip install -e ".[bench]". Without one of them the rows that
need it are left out, and a line says so.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import in_torch
import jax
import numpy as np
import optax
from common import command_line, in_turns, print_table
from games import Game, all_games
from in_jax import CLIENTS, LOCAL, Side, drjax_rounds, in_a_loop

import jaxsp
from jaxsp.transforms import past_extragradient

PEERS = ("optax", "cooper", "drjax", "ddp")
CLOSE = 1e-6  # of the larger of the point and 1
SECONDS = 0.1  # of a turn
# Implementations add ε in other places.
ADAM: dict[str, Any] = {"b1": 0.5, "b2": 0.9, "eps": 1e-16}


class Row(NamedTuple):
    """What is compared.

    Attributes:
      game: the problem's name.
      method: the rule.
      peer: who else does it.
      ours, theirs: make a `Side` of a dtype.
      steps: how many iterations must agree, and are the least of a turn.
      goal: how many times faster jaxsp is to be, or None.
    """

    game: str
    method: str
    peer: str
    ours: Callable[[Any], Side]
    theirs: Callable[[Any], Side]
    steps: int = 20
    goal: float | None = None


class DisagreementError(Exception):
    """Two sides of a row are not at the same point."""


# ------------------------------------------------------------------ rows


def optax_rows(game: Game) -> Iterator[Row]:
    """The optimistic methods of optax itself.

    Their first step takes F(z) for the gradient before it, and so must ours: it starts
    that far ahead.
    """
    one = jaxsp.Workers(1, jax.devices()[:1])
    for method, rate, direction, theirs in (
        (
            "optimistic gradient",
            game.rate,
            optax.identity(),
            optax.optimistic_gradient_descent(game.rate),
        ),
        (
            "optimistic Adam",
            game.adam_rate,
            optax.scale_by_adam(**ADAM),
            optax.optimistic_adam_v2(game.adam_rate, **ADAM, nesterov=False),
        ),
    ):

        def seed(state, z, g, direction=direction, rate=rate):
            first, _ = direction.update(g, direction.init(z), z)
            ahead = jax.tree.map(lambda u: rate * u, first)
            return state[0], state[1]._replace(ahead=ahead)

        ours: Any = optax.chain(direction, past_extragradient(rate))
        yield Row(
            game.name,
            method,
            "optax",
            partial(in_a_loop, ours, game, workers=one, seed=seed),
            partial(in_a_loop, optax.with_extra_args_support(theirs), game),
        )


def cooper_rows(game: Game) -> Iterator[Row]:
    """ExtraSGD and ExtraAdam of cooper, in PyTorch."""
    in_torch.need("torch", "cooper")
    one = jaxsp.Workers(1, jax.devices()[:1])
    for method, rate, base, options in (
        ("ExtraSGD", game.rate, optax.sgd(game.rate), {}),
        ("ExtraAdam", game.adam_rate, optax.adam(game.adam_rate, **ADAM), ADAM),
    ):
        ours = partial(in_a_loop, jaxsp.extragradient(base), game, workers=one)
        theirs = partial(in_torch.cooper_side, Side, method, rate, options, game)
        row = Row(game.name, method, "cooper", ours, theirs, goal=game.goal)
        yield row
        yield row._replace(
            method=f"{method}, a call each", ours=partial(ours, each=True), goal=None
        )


def drjax_rows(game: Game) -> Iterator[Row]:
    """Rounds of local extragradient steps in DrJAX."""
    in_torch.need("drjax")
    workers = jaxsp.Workers(CLIENTS, jax.devices()[:1])
    method = jaxsp.methods.extra_step_local_sgd(game.rate, LOCAL, workers.axis_name)
    yield Row(
        game.name,
        f"{LOCAL} local ExtraSGD, {CLIENTS} workers",
        "drjax",
        partial(in_a_loop, method, game, workers=workers),
        partial(drjax_rounds, game.rate, game),
    )


ROWS = {"optax": optax_rows, "cooper": cooper_rows, "drjax": drjax_rows}


# ------------------------------------------------------------------ measuring


def difference(ours: Side, theirs: Side, steps: int) -> float:
    """How far the points are from each other after so many iterations."""
    for side in (ours, theirs):
        jax.block_until_ready(side.run(steps))
    a, b = ours.point(), theirs.point()
    return float(np.max(np.abs(a - b)) / max(1.0, np.max(np.abs(b))))


def check(name: str, far: float, close: float = CLOSE) -> float:
    """The difference, if it is small enough.

    Raises:
      DisagreementError: if it is not, or is no number.
    """
    if not far <= close:
        raise DisagreementError(
            f"{name}: the two sides are {far:.1e} from each other, more than {close:g}:"
            " they do not do the same, and nothing was timed."
        )
    return far


def clock() -> np.ndarray:
    """Seconds, and seconds of CPU of all threads."""
    return np.array([time.perf_counter(), time.process_time()])


def measure(row: Row, repeats: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Check that both sides agree, and then time them in turns."""
    name = ", ".join(row[:3])
    with jax.enable_x64(True):
        pair = row.ours(np.float64), row.theirs(np.float64)
        far = check(name, difference(*pair, row.steps))
    sides = {"ours": row.ours(np.float32), "theirs": row.theirs(np.float32)}
    counts = {}
    for which, side in sides.items():  # turns of equal length, in whole rounds
        jax.block_until_ready(side.run(row.steps))
        start = time.perf_counter()
        jax.block_until_ready(side.run(row.steps))
        took = (time.perf_counter() - start) / row.steps
        counts[which] = row.steps * max(1, round(seconds / took / row.steps))
    calls = {w: partial(side.run, counts[w]) for w, side in sides.items()}
    found = in_turns(calls, repeats, clock=clock)
    return summary(row, far, {w: t / counts[w] for w, t in found.items()})


def summary(row: Row, far: float, seconds: dict[str, np.ndarray]) -> dict:
    """A row's figures, of seconds and CPU seconds an iteration, `[turn, 2]` each."""
    ours, theirs = seconds["ours"], seconds["theirs"]
    figures: dict[str, Any] = row._asdict()
    figures = {name: figures[name] for name in ("game", "method", "peer")}
    for i, kind in enumerate(("wall", "cpu")):
        figures |= {
            f"{kind}_us": 1e6 * float(np.median(ours[:, i])),
            f"peer_{kind}_us": 1e6 * float(np.median(theirs[:, i])),
            f"{kind}_ratio": float(np.median(theirs[:, i] / ours[:, i])),
        }
    met = None if row.goal is None else bool(figures["wall_ratio"] >= row.goal)
    return figures | {"difference": far, "goal": row.goal, "met": met}


@contextlib.contextmanager
def on_one_core(which: int) -> Iterator[None]:
    """Keep this process on one core; begins before a library has made its threads."""
    jax.config.update("jax_platforms", "cpu")
    if not hasattr(os, "sched_setaffinity"):  # no Linux
        yield
        return
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, [cores[which % len(cores)]])
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def in_processes(repeats: int, seconds: float) -> list[dict[str, Any]]:
    """What `ddp.py` finds, in two processes."""
    in_torch.need("torch")
    script = pathlib.Path(__file__).with_name("ddp.py")
    with tempfile.TemporaryDirectory() as directory:
        task = {"repeats": repeats, "seconds": seconds, "directory": directory}
        command = [sys.executable, "-m", "jaxsp.launch", "-n", "2", str(script)]
        ended = subprocess.run([*command, json.dumps(task)], check=False)
        if ended.returncode:
            raise DisagreementError("the processes beside DDP failed, as said above.")
        path = pathlib.Path(directory) / "rows.json"
        return json.loads(path.read_text())


HEAD = ["game", "method", "beside", "µs", "its µs", "times faster", "CPU µs"]
HEAD += ["its CPU µs", "times less", "apart", "goal"]


def cells(found: dict[str, Any]) -> list[str]:
    """A line of the table."""
    line = [found[name] for name in ("game", "method", "peer")]
    for kind in ("wall", "cpu"):
        line += [f"{found[f'{p}{kind}_us']:,.1f}" for p in ("", "peer_")]
        line.append(f"{found[f'{kind}_ratio']:.2f}")
    line.append(f"{found['difference']:.0e}")
    goal = "" if found["goal"] is None else f"{found['goal']:g}: "
    return [*line, goal + {None: "", True: "met", False: "missed"}[found["met"]]]


def versions() -> dict[str, str]:
    """Of the packages that are installed."""
    known = {}
    for name in ("jax", "optax", "torch", "cooper-optim", "drjax"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    return known


def all_rows(peers, repeats, seconds, left_out) -> Iterator[dict[str, Any]]:
    """Measure the rows beside each peer; `left_out` gets what is not installed."""
    for peer in peers:
        try:
            if peer == "ddp":
                yield from in_processes(repeats, seconds)
                continue
            with on_one_core(0):
                for game in all_games():
                    for row in ROWS[peer](game):
                        yield measure(row, repeats, seconds)
        except in_torch.MissingPackageError as error:
            left_out[peer] = str(error)
            print(f"beside {peer}: {error}", file=sys.stderr)


def main():
    parser = command_line(__doc__)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a turn")
    parser.add_argument("--output", type=pathlib.Path, help="a JSON file to write")
    arguments = parser.parse_args()
    found, left_out = [], {}

    def lines():
        options = arguments.repeats, arguments.seconds, left_out
        for row in all_rows(arguments.peers, *options):
            found.append(row)
            yield cells(row)

    try:
        print_table(HEAD, lines())
    except DisagreementError as error:
        sys.exit(f"peers: {error}")
    if arguments.output:
        result = {"machine": platform.platform(), "versions": versions()}
        result |= {"rows": found, "left_out": left_out}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
