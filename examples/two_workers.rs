//! A job of two workers and one pserver in one process: each worker looks up its rows, then both sum their results.

use graphtool::comm::local_group;
use graphtool::deploy::{self, RewriteOptions};
use graphtool::exec::{Options, Session};
use graphtool::ir::parse_model;
use graphtool::store::{self, ConnectOptions, ServeOptions};
use graphtool::tensor::Tensor;
use std::net::TcpListener;
use std::sync::Arc;

const MODEL: &str = "graph g(ids: int64[n]) -> (total) {
  param table: float32[4,2] = [0.0, 1.0, 10.0, 11.0, 20.0, 21.0, 30.0, 31.0]
  rows = Gather(table, ids)
  total = ReduceSum(rows) {keepdims=0}
}";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::temp_dir().join(format!("graphtool-two-workers-{}.dist", std::process::id()));
    let all_reduce = vec![("total".to_owned(), "sum".to_owned())];
    deploy::rewrite(parse_model(MODEL)?, &dir, RewriteOptions { shards: 2, all_reduce, ..Default::default() })?;

    let listener = TcpListener::bind("127.0.0.1:0")?;
    let endpoint = listener.local_addr()?.to_string();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let shards = dir.clone();
    let server = std::thread::spawn(move || store::serve(listener, &shards, ServeOptions::default(), async { drop(stopped.await) }));

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let workers: Vec<_> = local_group(2)?
        .into_iter()
        .enumerate()
        .map(|(rank, comm)| {
            let (dir, endpoint, handle) = (dir.clone(), endpoint.clone(), runtime.handle().clone());
            std::thread::spawn(move || -> Result<f32, String> {
                let (manifest, model) = deploy::open(&dir).map_err(|e| e.to_string())?;
                let store = handle
                    .block_on(store::connect(Arc::new(manifest), &[endpoint], ConnectOptions::default()))
                    .map_err(|e| e.to_string())?;
                let options = Options { store: Some(store), comm: Some(comm), runtime: Some(handle), ..Default::default() };
                let session = Session::new(&model, options).map_err(|e| e.to_string())?;
                let ids = Tensor::vector(if rank == 0 { vec![0i64, 1] } else { vec![2, 3, 3] });
                let outputs = session.run(vec![("ids".into(), ids.into())]).map_err(|e| e.to_string())?;
                outputs[0].1.as_tensor().and_then(|t| t.item::<f32>().ok()).ok_or_else(|| "no total".into())
            })
        })
        .collect();
    for (rank, worker) in workers.into_iter().enumerate() {
        let total = worker.join().map_err(|_| "a worker panicked")??;
        println!("worker {rank}: total {total}");
        // 0+1+10+11 on the one, 20+21+30+31+30+31 on the other.
        assert_eq!(total, 185.0);
    }
    drop(stop);
    server.join().map_err(|_| "the server panicked")??;
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
