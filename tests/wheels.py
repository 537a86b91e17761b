"""Runs the models that some PyPI wheels carry, here and in ONNX Runtime, on the same inputs, and compares the outputs.

    python tests/wheels.py target/release/graphtool FOLDER

Needs the packages onnx and onnxruntime. FOLDER keeps the wheels (magika, silero-vad, rapidocr-onnxruntime), which are
fetched by pip if they are not there; they are data, nothing of them is run.
"""

import glob, os, subprocess, sys, tempfile, zipfile
import numpy, onnx, onnxruntime

WHEELS = ["magika", "silero-vad", "rapidocr-onnxruntime"]
# Dims that a model leaves open, by part of its name and by input.
DIMS = {
    "det_infer": {"x": [1, 3, 160, 224]},
    "rec_infer": {"x": [2, 3, 48, 320]},
    "cls_infer": {"x": [2, 3, 48, 192]},
    "silero": {"input": [1, 576], "state": [2, 1, 128], "sr": []},
    "standard": {"bytes": [3, 2048]},
}
TOLERANCE = 1e-4


def wheels(folder):
    os.makedirs(folder, exist_ok=True)
    for name in WHEELS:
        if not glob.glob(f"{folder}/{name.replace('-', '_')}-*.whl"):
            pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder, name]
            subprocess.run(pip, check=True)
    return sorted(glob.glob(f"{folder}/*.whl"))


def inputs(name, session, random):
    table = next((dims for part, dims in DIMS.items() if part in name), {})
    feeds = {}
    for i in session.get_inputs():
        fixed = [d if isinstance(d, int) and d > 0 else 1 for d in i.shape]
        dims = table.get(i.name, fixed)
        if "int" in i.type:
            value = numpy.array(16000) if i.name == "sr" else random.integers(0, 255, dims)
            feeds[i.name] = value.astype({"tensor(int64)": "int64", "tensor(int32)": "int32"}[i.type])
        else:
            feeds[i.name] = random.standard_normal(dims).astype("float32") * (0.1 if "silero" in name else 1.0)
    return feeds


def main():
    program, folder = sys.argv[1:]
    bad = 0
    for wheel in wheels(folder):
        archive = zipfile.ZipFile(wheel)
        for member in sorted(n for n in archive.namelist() if n.endswith(".onnx")):
            name = os.path.basename(member)
            with tempfile.TemporaryDirectory() as top:
                path = archive.extract(member, top)
                options = onnxruntime.SessionOptions()
                options.log_severity_level = 3
                session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
                feeds = inputs(name, session, numpy.random.default_rng(0))
                try:
                    expected = session.run(None, feeds)
                except Exception as e:
                    print(f"{name}: ONNX Runtime refuses the inputs: {str(e)[:200]}")
                    bad += 1
                    continue
                os.mkdir(f"{top}/in")
                for k, (n, value) in enumerate(feeds.items()):
                    with open(f"{top}/in/input_{k}.pb", "wb") as f:
                        f.write(onnx.numpy_helper.from_array(numpy.asarray(value), n).SerializeToString())
                run = [program, "run", path, "--input", f"{top}/in", "--output", f"{top}/out"]
                done = subprocess.run(run, capture_output=True, text=True)
                if done.returncode:
                    print(f"{name}: {done.stderr.strip()}")
                    bad += 1
                    continue
                worst = 0.0
                for k, want in enumerate(expected):
                    found = onnx.numpy_helper.to_array(onnx.load_tensor(f"{top}/out/output_{k}.pb"))
                    if found.shape != want.shape or found.dtype != want.dtype:
                        worst = numpy.inf
                    elif want.size:
                        worst = max(worst, float(numpy.max(numpy.abs(found.astype("float64") - want.astype("float64")))))
                bad += worst > TOLERANCE
                print(f"{name}: largest difference {worst:.2e}{'' if worst <= TOLERANCE else ' TOO LARGE'}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
