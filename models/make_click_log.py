#!/usr/bin/env python3
"""Writes models/clicks.csv: a click log of 20,000 rows for the model widedeep_ts11, with a planted truth.

    python models/make_click_log.py          (needs numpy, onnx and onnxruntime)

Ids fall off like a power law, dense features are normal. The chance of a click is

    p = sigmoid(1.6 * z + 0.5 * n - 1.0)

where z is the model's own logit, standardised over the log, and n is standard normal noise that no feature carries.
So the model ranks well but not perfectly; the best possible AUC, that of p itself, is printed and stands in
models/README.md. Everything comes from one fixed seed."""
import csv, os
import numpy as np, onnxruntime as ort

ROWS, SEED, SIZES, DENSE = 20_000, 20240607, [500, 60, 7, 210], 5
HERE = os.path.dirname(os.path.abspath(__file__))

def auc(y, s):
    order = np.argsort(s, kind="stable"); ranks = np.empty(len(s)); ranks[order] = np.arange(1, len(s) + 1)
    for v in np.unique(s[np.concatenate([[False], np.diff(np.sort(s)) == 0])]):   # ties count one half
        ranks[s == v] = ranks[s == v].mean()
    pos = y == 1
    return (ranks[pos].sum() - pos.sum() * (pos.sum() + 1) / 2) / (pos.sum() * (~pos).sum())

def main():
    rng = np.random.Generator(np.random.PCG64(SEED))
    dense = np.round(rng.standard_normal((ROWS, DENSE)), 3).astype(np.float32)
    ids = [np.minimum((n * rng.random(ROWS) ** 2.5).astype(np.int64), n - 1) for n in SIZES]
    sparse = np.stack(ids, 1)
    model = ort.InferenceSession(os.path.join(HERE, "widedeep_ts11", "model.onnx"))
    prob = model.run(None, {"dense": dense, "sparse": sparse})[0].reshape(-1).astype(np.float64)
    logit = np.log(prob) - np.log1p(-prob)
    z = (logit - logit.mean()) / logit.std()
    p = 1.0 / (1.0 + np.exp(-(1.6 * z + 0.5 * rng.standard_normal(ROWS) - 1.0)))
    click = (rng.random(ROWS) < p).astype(np.int64)
    with open(os.path.join(HERE, "clicks.csv"), "w", newline="") as f:
        w = csv.writer(f, lineterminator="\n")
        w.writerow(["click"] + [f"I{i + 1}" for i in range(DENSE)] + [f"C{i + 1}" for i in range(len(SIZES))])
        for k in range(ROWS):
            w.writerow([click[k]] + [f"{x:g}" for x in dense[k]] + list(sparse[k]))
    print(f"{ROWS} rows, {click.mean():.4f} clicked; best possible auc {auc(click, p):.6f}, the model's {auc(click, prob):.6f}")

if __name__ == "__main__": main()
