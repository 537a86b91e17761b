//! `graphtool serve`: answers over HTTP, and what becomes of requests that are wrong, too many, or too late.

#[path = "serve/client.rs"]
mod client;

use client::{Connection, Named, Running, binary_request, graphtool, inputs, json_request, models, same, serve};
use flate2::Compression;
use flate2::read::{GzDecoder, GzEncoder, ZlibEncoder};
use graphtool::deploy::{RewriteOptions, read_sparse, rewrite, sparse_tables};
use graphtool::exec::{Options, Session};
use graphtool::formats::{self, onnx::value, paddle};
use graphtool::plan::Absent;
use graphtool::tensor::{Tensor, Value};
use graphtool::{deploy, store};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

fn widedeep() -> std::path::PathBuf {
    models().join("widedeep_ts11/model.onnx")
}

/// A rewritten model, with all its tables in shards.
fn deployment(dir: &Path) -> std::path::PathBuf {
    let out = dir.join("w.dist");
    let (from, to) = (widedeep(), out.to_str().expect("text").to_owned());
    let done = graphtool(&["rewrite", from.to_str().expect("text"), "-o", &to, "--min-bytes", "0"]).output().expect("it runs");
    assert!(done.status.success());
    out
}

fn session(model: &Path) -> Session {
    Session::new(&formats::load(model).expect("a model"), Options::default()).expect("a session")
}

/// What `graphtool run` writes for a folder of inputs.
fn run(model: &Path, data: &Path, session: &Session) -> Named {
    let tmp = tempfile::tempdir().expect("a directory");
    let (out, args) = (tmp.path().join("out"), |p: &Path| p.to_str().expect("text").to_owned());
    let done = graphtool(&["run", &args(model), "--input", &args(data), "--output", &args(&out)]).output().expect("it runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let read = |i: usize| fs::read(out.join(format!("output_{i}.pb"))).expect("an output").into();
    let outputs = session.output_names().iter().enumerate();
    outputs.map(|(i, name)| (name.clone(), value::decode_value(&read(i), None).expect("a value").1)).collect()
}

#[test]
fn json_and_binary_answers_are_those_of_run_to_the_bit() {
    for name in
        ["widedeep_ts11", "din_ts17", "emb_i32_ts17", "emb_scalar_ts13", "fp16_table_ts13", "tf_string_table_13", "if_ts13", "bag_sum_ts13"]
    {
        let model = models().join(name).join("model.onnx");
        let data = models().join(name).join("test_data_set_0");
        let session = session(&model);
        let (given, wanted) = (inputs(&session, &data), run(&model, &data, &session));
        let server = serve(&model, &[]);
        let json = server.infer(&json_request(&given));
        same(&json, &wanted);
        assert_eq!(json.header("content-type"), Some("application/json"));
        let (body, length) = binary_request(&given);
        let binary = server.post("/v2/models/m/versions/1/infer", &[("Inference-Header-Content-Length", &length.to_string())], &body);
        same(&binary, &wanted);
        assert_eq!(binary.header("content-type"), Some("application/octet-stream"));
    }
}

#[test]
fn keys_above_2_to_the_53_are_exact() {
    let source = models().join("paddle/ps_checkpoint");
    let tmp = tempfile::tempdir().expect("a directory");
    let mut rows = read_sparse(&sparse_tables(&source.join("saved")).expect("tables")[&0], 16, Default::default(), None).expect("rows");
    let first = rows.values[..16].to_vec();
    for (key, factor) in [((1u64 << 53), 3.0), ((1 << 53) + 1, -3.0), (i64::MAX as u64, 7.0)] {
        rows.keys.push(key);
        rows.values.extend(first.iter().map(|x| x * factor));
    }
    let program = source.join("saved/dnn_plugin");
    let model = paddle::open(&program, &|program, name| paddle::distributed_tables(program).iter().any(|t| t == name)).expect("a model");
    let keyed = [("deep_emb".to_owned(), (rows, Absent::Error))].into();
    let dir = tmp.path().join("k.dist");
    rewrite(model, &dir, RewriteOptions { shards: 3, keyed, ..Default::default() }).expect("a rewrite");
    let store = store::open_local(&dir).expect("a store");
    let session = Session::new(&deploy::open(&dir).expect("a deployment").1, Options { store: Some(store), ..Options::default() })
        .expect("a session");
    let server = serve(&dir, &[]);
    let given = inputs(&session, &source);
    let mut seen: Vec<String> = Vec::new();
    for id in [1i64 << 53, (1 << 53) + 1, i64::MAX] {
        let mut given = given.clone();
        let ids: Value = Tensor::new([8, 1], vec![id; 8]).expect("ids").into();
        given.iter_mut().filter(|(name, _)| name == "C3").for_each(|(_, v)| *v = ids.clone());
        let wanted = session.run(given.clone()).expect("a run");
        let reply = server.infer(&json_request(&given));
        same(&reply, &wanted);
        seen.push(reply.text());
    }
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
    // One more is no key of the table, and no float is near enough to be taken for one.
    let keys = given.iter().find(|(n, _)| n == "C3").and_then(|(_, v)| v.as_tensor()).expect("ids").to_i64s().expect("ids");
    let asks = json_request(&given);
    let at = asks.find("\"C3\"").expect("an input");
    let asks = format!("{}{}", &asks[..at], asks[at..].replacen(&format!("[{},", keys[0]), "[9007199254740995,", 1));
    let refused = server.infer(&asks);
    assert_eq!(refused.status, 400);
    assert!(refused.error().contains("key 9007199254740995 is absent"), "{}", refused.error());
}

#[test]
fn a_client_finds_out_what_there_is() {
    let server = serve(&widedeep(), &["--name", "ctr"]);
    assert_eq!(server.get("/v2").json()["name"], "graphtool");
    assert_eq!(server.get("/v2/health/live").json()["live"], true);
    assert_eq!(server.get("/v2/health/ready").json()["ready"], true);
    let metadata = server.get("/v2/models/ctr").json();
    assert_eq!(metadata["inputs"][0], serde_json::json!({ "name": "dense", "datatype": "FP32", "shape": [-1, 5] }));
    assert_eq!(server.get("/v2/models/ctr/versions/1").json(), metadata);
    assert_eq!(server.get("/v2/models/ctr/ready").json()["ready"], true);
    assert_eq!(server.get("/v2/models/ctr/config").json()["max_batch_size"], 1024);
    assert_eq!(server.get("/v2/models/ctr/stats").json()["model_stats"][0]["execution_count"], 0);
    assert_eq!(server.post("/v2/repository/index", &[], b"{}").json()[0]["state"], "READY");
    for (path, status) in
        [("/healthz", 200), ("/readyz", 200), ("/", 200), ("/page/about.json", 200), ("/nothing", 404), ("/v2/models/other", 404)]
    {
        assert_eq!(server.get(path).status, status, "{path}");
    }
    assert_eq!(server.get("/v2/models/ctr/versions/2/ready").error(), "model \"ctr\": there is no version \"2\", there is \"1\"");
    let other = server.post("/v2/models/other/infer", &[], b"{}");
    assert_eq!((other.status, other.error().as_str()), (404, "model \"other\": there is none of this name, there is \"ctr\""));
    assert_eq!(server.get("/v2/models/ctr/infer").status, 405);
    assert_eq!(server.post("/v2/repository/models/ctr/load", &[], b"").status, 404);
    assert!(server.get("/page/graph.svg").text().contains("<svg"));
}

#[test]
fn what_is_wrong_with_a_request_is_said_and_harms_no_other() {
    let server = serve(&widedeep(), &["--max-body", "64KiB"]);
    let good = json_request(&inputs(&session(&widedeep()), &models().join("widedeep_ts11/test_data_set_0")));
    let mut kept = Connection::open(&server.address);
    let path = "/v2/models/m/infer";
    let at = good.find("\"sparse\"").expect("an input");
    let from = at + good[at..].find("\"data\":[").expect("data") + 8;
    let to = from + good[from..].find(',').expect("numbers");
    let out_of_range = format!("{}999999{}", &good[..from], &good[to..]);
    let deep = format!(r#"{{"inputs":[{{"name":"dense","datatype":"FP32","shape":[1,5],"data":{}"#, "[".repeat(50_000));
    let length = |n: &'static str| vec![("Inference-Header-Content-Length", n)];
    let cases: Vec<(Vec<(&str, &str)>, Vec<u8>, u16, &str)> = vec![
        (vec![], out_of_range.into(), 400, "999999"),
        (
            vec![],
            good.replace("\"dense\"", "\"dance\"").into(),
            400,
            "input \"dance\": the model has no such input; it has \"dense\", \"sparse\"",
        ),
        (vec![], good.replacen("FP32", "FP64", 1).into(), 400, "input \"dense\": expected FP32[-1,5], found FP64["),
        (vec![], b"{\"inputs\":[]}".to_vec(), 400, "input \"dense\": it is missing, expected FP32[-1,5]"),
        (vec![], deep.into(), 400, "the request is none of the protocol"),
        (vec![], b"\xff\xfe{}".to_vec(), 400, "the request is not UTF-8 from byte 0 on"),
        (vec![], good[..good.len() / 2].into(), 400, "EOF"),
        (length("99999"), good.clone().into(), 400, "the head says 99999 bytes of JSON"),
        (length("-1"), good.clone().into(), 400, "is no number of bytes"),
        (length("10"), good.clone().into(), 400, "the request is none of the protocol"),
        (vec![("Content-Encoding", "br")], good.clone().into(), 415, "gzip or deflate"),
        (vec![("Content-Encoding", "gzip")], good.clone().into(), 400, "the body is no gzip"),
        (vec![], vec![b' '; 65_537], 413, "the body has more than 65536 bytes"),
    ];
    for (headers, body, status, says) in cases {
        let reply = kept.ask("POST", path, &headers, &body);
        assert_eq!(reply.status, status, "{says}: {}", reply.text());
        assert!(reply.error().contains(says), "{says}: {}", reply.error());
        if status == 413 {
            kept = Connection::open(&server.address);
        }
    }
    // A length that no body has, and a packed one that is small only on the way.
    let mut huge = Connection::open(&server.address);
    huge.send(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 18446744073709551615\r\n\r\n");
    huge.stream().shutdown(std::net::Shutdown::Write).expect("shut");
    assert!(huge.reply().is_none_or(|r| (400..500).contains(&r.status)));
    let mut bomb = Vec::new();
    GzEncoder::new(&vec![b' '; 1 << 20][..], Compression::best()).read_to_end(&mut bomb).expect("packed");
    assert_eq!(kept.ask("POST", path, &[("Content-Encoding", "gzip")], &bomb).status, 413);
    // A body that is cut off is nobody's.
    let mut cut = Connection::open(&server.address);
    cut.send(b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{");
    drop(cut);
    assert_eq!(kept.ask("POST", path, &[], good.as_bytes()).status, 200);
    assert!(server.metric("graphtool_serve_inferences_total{code=\"400\"}") >= 11.0);
}

#[test]
fn bodies_may_be_packed_both_ways() {
    let server = serve(&widedeep(), &[]);
    let session = session(&widedeep());
    let mut given = inputs(&session, &models().join("widedeep_ts11/test_data_set_0"));
    // Enough samples that packing the answer is worth it.
    for (_, value) in &mut given {
        let t = value.as_tensor().expect("a tensor").clone();
        let (mut shape, times) = (t.shape().clone(), 200);
        shape[0] *= times;
        *value = Tensor::from_bytes(t.dtype(), shape, t.bytes().expect("bytes").repeat(times)).expect("a tensor").aligned().into();
    }
    let wanted = session.run(given.clone()).expect("a run");
    let (body, length) = binary_request(&given);
    let (mut gzip, mut zlib) = (Vec::new(), Vec::new());
    GzEncoder::new(&body[..], Compression::fast()).read_to_end(&mut gzip).expect("packed");
    ZlibEncoder::new(&body[..], Compression::fast()).read_to_end(&mut zlib).expect("packed");
    let length = length.to_string();
    for (coding, packed) in [("gzip", gzip), ("deflate", zlib)] {
        let headers = [("Content-Encoding", coding), ("Inference-Header-Content-Length", length.as_str()), ("Accept-Encoding", "gzip")];
        let mut reply = server.post("/v2/models/m/infer", &headers, &packed);
        assert_eq!((reply.status, reply.header("content-encoding")), (200, Some("gzip")));
        let mut plain = Vec::new();
        GzDecoder::new(&reply.body[..]).read_to_end(&mut plain).expect("unpacked");
        reply.body = plain;
        same(&reply, &wanted);
    }
}

#[test]
fn clients_at_once_get_their_own_answers() {
    let tmp = tempfile::tempdir().expect("a directory");
    let server = Arc::new(serve(&deployment(tmp.path()), &["--max-delay", "2"]));
    let own = |k: usize| {
        let dense: Vec<f32> = (0..5).map(|i| (k * 7 + i) as f32 / 50.0).collect();
        let sparse: Vec<i64> = (0..4).map(|i| ((k * 3 + i) % 5) as i64).collect();
        let named: Named = vec![
            ("dense".into(), Tensor::new([1, 5], dense).expect("dense").into()),
            ("sparse".into(), Tensor::new([1, 4], sparse).expect("ids").into()),
        ];
        json_request(&named)
    };
    let score = |reply: &client::Reply| reply.json()["outputs"][0]["data"][0].as_f64().expect("a score");
    let alone: Vec<f64> = (0..16).map(|k| score(&server.infer(&own(k)))).collect();
    std::thread::scope(|scope| {
        for k in 0..16 {
            let (server, alone, own) = (server.clone(), &alone, &own);
            scope.spawn(move || {
                let mut kept = Connection::open(&server.address);
                for _ in 0..30 {
                    let reply = kept.ask("POST", "/v2/models/m/infer", &[], own(k).as_bytes());
                    assert_eq!(reply.status, 200);
                    // Sizes of batches differ, and products may round with them.
                    assert!((score(&reply) - alone[k]).abs() < 1e-6);
                }
            });
        }
    });
    assert_eq!(server.metric("graphtool_serve_inferences_total{code=\"200\"}"), 16.0 * 31.0);
    assert_eq!(server.metric("graphtool_serve_samples_total"), 16.0 * 31.0);
    assert!(server.metric("graphtool_serve_joined_requests_total") > 0.0);
    assert!(server.metric("graphtool_serve_lookups_total") > 0.0);
}

#[test]
fn a_signal_ends_the_server_after_what_is_under_way() {
    let mut server = serve(&widedeep(), &["--drain", "600"]);
    let good = json_request(&inputs(&session(&widedeep()), &models().join("widedeep_ts11/test_data_set_0")));
    let mut kept = Connection::open(&server.address);
    assert_eq!(kept.ask("POST", "/v2/models/m/infer", &[], good.as_bytes()).status, 200);
    server.process.signal("TERM");
    while server.get("/readyz").status != 503 {}
    assert_eq!((server.get("/v2/health/ready").status, server.get("/healthz").status), (503, 200));
    // Still answered, to those who do not know yet.
    assert_eq!(server.infer(&good).status, 200);
    // One whose head has come is under way.
    let head = format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", good.len());
    kept.send(head.as_bytes());
    assert_eq!(kept.reply().expect("an answer").status, 100);
    server.process.signal("INT");
    kept.send(good.as_bytes());
    assert_eq!(kept.reply().expect("an answer").status, 200);
    assert!(kept.reply().is_none());
    assert!(server.process.0.wait().expect("an end").success());
    let mut says = String::new();
    server.process.0.stdout.take().expect("a pipe").read_to_string(&mut says).expect("text");
    assert_eq!(says, "served 3 requests, 18 samples\n");
}

#[test]
fn a_pserver_that_is_gone_is_503_until_it_is_back() {
    let tmp = tempfile::tempdir().expect("a directory");
    let dir = deployment(tmp.path());
    let text = dir.to_str().expect("text");
    let pserver = |port: &str| Running::start(&["run", text, "--role", "pserver", "--port", port], "listens on ");
    let (running, endpoint) = pserver("0");
    let server = serve(&dir, &["--store", &format!("pserver://{endpoint}"), "--rpc-timeout", "0.5"]);
    let session = session(&widedeep());
    let given = inputs(&session, &models().join("widedeep_ts11/test_data_set_0"));
    let wanted = session.run(given.clone()).expect("a run");
    let good = json_request(&given);
    same(&server.infer(&good), &wanted);
    drop(running);
    let lost = server.infer(&good);
    assert_eq!((lost.status, lost.header("retry-after")), (503, Some("1")));
    assert!(lost.error().contains(&endpoint), "{}", lost.error());
    assert_eq!((server.get("/readyz").status, server.get("/healthz").status), (503, 200));
    let about = server.get("/page/about.json").json();
    assert_eq!(about["tables"][0]["pieces"][0]["places"], serde_json::json!([endpoint]));
    let (_running, again) = pserver(endpoint.rsplit_once(':').expect("a port").1);
    assert_eq!(again, endpoint);
    while server.get("/readyz").status != 200 {}
    same(&server.infer(&good), &wanted);
}

#[test]
fn strangers_are_kept_out() {
    let tmp = tempfile::tempdir().expect("a directory");
    let secret = tmp.path().join("secret");
    fs::write(&secret, "open sesame\n").expect("written");
    let model = widedeep();
    let model = model.to_str().expect("text");
    let says = |args: &[&str]| {
        let done = graphtool(&[&["serve", model], args].concat()).output().expect("it runs");
        (done.status.code(), String::from_utf8(done.stderr).expect("text"))
    };
    let (code, text) = says(&["--http", "0.0.0.0:0"]);
    assert_eq!(code, Some(2));
    assert!(text.contains("0.0.0.0:0 is not loopback") && text.contains("--http-token-file"), "{text}");
    assert_eq!(says(&["--servers", "127.0.0.1:1", "--http", "127.0.0.1:0"]).0, Some(2));
    assert_eq!(says(&["--name", "a/b", "--http", "127.0.0.1:0"]).0, Some(2));
    assert_eq!(says(&["--max-delay", "-1"]).0, Some(2));
    let server = serve(&widedeep(), &["--http-token-file", secret.to_str().expect("text")]);
    let with = |token: &str| {
        let header = format!("Bearer {token}");
        Connection::open(&server.address).ask("GET", "/v2/models/m", &[("Authorization", &header)], b"").status
    };
    assert_eq!((with("open sesame"), with("open sesam"), with("")), (200, 401, 401));
    for path in ["/v2/models/m", "/metrics", "/page/about.json", "/page/graph.svg", "/page/live.json", "/v2", "/other"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
    let refused = server.infer("{}");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    // What a balancer asks, and the page that asks for the token.
    for path in ["/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
}

#[test]
fn connections_beyond_the_limit_are_closed_and_heads_are_bounded() {
    let server = serve(&widedeep(), &["--max-connections", "2"]);
    let mut first = Connection::open(&server.address);
    assert_eq!(first.ask("GET", "/healthz", &[], b"").status, 200);
    let mut second = Connection::open(&server.address);
    assert_eq!(second.ask("GET", "/healthz", &[], b"").status, 200);
    let mut third = Connection::open(&server.address);
    assert!(third.reply().is_none());
    // A place that is free again is given to the next.
    drop(first);
    loop {
        let mut next = Connection::open(&server.address);
        let sent = next.try_send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        if sent && next.reply().is_some_and(|r| r.status == 200) {
            break;
        }
    }
    let long = second.ask("GET", "/healthz", &[("X", &"x".repeat(100 << 10))], b"");
    assert_eq!(long.status, 431);
}
