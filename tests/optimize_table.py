"""Nodes of each model before and after `graphtool optimize`, beside onnxsim and ONNX Runtime's extended level.

    python tests/optimize_table.py [GRAPHTOOL [MODELS [--write]]]

MODELS is a folder with a folder per model (default: models/). All files are counted alike: operators in the main graph, in
bodies and in functions, without Constant nodes. The last column is how far the optimised model's outputs are from the
model's own, both run by ONNX Runtime on the recorded inputs: the largest difference over the largest value of each output.
With --write the table goes into tests/README.md. Needs onnx, onnxsim, onnxruntime and numpy; says so where one is missing.
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
    import onnxsim
    from onnx import numpy_helper
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(0)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
args = [a for a in sys.argv[1:] if a != "--write"]
TOOL = args[0] if args else os.path.join(ROOT, "target", "debug", "graphtool")
MODELS = args[1] if len(args) > 1 else os.path.join(ROOT, "models")
FAMILIES = ("bert", "deepctr_deepfm", "deepfm", "dlrm", "sasrec")
ort.set_default_logger_severity(4)


def nodes(model):
    def graph(nodes):
        total = 0
        for n in nodes:
            total += n.op_type != "Constant"
            for a in n.attribute:
                total += sum(graph(g.node) for g in [a.g, *a.graphs])
        return total

    return graph(model.graph.node) + sum(graph(f.node) for f in model.functions)


def session(path, level, saved=None):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    if saved:
        options.optimized_model_filepath = saved
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def difference(folder, path):
    """The largest difference over all recorded sets, each over the largest value of its output."""
    off = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    a, b, worst = session(os.path.join(folder, "model.onnx"), off), session(path, off), 0.0
    for data in sorted(glob.glob(os.path.join(folder, "test_data_set_*"))):
        feeds = {}
        for k, i in enumerate(a.get_inputs()):
            tensor = onnx.TensorProto()
            tensor.ParseFromString(open(os.path.join(data, f"input_{k}.pb"), "rb").read())
            feeds[i.name] = numpy_helper.to_array(tensor)
        try:
            expected = a.run(None, feeds)
        except Exception:
            continue  # What the model itself cannot compute there is not compared.
        for x, y in zip(b.run(None, feeds), expected):
            assert x.shape == y.shape and x.dtype == y.dtype, (folder, x.shape, y.shape)
            if x.size and x.dtype.kind == "f":
                x, y = x.astype(np.float64), y.astype(np.float64)
                same = (x == y) | (np.isnan(x) & np.isnan(y))
                top = np.max(np.abs(y[np.isfinite(y)]), initial=0) or 1
                worst = max(worst, float(np.max(np.abs(np.where(same, 0, x - y)))) / top)
            else:
                worst = max(worst, float(not (x == y).all()))
    return worst


def or_dash(f):
    try:
        return f()
    except BaseException:
        return None


rows, failed = [], []
with tempfile.TemporaryDirectory() as temp:
    for folder in sorted(os.path.dirname(p) for p in glob.glob(os.path.join(MODELS, "*", "model.onnx"))):
        name, path = os.path.basename(folder), os.path.join(folder, "model.onnx")
        ours, saved = os.path.join(temp, "ours.onnx"), os.path.join(temp, "ort.onnx")
        subprocess.run([TOOL, "optimize", path, "-o", ours, "--external", "none"], check=True, stdout=subprocess.DEVNULL)
        extended = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        sim = or_dash(lambda: nodes(onnxsim.simplify(path)[0]))
        run = or_dash(lambda: session(path, extended, saved) and nodes(onnx.load(saved)))
        mine = nodes(onnx.load(ours))
        try:
            apart = difference(folder, ours)
        except Exception as e:
            # Where ONNX Runtime does not run the model as it came, there is nothing to compare with.
            own = or_dash(lambda: session(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL))
            apart = None
            if own is not None:
                failed.append(f"{name}: ONNX Runtime does not run the optimised model: {str(e)[:200]}")
        if apart is not None and apart > (2e-3 if "16" in name.split("_")[0] else 1e-5):
            failed.append(f"{name}: outputs differ by {apart:.1e}")
        peers = [n for n in (sim, run) if n is not None]
        if name.startswith(FAMILIES) and peers and mine > min(peers):
            failed.append(f"{name}: {mine} nodes, others reach {min(peers)}")
        cells = [name, nodes(onnx.load(path)), mine, sim, run, None if apart is None else f"{apart:.0e}" if apart else "0"]
        rows.append("| " + " | ".join("–" if c is None else str(c) for c in cells) + " |")
        print(rows[-1], flush=True)
table = "| model | nodes | optimize | onnxsim | ONNX Runtime, extended | difference |\n|---|---|---|---|---|---|\n" + "\n".join(rows)
table += f"\n\nonnxsim {onnxsim.__version__}, ONNX Runtime {ort.__version__}, onnx {onnx.__version__}.\n"
if "--write" in sys.argv:
    page = os.path.join(ROOT, "tests", "README.md")
    text = open(page).read()
    head, rest = text.split("<!-- optimize -->\n")
    tail = rest.split("<!-- end of optimize -->")[1]
    open(page, "w").write(f"{head}<!-- optimize -->\n{table}<!-- end of optimize -->{tail}")
print("\n".join(failed))
sys.exit(bool(failed))
