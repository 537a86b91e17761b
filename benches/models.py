"""The models of the benchmarks, with random weights: what exporters write for DLRM, Wide&Deep, DeepFM, SASRec and a BERT.

    python benches/models.py FOLDER

Needs the packages onnx and numpy. Tables are external data, so that files over 2 GiB work; the same call gives the same bytes.
"""

import os
import sys

import numpy
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """A graph under construction."""

    def __init__(self, seed):
        self.nodes, self.weights, self.inputs, self.random, self.count = [], [], [], numpy.random.default_rng(seed), 0

    def op(self, name, *inputs, outputs=1, **attributes):
        self.count += 1
        made = [f"{name.lower()}_{self.count}" + (f"_{i}" if outputs > 1 else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(name, inputs, made, name=f"{name}_{self.count}", **attributes))
        return made if outputs > 1 else made[0]

    def input(self, name, dtype, dims):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, dims))
        return name

    def weight(self, name, dims, scale=None):
        scale = scale or 1.0 / numpy.sqrt(dims[0])
        value = self.random.standard_normal(dims, dtype=numpy.float32) * numpy.float32(scale)
        return self.constant(name, value.astype(numpy.float32))

    def constant(self, name, value):
        self.weights.append(numpy_helper.from_array(numpy.asarray(value), name))
        return name

    def ints(self, values):
        self.count += 1
        return self.constant(f"ints_{self.count}", numpy.array(values, numpy.int64))

    def scalar(self, value):
        self.count += 1
        return self.constant(f"scalar_{self.count}", numpy.array(value, numpy.float32))

    def dense(self, x, name, width, out, relu=True):
        # nn.Linear as PyTorch exports it.
        y = self.op("Gemm", x, self.weight(f"{name}.weight", [out, width], 1 / numpy.sqrt(width)), self.weight(f"{name}.bias", [out]), transB=1)
        return self.op("Relu", y) if relu else y

    def mlp(self, x, name, widths, last_relu=True):
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            x = self.dense(x, f"{name}.{i}", a, b, last_relu or i + 2 < len(widths))
        return x

    def columns(self, sparse, tables):
        """One lookup for each column of the ids."""
        return [self.op("Gather", t, self.op("Gather", sparse, self.ints(i), axis=1)) for i, t in enumerate(tables)]

    def linear(self, x, name, width, out):
        y = self.op("MatMul", x, self.weight(f"{name}.weight", [width, out]))
        return self.op("Add", self.weight(f"{name}.bias", [out]), y)

    def layer_norm(self, x, name, width):
        return self.op("LayerNormalization", x, self.constant(f"{name}.gamma", numpy.ones(width, numpy.float32)),
                       self.weight(f"{name}.beta", [width], 0.01), axis=-1, epsilon=1e-5)

    def attention(self, x, name, width, heads, length, mask=None):
        head = width // heads
        split = self.ints([0, length, heads, head])

        def part(which, perm):
            y = self.linear(x, f"{name}.{which}", width, width)
            return self.op("Transpose", self.op("Reshape", y, split), perm=perm)

        q, k, v = part("query", [0, 2, 1, 3]), part("key", [0, 2, 3, 1]), part("value", [0, 2, 1, 3])
        scores = self.op("Div", self.op("MatMul", q, k), self.scalar(numpy.sqrt(head)))
        if mask:
            scores = self.op("Add", scores, mask)
        mixed = self.op("Transpose", self.op("MatMul", self.op("Softmax", scores, axis=-1), v), perm=[0, 2, 1, 3])
        return self.linear(self.op("Reshape", mixed, self.ints([0, length, width])), f"{name}.output", width, width)

    def gelu(self, x):
        y = self.op("Add", self.op("Erf", self.op("Div", x, self.scalar(numpy.sqrt(2.0)))), self.scalar(1.0))
        return self.op("Mul", self.op("Mul", x, y), self.scalar(0.5))

    def save(self, folder, output, dims):
        result = self.op("Identity", output)
        graph = helper.make_graph(self.nodes, "graph", self.inputs, [helper.make_tensor_value_info(result, TensorProto.FLOAT, dims)], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9, producer_name="graphtool benches")
        os.makedirs(folder, exist_ok=True)
        onnx.save(model, f"{folder}/model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=1 << 16)
        return f"{folder}/model.onnx"


SLOTS, DIM, DENSE = 26, 16, 13


def ids_and_dense(b):
    return b.input("dense", TensorProto.FLOAT, ["batch", DENSE]), b.input("sparse", TensorProto.INT64, ["batch", SLOTS])


def wide_deep(folder, rows):
    b = Builder(1)
    dense, sparse = ids_and_dense(b)
    deep = b.columns(sparse, [b.weight(f"deep.{i}", [rows, DIM], 0.01) for i in range(SLOTS)])
    wide = b.columns(sparse, [b.weight(f"wide.{i}", [rows, 1], 0.01) for i in range(SLOTS)])
    x = b.mlp(b.op("Concat", dense, *deep, axis=1), "deep.mlp", [DENSE + SLOTS * DIM, 400, 400, 400])
    x = b.dense(x, "deep.out", 400, 1, relu=False)
    w = b.op("Add", b.op("ReduceSum", b.op("Concat", *wide, axis=1), b.ints([1]), keepdims=1), b.dense(dense, "wide.dense", DENSE, 1, relu=False))
    return b.save(folder, b.op("Sigmoid", b.op("Add", x, w)), ["batch", 1])


def dlrm(folder, rows):
    b = Builder(2)
    dense, sparse = ids_and_dense(b)
    bottom = b.mlp(dense, "bottom", [DENSE, 512, 256, 64, DIM])
    vectors = [bottom] + b.columns(sparse, [b.weight(f"emb.{i}", [rows, DIM], 0.01) for i in range(SLOTS)])
    n = len(vectors)
    stacked = b.op("Concat", *[b.op("Unsqueeze", v, b.ints([1])) for v in vectors], axis=1)
    gram = b.op("MatMul", stacked, b.op("Transpose", stacked, perm=[0, 2, 1]))
    below = [i * n + j for i in range(n) for j in range(i)]
    pairs = b.op("Gather", b.op("Reshape", gram, b.ints([-1, n * n])), b.ints(below), axis=1)
    x = b.op("Concat", bottom, pairs, axis=1)
    x = b.mlp(x, "top", [DIM + len(below), 512, 256, 1], last_relu=False)
    return b.save(folder, b.op("Sigmoid", x), ["batch", 1])


def deep_fm(folder, rows):
    b = Builder(3)
    dense, sparse = ids_and_dense(b)
    vectors = b.columns(sparse, [b.weight(f"emb.{i}", [rows, DIM], 0.01) for i in range(SLOTS)])
    first = b.columns(sparse, [b.weight(f"first.{i}", [rows, 1], 0.01) for i in range(SLOTS)])
    stacked = b.op("Concat", *[b.op("Unsqueeze", v, b.ints([1])) for v in vectors], axis=1)
    total = b.op("ReduceSum", stacked, b.ints([1]), keepdims=0)
    square = b.op("ReduceSum", b.op("Mul", stacked, stacked), b.ints([1]), keepdims=0)
    pairs = b.op("Mul", b.op("ReduceSum", b.op("Sub", b.op("Mul", total, total), square), b.ints([1]), keepdims=1), b.scalar(0.5))
    x = b.mlp(b.op("Concat", dense, b.op("Flatten", stacked), axis=1), "deep", [DENSE + SLOTS * DIM, 400, 400, 1], last_relu=False)
    line = b.op("Add", b.op("ReduceSum", b.op("Concat", *first, axis=1), b.ints([1]), keepdims=1), b.dense(dense, "line", DENSE, 1, relu=False))
    return b.save(folder, b.op("Sigmoid", b.op("Add", b.op("Add", x, pairs), line)), ["batch", 1])


def transformer(b, x, layers, width, heads, inner, length, mask, gelu):
    for i in range(layers):
        x = b.layer_norm(b.op("Add", b.attention(x, f"layer.{i}.attention", width, heads, length, mask), x), f"layer.{i}.norm1", width)
        y = b.linear(x, f"layer.{i}.inner", width, inner)
        y = b.linear(b.gelu(y) if gelu else b.op("Relu", y), f"layer.{i}.outer", inner, width)
        x = b.layer_norm(b.op("Add", y, x), f"layer.{i}.norm2", width)
    return x


def sasrec(folder, rows, length=50, width=64):
    b = Builder(4)
    history = b.input("history", TensorProto.INT64, ["batch", length])
    x = b.op("Mul", b.op("Gather", b.weight("item", [rows, width], 0.05), history), b.scalar(numpy.sqrt(width)))
    x = b.op("Add", x, b.weight("position", [length, width], 0.05))
    mask = b.constant("mask", numpy.triu(numpy.full((length, length), -1e9, numpy.float32), 1))
    x = b.layer_norm(transformer(b, x, 2, width, 2, width, length, mask, gelu=False), "last", width)
    candidates = b.input("candidates", TensorProto.INT64, ["batch", 100])
    last = b.op("Unsqueeze", b.op("Gather", x, b.ints(length - 1), axis=1), b.ints([2]))
    scores = b.op("MatMul", b.op("Gather", b.weight("target", [rows, width], 0.05), candidates), last)
    return b.save(folder, b.op("Squeeze", scores, b.ints([2])), ["batch", 100])


def bert(folder, rows, length=128, width=384):
    b = Builder(5)
    ids = b.input("input_ids", TensorProto.INT64, ["batch", length])
    x = b.op("Add", b.op("Gather", b.weight("word", [rows, width], 0.05), ids), b.weight("position", [length, width], 0.05))
    x = transformer(b, b.layer_norm(x, "norm", width), 6, width, 12, 4 * width, length, None, gelu=True)
    pooled = b.op("Tanh", b.linear(b.op("Gather", x, b.ints(0), axis=1), "pooler", width, width))
    return b.save(folder, b.linear(pooled, "head", width, 2), ["batch", 2])


MODELS = {"dlrm": (dlrm, 40_000), "wide_deep": (wide_deep, 1_000_000 // SLOTS), "deepfm": (deep_fm, 40_000), "sasrec": (sasrec, 100_000), "bert": (bert, 30_000)}

if __name__ == "__main__":
    for name, (make, rows) in MODELS.items():
        print(make(f"{sys.argv[1]}/{name}", rows))
