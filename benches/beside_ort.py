"""graphtool beside ONNX Runtime on the same models, inputs of the same shape and threads, in interleaved rounds.

    python benches/beside_ort.py target/release/graphtool FOLDER [--rounds 7] [--seconds 0.5] [--models dlrm,bert] [--write]

Needs the packages onnx, onnxruntime and numpy. FOLDER keeps the models (benches/models.py makes them if they are not there).
Prints, for each model, batch and number of threads, the samples per second of both and the ratio graphtool / ONNX Runtime
as min / median / max over the rounds, for wall time and for CPU time of the process. With --write the table also takes the
place of the one in benches/README.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import numpy
import onnxruntime

sys.path.insert(0, os.path.dirname(__file__))
import models  # noqa: E402

BATCHES = {"sasrec": [1, 16], "bert": [1, 16]}
BEGIN, END = "<!-- beside_ort.py writes from here -->", "<!-- to here -->"


def theirs(session, feeds, batch, seconds):
    """Samples per second of wall and of CPU time."""
    wall, cpu, runs = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        session.run(None, feeds)
        runs += 1
    return runs * batch / (time.perf_counter() - wall), runs * batch / (time.process_time() - cpu)


def ours(program, path, batch, threads, seconds):
    command = [program, "bench", path, "--batch-size", str(batch), "--threads", str(threads), "--seconds", str(seconds), "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result["samples_per_second"], result["samples_per_cpu_second"]


def feeds_of(session, batch, rows):
    random = numpy.random.default_rng(0)
    feeds = {}
    for i in session.get_inputs():
        dims = [batch if isinstance(d, str) else d for d in i.shape]
        feeds[i.name] = random.integers(0, rows, dims) if "int64" in i.type else random.random(dims, dtype=numpy.float32)
    return feeds


def spread(values):
    return f"{min(values):.2f} / {statistics.median(values):.2f} / {max(values):.2f}"


def write(lines, begin=BEGIN, end=END):
    """Puts lines between the markers of the page beside this file."""
    page = os.path.join(os.path.dirname(os.path.abspath(__file__)), "README.md")
    with open(page, encoding="utf-8") as file:
        before, rest = file.read().split(begin)
    with open(page, "w", encoding="utf-8") as file:
        file.write(before + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def arguments(about, seconds, names):
    """What each script takes that puts models into a table."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("program")
    parser.add_argument("folder")
    parser.add_argument("--seconds", type=type(seconds), default=seconds)
    parser.add_argument("--models", default=names)
    parser.add_argument("--write", action="store_true", help="put the table into benches/README.md")
    return parser


def printer():
    """A function that prints a line, and the lines that it has printed."""
    lines = []

    def say(line):
        print(line, flush=True)
        lines.append(line)

    return say, lines


def made(folder, name):
    """The path of a model, which is made if it is not there, and the rows of its tables."""
    make, rows = models.MODELS[name]
    path = f"{folder}/{name}/model.onnx"
    if not os.path.exists(path):
        make(os.path.dirname(path), rows)
    return path, rows


def main():
    parser = arguments(__doc__, 0.5, ",".join(models.MODELS))
    parser.add_argument("--rounds", type=int, default=7)
    a = parser.parse_args()
    say, lines = printer()
    say(f"ONNX Runtime {onnxruntime.__version__}, {a.rounds} rounds of {a.seconds} s, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start")
    say("")
    say("| model | batch | threads | graphtool, samples/s | ONNX Runtime | wall, min / median / max | CPU, min / median / max |")
    say("|---|---|---|---|---|---|---|")
    for name in a.models.split(","):
        path, rows = made(a.folder, name)
        for batch in BATCHES.get(name, [1, 64, 1024, 4096]):
            for threads in (1, 2):
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                options.inter_op_num_threads = 1
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                feeds = feeds_of(session, batch, rows)
                theirs(session, feeds, batch, 0.1)
                rounds = [(ours(a.program, path, batch, threads, a.seconds), theirs(session, feeds, batch, a.seconds)) for _ in range(a.rounds)]
                mine, other = (statistics.median(r[i][0] for r in rounds) for i in (0, 1))
                wall, cpu = ([m[i] / t[i] for m, t in rounds] for i in (0, 1))
                say(f"| {name} | {batch} | {threads} | {mine:.0f} | {other:.0f} | {spread(wall)} | {spread(cpu)} |")
    say("")
    say(f"Load {os.getloadavg()[0]:.1f} at the end.")
    if a.write:
        write(lines)


if __name__ == "__main__":
    main()
