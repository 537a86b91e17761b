"""Writes each model in later opsets by `graphtool convert --opset` and compares ONNX Runtime's outputs with those of the model.

    python tests/upgrade_ort.py [GRAPHTOOL [MODELS]]

MODELS is a folder with a folder per model (default: models/). Says so and ends where onnx, numpy or onnxruntime is missing.
"""

import glob
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import onnx
    import onnxruntime as ort
    from onnx import numpy_helper
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(0)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TOOL = sys.argv[1] if len(sys.argv) > 1 else os.path.join(ROOT, "target", "debug", "graphtool")
MODELS = sys.argv[2] if len(sys.argv) > 2 else os.path.join(ROOT, "models")
ort.set_default_logger_severity(4)


def session(path):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def feeds(run, data):
    values = {}
    for k, i in enumerate(run.get_inputs()):
        tensor = onnx.TensorProto()
        tensor.ParseFromString(open(os.path.join(data, f"input_{k}.pb"), "rb").read())
        values[i.name] = numpy_helper.to_array(tensor)
    return values


equal, failed = 0, []
with tempfile.TemporaryDirectory() as temp:
    for path in sorted(glob.glob(os.path.join(MODELS, "*", "model.onnx"))):
        name = os.path.basename(os.path.dirname(path))
        imports = onnx.load(path, load_external_data=False).opset_import
        own = next(o.version for o in imports if o.domain in ("", "ai.onnx"))
        for to in (v for v in (13, 17, 18, 21, 23) if v > own):
            new = os.path.join(temp, "new.onnx")
            done = subprocess.run([TOOL, "convert", path, "-o", new, "--opset", str(to)], capture_output=True, text=True)
            if done.returncode:
                failed.append(f"{name} to {to}: {done.stderr.strip()}")
                continue
            try:
                plain = session(path)
            except Exception:
                continue  # Nothing to compare with.
            try:
                upgraded = session(new)
                for data in sorted(glob.glob(os.path.join(os.path.dirname(path), "test_data_set_*"))):
                    values = feeds(plain, data)
                    try:
                        expected = plain.run(None, values)
                    except Exception:
                        continue
                    for x, y in zip(upgraded.run(None, values), expected):
                        same = np.array_equal(x, y) or np.allclose(x.astype(float), y.astype(float), 1e-5, 1e-6, equal_nan=True)
                        assert x.shape == y.shape and x.dtype == y.dtype and same, "another result"
                equal += 1
            except Exception as e:
                failed.append(f"{name} to {to}: {str(e)[:300]}")
print(f"{equal} models in later opsets give the same outputs")
print("\n".join(failed))
sys.exit(bool(failed))
