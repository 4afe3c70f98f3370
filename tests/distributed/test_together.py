"""What processes agree on, where there is one; many are in the tests of training."""

import os
import signal

import numpy as np
import pytest

from jaxsp import distributed
from jaxsp.distributed import together


def test_alone_an_error_is_what_it_is():
    assert distributed.is_alone()
    with pytest.raises(KeyError, match="lost") as caught, distributed.raise_together():
        raise KeyError("lost")
    assert not distributed.raised_in_all(caught.value)


def test_an_error_made_of_an_agreed_one_is_agreed():
    first = distributed.in_all(ValueError("first"))
    assert distributed.raised_in_all(first)

    def again():
        try:
            raise first
        except ValueError:
            raise OSError("second") from None

    with pytest.raises(OSError, match="second") as caught:
        again()
    assert distributed.raised_in_all(caught.value)
    assert not distributed.raised_in_all(OSError("another"))
    assert not distributed.raised_in_all(None)


def test_alone_all_know_what_one_knows():
    assert distributed.anywhere(True)
    assert not distributed.anywhere(False)
    vector = distributed.combine({2: 2**32 - 1, 0: 5}, 4)
    assert vector.tolist() == [5, 0, 2**32 - 1, 0]
    distributed.check_same("fit", {"anything": np.zeros(3)})


@pytest.fixture
def three(monkeypatch):
    """Process 1 of three, whose others are said to have given certain numbers."""
    others = []

    def process_max(values):
        return np.max([np.asarray(values, np.int64), *others.pop(0)], axis=0)

    monkeypatch.setattr(together, "is_alone", lambda: False)
    monkeypatch.setattr(together, "process_max", process_max)
    monkeypatch.setattr(together, "process_count", lambda: 3)
    monkeypatch.setattr(together, "process_index", lambda: 1)
    return others


@pytest.mark.parametrize(
    ("texts", "own", "kind", "said"),
    [
        (["", "", "!why?"], None, distributed.DistributedError, r"process 2: why\?"),
        # Its own error stays, whoever else failed.
        (["!first", "!mine", ""], OSError("mine"), OSError, "mine"),
        (["", "!KeyError: 'k'", ""], KeyError("k"), KeyError, "k"),
        (["", "!" + "long" * 500, ""], ValueError("long" * 1_000), ValueError, "long"),
        (["", "", ""], None, None, ""),
    ],
)
def test_the_first_process_that_failed_says_why(
    three, monkeypatch, texts, own, kind, said
):
    sent = []
    monkeypatch.setattr(together, "gather_text", lambda own: sent.append(own) or texts)

    def block():
        with distributed.raise_together():
            if own is not None:
                raise own

    if kind is None:
        block()
    else:
        with pytest.raises(kind, match=said) as caught:
            block()
        assert distributed.raised_in_all(caught.value)
    assert sent == [texts[1]]


def test_signals_are_seen_when_all_agree(three, terminal):
    with distributed.Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.seen is None
        three += [[[0, -4], [15, -9]]]
        assert signals.agree([7]) == [4]
        assert signals.seen == signal.SIGTERM
        three += [[[0, -1], [0, -1]]]
        signals.agree([1])
        assert signals.seen == signal.SIGINT


def test_a_signal_that_is_ignored_stays_ignored():
    """As SIGHUP under nohup; what has a handler gets it back."""
    heard = signal.signal(signal.SIGTERM, lambda *_: None)
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        handler = signal.getsignal(signal.SIGTERM)
        with distributed.Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signals.seen is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.seen == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == handler
    finally:
        signal.signal(signal.SIGTERM, heard)
        signal.signal(signal.SIGHUP, ignored)


def test_what_differs_is_named(three):
    for name in ("sizes", "config"):
        values = {"config": {"a": (1, "x")}, "sizes": [np.arange(3)]}
        sums = np.array([together._crc32(value) for value in values.values()])
        other = sums + np.array([name == "config", name == "sizes"])
        three += [[sums, other], [-sums, -other]]
        with pytest.raises(ValueError, match=f"^fit must .* and {name} is not the"):
            distributed.check_same("fit", values)


def test_what_is_compared_depends_on_values_shapes_and_words():
    same = together._crc32({"a": np.arange(6), "b": "text"})
    assert same == together._crc32({"a": np.arange(6), "b": "text"})
    for other in (
        {"a": np.arange(6)[::-1], "b": "text"},
        {"a": np.arange(6).reshape(2, 3), "b": "text"},
        {"a": np.arange(6), "b": "tent"},
        {"a": np.arange(6), "b": None, "c": 1},
    ):
        assert together._crc32(other) != same
