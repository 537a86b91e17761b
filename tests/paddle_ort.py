"""Converts every PaddlePaddle program of models/ and runs it in ONNX Runtime: the outputs must be PaddlePaddle's.

    python3 tests/paddle_ort.py [GRAPHTOOL]     (needs numpy and onnxruntime; says so and leaves when they are not there)
"""
import glob
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnxruntime
except ImportError as e:
    print(f"SKIPPED: {e}: pip install numpy onnxruntime")
    sys.exit(0)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GRAPHTOOL = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "target/debug/graphtool")
onnxruntime.set_default_logger_severity(3)
bad = 0


def array(folder, name):
    path = os.path.join(folder, f"in_{name}.npy")
    if os.path.exists(path) or not name.endswith(".lod"):
        return np.load(path)
    with open(os.path.join(folder, "meta.json")) as file:
        feeds = json.load(file)["feeds"]
    lengths = next(f["seq_lens"][0] for f in feeds if f["name"] == name.removesuffix(".lod"))
    return np.cumsum([0, *lengths]).astype("int64")


programs = sorted(glob.glob(os.path.join(ROOT, "models/paddle*/*/*.pdmodel")))
assert len(programs) >= 12, programs
for program in programs:
    folder = os.path.dirname(program)
    with tempfile.TemporaryDirectory() as temp:
        model = os.path.join(temp, "model.onnx")
        subprocess.run([GRAPHTOOL, "convert", program, "-o", model], check=True, stdout=subprocess.DEVNULL)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        feed = {i.name: array(folder, i.name) for i in session.get_inputs()}
        faults = []
        for n, found in enumerate(session.run(None, feed)):
            want = np.load(os.path.join(folder, f"out_{n}.npy"))
            if (found.shape, found.dtype) != (want.shape, want.dtype):
                faults.append(f"output {n} is {found.dtype}{found.shape}, expected {want.dtype}{want.shape}")
            elif not np.allclose(found.astype("f8"), want.astype("f8"), rtol=1e-5, atol=1e-5):
                faults.append(f"output {n} differs by {np.abs(found.astype('f8') - want.astype('f8')).max()}")
    bad += bool(faults)
    print(f"{os.path.basename(folder)}: {'; '.join(faults) or 'equal'}")
sys.exit(1 if bad else 0)
