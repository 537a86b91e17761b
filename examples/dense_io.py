"""Another runtime runs the dense part of a model; graphtool fetches the rows.

    graphtool rewrite model.onnx -o model.dist --dense-io
    python examples/dense_io.py graphtool model.dist data.npz

Needs the packages numpy and onnxruntime. data.npz has the inputs of the model, by name. With pservers running, the third
line of `main` takes `--servers HOST:PORT,...` as well.
"""

import json
import subprocess
import sys
import tempfile

import numpy
import onnxruntime


def main(graphtool, deployment, data):
    with tempfile.TemporaryDirectory() as folder:
        rows = f"{folder}/rows.npz"
        subprocess.run([graphtool, "lookup", deployment, "--input", data, "--output", rows], check=True, stdout=subprocess.DEVNULL)
        feeds = {**numpy.load(data), **numpy.load(rows)}
    session = onnxruntime.InferenceSession(f"{deployment}/dense.onnx", providers=["CPUExecutionProvider"])
    tables = {i["name"]: i["table"] for i in json.load(open(f"{deployment}/manifest.json"))["dense_inputs"]}
    for i in session.get_inputs():
        print(f"{i.name} {feeds[i.name].shape}: {'rows of ' + tables[i.name] if i.name in tables else 'from ' + data}")
    for output, value in zip(session.get_outputs(), session.run(None, {i.name: feeds[i.name] for i in session.get_inputs()})):
        print(f"{output.name}: {value.ravel()[:5]} ...")


if __name__ == "__main__":
    main(*sys.argv[1:])
