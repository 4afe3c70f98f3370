"""The benchmark on a slow network: its numbers, its model, what it leaves behind."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2] / "benchmarks/network"


@pytest.fixture(autouse=True)
def _siblings(monkeypatch):
    """As where a script of `benchmarks/network/` is run."""
    for folder in (ROOT.parent, ROOT):
        monkeypatch.syspath_prepend(str(folder))


load = importlib.import_module


@pytest.fixture
def namespaces():
    """The module, where a network can be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need root on Linux")
    if subprocess.run(["unshare", "--net", "tc", "-V"], capture_output=True).returncode:
        pytest.skip("the kernel refuses a network namespace, or there is no tc")
    return load("namespaces")


def measuring(*flags):
    """`measure.py`, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "measure.py"), *map(str, flags)],
        env=dict(os.environ, PYTHONPATH=str(ROOT.parents[1])),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, seconds=240):
    """The exit code and what was said, after so many seconds at most."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, out, err


# ------------------------------------------------------------------ reading


@pytest.mark.parametrize(
    ("rate", "bits"), [("100mbit", 1e8), ("2.5gbit", 2.5e9), ("64KBIT", 64e3)]
)
def test_rates_are_tcs(rate, bits):
    assert load("namespaces").parse_rate(rate) == bits


@pytest.mark.parametrize("rate", ["100", "fast", "0mbit", "-1mbit", "1mbps", "mbit"])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match="rate must be a positive number with bit"):
        load("namespaces").parse_rate(rate)


def test_a_summary_takes_the_busiest_process_and_whole_cycles():
    # Cycles of two steps: 10 + 30, 10 + 50, 10 + 70 ms; the other process is faster.
    slow = dict(seconds=[0.01, 0.03, 0.01, 0.05, 0.01, 0.07], cycle=2)
    slow |= dict(up=[0, 8000] * 3, down=[0, 4000] * 3, sent=3300, received=1700)
    fast = dict(seconds=[0.001] * 6, cycle=2, sent=1650, received=6600)
    fast |= dict(up=[0, 4000] * 3, down=[0, 16000] * 3)
    row = load("measure").summary([slow, fast], 1e6)
    assert row == pytest.approx(
        {
            "steps": 6,
            "step_ms": 30,
            "least_ms": 20,
            "accounted_bytes": 1000,  # received by the second, 2000 every other step
            "wire_bytes": 1100,
            "wire_ratio": (3300 + 1650) / (3000 + 1500),
            "limit_ms": 8,
            "limit_ratio": 30 / 8,
        }
    )
    free = load("measure").summary([slow, fast], None)
    assert free == {name: row[name] for name in list(row)[:4]}


def point(method, rate, step_ms, accounted=1e6, limit_ms=None):
    found = {"method": method, "rate": rate, "steps": 10, "step_ms": step_ms}
    found |= {"least_ms": step_ms, "accounted_bytes": accounted}
    if limit_ms is not None:
        found |= {"limit_ms": limit_ms, "limit_ratio": step_ms / limit_ms}
        found |= {"wire_bytes": 1.05 * accounted, "wire_ratio": 1.05}
    return found


def test_a_table_for_each_rate(capsys):
    points = [
        point("latency", "none", 0.25),
        point("ring", "none", 12.5),
        point("ring", "100mbit", 90.0, limit_ms=80.0),
        point("ring", "10mbit", 840.0, limit_ms=800.0),
    ]
    result = {"throttled": True, "processes": 4, "points": points}
    load("measure").print_result(result)
    table = capsys.readouterr().out
    assert "An all-reduce of one number takes 0.25 ms.\n\n| method |" in table
    assert "| latency |" not in table
    assert "| ring | 12.5 | 1,000 |\n" in table
    assert "4 processes, 100mbit each way:" in table
    assert "| ring | 90 | 1,000 | 80 | 1.12 | 12.5 | 1.050 |\n" in table
    assert "| ring | 840 | 1,000 | 800 | 1.05 | 12.5 | 1.050 |\n" in table
    assert "not throttled" not in table


# ------------------------------------------------------------------ the model


def test_costs_of_a_step():
    count = load("methods").cost
    rows = {name: count(name, 4, 4096) for name in load("methods").METHODS}
    dense = 4 * 4096
    assert rows == {
        "latency": (6, 6),
        "all-reduce": (6, 1.5 * dense),
        "ring": (2, 2 * dense),
        "one-way ring": (1, dense),
        "one-peer exponential": (1, dense),
        "sync every 8": (0.75, 1.5 * dense / 8),
        # A block of 1,024 and a scale to each of three others, and as much back.
        "quantize 8 bits": (6, 6 * (1024 + 4)),
        "quantize 4 bits": (6, 6 * (512 + 4)),
        "quantize 2 bits": (6, 6 * (256 + 4)),
        "sign": (6, 6 * (128 + 4)),
        "top-k 1 %": (6, 6 * 10 * (4 + 2)),
        # All payloads to three others: 2 · (64 + 64) numbers, 41 and a seed.
        "low rank 2": (3, 3 * 4 * 2 * 128),
        "MASHA1 rand-k 1 %": (3, 3 * (4 * 41 + 8)),
    }
    # Not a multiple of the workers, and more of them: the cheaper route changes.
    assert count("MASHA1 rand-k 1 %", 128, 4096).rounds == 254
    assert count("one-peer exponential", 12, 1000) == (1, 4000)


def synthetic(alpha, overhead, noise=0.0, rates=("100mbit", "10mbit")):
    """What `measure.measure` would return if the model were true."""
    costs, parse = load("methods"), load("namespaces").parse_rate
    rng = np.random.default_rng(0)
    points = []
    for i, name in enumerate(costs.METHODS):
        cost = costs.cost(name, 4, 100_000)
        compute = i + 1e3 * alpha * cost.rounds  # the first one's is 0
        points.append(point(name, "none", compute))
        for rate in rates:
            limit = cost.bytes * 8 / parse(rate) * 1e3
            step = compute + overhead * limit
            step *= 1 + noise * rng.uniform(-1, 1)
            points.append(point(name, rate, step, cost.bytes, limit))
    return {"throttled": True, "processes": 4, "parameters": 100_000, "points": points}


def test_the_model_finds_its_two_numbers():
    model = load("cost_model")
    result = synthetic(0.0007, 1.06)
    fit = model.fit(result)
    assert fit == pytest.approx((0.0007, 1.06), rel=1e-9)
    rows = model.check(result, fit)
    assert max(abs(row["error"]) for row in rows) < 1e-9
    fitted = {row["method"] for row in rows if row["fitted"]}
    assert {row["rate"] for row in rows if row["fitted"]} == {"100mbit"}
    assert fitted == set(load("methods").METHODS) - set(model.HELD_OUT)

    for each in result["points"]:  # what is held out does not count
        if each["method"] in model.HELD_OUT and each["rate"] != "none":
            each["step_ms"] *= 3
    assert model.fit(result) == pytest.approx(fit, rel=1e-9)

    next(p for p in result["points"] if p["method"] == "sign")["step_ms"] *= 5
    slow = [p for p in result["points"] if p["method"] == "low rank 2"]
    slow[1]["step_ms"] *= 2  # a disturbance, which others outvote
    assert model.fit(result) == pytest.approx(fit, rel=1e-6)

    noisy = synthetic(0.0007, 1.06, noise=0.02)
    fit = model.fit(noisy)
    assert fit == pytest.approx((0.0007, 1.06), rel=0.1)
    without = [p for p in result["points"] if p["method"] != "latency"]
    with pytest.raises(ValueError, match="measured must have the method 'latency'"):
        model.fit(result | {"points": without})
    errors = [abs(row["error"]) for row in model.check(noisy, fit)]
    assert 0.001 < max(errors) < 0.06


@pytest.mark.parametrize(
    ("right", "expected"), [([1, 0.9, 0.8], [0, 0.9]), ([1, 1.1, 1.2], [0.1, 0.9])]
)
def test_a_round_costs_no_less_than_nothing(right, expected):
    left = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    found = load("cost_model")._least_absolute(left, np.array(right))
    assert found == pytest.approx(expected)


def test_a_fit_needs_two_methods():
    result = synthetic(0.001, 1.0)
    points = [p for p in result["points"] if p["rate"] == "none"]
    lone = point("ring", "100mbit", 90.0)
    for count, more in enumerate(([], [lone])):
        with pytest.raises(ValueError, match=f"got {count} at '100mbit'"):
            load("cost_model").fit(result | {"points": points + more})


def test_neighbours_cost_the_same_among_hundreds(tmp_path):
    model = load("cost_model")
    result, fit = synthetic(0.001, 1.05), model.Fit(0.001, 1.05)
    near, far = (
        model.extrapolate(result, fit, "100mbit", ms, (4, 8, 200)) for ms in (0, 20)
    )
    measured = {
        p["method"]: p["step_ms"]
        for p in synthetic(0.001, 1.05)["points"]
        if p["rate"] == "100mbit"
    }
    refresh = {"MASHA1 rand-k 1 %": 0.01 * (6 + 1.05 * 6e5 * 8 / 1e5)}
    for name, times in near.items():
        expected = measured[name] + refresh.get(name, 0)
        assert times[0] == pytest.approx(expected), name
        flat = name in ("ring", "one-way ring", "one-peer exponential")
        # The least mean degree of the cycle is reached with more than two workers.
        assert (times[2] == pytest.approx(times[1], rel=0.05)) == flat, name
    # 398 rounds, each 20 ms later.
    assert far["all-reduce"][2] - near["all-reduce"][2] == pytest.approx(7_960)
    model.plot({"near": near, "far": far}, (4, 8, 200), tmp_path / "plot.png")
    assert [p.name for p in tmp_path.iterdir()] == ["plot.png"]


def test_the_models_command(tmp_path, capsys, monkeypatch):
    model, path = load("cost_model"), tmp_path / "network.json"
    result = synthetic(0.002, 1.05)
    for each in result["points"]:
        if (each["method"], each["rate"]) == ("top-k 1 %", "10mbit"):
            each["step_ms"] *= 2
    path.write_text(json.dumps(result))
    monkeypatch.setattr(model, "WORKERS", (8, 64))
    model.main([str(path)])
    out = capsys.readouterr().out
    assert "α = 2.00 ms a round, β·rate = 1.050" in out
    assert "Of 17 points not fitted: median error 0.0 %, largest 50.0 %." in out
    assert "100mbit, +20 ms:\n\n| workers | 8 | 64 |" in out
    path.write_text(json.dumps(result | {"points": result["points"][:1]}))
    with pytest.raises(SystemExit, match="2"):
        model.main([str(path)])
    assert "got 0 at '100mbit'" in capsys.readouterr().err


# ------------------------------------------------------------------ running it


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("--methods=telepathy", "invalid choice: 'telepathy' (choose from "),
        ("--rate=100", "rate must be a positive number with bit"),
        ("--processes=1", "processes must be at least 2, got 1"),
        ("--processes=251", "count must be from 1 to 250, got 251"),
        ("--parameters=0", "parameters must be at least 1, got 0"),
        ("--steps=0", "steps must be at least 1, got 0"),
    ],
)
def test_wrong_flags_are_named(flag, what, capsys):
    with pytest.raises(SystemExit, match="2"):
        load("measure").main([flag])
    assert what in capsys.readouterr().err


@pytest.mark.parametrize(("platform", "user"), [("linux", 1000), ("darwin", 0)])
def test_who_is_not_root_on_linux_is_told(platform, user, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(os, "geteuid", lambda: user, raising=False)
    with pytest.raises(SystemExit, match="2"):
        load("measure").main([])
    assert "needs root on Linux" in capsys.readouterr().err


def test_two_processes_over_loopback(tmp_path):
    path = tmp_path / "network.json"
    names = ["all-reduce", "sync every 8", "sign", "MD-GAN"]
    flags = ["--loopback", "--processes=2", "--steps=4", "--parameters=1000"]
    code, out, err = finish(measuring(*flags, "--methods", *names, f"--output={path}"))
    assert code == 0, err
    assert "not throttled" in out
    result = json.loads(path.read_text())
    assert not result["throttled"]
    assert result["jax"] == jax.__version__
    rows = {row["method"]: row for row in result["points"]}
    assert list(rows) == names
    assert {row["rate"] for row in rows.values()} == {"none"}
    assert min(row["step_ms"] for row in rows.values()) > 0
    # 2(M - 1)/M of 4,000 bytes; every eighth step; 125 bytes and a scale.
    assert rows["all-reduce"]["accounted_bytes"] == 4000
    assert rows["sync every 8"]["accounted_bytes"] == 500
    assert rows["sync every 8"]["steps"] == 24
    assert rows["sign"]["accounted_bytes"] < 150
    # Two batches of 100 images of 28 x 28 to the worker of the other process.
    assert rows["MD-GAN"]["accounted_bytes"] == 2 * 100 * 28 * 28 * 4
    assert "wire_ratio" not in rows["all-reduce"]


def test_when_a_score_is_reached(capsys, tmp_path):
    mnist = load("mnist")
    steps = np.array([0, 10, 20, 30])
    curve = mnist.Curve(steps, np.array([700.0, 200, 100, 150]), megabytes=30.0)
    reached = [mnist.reached(curve, score) for score in (800, 700, 150, 100, 99)]
    assert reached == [0, 0, 15, 20, np.inf]
    late = curve._replace(steps=2 * steps)
    curves = {"first": [curve, curve], "local": [late, late]}
    curves["bad"] = [curve._replace(scores=curve.scores + 100)]
    took = {"none": {"first": 0.1, "local": 0.1, "bad": 0.1}}
    took["slow"] = {"first": 1.0, "local": 0.2, "bad": 0.2}
    mnist.print_goals(curves, took, 100.0)
    table = capsys.readouterr().out
    # 20 steps of 100 ms; 40 of 200 on the slow link, where the first takes 20 s.
    assert (
        "| first | 100 | 1e+03 | 20 20 | 100 | 1e+03 | 2 (1, 1x) | 20 (10, 1x) |"
        in (table)
    )
    assert "| 4 (2, 0.5x) | 8 (4, 2.5x) |" in table
    assert "| bad | 200 | 1e+03 | inf | 100 | 200 | never | never |" in table
    mnist.plot(curves, took, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# ------------------------------------------------------------------ the namespaces


@pytest.mark.usefixtures("namespaces")
def test_a_throttled_link_is_slow_and_counted(tmp_path):
    path = tmp_path / "network.json"
    flags = ["--rate=20mbit", "--processes=2", "--steps=3", "--parameters=100000"]
    code, out, err = finish(
        measuring(*flags, "--methods=all-reduce", f"--output={path}")
    )
    assert code == 0, err
    free, slow = json.loads(path.read_text())["points"]
    assert (free["rate"], slow["rate"]) == ("none", "20mbit")
    assert slow["accounted_bytes"] == 400_000
    assert slow["limit_ms"] == pytest.approx(160)
    # What passes at once, the bucket and two queues of packets, is little.
    assert slow["step_ms"] > 0.8 * slow["limit_ms"]
    assert 1.02 < slow["wire_ratio"] < 1.2
    assert "| all-reduce |" in out


def left_by(pid):
    """What a process that made a network has left behind."""
    names = [p for d in ("/run/netns", "/etc/netns") for p in pathlib.Path(d).glob("*")]
    return [p.name for p in names if p.name.startswith(f"jaxsp-net-{pid}-")]


HOLD = """
import time
import namespaces
with namespaces.Network(2) as network:
    print(network.names[0], flush=True)
    time.sleep(600)
"""


def test_what_a_killed_run_leaves_is_removed_by_the_next(namespaces):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env=dict(os.environ, PYTHONPATH=f"{ROOT}:{ROOT.parents[1]}"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        name = process.stdout.readline().strip()
        with namespaces.Network(1):
            assert name in left_by(process.pid)  # its maker lives
    finally:
        process.kill()
        process.communicate()
    with namespaces.Network(1) as network:
        assert left_by(process.pid) == []
        assert set(network.names) <= set(left_by(os.getpid()))
    assert left_by(os.getpid()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("namespaces")
def test_a_signal_removes_everything(number):
    # Under a shell that has put the tests into the background SIGINT is ignored, and
    # would be in what they start.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = measuring("--rate=1mbit", "--processes=2", "--methods=ring")
    finally:
        signal.signal(number, before)
    deadline = time.monotonic() + 120
    pids = ""
    while time.monotonic() < deadline and process.poll() is None:
        ns = f"jaxsp-net-{process.pid}-1"
        asked = ["ip", "netns", "pids", ns]
        pids = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
        if pids:
            break
        time.sleep(0.1)
    assert pids, process.poll()
    process.send_signal(number)
    code, _, err = finish(process, 180)
    # The code is 128 + number, or what a worker ends with that is interrupted while it
    # imports (1 of an ImportError, 139 of native code). What counts is that it is no
    # success, and leaves nothing.
    assert code != 0, err
    assert left_by(process.pid) == []
    for pid in pids.split():
        assert not pathlib.Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("last", [0, 1, 9])  # of the names there are when it comes
def test_a_signal_while_the_network_is_made_waits(number, last, terminal, namespaces):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace("Network(2)", "Network(10)")],
        env=dict(os.environ, PYTHONPATH=f"{ROOT}:{ROOT.parents[1]}"),
        stdout=subprocess.DEVNULL,
    )
    try:
        made = namespaces.NAMESPACES / f"jaxsp-net-{process.pid}-{last}"
        deadline = time.monotonic() + 120
        while not made.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        # and again, while it is removed
        while len(left_by(process.pid)) > 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        assert process.wait(120) == 128 + number
        assert left_by(process.pid) == []
    finally:
        process.kill()


def test_a_second_signal_does_not_end_what_the_first_one_ends(terminal, namespaces):
    ended = []

    def block():
        with namespaces.Network(1):
            try:
                signal.raise_signal(signal.SIGTERM)
            finally:  # as between the block's end and the removal
                signal.raise_signal(signal.SIGINT)
                ended.append("the block")

    with pytest.raises(SystemExit) as exit_:
        block()
    assert (exit_.value.code, ended) == (128 + signal.SIGTERM, ["the block"])
    assert left_by(os.getpid()) == []


def test_a_network_that_cannot_be_made_leaves_nothing(monkeypatch, namespaces):
    shell = namespaces._shell
    end = "\nip link show no-such-link"
    monkeypatch.setattr(
        namespaces, "_shell", lambda text: shell(text + end * ("port1" in text))
    )
    with pytest.raises(RuntimeError, match="no-such-link"):
        namespaces.Network(3).__enter__()
    assert left_by(os.getpid()) == []
