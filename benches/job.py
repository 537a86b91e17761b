"""A launched job (2 pservers, 2 workers) beside one process with two threads, on the same Wide & Deep model and samples.

    python benches/job.py target/release/graphtool FOLDER [--rounds 7] [--samples 200000] [--readme benches/README.md]

Needs the packages onnx and numpy. FOLDER keeps the model (benches/models.py makes it if it is not there) and the samples. Prints, as
min / median / max over interleaved rounds, the samples per second of both, the ratio, and CPU time per sample of all processes.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys

import numpy

sys.path.insert(0, os.path.dirname(__file__))
import models  # noqa: E402

MARKS = "<!-- job: begin -->\n", "<!-- job: end -->"


def samples(folder, count):
    """The same samples as .npz and .csv: dense numbers, ids as skewed as those of a click log, labels."""
    npz, csv = f"{folder}/{count}.npz", f"{folder}/{count}.csv"
    if not os.path.exists(csv):
        random, rows = numpy.random.default_rng(0), models.MODELS["wide_deep"][1]
        sparse = (random.zipf(1.2, (count, models.SLOTS)) % rows).astype(numpy.int64)
        dense = random.random((count, models.DENSE), dtype=numpy.float32).round(4)
        label = random.integers(0, 2, count)
        numpy.savez(npz, dense=dense, sparse=sparse, label=label)
        with open(csv, "w") as f:
            names = [f"I{i + 1}" for i in range(models.DENSE)] + [f"C{i + 1}" for i in range(models.SLOTS)]
            f.write(f"label,{','.join(names)}\n")
            for y, d, s in zip(label, dense.tolist(), sparse.tolist()):
                f.write(f"{y},{','.join(f'{v:g}' for v in d)},{','.join(map(str, s))}\n")
    return {"npz": [npz], "csv": [csv, "--bind", "dense=I1..I13", "--bind", "sparse=C1..C26"]}


def run(command, count):
    """Samples per second as the command says, and microseconds of CPU per sample."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(re.search(r"(\d+) samples/s", text)[1]), cpu / count * 1e6


def spread(values, form):
    return f"{min(values):{form}} / **{statistics.median(values):{form}}** / {max(values):{form}}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("program")
    arguments.add_argument("folder")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--samples", type=int, default=200_000)
    arguments.add_argument("--readme")
    a = arguments.parse_args()
    make, rows = models.MODELS["wide_deep"]
    model, deployment = f"{a.folder}/wide_deep/model.onnx", f"{a.folder}/wide_deep.dist"
    if not os.path.exists(model):
        make(os.path.dirname(model), rows)
    subprocess.run([a.program, "rewrite", model, "-o", deployment, "--shards", "2"], check=True, capture_output=True)
    inputs = samples(a.folder, a.samples)
    lines = [f"{a.rounds} rounds of {a.samples} samples, load {os.getloadavg()[0]:.1f} before, {os.cpu_count()} cores\n\n"]
    lines.append("| batch | input | launched, samples/s | one process | launched / one process | CPU per sample, launched | one process |\n")
    lines.append("|---|---|---|---|---|---|---|\n")
    print("".join(lines), end="")
    for batch in (1024, 64):
        for kind, source in inputs.items():
            both = []
            for i in range(a.rounds):
                rest = ["--batch-size", str(batch), "--input", *source, "--output", f"{a.folder}/out.npz"]
                launch = [a.program, "launch", deployment, "--server_num", "2", "--worker_num", "2", "--log_dir", f"{a.folder}/log"]
                local = [a.program, "run", model, "--threads", "2"]
                both.append((run(launch + rest, a.samples), run(local + rest, a.samples)))
            rate = [[r[k][0] for r in both] for k in (0, 1)]
            cpu = [[r[k][1] for r in both] for k in (0, 1)]
            ratio = [x / y for x, y in zip(*rate)]
            cells = [spread(rate[0], ".0f"), spread(rate[1], ".0f"), spread(ratio, ".2f"), spread(cpu[0], ".1f") + " µs", spread(cpu[1], ".1f") + " µs"]
            lines.append(f"| {batch} | {kind} | {' | '.join(cells)} |\n")
            print(lines[-1], end="", flush=True)
    if a.readme:
        text = open(a.readme).read()
        before, rest = text.split(MARKS[0])
        open(a.readme, "w").write(before + MARKS[0] + "".join(lines) + MARKS[1] + rest.split(MARKS[1])[1])


if __name__ == "__main__":
    main()
