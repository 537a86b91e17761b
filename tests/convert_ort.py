"""Converts every program of models/paddle and compares ONNX Runtime's outputs with the recorded ones.

python tests/convert_ort.py [path of graphtool]; says so and ends where onnx, numpy or onnxruntime is missing.
"""

import glob
import json
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnx
    import onnxruntime as ort
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(0)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "target", "debug", "graphtool")
failed = False
for program in sorted(glob.glob(os.path.join(ROOT, "models", "paddle", "*", "*.pdmodel"))):
    folder = os.path.dirname(program)
    with tempfile.TemporaryDirectory() as temp:
        path = os.path.join(temp, "model.onnx")
        subprocess.run([TOOL, "convert", program, "-o", path], check=True, stdout=subprocess.DEVNULL)
        onnx.checker.check_model(path)
        session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        feeds = {f["name"]: f for f in json.load(open(os.path.join(folder, "meta.json")))["feeds"]}
        inputs = {}
        for i in session.get_inputs():
            if i.name in feeds:
                inputs[i.name] = np.load(os.path.join(folder, f"in_{i.name}.npy"))
            else:
                lengths = feeds[i.name.removesuffix(".lod")]["seq_lens"][-1]
                inputs[i.name] = np.cumsum([0] + lengths).astype(np.int64)
        for k, found in enumerate(session.run(None, inputs)):
            want = np.load(os.path.join(folder, f"out_{k}.npy"))
            worst = float(np.abs(found - want).max())
            good = found.shape == want.shape and worst <= 1e-5
            failed |= not good
            print(f"{os.path.basename(folder)} output {k}: {worst:.3g} {'ok' if good else 'FAILED'}")
sys.exit(failed)
