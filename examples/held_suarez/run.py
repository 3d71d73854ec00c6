"""Make the benchmark atmosphere, the bundled model and its scores from nothing: ``python run.py --out OUT``.

Every step is a process of its own (JAX and PyTorch don't share one), timed and logged to OUT/log.txt. What a step makes
is in OUT as soon as it exists; a step that fails doesn't keep the later ones from running. Data stay in --work, so the
steps can be spread over several calls: ``--steps simulate check``, then ``--steps train twin evaluate sample``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, TextIO

from plans import PLANS
from variants import SIZES

HERE = Path(__file__).parent
STEPS = ("simulate", "check", "train", "twin", "evaluate", "sample")
# what each step leaves
MADE = {
    "simulate": (),
    "check": ("checks.png",),
    "train": ("bundled.safetensors",),
    "twin": ("twin.safetensors",),
    "evaluate": ("scores.nc", "spectra.nc", "long.nc"),
    "sample": ("sample.nc",),
}
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the GPU's memory is freed with what holds it
    "PYTHONUNBUFFERED": "1",
    "TQDM_MININTERVAL": "20",  # a bar in a log is many lines
}
# a simulation that fails sooner than this failed before it began
AT_ONCE = 150.0


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The command line of each step."""
    work, store = options.work, str(options.work / "atmosphere.zarr")
    simulation = ["simulate.py", store, "--scratch", str(work / "scratch"), "--years", str(options.sim_years + 2)]
    for name in (
        "days",
        "truncation",
        "step_minutes",
        "spin_days",
        "spin_truncation",
        "spin_minutes",
        "settle_days",
        "limit_seconds",
    ):
        if (value := getattr(options, name)) is not None:
            simulation += [f"--{name.replace('_', '-')}", str(value)]
    simulation += ["--grids", SIZES[options.size].grid]
    training = [
        "train.py",
        store,
        str(work),
        "--seed",
        str(options.seed),
        "--plan",
        options.plan,
        "--size",
        options.size,
    ]
    training += ["--batch", str(options.batch)] if options.batch else []
    scoring = ["evaluate.py", store, str(work)]
    for name in ("starts", "members", "long_days", "workers"):
        if (value := getattr(options, name)) is not None:
            scoring += [f"--{name.replace('_', '-')}", str(value)]
    twin_minutes = options.minutes if options.twin_minutes is None else options.twin_minutes
    return {
        "simulate": simulation,
        "check": ["check.py", store, str(work)],
        "train": [*training, "--minutes", str(options.minutes)],
        "twin": [*training, "--minutes", str(twin_minutes), "--variants", "twin"],
        "evaluate": scoring,
        "sample": ["sample.py", store, str(work / "sample.nc")],
    }


def limits(options: argparse.Namespace) -> dict[str, float]:
    """Seconds after which a step is stopped; a training that is stopped keeps its best weights."""
    twin = options.minutes if options.twin_minutes is None else options.twin_minutes
    return {"train": options.minutes * 75 + 60, "twin": twin * 75 + 60}


def start(words: list[str], log: TextIO, limit: float | None) -> int:
    """Run a script; its output to the terminal and to the log. 124 if it was stopped."""
    command = [sys.executable, str(HERE / words[0]), *words[1:]]
    print("$", *words, file=log, flush=True)
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **ENVIRONMENT}
    )
    stopped = threading.Event()
    timer = threading.Timer(limit or 1e6, lambda: (stopped.set(), child.kill()))
    timer.daemon = True
    timer.start()
    assert child.stdout is not None
    for line in child.stdout:  # a bar's carriage returns count as line ends
        print(line, end="", flush=True)
        log.write(line)
    timer.cancel()
    return 124 if stopped.is_set() else child.wait()


def run_step(name: str, options: argparse.Namespace, log: TextIO) -> bool:
    """One step, with the second chances that it has; whether it succeeded."""
    words, began = commands(options)[name], time.perf_counter()
    code = start(words, log, limits(options).get(name))
    if code and name == "simulate" and time.perf_counter() - began < AT_ONCE and "--transform" not in words:
        say("the fast transforms failed at once; once more with the plain ones", log)
        code = start([*words, "--transform", "real"], log, None)
    if code and name in ("train", "twin"):
        say(f"training ended with {code}; its best weights until then", log)
        start([*words, "--export"], log, None)
    kept = [file for file in MADE[name] if keep(options.work / file, options.out, began)]
    say(f"{name}: exit status {code}, {time.perf_counter() - began:.0f} s, kept {', '.join(kept) or 'nothing'}", log)
    return code == 0


def keep(made: Path, out: Path, since: float) -> bool:
    """Copy a file to where it is collected, unless it is older than this step."""
    age = time.time() - made.stat().st_mtime if made.exists() else float("inf")
    if age > time.perf_counter() - since + 1:
        return False
    shutil.copy(made, out / made.name)
    return True


def say(text: str, log: TextIO) -> None:
    print(f"=== {text}", flush=True)
    print(f"=== {text}", file=log, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="where results are collected")
    parser.add_argument("--work", type=Path, default=Path("/tmp/held_suarez"), help="where data stay between calls")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--sim-years", type=int, default=10, help="of training; two more for validation and test")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training")
    parser.add_argument("--twin-minutes", type=float, help="of the twin's; as many by default")
    parser.add_argument("--plan", choices=PLANS, default="direct", help="of training: plans.py says what")
    parser.add_argument("--size", choices=SIZES, default="bundled", help="of the network and the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit-seconds", type=float, default=420.0, help="of the simulation; then it ends early")
    kinds: dict[str, Any] = {"step_minutes": float, "spin_minutes": float}
    names = ("days", "truncation", "step_minutes", "spin_days", "spin_truncation", "spin_minutes", "settle_days")
    for name in (*names, "batch", "starts", "members", "long_days", "workers"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=kinds.get(name, int))
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    for folder in (options.out, options.work):
        folder.mkdir(parents=True, exist_ok=True)
    with open(options.out / "log.txt", "a") as log:
        good = [run_step(name, options, log) for name in STEPS if name in options.steps]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
