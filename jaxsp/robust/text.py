"""Text as rows of tokens: plain files, or what every installed Python holds.

The default needs no download: the docstrings of the top-level modules of the standard
library of the Python that runs, and the topics of its `help`. Of Python 3.11 that is
237 documents of 1.4 million characters. Another version of Python has another text.
"""

import ast
import glob
import pathlib
import sysconfig
import warnings
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from jaxsp._arguments import check_count

__all__ = ["MASK", "SEPARATOR", "Text", "load", "read", "standard_library"]
__all__ += ["train_tokenizer"]

SEPARATOR, MASK = 0, 1
SPECIAL = ("[SEP]", "[MASK]")  # the first tokens; a text never holds them
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_HELD_OUT = 10  # every tenth document


class Text(NamedTuple):
    """A text, ready to train on.

    Attributes:
      train: int32 `[rows, length]`.
      valid: likewise, of documents that `train` and the tokenizer have not seen.
      tokenizer: what made them.
    """

    train: np.ndarray
    valid: np.ndarray
    tokenizer: tokenizers.Tokenizer


def standard_library() -> dict[str, str]:
    """The documents of this Python: docstrings by module, and topics of its help."""
    from pydoc_data.topics import topics

    found = {}
    for path in sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py")):
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(path.read_bytes())
        texts = [
            text
            for node in ast.walk(tree)
            if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node))
        ]
        if texts:
            found[path.name] = "\n\n".join(texts)
    return found | {f"topic {name}": topics[name] for name in sorted(topics)}


def read(files: str) -> dict[str, str]:
    """The documents in files, in the order of their paths.

    Args:
      files: paths or patterns such as `books/*.txt`, with commas between; text in
        UTF-8.

    Returns:
      The text of each file by its path; of one file alone that of ten parts of it.

    Raises:
      ValueError: if a path matches no file, or a file is empty or not UTF-8.
    """
    paths = []
    for pattern in files.split(","):
        there = glob.glob(str(pathlib.Path(pattern.strip()).expanduser()))
        paths += (matching := [p for p in there if pathlib.Path(p).is_file()])
        if not matching:
            raise ValueError(f"no file matches {pattern.strip()!r}.")
    found = {}
    for path in sorted(set(paths)):
        try:
            found[path] = pathlib.Path(path).read_text("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no text in UTF-8: {error}.") from None
        if not found[path].strip():
            raise ValueError(f"{path} is empty.")
    if len(found) == 1:
        ((path, whole),) = found.items()
        size = -(-len(whole) // _HELD_OUT)
        parts = [whole[i : i + size] for i in range(0, len(whole), size)]
        return {f"{path}, part {i}": part for i, part in enumerate(parts)}
    return found


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Train byte-pair encoding on texts.

    It works on bytes, so that every text comes back as it was, and the same texts make
    the same tokenizer.

    Args:
      texts: to train on.
      vocab_size: the most tokens; at least 258, the bytes and two special ones.

    Returns:
      The tokenizer; tokens 0 and 1 are the special ones.

    Raises:
      ValueError: if `vocab_size` is too small.

    Example:
      >>> from jaxsp.robust import text
      >>> tokenizer = text.train_tokenizer(["to be or not to be"] * 9, 270)
      >>> tokenizer.decode(tokenizer.encode("not to be [MASK]").ids)
      'not to be [MASK]'
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    check_count("vocab_size", vocab_size, minimum=len(SPECIAL) + len(alphabet))
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True  # "[MASK]" in a text is letters
    return tokenizer


def load(files: str | None, vocab_size: int, length: int) -> Text:
    """Read a text, train a tokenizer on it, and cut it into rows.

    Every tenth document, or of fewer the last, is for validation, the rest for training
    and for the tokenizer. Documents are joined with a separator between; what does not
    fill a row is left out.

    Args:
      files: as `read` takes them; None for `standard_library`.
      vocab_size: as `train_tokenizer`.
      length: tokens of a row.

    Returns:
      The text.

    Raises:
      ValueError: if there is too little text for a row of each, or as `read`.
    """
    check_count("length", length, minimum=2)
    documents = list((standard_library() if files is None else read(files)).values())
    held = set(range(_HELD_OUT - 1, len(documents), _HELD_OUT)) or {len(documents) - 1}
    kept, held_out = [], []
    for i, document in enumerate(documents):
        (held_out if i in held else kept).append(document)
    tokenizer = train_tokenizer(kept, vocab_size)
    train, valid = (_rows(tokenizer, part, length) for part in (kept, held_out))
    if min(len(train), len(valid)) == 0:
        raise ValueError(
            f"files must hold more text: there is no row of length={length} tokens for "
            "training or for validation."
        )
    return Text(train, valid, tokenizer)


def _rows(tokenizer, texts: Sequence[str], length):
    encoded = tokenizer.encode_batch(texts)
    ids = [i for one in encoded for i in (*one.ids, SEPARATOR)]
    rows = len(ids) // length
    return np.array(ids[: rows * length], np.int32).reshape(rows, length)
