//! Jobs within TLS: the same answers as without, and an error that says what is wrong for whoever does not belong to the job.
//! The certificates are made by `tests/tls/make.sh`.

mod support;

use futures::future::join_all;
use graphtool::comm::{self, Comm, CommError, GroupOptions, ReduceOp};
use graphtool::plan::{Manifest, Sharding};
use graphtool::store::{self, BagQuery, ConnectOptions, Query, ServeOptions, StoreError, Tls};
use graphtool::tensor::{DType, PoolMode, Tensor};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use support::Server;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// The certificate `name`, with the CA that it trusts.
fn tls(name: &str, ca: &str) -> Tls {
    Tls::load(&file(&format!("{name}.pem")), &file(&format!("{name}.key")), &file(&format!("{ca}.pem"))).unwrap()
}

fn deployment() -> (tempfile::TempDir, Arc<Manifest>) {
    let dir = tempfile::tempdir().unwrap();
    let columns = support::source("C", DType::F32, &[1000, 8], Sharding::Column, 2);
    let manifest = support::deploy(dir.path(), &[support::source("T", DType::F32, &[1000, 8], Sharding::Row, 2), columns], 2);
    (dir, Arc::new(manifest))
}

fn options(tls: Option<Tls>) -> ConnectOptions {
    let (connect_timeout, rpc_timeout) = (Duration::from_secs(2), Duration::from_secs(20));
    ConnectOptions { connect_timeout, rpc_timeout, tls, ..ConnectOptions::default() }
}

fn serving(tls: Option<Tls>) -> ServeOptions {
    ServeOptions { tls, ..ServeOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_within_tls_are_those_without() {
    let (dir, manifest) = deployment();
    let ids: Vec<u64> = (0..1000).rev().chain(0..500).collect();
    let mut answers = Vec::new();
    for tls in [None, Some(tls("here", "ca"))] {
        let running = Server::start_all(dir.path(), 2, serving(tls.clone()));
        // By address, and by name.
        for host in ["127.0.0.1", "localhost"] {
            let endpoints: Vec<String> = running.iter().map(|s| s.endpoint.replace("127.0.0.1", host)).collect();
            let store = store::connect(manifest.clone(), &endpoints, options(tls.clone())).await.unwrap();
            answers.push(store.lookup(vec![Query { table: 0, ids: ids.clone() }]).await.unwrap());
            let bags = BagQuery { table: 1, ids: (0..500).collect(), bounds: vec![0, 500], weights: None, mode: PoolMode::Mean };
            answers.last_mut().unwrap().push(store.lookup_bags(&bags).await.unwrap().unwrap());
            assert_eq!(store::server_info(&endpoints[0], &options(tls.clone())).await.unwrap().plan_id, manifest.plan_id);
        }
    }
    let text = |i: usize| format!("{:?}", answers[i]);
    assert!((1..4).all(|i| text(i) == text(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_belong_to_the_job_hears_why() {
    let (dir, manifest) = deployment();
    let here = || Some(tls("here", "ca"));
    let cases = [
        (here(), None, "TLS: the peer speaks TLS, and this process has no certificate"),
        (here(), Some(tls("stranger", "ca")), "TLS: it does not know the CA of our certificate"),
        (here(), Some(tls("expired", "ca")), "TLS: our certificate has expired"),
        (here(), Some(tls("here", "other-ca")), "TLS: the peer's certificate is not signed by our CA"),
        (Some(tls("stranger", "ca")), here(), "TLS: the peer's certificate is not signed by our CA"),
        (Some(tls("expired", "ca")), here(), "TLS: the peer's certificate has expired"),
        (Some(tls("elsewhere", "ca")), here(), "TLS: the peer's certificate is not for \"127.0.0.1\" but for elsewhere.example"),
    ];
    for (server, client, text) in cases {
        let running = Server::start_all(dir.path(), 1, serving(server));
        let error = store::connect(manifest.clone(), &support::endpoints(&running), options(client)).await.unwrap_err();
        assert!(matches!(error, StoreError::Refused { .. }), "{error}");
        assert_eq!(error.to_string(), format!("pserver {} refused: {text}", running[0].endpoint));
    }
    // A server in plain text cannot say so.
    let running = Server::start_all(dir.path(), 1, serving(None));
    let error = store::connect(manifest.clone(), &support::endpoints(&running), options(here())).await.unwrap_err().to_string();
    let text =
        format!("pserver {} is unavailable: it closed the connection in the TLS handshake; does it speak plain text?", running[0].endpoint);
    assert!(error.starts_with(&text), "{error}");
}

#[test]
fn a_client_without_a_certificate_is_not_let_in() {
    let (dir, _) = deployment();
    let server = Server::start(dir.path(), serving(Some(tls("here", "ca"))));
    let mut roots = rustls::RootCertStore::empty();
    use rustls::pki_types::pem::PemObject;
    roots.add(rustls::pki_types::CertificateDer::from_pem_file(file("ca.pem")).unwrap()).unwrap();
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap().with_root_certificates(roots).with_no_client_auth();
    let mut client = rustls::ClientConnection::new(Arc::new(config), "127.0.0.1".try_into().unwrap()).unwrap();
    let mut socket = TcpStream::connect(&server.endpoint).unwrap();
    let mut stream = rustls::Stream::new(&mut client, &mut socket);
    let error = stream.write_all(b"gtw1").and_then(|()| stream.read_exact(&mut [0; 1])).unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
}

#[test]
fn a_connection_that_does_not_shake_hands_is_closed_in_time() {
    let (dir, _) = deployment();
    let options = ServeOptions { handshake_timeout: Duration::from_millis(200), ..serving(Some(tls("here", "ca"))) };
    let server = Server::start(dir.path(), options);
    for hello in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut silent = TcpStream::connect(&server.endpoint).unwrap();
        silent.write_all(hello).unwrap();
        assert_eq!(silent.read(&mut [0; 16]).unwrap_or(0), 0);
    }
}

#[test]
fn what_is_wrong_with_a_file_is_said() {
    let tmp = tempfile::tempdir().unwrap();
    let empty = tmp.path().join("empty.pem");
    std::fs::write(&empty, "nothing\n").unwrap();
    let (cert, key, ca) = (file("here.pem"), file("here.key"), file("ca.pem"));
    let error = |cert: &Path, key: &Path, ca: &Path| Tls::load(cert, key, ca).unwrap_err();
    assert_eq!(error(&empty, &key, &ca), format!("{}: no certificate in PEM", empty.display()));
    assert_eq!(error(&cert, &empty, &ca), format!("{}: no private key in PEM", empty.display()));
    assert_eq!(error(&cert, &key, &empty), format!("{}: no certificate in PEM", empty.display()));
    let other = file("elsewhere.key");
    assert_eq!(error(&cert, &other, &ca), format!("{}: it is not the key of {}", other.display(), cert.display()));
    let gone = tmp.path().join("gone.pem");
    assert!(error(&gone, &key, &ca).starts_with(&format!("{}: ", gone.display())));
}

/// A group whose ranks have these certificates, on listeners of their own.
async fn group(certificates: &[Option<Tls>]) -> Vec<Result<Arc<dyn Comm>, CommError>> {
    let listeners: Vec<_> = certificates.iter().map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let endpoints: Vec<String> = listeners.iter().map(|l| l.local_addr().unwrap().to_string()).collect();
    let ranks = listeners.into_iter().zip(certificates).enumerate().map(|(rank, (listener, tls))| {
        let connect_timeout = Duration::from_secs(2);
        comm::connect(GroupOptions { tls: tls.clone(), connect_timeout, ..GroupOptions::new(rank, endpoints.clone()) }, Some(listener))
    });
    join_all(ranks).await
}

#[tokio::test(flavor = "multi_thread")]
async fn small_and_large_collectives_run_within_tls() {
    let here = || Some(tls("here", "ca"));
    let group: Vec<_> = group(&[here(), here(), here()]).await.into_iter().map(|c| c.unwrap()).collect();
    for n in [3, 1 << 20] {
        let x = |rank: usize| Tensor::vector((0..n).map(|i| (i * (rank + 1)) as f32).collect::<Vec<_>>());
        let want = Tensor::vector((0..n).map(|i| i as f32 + (2 * i) as f32 + (3 * i) as f32).collect::<Vec<_>>());
        for got in join_all(group.iter().map(|c| c.all_reduce("x", x(c.rank()), ReduceOp::Sum))).await {
            assert!(got.unwrap() == want, "{n} elements");
        }
        for got in join_all(group.iter().map(|c| c.broadcast("x", x(c.rank()), 2))).await {
            assert!(got.unwrap() == x(2), "{n} elements");
        }
    }
    // Who goes takes no leave of TLS, and is named all the same.
    let mut group = group;
    drop(group.pop());
    for got in join_all(group.iter().map(|c| c.barrier("b"))).await {
        assert!(matches!(got, Err(CommError::Lost { rank: 2, .. })), "{got:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_does_not_belong_to_the_group_hears_why() {
    let here = || Some(tls("here", "ca"));
    let cases = [
        (None, "TLS: the peer speaks TLS, and this process has no certificate"),
        (Some(tls("stranger", "ca")), "TLS: it does not know the CA of our certificate"),
        (Some(tls("here", "other-ca")), "TLS: the peer's certificate is not signed by our CA"),
    ];
    for (certificate, text) in cases {
        let results = group(&[here(), certificate]).await;
        let error = results[1].as_ref().unwrap_err();
        assert!(matches!(error, CommError::Refused { .. }) && error.to_string().ends_with(&format!(" refused: {text}")), "{error}");
        assert!(matches!(results[0], Err(CommError::Unavailable { .. })));
    }
    // Rank 1 has a certificate for somewhere else: rank 0 lets it in, but does not connect to it.
    let group: Vec<_> = group(&[here(), Some(tls("elsewhere", "ca"))]).await.into_iter().map(|c| c.unwrap()).collect();
    for got in join_all(group.iter().map(|c| c.all_reduce("x", Tensor::vector(vec![1f32; 1 << 20]), ReduceOp::Sum))).await {
        let error = got.unwrap_err().to_string();
        assert!(error.ends_with("TLS: the peer's certificate is not for \"127.0.0.1\" but for elsewhere.example"), "{error}");
    }
}

fn graphtool(dir: &Path, args: &[&str]) -> std::process::Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    command.current_dir(dir).args(args).output().unwrap()
}

#[test]
fn a_job_within_tls_writes_the_same_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let (model, log) = (models.join("widedeep_ts11/model.onnx"), models.join("clicks.csv"));
    let (model, log) = (model.to_str().unwrap(), log.to_str().unwrap());
    let args = ["rewrite", model, "-o", "w.dist", "--shards", "2", "--min-bytes", "0", "--all-reduce", "prob=max"];
    assert!(graphtool(tmp.path(), &args).status.success());
    let paths = ["here.pem", "here.key", "ca.pem"].map(|name| file(name).to_str().unwrap().to_owned());
    let certificates = ["--tls-cert", &paths[0], "--tls-key", &paths[1], "--tls-ca", &paths[2]];
    let base = [
        "launch",
        "w.dist",
        "--server_num",
        "2",
        "--worker_num",
        "2",
        "--input",
        log,
        "--bind",
        "dense=I1..I5",
        "--bind",
        "sparse=C1..C4",
        "--batch-size",
        "1000",
    ];
    let run = |output: &str, extra: &[&str]| {
        let out = graphtool(tmp.path(), &[&base[..], &["--output", output], extra].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        std::fs::read(tmp.path().join(output)).unwrap()
    };
    assert!(run("plain.csv", &[]) == run("tls.csv", &certificates));
    // A reload in plain text of a server within TLS.
    let mut server = Command::new(env!("CARGO_BIN_EXE_graphtool"));
    server.current_dir(tmp.path()).args(["run", "w.dist", "--role", "pserver", "--host", "0.0.0.0", "--port", "0"]).args(certificates);
    let mut server = server.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut line).unwrap();
    let endpoint = line.trim().rsplit(' ').next().unwrap().replace("0.0.0.0", "127.0.0.1");
    let plain = graphtool(tmp.path(), &["reload", "w.dist", "--servers", &endpoint]);
    let within = graphtool(tmp.path(), &[&["reload", "w.dist", "--servers", &endpoint][..], &certificates].concat());
    server.kill().unwrap();
    server.wait().unwrap();
    let error = String::from_utf8_lossy(&plain.stderr);
    assert_eq!(plain.status.code(), Some(1), "{error}");
    assert_eq!(
        error.trim_end(),
        format!("error: pserver {endpoint} refused: TLS: the peer speaks TLS, and this process has no certificate; no pserver has changed")
    );
    assert!(within.status.success(), "{}", String::from_utf8_lossy(&within.stderr));
    // Flags that go together.
    let half = graphtool(tmp.path(), &["reload", "w.dist", "--servers", &endpoint, "--tls-cert", &paths[0]]);
    assert_eq!(half.status.code(), Some(2));
}
