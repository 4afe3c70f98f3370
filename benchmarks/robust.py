"""Adversarial training of a transformer: compressors and MASHA at equal steps.

Each run goes to a directory of its own below --workdir, and one that is there is not
done again. `--rates` tries learning rates, on a seed of its own.
"""

import dataclasses
import pathlib
import sys

import numpy as np
from common import command_line, print_table

from jaxsp.gan.training import TrainingDivergedError, plots

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "examples"))
import train_robust

FEEDBACK = {"method": "error_feedback"}
ROWS: dict[str, dict] = {
    "full precision": {},
    "plain training, full precision": {"attack_steps": 0},
    "8 bits": {"compressor": "quantize:8"},
    "8 bits, feedback": FEEDBACK | {"compressor": "quantize:8"},
    "4 bits": {"compressor": "quantize:4"},
    "4 bits, feedback": FEEDBACK | {"compressor": "quantize:4"},
    "PowerSGD rank 4": {"compressor": "low_rank:4"},
    "PowerSGD rank 4, feedback": FEEDBACK | {"compressor": "low_rank:4"},
    "Top 1 %": {"compressor": "top_k:0.01"},
    "Top 1 %, feedback": FEEDBACK | {"compressor": "top_k:0.01"},
    "MASHA1, 4 bits": {"method": "vr_masha1"},
    "MASHA2, Top 10 %": {"method": "vr_masha2"},
}
RATES = {"full precision": (2e-3, 5e-3, 1e-2), "MASHA1, 4 bits": (0.1, 0.3, 1.0)}
RATES["MASHA2, Top 10 %"] = RATES["MASHA1, 4 bits"]


def measure(root, name, steps, seed, **flags):
    """The records of a run, or None if it diverges."""
    settings = ROWS[name] | flags
    label = "-".join([name, *map(str, flags.values()), str(seed)])
    config = train_robust.Config(
        steps=steps,
        decay_steps=steps,
        warmup_steps=max(1, steps // 10),
        eval_every=max(1, steps // 4),
        attack_warmup=steps,
        eval_rows=256,
        seed=seed,
        workdir=str(root / label.replace(" ", "_").replace(",", "")),
        resume=True,
    )
    try:
        run = train_robust.run(dataclasses.replace(config, **settings), progress=False)
    except TrainingDivergedError:
        return None
    return run.history


def megabytes(record):
    """Sent and received by a worker."""
    return (record["bits_up"] + record["bits_down"]) / 8e6


def table_rows(root, steps, seeds, names=tuple(ROWS)):
    """The cells of the table, a row as soon as it is measured."""
    reference = None
    for name in names:
        runs = [measure(root, name, steps, seed) for seed in seeds]
        if any(run is None for run in runs):
            yield [name, "diverges", "", "", "", ""]
            continue
        last = [run[-1] for run in runs if run]
        clean, robust = ([r[k] for r in last] for k in ("clean_loss", "robust_loss"))
        sent = megabytes(last[0])
        reference = reference or (np.array(robust), sent)
        more = np.array(robust) / reference[0] - 1
        yield [
            name,
            " ".join(f"{v:.3f}" for v in clean),
            " ".join(f"{v:.3f}" for v in robust),
            f"{100 * more.mean():+.1f} %",
            f"{sent:.2f}",
            f"{reference[1] / sent:.1f}",
        ]


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/robust-benchmark")
    parser.add_argument("--rates", action="store_true", help="only try learning rates")
    parser.add_argument("--plot", type=pathlib.Path, help="the PNG to write")
    args = parser.parse_args()
    if args.rates:
        print_table(
            ["", "learning rate", "robust loss"],
            (
                [name, rate, run[-1]["robust_loss"] if run else "diverges"]
                for name, rates in RATES.items()
                for rate in rates
                for run in [
                    measure(args.workdir, name, args.steps, 9, learning_rate=rate)
                ]
            ),
        )
        return
    print_table(
        ["", "clean loss", "under attack", "to full precision", "MB", "times fewer"],
        table_rows(args.workdir, args.steps, range(args.seeds)),
    )
    if args.plot:
        runs = {name: measure(args.workdir, name, args.steps, 0) for name in ROWS}
        plots.plot_comparison(
            {name: run for name, run in runs.items() if run},
            args.plot,
            ("clean_loss", "robust_loss"),
            f"adversarial training, validation loss in nats, {args.steps} steps",
        )


if __name__ == "__main__":
    main()
