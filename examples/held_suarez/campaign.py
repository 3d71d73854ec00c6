"""Everything on a machine with several GPUs, in calls of ten minutes: ``python campaign.py STAGE --out OUT``.

Stages, each a call of its own or several in one:

* ``simulate``: one run of the core, coarse-grained to the grids of both sizes, and its checks;
* ``train``: ``--lane`` for each queue, a GPU and jobs that follow one another there: ``--lane 0 "bundled --plan careful
  --minutes 4" "ablation twin points"``; several lanes may share a GPU;
* ``evaluate``: all models on the test year, and the package's sample;
* ``pack``: everything small into OUT/results.tar.00, .01 and so on, pieces of a size that is let through; ``cat
  results.tar.* | tar x`` puts them together. Scores come first, then models, as far as --most-megabytes goes.

Data and models stay in --work between the calls. A call ends after --limit-seconds whatever happens: jobs that run
then are stopped, and the best weights that they had are exported. The exit status says whether anything failed.
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import simulate
from variants import SIZES, VARIANTS

HERE = Path(__file__).parent
STAGES = ("simulate", "train", "evaluate", "pack")
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # the GPU's memory is freed with what holds it
    "PYTHONUNBUFFERED": "1",
    "TQDM_MININTERVAL": "20",  # a bar in a log is many lines
}
# what is packed, the most wanted first: scores and logs, then models
KEPT = ("**/*.nc", "**/*.txt", "**/*.json", "**/*.npz", "**/*.png", "*.safetensors", "evidence/*.safetensors")
KEPT += ("experiments/*.safetensors", "ablation/*.safetensors")
PIECE = 15 * 2**20  # bytes
# the one that takes longest first
FOLDERS = ("evidence", ".", "ablation", "experiments")
# what is left of a stage's time when its jobs are stopped, for the export of their best weights
RESERVE = 25.0
LEAST = 10.0  # of what a job is worth beginning for


@dataclass(frozen=True)
class Job:
    """One process of training: words of `train.py` after the store."""

    words: tuple[str, ...]
    label: str


@dataclass
class Lane:
    """Jobs that follow one another on a GPU."""

    gpu: int
    jobs: list[Job]
    failed: list[str] = field(default_factory=list)


def store_for(work: Path, size: str) -> Path:
    """The simulation's store for a size; `simulate` writes both grids in any order."""
    return work / f"atmosphere_{SIZES[size].grid}.zarr"


def job_of(text: str, work: Path, updates: Sequence[int], batch: int | None) -> Job:
    """A job from its words: ``KIND [OPTIONS of train.py]``.

    ``bundled …`` and ``twin …`` are trained to WORK itself, ``evidence …`` is the larger network, to WORK/evidence,
    ``ablation a b …`` trains variants with the common budget, to WORK/ablation, and ``experiment NAME …`` the bundled
    network under a name, to WORK/experiments.
    """
    kind, *rest = shlex.split(text)
    common = ["--updates", *map(str, updates)] + (["--batch", str(batch)] if batch else [])
    if kind in ("bundled", "twin"):
        place, size, given = work, "bundled", ["--variants", kind, *rest]
    elif kind == "evidence":
        place, size, given = work / "evidence", "evidence", ["--name", "evidence", "--size", "evidence", *rest]
    elif kind == "ablation" and rest:
        names = [w for w in rest if w in VARIANTS]
        others = [w for w in rest if w not in VARIANTS]
        place, size, given = work / "ablation", "bundled", ["--variants", *names, *common, *others]
    elif kind == "experiment" and rest:
        place, size, given = work / "experiments", "bundled", ["--name", *rest]
    else:
        raise SystemExit(f"{text!r} is no job; expected bundled, twin, evidence, ablation VARIANTS or experiment NAME")
    return Job((str(store_for(work, size)), str(place), *given), text)


def lane_of(words: Sequence[str], options: argparse.Namespace) -> Lane:
    gpu, *jobs = words
    if not gpu.isdecimal() or not jobs:
        raise SystemExit(f"--lane {' '.join(words)}: expected the number of a GPU and jobs")
    return Lane(int(gpu), [job_of(j, options.work, options.updates, options.batch) for j in jobs])


# ----------------------------------------------------------------------------------------------------------- processes


class Runner:
    """Starts scripts, stops them in time, and writes what they say to a log each, with the time since the beginning."""

    def __init__(self, logs: Path, limit: float) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.logs, self.limit, self.began = logs, limit, time.perf_counter()
        self.lock = threading.Lock()

    @property
    def left(self) -> float:
        return self.limit - (time.perf_counter() - self.began)

    def say(self, text: str) -> None:
        with self.lock:
            line = f"=== {time.perf_counter() - self.began:6.1f} s  {text}"
            print(line, flush=True)
            with open(self.logs / "campaign.txt", "a") as log:
                print(line, file=log)

    def run(self, label: str, words: Sequence[str], log: str, gpu: int | None = None, spare: float = 0.0) -> int:
        """Run a script of this folder to its end, or to the end of the time; 124 if it was stopped."""
        command = [sys.executable, str(HERE / words[0]), *words[1:]]
        own = {} if gpu is None else simulate.own_gpu(gpu)
        self.say(f"{label}: begins")
        began = time.perf_counter()
        with open(self.logs / f"{log}.txt", "a") as file:
            print("$", *words, file=file, flush=True)
            code = _until(command, file, {**os.environ, **ENVIRONMENT, **own}, self.left - spare)
            print(f"=== exit status {code}, {time.perf_counter() - began:.0f} s", file=file)
        self.say(f"{label}: exit status {code}, {time.perf_counter() - began:.0f} s")
        if code:
            self.say(f"{label}, end of its log:\n{_tail(self.logs / f'{log}.txt')}")
        return code


def _until(command: Sequence[str], log: TextIO, environment: dict[str, str], seconds: float) -> int:
    """Run a command with its children as one group, and stop all of it when the time is over."""
    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        return child.wait(max(1.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return 124


def _tail(path: Path, lines: int = 25) -> str:
    return "\n".join(path.read_text(errors="replace").replace("\r", "\n").splitlines()[-lines:])


# -------------------------------------------------------------------------------------------------------------- stages


def run_simulation(options: argparse.Namespace, runner: Runner) -> list[str]:
    """The data of both sizes, and their checks, which are only told, for data that are a bit off still serve."""
    work, grids = options.work, [SIZES[s].grid for s in options.sizes]
    # stores are written after the core has ended
    words = ["simulate.py", str(work / "atmosphere.zarr"), "--scratch", str(work / "scratch"), "--grids", *grids]
    words += ["--limit-seconds", str(options.core_seconds), *shlex.split(options.simulation)]
    if code := runner.run("simulate", words, "simulate"):
        return [f"simulate ({code})"]
    made = [work / "atmosphere.zarr"] if len(grids) == 1 else [store_for(work, s) for s in options.sizes]
    if len(grids) == 1:  # named by its grid like the others
        made = [made[0].rename(store_for(work, options.sizes[0]))]
    bad = []
    for size, store in zip(options.sizes, made, strict=True):
        folder = work if size == "bundled" else work / size
        folder.mkdir(exist_ok=True)
        bad += [f"check {size}"] if runner.run(f"check {size}", ["check.py", str(store), str(folder)], "checks") else []
    return bad


def run_training(options: argparse.Namespace, runner: Runner) -> list[str]:
    """All lanes side by side."""
    lanes = [lane_of(words, options) for words in options.lane]
    if not lanes:
        raise SystemExit("the stage train needs --lane, such as: --lane 0 'bundled --minutes 4'")
    threads = [threading.Thread(target=_lane, args=(lane, i, runner)) for i, lane in enumerate(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [name for lane in lanes for name in lane.failed]


def _lane(lane: Lane, number: int, runner: Runner) -> None:
    for job in lane.jobs:
        if runner.left < RESERVE + LEAST:
            runner.say(f"lane {number}, {job.label}: no time is left")
            lane.failed.append(job.label)
            continue
        words = ["train.py", *job.words]
        code = runner.run(f"lane {number}, {job.label}", words, f"train_{number}", lane.gpu, RESERVE)
        if code:
            lane.failed.append(job.label)
            runner.run(f"lane {number}, {job.label}: its best weights", [*words, "--export"], f"train_{number}")


def run_evaluation(options: argparse.Namespace, runner: Runner) -> list[str]:
    """Scores of all folders that hold a model, and the sample."""
    work, pairs, compared = options.work, [], []
    for name in FOLDERS:
        folder = work / name if name != "." else work
        if any(folder.glob("*.safetensors")):
            store = store_for(work, "evidence" if name == "evidence" else "bundled")
            pairs += [str(store), str(folder)]
            compared += [str(folder)] if name in (".", "evidence") else []
    if not pairs:
        return ["evaluate: there is no model"]
    words = ["evaluate.py", *pairs, "--baselines", *compared, *shlex.split(options.evaluation)]
    bad = [f"evaluate ({code})"] if (code := runner.run("evaluate", words, "evaluate")) else []
    sample = ["sample.py", str(store_for(work, "bundled")), str(work / "sample.nc"), *shlex.split(options.sample)]
    return bad + ([f"sample ({code})"] if (code := runner.run("sample", sample, "sample")) else [])


def pack(work: Path, out: Path, only: Sequence[str], most: float) -> list[Path]:
    """All models, scores, checks and logs in one archive, cut into pieces; data and checkpoints stay where they are."""
    out.mkdir(parents=True, exist_ok=True)
    chosen, left_out, size = {}, [], 0.0
    for path in (p for pattern in only for p in sorted(work.glob(pattern))):
        inside = path.relative_to(work)
        if path in chosen or not path.is_file() or any(w.startswith("run_") or ".zarr" in w for w in inside.parts):
            continue
        if size + path.stat().st_size / 1e6 > most:
            left_out.append(str(inside))
        else:
            chosen[path], size = inside, size + path.stat().st_size / 1e6
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, inside in chosen.items():
            tar.add(path, inside)
    whole, pieces = archive.getvalue(), []
    for number, first in enumerate(range(0, len(whole), PIECE)):
        pieces.append(out / f"results.tar.{number:02d}")
        pieces[-1].write_bytes(whole[first : first + PIECE])
    print(f"{len(chosen)} files, {len(whole) / 1e6:.1f} MB, in {len(pieces)} pieces", flush=True)
    if left_out:
        print(f"left out: {', '.join(left_out)}", flush=True)
    return pieces


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=STAGES)
    parser.add_argument("--out", type=Path, required=True, help="where the pieces are written")
    parser.add_argument("--work", type=Path, default=Path("/tmp/held_suarez"), help="where data stay between calls")
    parser.add_argument("--limit-seconds", type=float, default=580.0, help="of all stages of this call")
    parser.add_argument("--core-seconds", type=float, default=330.0, help="of the simulation; then it ends early")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="whose grids are written")
    parser.add_argument("--simulation", default="--truncation 85 --step-minutes 15", help="words for simulate.py")
    parser.add_argument("--lane", nargs="+", action="append", default=[], metavar="GPU JOB …", help="a queue of jobs")
    parser.add_argument("--updates", type=int, nargs="+", default=[3000, 400], help="of each variant of an ablation")
    parser.add_argument("--batch", type=int, help="of each variant of an ablation")
    parser.add_argument("--evaluation", default="", help="words for evaluate.py")
    parser.add_argument("--sample", default="", help="words for sample.py")
    parser.add_argument("--only", nargs="+", default=KEPT, help="patterns of what is packed")
    parser.add_argument("--most-megabytes", type=float, default=62.0, help="of what is packed")
    return parser.parse_args(words)


def main() -> None:
    options = parse()
    options.work.mkdir(parents=True, exist_ok=True)
    runner, bad = Runner(options.work / "logs", options.limit_seconds), []
    steps = {"simulate": run_simulation, "train": run_training, "evaluate": run_evaluation}
    for stage in STAGES:
        if stage in options.stages and stage in steps:
            bad += steps[stage](options, runner)
    if bad:
        runner.say(f"failed: {'; '.join(bad)}")
    if "pack" in options.stages:
        pack(options.work, options.out, options.only, options.most_megabytes)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
