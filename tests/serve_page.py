"""The page of `graphtool serve` in Chromium without a screen.

usage: serve_page.py GRAPHTOOL MODELS

The graph, every shard with its place, and rates that are 0 before requests and move while they come."""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import urllib.request


def browser():
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(name):
            return shutil.which(name)
    sys.exit("no Chromium here")


def dom(url, milliseconds):
    """The page as it stands after so much time of its own."""
    with tempfile.TemporaryDirectory() as profile:
        args = [browser(), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
        # Nothing but the server may be asked.
        args += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", f"--virtual-time-budget={milliseconds}", "--dump-dom", url]
        done = subprocess.run(args, capture_output=True, text=True, timeout=180)
    assert "</html>" in done.stdout, done.stderr[-2000:]
    return done.stdout


def figure(page, name):
    found = re.search(rf'<b id="{name}">([^<]*)</b>', page)
    assert found, f"{name} is not on the page"
    return found.group(1)


def start(*args, before):
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().split(before)[1].strip()


def main():
    graphtool, models = sys.argv[1], pathlib.Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as folder:
        deployment = f"{folder}/w.dist"
        model = models / "widedeep_ts11" / "model.onnx"
        rewrite = [graphtool, "rewrite", str(model), "-o", deployment, "--min-bytes", "0", "--shards", "3"]
        subprocess.run(rewrite, check=True, stdout=subprocess.DEVNULL)
        manifest = json.loads(pathlib.Path(deployment, "manifest.json").read_text())
        pserver, endpoint = start(graphtool, "run", deployment, "--role", "pserver", "--port", "0", before="listens on ")
        serve, address = start(graphtool, "serve", deployment, "--http", "127.0.0.1:0", "--servers", endpoint, before="http://")
        stop = threading.Event()
        try:
            page = dom(f"http://{address}/", 3000)
            assert re.search(r'<span id="state" class="good">ready</span>', page), "the page does not say ready"
            assert "<title>w · graphtool serve</title>" in page
            assert (figure(page, "rate"), figure(page, "requests"), figure(page, "samples")) == ("0.0", "0", "0")
            graph = page[page.index('<div id="graph">') :]
            assert "<svg" in graph and "RemoteLookup" in graph and graph.count("<rect") > 3, "the graph is not on the page"
            pieces = [(t["name"], p) for t in manifest["tables"] for p in t["pieces"]]
            body = re.search(r'<tbody id="shards">(.*?)</tbody>', page, re.S).group(1)
            rows = [re.findall(r"<td[^>]*>([^<]*)</td>", r) for r in re.findall(r"<tr>(.*?)</tr>", body, re.S)]
            assert len(rows) == len(pieces) and len(pieces) > 0, (rows, pieces)
            for row, (table, piece) in zip(rows, pieces):
                wanted = [table, str(piece["shard"]), f'{piece["rows"]:,}', endpoint]
                assert [row[0], row[3], row[4], row[6]] == wanted, (row, wanted)

            def ask():
                dense = {"name": "dense", "datatype": "FP32", "shape": [2, 5], "data": [0.5] * 10}
                sparse = {"name": "sparse", "datatype": "INT64", "shape": [2, 4], "data": [1] * 8}
                body = json.dumps({"inputs": [dense, sparse]}).encode()
                while not stop.is_set():
                    urllib.request.urlopen(f"http://{address}/v2/models/w/infer", body).read()

            thread = threading.Thread(target=ask)
            thread.start()
            page = dom(f"http://{address}/", 6000)
            stop.set()
            thread.join()
            assert float(figure(page, "rate").replace(",", "")) > 0, "the rate does not move"
            assert int(figure(page, "samples").replace(",", "")) > 0
            assert figure(page, "failed") == "0" and figure(page, "p99") != "–", page
            points = re.search(r'<polyline points="([^"]*)"', page).group(1)
            assert len({p.split(",")[1] for p in points.split()}) > 1, points
            print(f"graph, {len(rows)} shards and a rate of {figure(page, 'rate')} samples/s on the page")
        finally:
            stop.set()
            for process in (serve, pserver):
                process.terminate()
                process.wait(60)


main()
