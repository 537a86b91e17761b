"""Makes the programs of this folder with PaddlePaddle 2.6.2 (pip install paddlepaddle==2.6.2 "numpy<2").

Each gets NAME.pdmodel (and NAME.pdiparams where it has parameters), in_INPUT.npy for each input, with in_INPUT.lod.npy for the
offsets of sequences, and out_N.npy: what PaddlePaddle's executor computes. Fixed seeds: the same numbers each time.
"""
import os

os.environ["GLOG_minloglevel"] = "3"
import numpy as np
import paddle
import paddle.nn.functional as F
import paddle.static as S
from paddle.base.layer_helper import LayerHelper
from paddle.base.proto import framework_pb2

paddle.enable_static()
embedding, lod = S.nn.embedding, S.nn.sequence_lod
HERE = os.path.dirname(os.path.abspath(__file__))


class Inputs:
    def __init__(self, seed):
        self.random, self.values, self.lengths, self.vars = np.random.RandomState(seed), {}, {}, []

    def numbers(self, name, shape, low=-2.0, high=2.0, fixed=False):
        return self.take(name, self.random.uniform(low, high, shape).astype("float32"), fixed)

    def ids(self, name, shape, rows, low=0):
        return self.take(name, self.random.randint(low, rows, shape).astype("int64"), False)

    def take(self, name, value, fixed):
        var = S.data(name, list(value.shape) if fixed else [-1, *value.shape[1:]], str(value.dtype))
        self.values[name] = value
        self.vars.append(var)
        return var

    def sequences(self, name, lengths, width, rows=None):
        shape = (sum(lengths), width)
        value = self.random.randint(0, rows, shape).astype("int64") if rows else self.random.uniform(-2, 2, shape).astype("float32")
        var = S.data(name, [-1, width], str(value.dtype), lod_level=1)
        self.values[name], self.lengths[name] = value, lengths
        self.vars.append(var)
        return var

    def weight(self, name, shape, low=-1.0, high=1.0):
        value = self.random.uniform(low, high, shape).astype("float32")
        return paddle.create_parameter(list(shape), "float32", name=name, default_initializer=paddle.nn.initializer.Assign(value))


def op(kind, inputs, attrs=None, outputs=None):
    helper = LayerHelper(kind)
    made = {p: [helper.create_variable_for_type_inference(d)] for p, d in (outputs or {"Out": "float32"}).items()}
    helper.append_op(type=kind, inputs={p: [v] for p, v in inputs.items()}, outputs=made, attrs=attrs or {})
    values = [v[0] for v in made.values()]
    return values[0] if len(values) == 1 else values


def mlp(x, widths, act="relu"):
    for w in widths:
        x = S.nn.fc(x, w, activation=act)
    return x


def din(i):
    """Attention over a history: one table for three inputs, a bias table."""
    rows, steps = 40, 6
    history, wanted = i.ids("history", (5, steps), rows), i.ids("wanted", (5,), rows)
    again = i.ids("again", (5, steps), rows)
    there = np.arange(steps)[None, :, None] < np.array([6, 3, 2, 1, 4])[:, None, None]
    mask = i.take("mask", np.where(there, 0, -1e9).astype("float32"), False)
    h, a = embedding(history, [rows, 4], param_attr="item"), embedding(again, [rows, 4], param_attr="item")
    w, b = embedding(wanted, [rows, 4], param_attr="item"), embedding(wanted, [rows, 1], param_attr="bias")
    x = F.sigmoid(paddle.nn.Linear(16, 8)(paddle.concat([h, a, h - a, h * a], axis=2)))
    x = paddle.transpose(paddle.nn.Linear(8, 1)(x) + mask, [0, 2, 1])
    x = paddle.reshape(paddle.matmul(F.softmax(paddle.scale(x, 0.5)), h), [0, 4])
    return F.sigmoid(S.nn.fc(mlp(paddle.concat([x, w], 1), [8], "sigmoid"), 1) + b)


def esmm(i):
    """Bags of ids in one shared table, samples without ids, two towers."""
    slots = [i.sequences(f"slot{k}", n, 1, rows=30) for k, n in enumerate([[2, 1, 0, 3], [1, 1, 1, 1], [0, 2, 4, 1]])]
    bags = [lod.sequence_pool(embedding(s, [30, 4], padding_idx=0, param_attr="slots", is_sparse=True), "sum") for s in slots]
    x = paddle.concat(bags, 1)
    ctr, cvr = (paddle.slice(S.nn.fc(mlp(x, [6]), 2, activation="softmax"), [1], [1], [2]) for _ in range(2))
    return ctr * cvr, ctr


def gru4rec(i):
    """The rnn op: two layers both ways of a GRU, an LSTM with lengths; top k."""
    items, lengths = i.ids("items", (3, 5), 30), i.take("lengths", np.array([5, 2, 3], "int32"), False)
    x = embedding(items, [30, 4], padding_idx=0, param_attr="item")
    y, _ = paddle.nn.GRU(4, 6, num_layers=2, direction="bidirect")(x)
    z, (h, c) = paddle.nn.LSTM(4, 6)(x, sequence_length=lengths)
    value, index = paddle.topk(F.softmax(S.nn.fc(y[:, -1], 30)), 5)
    return value, index, z, h, c


def bert4rec(i):
    """A transformer whose table is also the matrix behind it."""
    rows, steps, width = 30, 6, 8
    items = i.ids("items", (3, steps), rows)
    places = i.take("places", np.tile(np.arange(steps), (3, 1)).astype("int64"), False)
    at = i.ids("at", (4, 1), 3 * steps)
    x = S.nn.layer_norm(embedding(items, [rows, width], param_attr="item") + embedding(places, [steps, width], param_attr="place"), begin_norm_axis=2)
    layer = paddle.nn.TransformerEncoderLayer(width, 2, 16, activation="gelu")
    layer.eval()
    x = S.nn.fc(paddle.gather(paddle.reshape(layer(x), [-1, width]), at), width, activation="gelu")
    return paddle.matmul(x, S.default_main_program().global_block().var("item"), transpose_y=True)


def control(i):
    """Lookups in a loop that fills a list, and in a branch within a branch."""
    items, flag = i.take("items", i.random.randint(0, 10, (2, 4)).astype("int64"), True), i.take("flag", np.array([1.0], "float32"), True)
    table, u = i.weight("table", (10, 3)), i.weight("u", (3, 3))
    step, steps = paddle.full([1], 0, "int64"), paddle.full([1], 4, "int64")
    state, states, running = paddle.assign(paddle.zeros([2, 3])), paddle.tensor.create_array("float32"), paddle.less_than(step, steps)
    loop = S.nn.control_flow.While(running)
    with loop.block():
        x = paddle.squeeze(F.embedding(paddle.index_select(items, step, axis=1), table), 1)
        paddle.assign(paddle.tanh(x + paddle.matmul(state, u)), state)
        paddle.tensor.array_write(state * 1.0, step, states)
        paddle.increment(step)
        paddle.assign(paddle.less_than(step, steps), running)
    rows = lambda: F.embedding(items, table)
    zero = paddle.full([1], 0.0)
    picked = S.nn.cond(flag > zero, lambda: S.nn.cond(flag > 2.0, lambda: rows() + 1, rows), lambda: rows() * 3)
    return state, paddle.tensor.manipulation.tensor_array_to_tensor(states, axis=1, use_stack=True)[0], picked


def sequences(i):
    """Ops over sequences, one with samples without rows."""
    x, y, q = i.sequences("x", [2, 1, 3], 4), i.sequences("y", [1, 2, 2], 4), i.numbers("q", (3, 4))
    ids, gaps = i.sequences("ids", [2, 1, 3], 1, rows=9), i.sequences("gaps", [0, 2, 0, 3], 4)
    wide = lod.sequence_expand(q, x, ref_level=0)
    weights = lod.sequence_softmax(S.nn.fc(x * wide, 1))
    bag = op("fused_embedding_seq_pool", {"Ids": ids, "W": i.weight("bag", (9, 4))}, {"combiner": "sum", "padding_idx": 2})
    padded, lengths = lod.sequence_pad(x, paddle.full([1], 0.25))
    pools = [lod.sequence_pool(gaps, kind, pad_value=0.5) for kind in ("sum", "average", "sqrt", "max", "first", "last")]
    return [lod.sequence_pool(x * weights, "sum"), lod.sequence_conv(x, 5, filter_size=3), lod.sequence_concat([x, y]), lod.sequence_reverse(x),
            lod.sequence_enumerate(ids, win_size=2), lod.sequence_expand(x, y, ref_level=0), padded, lengths, bag, *pools]


def metrics(i):
    """What programs of parameter servers end in: data_norm, cvm, loss, accuracy, AUC."""
    x, shows = i.numbers("x", (8, 6), 0.1, 2.0), i.numbers("shows", (8, 2), 0.1, 1.0)
    label = i.ids("label", (8, 1), 2)
    norm = {"BatchSize": i.weight("size", (6,), 5, 9), "BatchSum": i.weight("sum", (6,)), "BatchSquareSum": i.weight("squares", (6,), 5, 9)}
    normed = op("data_norm", {"X": x, **norm}, {"epsilon": 1e-4, "slot_dim": -1}, {"Y": "float32", "Means": "float32", "Scales": "float32"})[0]
    seen = S.nn.continuous_value_model(x, shows, True)
    p = F.sigmoid(S.nn.fc(paddle.concat([normed, seen], 1), 1))
    two = paddle.concat([1 - p, p], 1)
    cost = paddle.mean(F.log_loss(p, paddle.cast(label, "float32")))
    return p, cost, S.accuracy(two, label, k=1), S.auc(two, label)[0], F.binary_cross_entropy(p, paddle.cast(label, "float32"))


def corners(i):
    """Rules that differ from ONNX's."""
    x, m, image = i.numbers("x", (4, 5, 6)), i.numbers("m", (2, 1, 3, 1)), i.numbers("image", (2, 8, 8, 4))
    halves = i.take("halves", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997], "float32"), False)
    axis, w, planes = paddle.full([1], 1, "int32"), i.weight("w", (6, 4, 3, 3)), i.numbers("planes", (2, 4, 7, 5))
    at, rows = i.take("at", np.array([3, 1, 3], "int64"), False), i.numbers("rows", (3, 5, 6))
    y = paddle.scale(x, 2.0)
    S.default_main_program().current_block().append_op(type="scale", inputs={"X": [y]}, outputs={"Out": [y]}, attrs={"scale": 3.0})
    return [x[:, ::-1], paddle.strided_slice(x, [1], [-1], [-6], [-1]), paddle.unsqueeze(m, [0, 0]), paddle.squeeze(m, [0, 1]), paddle.round(halves),
            op("softplus", {"X": x}, {"beta": 2.0, "threshold": 3.0}), paddle.argmax(x, keepdim=True), paddle.concat([x, x], axis=axis),
            S.nn.conv2d(image, 6, 3, padding=1, data_format="NHWC"), F.conv2d(planes, w, padding="SAME", dilation=2),
            F.adaptive_avg_pool2d(planes, [3, 2]), paddle.scatter(x, at, rows, overwrite=False), paddle.norm(x, p=0, axis=1),
            paddle.transpose(x, [-1, 0, 1]), y, paddle.sum(x > 0, axis=1)]


def strip(path):
    """Takes out where in this script each op was made."""
    program = framework_pb2.ProgramDesc()
    with open(path, "rb") as file:
        program.ParseFromString(file.read())
    for made in (made for block in program.blocks for made in block.ops):
        kept = [a for a in made.attrs if a.name not in ("op_callstack", "op_namescope", "op_device", "with_quant_attr")]
        del made.attrs[:]
        made.attrs.extend(kept)
    with open(path, "wb") as file:
        file.write(program.SerializeToString())


def build(name, make, seed):
    main, start = S.Program(), S.Program()
    with S.scope_guard(S.Scope()), S.program_guard(main, start), paddle.utils.unique_name.guard():
        main.random_seed = start.random_seed = seed
        inputs = Inputs(seed)
        outputs = make(inputs)
        outputs = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
        exe = S.Executor(paddle.CPUPlace())
        exe.run(start)
        folder = os.path.join(HERE, name)
        os.makedirs(folder, exist_ok=True)
        S.save_inference_model(os.path.join(folder, name), inputs.vars, outputs, exe, program=main)
        strip(os.path.join(folder, name + ".pdmodel"))
        program, feeds, fetches = S.load_inference_model(os.path.join(folder, name), exe)
        feed = {}
        for k in feeds:
            value = inputs.values[k]
            np.save(os.path.join(folder, f"in_{k}.npy"), value)
            if k in inputs.lengths:
                np.save(os.path.join(folder, f"in_{k}.lod.npy"), np.cumsum([0, *inputs.lengths[k]]).astype("int64"))
                value = paddle.base.create_lod_tensor(value, [inputs.lengths[k]], paddle.CPUPlace())
            feed[k] = value
        results = exe.run(program, feed=feed, fetch_list=fetches, return_numpy=False)
        for n, result in enumerate(results):
            np.save(os.path.join(folder, f"out_{n}.npy"), np.array(result))


for seed, make in enumerate([bert4rec, control, corners, din, esmm, gru4rec, metrics, sequences], 1):
    build(make.__name__, make, seed)
