"""The command: `python -m jaxsp.gan.scores.inception convert SOURCE DEST.npz`."""

import argparse
import logging
import sys
from collections.abc import Sequence

from jaxsp.gan.scores.inception.weights import SOURCES, convert


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxsp.gan.scores.inception",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="The Inception weights of the FID.\n\n" + SOURCES,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("convert", help="convert a public PyTorch file")
    command.add_argument("source", help="the .pth or .pt that was downloaded")
    command.add_argument("dest", help="the .npz to write")
    command.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of the kernels: 87 or 44 MB",
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        digest = convert(options.source, options.dest, options.dtype)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.dest}: sha256 of the arrays {digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
