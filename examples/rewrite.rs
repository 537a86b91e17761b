//! Rewrites a model into a deployment directory from Rust, and runs it from its shards.

use graphtool::deploy::{self, RewriteOptions};
use graphtool::exec::{Options, Session};
use graphtool::tensor::{Tensor, Value};
use graphtool::{formats, store};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = formats::load(&root.join("models/emb_ts11/model.onnx"))?;
    let dir = std::env::temp_dir().join(format!("graphtool-example-{}.dist", std::process::id()));

    let outcome = deploy::rewrite(model, &dir, RewriteOptions { shards: 3, ..Default::default() })?;
    for lookup in &outcome.report.lookups {
        println!("{} in \"{}\": {}", lookup.node, lookup.table, lookup.reason.as_deref().unwrap_or("remote"));
    }

    let (_, rewritten) = deploy::open(&dir)?;
    let session = Session::new(&rewritten, Options { store: Some(store::open_local(&dir)?), ..Default::default() })?;
    let ids: Value = Tensor::new([1, 3], vec![5i64, 999, 5])?.into();
    let name = session.inputs()[0].0.to_owned();
    for (name, value) in session.run(vec![(name, ids)])? {
        println!("{name}: {}", value.describe());
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
