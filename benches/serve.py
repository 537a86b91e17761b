"""`graphtool serve` under wrk with 64 connections, beside the same model in one process (`graphtool bench`).

    python benches/serve.py target/release/graphtool FOLDER [--seconds 5] [--models dlrm,wide_deep] [--write]

Needs wrk and the packages onnx, onnxruntime and numpy. FOLDER keeps the models (benches/models.py makes them if they are not there).
For JSON and binary requests of 1 and of 16 samples: requests and samples per second, p50 and p99 as wrk has them, samples of a run, and
samples per second of CPU time of the server. While wrk runs, another client compares answers with ONNX Runtime's. With --write the
table also takes the place of the one in benches/README.md.
"""

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time

import numpy
import onnxruntime

sys.path.insert(0, os.path.dirname(__file__))
from beside_ort import arguments, feeds_of, made, printer, write  # noqa: E402

CONNECTIONS = 64
BEGIN, END = "<!-- serve.py writes from here -->", "<!-- to here: serve -->"
NAMES = {numpy.dtype("float32"): "FP32", numpy.dtype("int64"): "INT64"}


def request(feeds, binary):
    """A body, and the headers that it needs."""
    inputs, tail = [], b""
    for name, array in feeds.items():
        one = {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)}
        if binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            tail += array.tobytes()
        else:
            one["data"] = array.ravel().tolist()
        inputs.append(one)
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": binary}}).encode()
    return head + tail, {"Inference-Header-Content-Length": str(len(head))} if binary else {}


def answer(connection, body, headers):
    connection.request("POST", "/v2/models/m/infer", body, headers)
    reply = connection.getresponse()
    content = reply.read()
    assert reply.status == 200, content
    size = int(reply.getheader("Inference-Header-Content-Length") or len(content))
    output = json.loads(content[:size])["outputs"][0]
    if size < len(content):
        return numpy.frombuffer(content[size:], numpy.float32).reshape(output["shape"])
    return numpy.array(output["data"], numpy.float32).reshape(output["shape"])


def cpu_seconds(process):
    fields = open(f"/proc/{process.pid}/stat").read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def live(address):
    connection = http.client.HTTPConnection(address)
    connection.request("GET", "/page/live.json")
    return json.loads(connection.getresponse().read())


def load(process, address, body, headers, seconds, check):
    """wrk's figures, and the server's, for the same request again and again."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/body", "wb") as file:
            file.write(body)
        lines = [f'wrk.headers["{k}"] = "{v}"' for k, v in headers.items()]
        with open(f"{folder}/request.lua", "w") as file:
            file.write(f'wrk.method = "POST"\nwrk.body = io.open("{folder}/body", "rb"):read("*a")\n' + "\n".join(lines) + "\n")
        url = f"http://{address}/v2/models/m/infer"
        wrk = ["wrk", "-t2", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", "-s", f"{folder}/request.lua", url]
        before, cpu = live(address), cpu_seconds(process)
        running = subprocess.Popen(wrk, stdout=subprocess.PIPE, text=True)
        checked = 0
        while running.poll() is None:
            check()
            checked += 1
            time.sleep(0.02)
        after, cpu = live(address), cpu_seconds(process) - cpu
        text = running.stdout.read()
    assert checked > 10 and "Non-2xx" not in text and "Socket errors" not in text, text
    percentile = lambda p: re.search(rf"^ +{p}% +(\S+)$", text, re.M).group(1)
    samples, runs, passed = (after[n] - before[n] for n in ("samples", "runs", "seconds"))
    rate = float(re.search(r"Requests/sec: +(\S+)", text).group(1))
    return rate, percentile(50), percentile(99), samples / passed, samples / cpu, samples / runs


def alone(program, path, batch, seconds):
    command = [program, "bench", path, "--batch-size", str(batch), "--seconds", str(seconds), "--json"]
    result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return result["samples_per_second"], result["samples_per_cpu_second"]


def rows_of(program, name, path, rows, seconds):
    session = onnxruntime.InferenceSession(path)
    random = numpy.random.default_rng(1)
    process = subprocess.Popen([program, "serve", path, "--name", "m", "--http", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        address = process.stdout.readline().strip().split("http://")[1]
        connection = http.client.HTTPConnection(address)
        for samples in (1, 16):
            wall, cpu = alone(program, path, samples, min(seconds, 2))
            yield f"| {name} | in process | {samples} | {wall / samples:.0f} | {wall:.0f} | | | {samples} | {cpu:.0f} |"
            for binary in (False, True):
                feeds = feeds_of(session, samples, rows)

                def check():
                    own = {k: numpy.ascontiguousarray(random.permutation(v.ravel()).reshape(v.shape)) for k, v in feeds.items()}
                    found = answer(connection, *request(own, binary))
                    numpy.testing.assert_allclose(found, session.run(None, own)[0], rtol=1e-3, atol=1e-5)

                check()
                rate, p50, p99, per_second, per_cpu, run = load(process, address, *request(feeds, binary), seconds, check)
                form = "binary" if binary else "JSON"
                yield f"| {name} | {form} | {samples} | {rate:.0f} | {per_second:.0f} | {p50} | {p99} | {run:.1f} | {per_cpu:.0f} |"
    finally:
        process.terminate()
        process.wait(60)


def main():
    a = arguments(__doc__, 5, "dlrm,wide_deep").parse_args()
    say, lines = printer()
    say(f"{CONNECTIONS} connections, {a.seconds} s each, {os.cpu_count()} cores shared with wrk, load {os.getloadavg()[0]:.1f} at the start")
    say("")
    say("| model | requests | samples in one | requests/s | samples/s | p50 | p99 | samples of a run | samples per CPU second |")
    say("|---|---|---|---|---|---|---|---|---|")
    for name in a.models.split(","):
        path, rows = made(a.folder, name)
        for line in rows_of(os.path.abspath(a.program), name, path, rows, a.seconds):
            say(line)
    if a.write:
        write(lines, BEGIN, END)


if __name__ == "__main__":
    main()
