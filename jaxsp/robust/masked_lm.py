r"""Masked language modelling, plain and under attack.

Of every row a fixed number of positions is to be guessed, so that a mean over rows, and
over workers, weighs all guesses alike. Of these 80 % are masked, 10 % replaced by any
token, 10 % left, each position by itself.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tokenizers

from jaxsp.operators import saddle
from jaxsp.robust.adversary import Attack
from jaxsp.robust.encoder import Albert
from jaxsp.robust.text import MASK, SPECIAL

__all__ = ["Batch", "changes", "evaluator", "loss", "mask", "start"]

_RATE = 0.15  # of the positions


class Batch(NamedTuple):
    """Rows with gaps.

    Attributes:
      tokens: int32 `[batch, length]`, as the encoder sees them.
      predict: the positions to guess, int32 `[batch, number]`.
      targets: what stood there, int32 `[batch, number]`.
    """

    tokens: jax.Array
    predict: jax.Array
    targets: jax.Array


def mask(key: jax.Array, rows: jax.Array, vocab_size: int) -> Batch:
    """Make gaps in rows of tokens.

    Args:
      key: a key of one's own.
      rows: int32 `[batch, length]`.
      vocab_size: how many tokens there are.

    Returns:
      The batch; 15 % of the length, rounded up, are to be guessed.
    """
    which, what, token = jax.random.split(key, 3)
    number = int(np.ceil(_RATE * rows.shape[1]))
    order = jnp.argsort(jax.random.uniform(which, rows.shape), axis=1)
    predict = jnp.sort(order[:, :number], axis=1)
    targets = jnp.take_along_axis(rows, predict, axis=1)
    chance = jax.random.uniform(what, predict.shape)
    other = jax.random.randint(token, predict.shape, len(SPECIAL), vocab_size)
    shown = jnp.where(chance < 0.9, other, targets)
    shown = jnp.where(chance < 0.8, MASK, shown)
    tokens = jax.vmap(lambda row, at, new: row.at[at].set(new))(rows, predict, shown)
    return Batch(tokens, predict, targets)


def start(model: Albert, rows: jax.Array) -> jax.Array:
    """No perturbation: zeros of the shape of the rows' embedding."""
    return jnp.zeros((*rows.shape, model.embedding_size))


def loss(model: Albert) -> Callable[..., tuple[jax.Array, jax.Array]]:
    r"""The loss of the game, $f(\theta, \delta)$.

    Args:
      model: the encoder.

    Returns:
      `f(params, delta, batch)`: the mean cross-entropy of the guesses in nats, and the
      share of them that is right, with `delta` added to the embedding.
    """

    def f(params, delta, batch):
        logits: Any = model.apply(
            {"params": params}, batch.tokens, batch.predict, delta
        )
        lost = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets)
        right = jnp.argmax(logits, axis=-1) == batch.targets
        return lost.mean(), right.mean()

    return f


def evaluator(
    model: Albert, attack: Attack, rows: np.ndarray, batch_size: int = 64
) -> Callable[[Any], dict[str, float]]:
    """What parameters are worth on rows of text, plain and under attack.

    The gaps are the same in every call and every run.

    Args:
      model: the encoder.
      attack: the adversary, stronger than the one in training.
      rows: int32 `[rows, length]`.
      batch_size: rows at a time; the fewer rows of a last batch are left out.

    Returns:
      `evaluate(params)`, which returns `clean_loss`, `robust_loss`, `clean_accuracy`
      and `robust_accuracy` by name.
    """
    size = min(batch_size, len(rows))
    batches = jnp.asarray(rows[: len(rows) // size * size]).reshape(
        -1, size, *rows[0].shape
    )
    keys = jax.random.split(jax.random.key(0), len(batches))
    f = loss(model)
    operator = saddle(lambda *args: f(*args)[0])

    @jax.jit
    def evaluate(params, keys, batches):
        def one(given):
            batch = mask(given[0], given[1], model.vocab_size)
            zero = start(model, given[1])
            delta = attack.ascend(operator, params, zero, batch)
            return jnp.stack([*f(params, zero, batch), *f(params, delta, batch)])

        return jax.lax.map(one, (keys, batches)).mean(axis=0)

    names = "clean_loss", "clean_accuracy", "robust_loss", "robust_accuracy"
    return lambda params: dict(
        zip(names, evaluate(params, keys, batches).tolist(), strict=True)
    )


def changes(
    model: Albert,
    attack: Attack,
    rows: np.ndarray,
    tokenizer: tokenizers.Tokenizer,
) -> Callable[[Any], str]:
    """What an attack changes, to read.

    Args:
      model: the encoder.
      attack: the adversary.
      rows: int32 `[rows, length]`.
      tokenizer: what made the rows.

    Returns:
      `show(params)`: for each row the text as the encoder sees it, with `a{b}` where
      the perturbed embedding of the token a is nearest to that of b; and a line with
      what stood in the gaps, what is guessed, and what under attack.
    """
    f = loss(model)

    @jax.jit
    def run(params, key, rows):
        batch = mask(key, rows, model.vocab_size)
        operator = saddle(lambda *args: f(*args)[0])
        zero = start(model, rows)
        delta = attack.ascend(operator, params, zero, batch)
        variables = {"params": params}

        def guess(d):
            logits: Any = model.apply(variables, batch.tokens, batch.predict, d)
            return logits.argmax(-1)

        x: Any = model.apply(variables, batch.tokens, method="embed")
        nearest = model.apply(variables, x + delta, method="nearest")
        norms = jax.vmap(jnp.linalg.norm)(delta.reshape(len(rows), -1))
        return (*batch, nearest, guess(zero), guess(delta), norms)

    def word(token):
        return tokenizer.decode([token], skip_special_tokens=False)

    def show(params):
        found = run(params, jax.random.key(0), jnp.asarray(rows))
        tokens, _, targets, nearest, clean, robust, norms = map(np.asarray, found)
        lines = []
        for i, row in enumerate(tokens.tolist()):
            seen = [
                word(old) + (f"{{{word(new)}}}" if old != new else "")
                for old, new in zip(row, nearest[i].tolist(), strict=True)
            ]
            gaps = zip(targets[i], clean[i], robust[i], strict=True)
            guesses = [" -> ".join(repr(word(int(t))) for t in gap) for gap in gaps]
            lines += [f"row {i}, perturbation of norm {norms[i]:.3g}:", "".join(seen)]
            lines += ["gap -> guess -> guess under attack: " + ", ".join(guesses), ""]
        return "\n".join(lines)

    return show
