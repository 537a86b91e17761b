"""Triton's own client against `graphtool serve`.

usage: serve_triton.py GRAPHTOOL MODELS

Health, metadata, configuration, statistics, and inference with JSON and with binary data, packed and plain, synchronous and
asynchronous; answers are compared with those that are recorded beside the models (ONNX Runtime's)."""

import pathlib
import subprocess
import sys

import numpy as np
import onnx
import tritonclient.http as client
from onnx import numpy_helper
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

MODELS = ["widedeep_ts11", "deepfm_ts13", "din_ts17", "dlrm_ts13", "bert_plain_ts17", "fp16_table_ts13", "tf_string_table_13"]


def value(path):
    proto = onnx.TensorProto()
    proto.ParseFromString(path.read_bytes())
    array = numpy_helper.to_array(proto)
    return proto.name, array.astype(object) if proto.data_type == onnx.TensorProto.STRING else array


def values(folder, kind):
    return [value(p) for p in sorted(folder.glob(f"{kind}_*.pb"), key=lambda p: int(p.stem.split("_")[1]))]


def start(graphtool, model, *more):
    args = [graphtool, "serve", str(model), "--http", "127.0.0.1:0", *more]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    name, _, address = line.strip().partition(" is served at http://")
    return process, name, address


def check(triton, name, folder):
    """Compares the answers for one folder of inputs, in every form."""
    inputs, expected = values(folder, "input"), values(folder, "output")
    count = 0
    for binary in (True, False):
        asked = []
        for input_name, array in inputs:
            one = client.InferInput(input_name, list(array.shape), np_to_triton_dtype(array.dtype))
            one.set_data_from_numpy(array, binary_data=binary and array.dtype != np.float16 or array.dtype == np.float16)
            asked.append(one)
        wanted = [client.InferRequestedOutput(n, binary_data=binary) for n, _ in expected]
        for outputs in (None, wanted):
            for coding in (None, "gzip", "deflate"):
                more = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
                answers = [
                    triton.infer(name, asked, outputs=outputs, request_id="7", **more),
                    triton.async_infer(name, asked, outputs=outputs, request_id="7", **more).get_result(),
                ]
                for answer in answers:
                    assert answer.get_response()["id"] == "7"
                    for output_name, array in expected:
                        found = answer.as_numpy(output_name)
                        assert found.shape == array.shape, (output_name, found.shape, array.shape)
                        if array.dtype == object:
                            assert [x.decode() if isinstance(x, bytes) else x for x in found.ravel()] == list(array.ravel())
                        else:
                            tolerance = 1e-2 if array.dtype == np.float16 else 1e-4
                            np.testing.assert_allclose(found, array, rtol=tolerance, atol=tolerance / 10)
                    count += 1
    return count


def refused(call, *words):
    try:
        call()
    except InferenceServerException as e:
        assert all(w in str(e) for w in words), (str(e), words)
        return
    raise AssertionError(f"{words}: it was not refused")


def main():
    graphtool, models = sys.argv[1], pathlib.Path(sys.argv[2])
    for model in MODELS:
        process, name, address = start(graphtool, models / model / "model.onnx")
        try:
            assert name == model, name
            triton = client.InferenceServerClient(address, concurrency=4)
            assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready(name)
            assert triton.is_model_ready(name, "1") and not triton.is_model_ready("other")
            assert "binary_tensor_data" in triton.get_server_metadata()["extensions"]
            metadata = triton.get_model_metadata(name)
            folders = sorted((models / model).glob("test_data_set_*"))
            assert {i["name"] for i in metadata["inputs"]} == {n for n, _ in values(folders[0], "input")}
            assert triton.get_model_config(name)["name"] == name
            assert triton.get_model_repository_index()[0]["state"] == "READY"
            answers = sum(check(triton, name, folder) for folder in folders)
            stats = triton.get_inference_statistics(name)["model_stats"][0]
            assert stats["inference_stats"]["success"]["count"] == answers, (stats, answers)
            assert triton.get_inference_statistics()["model_stats"][0]["name"] == name
            refused(lambda: triton.infer(name, []), "it is missing, expected")
            refused(lambda: triton.get_model_metadata("other"), "there is none of this name")
            array = values(folders[0], "input")[0][1]
            wrong = client.InferInput("nothing", list(array.shape), np_to_triton_dtype(array.dtype))
            wrong.set_data_from_numpy(array)
            refused(lambda: triton.infer(name, [wrong]), "the model has no such input")
            refused(lambda: triton.load_model(name), "nothing at this path")
            print(f"{name}: {answers} answers")
        finally:
            process.terminate()
            assert process.wait(60) == 0
    print("Triton's client has the recorded answers")


main()
