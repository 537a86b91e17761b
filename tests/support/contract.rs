//! What every store does, and what tests of stores share.

use super::{Source, source};
use graphtool::plan::{Absent, Sharding};
use graphtool::store::{BagQuery, ConnectOptions, Query, Store, StoreError};
use graphtool::tensor::{DType, PoolMode, Tensor, cast};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

pub fn options() -> ConnectOptions {
    ConnectOptions { connect_timeout: Duration::from_secs(20), rpc_timeout: Duration::from_secs(20), ..ConnectOptions::default() }
}

/// The rows of `ids`, taken one by one.
pub fn expected(table: &Tensor, ids: &[u64]) -> Tensor {
    let shape = [&[ids.len()], &table.shape()[1..]].concat();
    let width = table.bytes().unwrap().len() / table.shape()[0].max(1);
    let rows: Vec<u8> = ids.iter().flat_map(|&i| table.bytes().unwrap()[i as usize * width..][..width].to_vec()).collect();
    Tensor::from_bytes(table.dtype(), shape, rows).unwrap()
}

/// The bags of a query, pooled one element after the other.
pub fn pooled(table: &Tensor, q: &BagQuery) -> Tensor {
    macro_rules! pool {
        ($t:ty, $wide:ident) => {{
            let numbers = |t: &Tensor| cast(t, DType::$wide).unwrap().to_slice::<$t>().unwrap().to_vec();
            let (rows, weights) = (numbers(table), q.weights.as_ref().map(numbers));
            let width: usize = table.shape()[1..].iter().product();
            let mut out: Vec<$t> = Vec::new();
            for bag in q.bounds.windows(2) {
                for c in 0..width {
                    let mut total: Option<$t> = None;
                    for i in bag[0]..bag[1] {
                        let x = rows[q.ids[i] as usize * width + c] * weights.as_ref().map_or(1.0, |w| w[i]);
                        total = Some(match total {
                            None => x,
                            Some(t) if q.mode == PoolMode::Max => t.max(x),
                            Some(t) => t + x,
                        });
                    }
                    let n = if q.mode == PoolMode::Mean { (bag[1] - bag[0]).max(1) as $t } else { 1.0 };
                    out.push(total.unwrap_or(0.0) / n);
                }
            }
            let shape = [&[q.bounds.len() - 1], &table.shape()[1..]].concat();
            cast(&Tensor::new(shape, out).unwrap(), table.dtype()).unwrap()
        }};
    }
    if table.dtype() == DType::F64 { pool!(f64, F64) } else { pool!(f32, F32) }
}

/// Every way to pool these bags, with weights and without.
pub fn bag_queries(table: usize, dtype: DType, ids: &[u64], bounds: &[usize]) -> Vec<BagQuery> {
    let numbers: Vec<f64> = (0..ids.len()).map(|i| (i as f64 * 0.7).cos()).collect();
    let weights = || Some(cast(&Tensor::vector(numbers.clone()), dtype).unwrap());
    let of = |mode, weights| BagQuery { table, ids: ids.to_vec(), bounds: bounds.to_vec(), weights, mode };
    [PoolMode::Sum, PoolMode::Mean, PoolMode::Max].into_iter().flat_map(|mode| [of(mode, None), of(mode, weights())]).collect()
}

/// What floats are pooled in.
pub fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::F64 | DType::BF16)
}

/// Pooled rows, where a store gives them, are those of the table.
async fn bags_contract(store: &dyn Store, sources: &[Source]) {
    let mut answered = 0;
    for (t, s) in sources.iter().enumerate() {
        let (rows, dtype) = (store.tables()[t].rows, s.values.dtype());
        let ids: Vec<u64> = (0..40).map(|i| (i * i * 7 + 3) % rows).collect();
        for bounds in [&[0, 40][..], &[1, 20, 20, 37], &[0, 0], &[0], &[0, 1, 2, 3]] {
            for q in bag_queries(t, if is_float(dtype) { dtype } else { DType::F32 }, &ids, bounds) {
                let Some(found) = store.lookup_bags(&q).await.unwrap() else { continue };
                assert!(is_float(dtype), "table {:?}", s.name);
                assert_eq!(found, pooled(&s.values, &q), "table {:?} {q:?}", s.name);
                answered += 1;
            }
        }
        let wrong = BagQuery { ids: vec![0, rows], ..bag_queries(t, DType::F32, &[], &[0, 2])[0].clone() };
        let said = store.lookup_bags(&wrong).await.err().map(|e| e.to_string());
        let right = format!("table {:?}: id {rows} at position 1 is out of range, valid 0..{rows}", s.name);
        assert!(said.is_none_or(|text| text == right));
    }
    assert!(answered == 0 || answered >= 6, "{answered}");
}

pub fn query(table: usize, ids: &[u64]) -> Query {
    Query { table, ids: ids.to_vec() }
}

/// Tables of all dtypes, ranks and shardings.
pub fn sources() -> Vec<Source> {
    let dtypes = DType::all().filter(|&d| d != DType::String);
    let names =
        ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p", "q", "r", "s", "t", "u", "v", "w", "x", "y"];
    let ways =
        [(Sharding::Row, 3), (Sharding::Table, 1), (Sharding::Range, 4), (Sharding::Column, 2), (Sharding::Row, 4), (Sharding::Column, 3)];
    let mut tables: Vec<Source> =
        dtypes.zip(names).zip(ways.iter().cycle()).map(|((d, n), &(how, pieces))| source(n, d, &[11, 24], how, pieces)).collect();
    tables.push(source("rank one", DType::F32, &[10], Sharding::Row, 3));
    tables.push(source("rank four", DType::F16, &[9, 2, 3, 4], Sharding::Column, 2));
    tables.push(source("rank three", DType::F64, &[9, 2, 3], Sharding::Range, 9));
    tables.push(source("one row", DType::I64, &[1, 5], Sharding::Row, 3));
    tables.push(source("no columns", DType::F32, &[7, 0], Sharding::Table, 1));
    tables.push(source("odd", DType::U8, &[300, 3], Sharding::Row, 7));
    tables
}

pub async fn contract(store: &dyn Store, sources: &[Source]) {
    let tables = store.tables().to_vec();
    assert_eq!(tables.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), sources.iter().map(|s| s.name).collect::<Vec<_>>());
    let ids_of = |t: usize, k: u64| -> Vec<u64> { (0..40).map(|i| (i * i * 7 + k) % tables[t].rows).collect() };
    // Each table alone: order, duplicates, one id, none.
    for (t, s) in sources.iter().enumerate() {
        assert_eq!((tables[t].rows, tables[t].dtype), (s.values.shape()[0] as u64, s.values.dtype()));
        let last = tables[t].rows - 1;
        for ids in [ids_of(t, 3), vec![], vec![last], vec![last, 0, last, last], (0..tables[t].rows).collect()] {
            let rows = store.lookup(vec![query(t, &ids)]).await.unwrap();
            assert_eq!(rows, [expected(&s.values, &ids)], "table {:?} ids {ids:?}", s.name);
            graphtool::dispatch!(rows[0].dtype(), T => if rows[0].dtype().bits() >= 8 { rows[0].as_slice::<T>().unwrap(); });
        }
    }
    // All tables at once, some twice and some without ids.
    let mut queries: Vec<Query> = (0..tables.len()).map(|t| query(t, &ids_of(t, 1))).collect();
    queries.extend((0..tables.len()).rev().map(|t| query(t, if t % 2 == 0 { &[0, 0] } else { &[] })));
    let rows = store.lookup(queries.clone()).await.unwrap();
    for (q, r) in queries.iter().zip(rows) {
        assert_eq!(r, expected(&sources[q.table].values, &q.ids), "table {:?}", sources[q.table].name);
    }
    assert!(store.lookup(vec![]).await.unwrap().is_empty());
    // Lookups that overlap.
    let many = (0..20).map(|k| store.lookup((0..tables.len()).map(|t| query(t, &ids_of(t, k))).collect()));
    for (k, rows) in futures::future::try_join_all(many).await.unwrap().into_iter().enumerate() {
        assert_eq!(rows[0], expected(&sources[0].values, &ids_of(0, k as u64)));
    }
    // A row that is not there.
    for (t, table) in tables.iter().enumerate() {
        let error = store.lookup(vec![query(t, &[0, table.rows, u64::MAX])]).await.unwrap_err();
        let text = format!("table {:?}: id {} at position 1 is out of range, valid 0..{}", table.name, table.rows, table.rows);
        assert_eq!(error.to_string(), text);
    }
    assert!(store.lookup(vec![query(tables.len(), &[0])]).await.is_err());
    bags_contract(store, sources).await;
    assert!(store.stats().lookups > 0);
}

/// `{5: [1, 1], 9: [2, 2], 4: [3, 3]}` by policy.
pub fn keyed(name: &'static str, absent: Absent, pieces: usize) -> Source {
    let values = Tensor::new([3, 2], vec![1f32, 1.0, 2.0, 2.0, 3.0, 3.0]).unwrap();
    let default_row = Some(vec![9.0, 9.0]);
    Source { name, values, keys: Some(vec![5, 9, 4]), sharding: Sharding::Row, pieces, absent, default_row }
}

/// What stores of keyed tables do with keys that are absent.
pub async fn keyed_contract(store: &dyn Store) {
    let rows = |ids: &[u64]| vec![query(0, ids), query(1, ids)];
    let t = |rows: &[f32]| Tensor::new([rows.len() / 2, 2], rows.to_vec()).unwrap();
    let got = store.lookup(rows(&[5, 7, u64::MAX, 4])).await.unwrap();
    assert_eq!(got, [t(&[1., 1., 0., 0., 0., 0., 3., 3.]), t(&[1., 1., 9., 9., 9., 9., 3., 3.])]);
    assert_eq!(store.stats().absent, 4);
    let got = store.lookup(rows(&[7, 7, 9, 7])).await.unwrap();
    assert_eq!(got[1], t(&[9., 9., 9., 9., 2., 2., 9., 9.]));
    assert_eq!(store.stats().absent, 10);
    assert_eq!(store.lookup(vec![query(2, &[9, 5])]).await.unwrap(), [t(&[2., 2., 1., 1.])]);
    let error = store.lookup(vec![query(2, &[9, 7])]).await.unwrap_err();
    assert!(matches!(error, StoreError::Absent { .. }));
    assert_eq!(error.to_string(), "table \"error\": key 7 is absent");
    assert_eq!(store.tables()[0].rows, 3);
}

/// The tables of [`keyed_contract`].
pub fn keyed_sources(pieces: usize) -> [Source; 3] {
    [keyed("zero", Absent::Zero, pieces), keyed("default", Absent::Default, pieces), keyed("error", Absent::Error, pieces)]
}

/// Passes bytes between a client and a server until it is told to hold them back.
pub fn proxy(to: String) -> (String, Arc<std::sync::atomic::AtomicBool>) {
    use std::sync::atomic::Ordering::SeqCst;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap().to_string();
    let stalled = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flag = stalled.clone();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (Ok(client), Ok(server)) = (client, TcpStream::connect(&to)) else { return };
            for (mut from, mut to) in [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)] {
                let flag = flag.clone();
                std::thread::spawn(move || {
                    let mut buffer = [0; 4096];
                    while let Ok(n) = from.read(&mut buffer) {
                        if n == 0 {
                            _ = to.shutdown(std::net::Shutdown::Write);
                            return;
                        }
                        if !flag.load(SeqCst) && to.write_all(&buffer[..n]).is_err() {
                            return;
                        }
                    }
                });
            }
        }
    });
    (endpoint, stalled)
}
