"""Whatever happens to a file, a run goes on with the same numbers or says which."""

import dataclasses
import functools
import json
import os
import shutil
import types

import jax
import numpy as np
import optax
import pytest

import jaxsp
from jaxsp.gan import data, losses, models, step
from jaxsp.gan.data import partition
from jaxsp.gan.training import checkpoint, loop, plots, records

WORKERS = jaxsp.Workers(2, jax.devices()[:1])
GAN = models.mlp((2,), latent_size=2, width=4, depth=1)
CONFIG = loop.TrainConfig(
    steps=10, log_every=2, eval_every=5, checkpoint_every=5, progress=False
)


@functools.cache
def program():
    method = jaxsp.average(WORKERS.axis_name)
    method = optax.chain(method, optax.sgd(1e-2))
    return step.program(GAN, losses.non_saturating(GAN), method, WORKERS, batch_size=4)


def fit(**kwargs):
    """A run of a moment."""
    full = data.load("mixture_ring")
    few = dataclasses.replace(
        full, train=full.train[:40], train_labels=full.train_labels[:40]
    )
    parts = partition.iid(few.train_labels, WORKERS.count, seed=0)
    return loop.train(program(), few, parts, CONFIG, **kwargs)


def go_on(workdir):
    """What a run would go on with: the state, its step, the records until then."""
    settings = json.loads((workdir.parent / "config.json").read_text())["settings"]
    free = {"steps": CONFIG.steps}
    opened = checkpoint.open_run(
        workdir, settings, free, True, program(), jax.random.key(0)
    )
    with opened as (_, state, progress, restarted):
        assert restarted is None
        recorder = records.Recorder(program(), None, None, None, workdir, progress)
        leaves = jax.tree.leaves(WORKERS.fetch(state))
        return progress.step, [x.tobytes() for x in leaves], recorder.history


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with checkpoints of two steps, and what goes on from each."""
    kept = plots.plot_samples, plots.plot_curves, partition.plot
    plots.plot_samples = plots.plot_curves = partition.plot = lambda *args: None
    path = tmp_path_factory.mktemp("damaged")
    fit(workdir=path / "run")
    plots.plot_samples, plots.plot_curves, partition.plot = kept
    shutil.copy(path / "run" / "config.json", path)
    last, aside = path / "run" / "checkpoints" / "10", path / "10"
    expected = {10: go_on(path / "run")[1:]}
    metrics = (path / "run" / "metrics.jsonl").read_bytes()
    last.rename(aside)
    expected[5] = go_on(path / "run")[1:]
    aside.rename(last)
    (path / "run" / "metrics.jsonl").write_bytes(metrics)
    return types.SimpleNamespace(path=path / "run", expected=expected)


@pytest.fixture
def restored(run):
    """A function that makes the run again what it was."""
    files = {p: p.read_bytes() for p in run.path.rglob("*") if p.is_file()}

    def restore():
        for aside in run.path.glob("damaged_*"):
            step = aside.name.split("_")[1]
            aside.rename(run.path / "checkpoints" / step)
        for path in set(run.path.rglob("*")) - set(files):
            if path.is_file():
                path.unlink()
        for path, content in files.items():
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    yield restore
    restore()


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    """Without waiting for a disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
    file.write_bytes(content)


def cut(file, rng):
    os.truncate(file, int(rng.integers(file.stat().st_size)))


def fill(file, rng):
    """As some file systems leave what was not on the disk."""
    file.write_bytes(bytes(file.stat().st_size))


def empty(file, rng):
    os.truncate(file, 0)


def remove(file, rng):
    file.unlink()


def check(run, name, caplog):
    """Go on in a damaged directory: with the same numbers, or it says what is wrong."""
    caplog.clear()
    try:
        at, state, history = go_on(run.path)
    except checkpoint.WorkdirError as raised:
        error = str(raised)
    else:
        error = None
    if error is not None:
        assert str(run.path / name) in error
        assert "\n" not in error
        return
    wanted, lines = run.expected[at]
    assert state == wanted, name
    said = [r.getMessage() for r in caplog.records if r.name.startswith("jaxsp")]
    assert len(said) <= 1, said
    if at != 10:
        assert f"{run.path / 'checkpoints' / '10'} is damaged" in said[0]
    if history != lines:
        assert history == []
        assert f"{run.path / name} is gone" in said[0]


DAMAGES = (flip, cut, fill, empty, remove)


def test_no_damage_to_a_file_changes_a_number(run, restored, caplog):
    """To files that hold no array in every way, to some arrays in one, by a seed."""
    rng = np.random.default_rng(0)
    for path in sorted(p for p in run.path.rglob("*") if p.is_file()):
        is_array = {"shards", "summary"} & {*path.parts}
        one = [rng.choice(DAMAGES)] if rng.random() < 0.3 else []
        every = one if is_array else [flip, *DAMAGES]
        parts = path.relative_to(run.path).parts
        name = "/".join(parts[:2] if parts[0] == "checkpoints" else parts)
        for damage in every:
            if path.stat().st_size:
                damage(path, rng)
                check(run, name, caplog)
                restored()


@pytest.mark.parametrize("kind", ["nothing", "file", "other", "copy"])
def test_what_is_no_checkpoint_is_no_harm(run, caplog, kind):
    stray = run.path / "checkpoints" / "999"
    if kind == "file":
        stray.write_text("")
    elif kind == "copy":
        shutil.copytree(run.path / "checkpoints" / "5", stray)
    else:
        stray.mkdir()
        if kind == "other":
            (stray / "note").write_text("")
    try:
        assert go_on(run.path)[1:] == run.expected[10]
        if kind != "file":
            assert f"{stray} is damaged" in caplog.text
    finally:
        stray.unlink(missing_ok=True)
        shutil.rmtree(run.path / "damaged_999", ignore_errors=True)


class Disk:
    """What power loss would leave of a directory, now and then."""

    def __init__(self, watched, copies):
        self._watched, self._copies = watched, copies
        self._synced, self._count = {}, 0
        self.unsynced_names = set()

    def fsync(self, descriptor):
        found = os.fstat(descriptor)
        self._synced[found.st_ino] = found.st_size, found.st_mtime_ns
        self.unsynced_names.discard(found.st_ino)
        self._count += 1
        if self._count % 25 == 0:
            shutil.copytree(
                self._watched, self._copies / str(self._count), copy_function=self._copy
            )

    def rename(self, call, source, target):
        call(source, target)
        self.unsynced_names.add(os.stat(os.path.dirname(target)).st_ino)

    def _copy(self, source, target):
        """Of a file what was synced; all of one that has not changed since."""
        found = os.stat(source)
        size, at = self._synced.get(found.st_ino, (0, None))
        shutil.copy(source, target)
        if at != found.st_mtime_ns:
            os.truncate(target, min(size, found.st_size))


def test_power_loss_takes_no_more_than_what_came_after_the_checkpoint(
    run, tmp_path, monkeypatch
):
    for module, name in ((plots, "plot_samples"), (plots, "plot_curves")):
        monkeypatch.setattr(module, name, lambda *args: None)
    monkeypatch.setattr(partition, "plot", lambda *args: None)
    disk = Disk(tmp_path / "run", tmp_path / "lost")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk.fsync)
        for name in ("rename", "replace"):
            patch.setattr(os, name, functools.partial(disk.rename, getattr(os, name)))
        whole = fit(workdir=tmp_path / "run")
    assert not disk.unsynced_names
    copies = sorted((tmp_path / "lost").iterdir())
    assert len(copies) > 3
    steps = set()
    for copy in copies:
        kept = (p.name for p in copy.glob("checkpoints/*") if p.name.isdecimal())
        steps.add(max(map(int, kept), default=None))
        again = fit(workdir=copy, resume=True)
        jax.tree.map(np.testing.assert_array_equal, again.state, whole.state)
        assert [r | {"seconds": 0} for r in again.history] == [
            r | {"seconds": 0} for r in whole.history
        ]
    assert len(steps) > 2
