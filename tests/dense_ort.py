"""The dense parts of models in ONNX Runtime, fed with the rows that graphtool fetches: the outputs are those of the whole model.

    python3 tests/dense_ort.py [GRAPHTOOL] [MODELS]     (needs numpy, onnx and onnxruntime; says so and leaves when they are not there)

A model whose lookups no input can stand for is refused, and named.
"""

import glob
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnx
    import onnxruntime
except ImportError as e:
    print(f"SKIPPED: {e}: pip install numpy onnx onnxruntime")
    sys.exit(0)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GRAPHTOOL = sys.argv[1] if len(sys.argv) > 1 else f"{ROOT}/target/debug/graphtool"
MODELS = sys.argv[2] if len(sys.argv) > 2 else f"{ROOT}/models"
onnxruntime.set_default_logger_severity(3)


def call(*args):
    return subprocess.run([GRAPHTOOL, *args], capture_output=True, text=True)


def tensor(path):
    message = onnx.TensorProto()
    with open(path, "rb") as file:
        message.ParseFromString(file.read())
    return onnx.numpy_helper.to_array(message)


def run(path, feeds):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})


done, bad, worst = 0, 0, 0.0
for model in sorted(glob.glob(f"{MODELS}/*/model.onnx")):
    folder = os.path.dirname(model)
    data = f"{folder}/test_data_set_0"
    if not os.path.isdir(data):
        continue
    name = os.path.basename(folder)
    with tempfile.TemporaryDirectory() as temp:
        dist, rows = f"{temp}/m.dist", f"{temp}/rows.npz"
        out = call("rewrite", model, "-o", dist, "--min-bytes", "0", "--dense-io")
        if out.returncode == 2 and "which no other runtime has" in out.stderr:
            print(f"{name}: refused: {out.stderr.strip()}")
            continue
        if out.returncode == 3:
            print(f"{name}: no lookups to move")
            continue
        if out.returncode == 0:
            out = call("lookup", dist, "--input", data, "--output", rows)
        if out.returncode != 0:
            print(f"FAILED {name}: {out.stderr.strip()}")
            bad += 1
            continue
        whole = onnx.load(model, load_external_data=False)
        params = {p.name for p in whole.graph.initializer}
        inputs = [i.name for i in whole.graph.input if i.name not in params]
        feeds = {n: tensor(f"{data}/input_{k}.pb") for k, n in enumerate(inputs)}
        fetched = dict(np.load(rows))
        onnx.checker.check_model(f"{dist}/dense.onnx")
        for expected, found in zip(run(model, feeds), run(f"{dist}/dense.onnx", {**feeds, **fetched}), strict=True):
            same = expected.dtype == found.dtype and expected.shape == found.shape
            if not same or not np.allclose(expected, found, rtol=1e-5, atol=1e-6):
                print(f"FAILED {name}: {expected.dtype}{expected.shape} {found.dtype}{found.shape}")
                bad += 1
            elif expected.size and expected.dtype.kind == "f":
                worst = max(worst, float(np.max(np.abs(expected.astype("f8") - found.astype("f8")))))
        done += 1
print(f"{done} models: largest difference {worst:.1e}, {bad} failed")
assert done > 0 and bad == 0
