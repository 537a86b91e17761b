//! What a plan means for its shards: bytes, rows and lookups of each.

use super::layout::{Layout, TableLayout, TableSize};
use super::manifest::Sharding;
use super::stats::IdStats;

/// What one shard has.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize)]
pub struct ShardFigures {
    /// Bytes of rows (and keys).
    pub bytes: u64,
    /// Rows; those of a table that is cut by column count in each of its shards.
    pub rows: u64,
    /// Lookups: counted ones where there are counts, else one for each lookup of the graph, spread evenly over the rows.
    pub load: f64,
}

/// The figures of each shard.
pub fn figures(tables: &[TableSize], layout: &Layout, stats: Option<&IdStats>) -> Vec<ShardFigures> {
    let mut shards = vec![ShardFigures::default(); layout.shards as usize];
    for t in tables {
        let Some(l) = layout.table(&t.name) else { continue };
        let loads = piece_loads(l, t, stats);
        for (p, (&shard, load)) in l.shards.iter().zip(loads).enumerate() {
            let (rows, columns) = piece_size(l, t, p);
            let Some(s) = shards.get_mut(shard as usize) else { continue };
            s.rows = s.rows.saturating_add(rows);
            s.bytes = s.bytes.saturating_add(t.bytes_of(rows, columns, l.store));
            s.load += load;
        }
    }
    shards
}

/// The largest by the mean; 1 where there is nothing.
pub fn imbalance(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let (n, sum) = values.clone().fold((0usize, 0.0), |(n, sum), v| (n + 1, sum + v));
    if sum > 0.0 { values.fold(0.0, f64::max) * n as f64 / sum } else { 1.0 }
}

/// Rows and columns of a piece. Keys are taken to be spread evenly.
fn piece_size(l: &TableLayout, t: &TableSize, p: usize) -> (u64, u64) {
    let n = l.shards.len() as u64;
    match l.sharding {
        Sharding::Table => (t.rows, t.columns()),
        Sharding::Row => (t.rows.saturating_sub(p as u64).div_ceil(n), t.columns()),
        Sharding::Range => {
            let cuts = l.cuts(t);
            (cuts[p + 1] - cuts[p], t.columns())
        }
        Sharding::Column => {
            let cuts = l.cuts(t);
            (t.rows, cuts[p + 1] - cuts[p])
        }
    }
}

/// The lookups of each piece of a table.
pub(super) fn piece_loads(l: &TableLayout, t: &TableSize, stats: Option<&IdStats>) -> Vec<f64> {
    let n = l.shards.len();
    let Some(stats) = stats else {
        let all = t.lookups as f64;
        return (0..n)
            .map(|p| if l.sharding == Sharding::Column { all } else { all * piece_size(l, t, p).0 as f64 / t.rows.max(1) as f64 })
            .collect();
    };
    let counts = stats.of(&t.name);
    let sum = |counts: &[(u64, u64)]| counts.iter().map(|c| c.1 as f64).sum::<f64>();
    match l.sharding {
        Sharding::Table | Sharding::Column => vec![sum(counts); n],
        Sharding::Row => {
            let mut loads = vec![0.0; n];
            counts.iter().for_each(|c| loads[(c.0 % n as u64) as usize] += c.1 as f64);
            loads
        }
        Sharding::Range => {
            let cuts = l.cuts(t);
            let at = |row: u64| counts.partition_point(|c| c.0 < row);
            (0..n).map(|p| sum(&counts[at(cuts[p])..at(cuts[p + 1])])).collect()
        }
    }
}

/// That counts are of ids that their tables have.
///
/// # Errors
/// The table and the id.
pub fn check_stats(tables: &[TableSize], stats: &IdStats) -> Result<(), String> {
    for t in tables.iter().filter(|t| !t.keyed) {
        if let Some((id, _)) = stats.of(&t.name).last().filter(|c| c.0 >= t.rows) {
            return Err(format!("table \"{}\": counts of id {id}, expected ids below {}, the number of rows", t.name, t.rows));
        }
    }
    Ok(())
}

/// What tables and pieces weigh for the planner: bytes, or with counts their part of all bytes plus that of all lookups.
pub(super) struct Weights {
    bytes: Vec<f64>,
    loads: Vec<f64>,
    all: Option<(f64, f64)>,
}

impl Weights {
    pub(super) fn new(tables: &[TableSize], bytes: &[u64], stats: Option<&IdStats>) -> Self {
        let bytes: Vec<f64> = bytes.iter().map(|&b| b as f64).collect();
        let loads: Vec<f64> = tables.iter().map(|t| stats.map_or(0.0, |s| s.total(&t.name) as f64)).collect();
        let sum = |v: &[f64]| v.iter().sum::<f64>().max(1.0);
        let all = stats.map(|_| (sum(&bytes), sum(&loads)));
        Self { bytes, loads, all }
    }

    fn weigh(&self, bytes: f64, load: f64) -> f64 {
        self.all.map_or(bytes, |(all_bytes, all_loads)| bytes / all_bytes + load / all_loads)
    }

    /// Of table `i`.
    pub(super) fn table(&self, i: usize) -> f64 {
        self.weigh(self.bytes[i], self.loads[i])
    }

    /// Whether table `i` is looked up more than one of `shards` shards should be.
    pub(super) fn is_hot(&self, i: usize, shards: u32) -> bool {
        self.all.is_some_and(|(_, all)| self.loads[i] > all / f64::from(shards))
    }

    /// Of each piece of table `i`.
    pub(super) fn pieces(&self, l: &TableLayout, i: usize, t: &TableSize, stats: Option<&IdStats>) -> Vec<f64> {
        let n = l.shards.len();
        if self.all.is_none() {
            // All alike: a row more or less must not decide where the next table goes.
            return vec![(self.bytes[i] / n as f64).floor(); n];
        }
        let size = |p: usize| {
            let (rows, columns) = piece_size(l, t, p);
            t.bytes_of(rows, columns, l.store) as f64
        };
        piece_loads(l, t, stats).into_iter().enumerate().map(|(p, load)| self.weigh(size(p), load)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn figures_count_rows_bytes_and_lookups() {
        let t = TableSize { name: "t".into(), rows: 10, row_shape: vec![2], dtype: DType::F32, keyed: false, lookups: 5, stored: None };
        let cut = |sharding, shards: &[u32]| {
            let l = TableLayout { name: "t".into(), sharding, shards: shards.to_vec(), starts: None, store: None };
            Layout { shards: 4, replicas: None, tables: vec![l] }
        };
        let by = |l: &Layout, stats: Option<&IdStats>| {
            figures(std::slice::from_ref(&t), l, stats).iter().map(|f| (f.rows, f.bytes, f.load)).collect::<Vec<_>>()
        };
        let row = cut(Sharding::Row, &[0, 1, 2, 3]);
        assert_eq!(by(&row, None), [(3, 24, 1.5), (3, 24, 1.5), (2, 16, 1.0), (2, 16, 1.0)]);
        let mut stats = IdStats::default();
        stats.insert("t".into(), [(0, 7), (4, 2), (9, 1)]);
        assert_eq!(by(&row, Some(&stats)), [(3, 24, 9.0), (3, 24, 1.0), (2, 16, 0.0), (2, 16, 0.0)]);
        assert_eq!(by(&cut(Sharding::Column, &[3, 1]), Some(&stats)), [(0, 0, 0.0), (10, 40, 10.0), (0, 0, 0.0), (10, 40, 10.0)]);
        assert_eq!(by(&cut(Sharding::Range, &[0, 0, 1]), Some(&stats))[..2], [(6, 48, 9.0), (4, 32, 1.0)]);
        assert_eq!(imbalance([9.0, 1.0, 0.0, 0.0].into_iter()), 3.6);
        stats.insert("t".into(), [(10, 1)]);
        let error = check_stats(std::slice::from_ref(&t), &stats).unwrap_err();
        assert_eq!(error, "table \"t\": counts of id 10, expected ids below 10, the number of rows");
    }
}
