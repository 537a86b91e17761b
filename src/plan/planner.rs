//! The planner: which table goes where. Its answer reads like a plan that a person would have made: large tables are
//! spread over all shards, each small one lies whole on the shard that has the least.

use super::manifest::Sharding;
use serde::{Deserialize, Serialize};

/// A table as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSize {
    /// Name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Elements of a row.
    pub columns: u64,
    /// Bytes of a row.
    pub row_bytes: u64,
}

impl TableSize {
    /// Bytes of the table.
    pub fn bytes(&self) -> u64 {
        self.rows.saturating_mul(self.row_bytes)
    }
}

/// How tables are to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By size: [`plan`] decides for each table.
    #[default]
    Auto,
    /// All tables alike.
    All(Sharding),
}

/// Where the pieces of one table go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableLayout {
    /// Name.
    pub name: String,
    /// How it is cut.
    pub sharding: Sharding,
    /// The shard of each piece, in order.
    pub shards: Vec<u32>,
}

/// A plan: what `--plan` reads and `plan` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Number of shards.
    pub shards: u32,
    /// One per table.
    pub tables: Vec<TableLayout>,
}

/// Bytes below which a table is not worth cutting.
const WHOLE_BELOW: u64 = 64 * 1024;

/// Plans tables over `shards` shards.
pub fn plan(tables: &[TableSize], shards: u32, mode: Mode) -> Layout {
    let shards = shards.max(1);
    let total: u64 = tables.iter().map(TableSize::bytes).fold(0, u64::saturating_add);
    let share = total / u64::from(shards);
    let mut load = vec![0u64; shards as usize];
    let mut layouts: Vec<Option<TableLayout>> = vec![None; tables.len()];
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(tables[i].bytes()), i));
    for i in order {
        let t = &tables[i];
        let wanted = match mode {
            Mode::All(s) => s,
            Mode::Auto if t.bytes() >= WHOLE_BELOW.max(share / 2) && shards > 1 => Sharding::Row,
            Mode::Auto => Sharding::Table,
        };
        let pieces = match wanted {
            Sharding::Table => 1,
            Sharding::Row | Sharding::Range => u64::from(shards).min(t.rows).max(1),
            Sharding::Column => u64::from(shards).min(t.columns).max(1),
        };
        // A table in one piece is a whole table, whatever was asked for.
        let sharding = if pieces == 1 { Sharding::Table } else { wanted };
        // Emptiest shards first, then in the order of their numbers.
        let mut by_load: Vec<u32> = (0..shards).collect();
        by_load.sort_by_key(|&s| (load[s as usize], s));
        by_load.truncate(pieces as usize);
        by_load.sort_unstable();
        by_load.iter().for_each(|&s| load[s as usize] += t.bytes() / pieces);
        layouts[i] = Some(TableLayout { name: t.name.clone(), sharding, shards: by_load });
    }
    Layout { shards, tables: layouts.into_iter().flatten().collect() }
}

impl Layout {
    /// A plan from its JSON text, checked against the tables: each named once, pieces that its rows or columns allow.
    ///
    /// # Errors
    /// What is wrong, with the table's name.
    pub fn parse(text: &str, tables: &[TableSize]) -> Result<Layout, String> {
        let layout: Layout = serde_json::from_str(text).map_err(|e| format!("not a plan: {e}"))?;
        if layout.shards == 0 {
            return Err("a plan needs at least one shard".into());
        }
        for t in tables {
            let mut found = layout.tables.iter().filter(|l| l.name == t.name);
            let (Some(l), None) = (found.next(), found.next()) else {
                return Err(format!("table \"{}\" must be in the plan once", t.name));
            };
            let n = l.shards.len() as u64;
            let most = match l.sharding {
                Sharding::Table => 1,
                Sharding::Row | Sharding::Range => t.rows.max(1),
                Sharding::Column => t.columns.max(1),
            };
            if n == 0 || n > most {
                return Err(format!("table \"{}\": 1 to {most} pieces are possible, found {n}", t.name));
            }
            if let Some(s) = l.shards.iter().find(|&&s| s >= layout.shards) {
                return Err(format!("table \"{}\": shard {s} of {}", t.name, layout.shards));
            }
        }
        match layout.tables.iter().find(|l| !tables.iter().any(|t| t.name == l.name)) {
            Some(l) => Err(format!("table \"{}\" of the plan is none of the model's", l.name)),
            None => Ok(layout),
        }
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Option<&TableLayout> {
        self.tables.iter().find(|t| t.name == name)
    }
}

/// The first index of each of `pieces` nearly equal ranges of `0..len`, and the end.
pub fn ranges(len: u64, pieces: u64) -> Vec<u64> {
    (0..=pieces).map(|p| (u128::from(len) * u128::from(p) / u128::from(pieces.max(1))) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, rows: u64, row_bytes: u64) -> TableSize {
        TableSize { name: name.into(), rows, columns: row_bytes / 4, row_bytes }
    }

    #[test]
    fn large_tables_are_spread_and_small_ones_lie_whole() {
        let tables = [table("big", 1_000_000, 64), table("mid", 1000, 64), table("tiny", 3, 64)];
        let layout = plan(&tables, 3, Mode::Auto);
        let text: Vec<String> = layout.tables.iter().map(|t| format!("{} {:?} {:?}", t.name, t.sharding, t.shards)).collect();
        assert_eq!(text, ["big Row [0, 1, 2]", "mid Table [0]", "tiny Table [1]"]);
    }

    #[test]
    fn a_table_has_no_more_pieces_than_rows_or_columns() {
        let tables = [table("t", 2, 12)];
        assert_eq!(plan(&tables, 8, Mode::All(Sharding::Row)).tables[0].shards, [0, 1]);
        assert_eq!(plan(&tables, 8, Mode::All(Sharding::Column)).tables[0].shards, [0, 1, 2]);
        assert_eq!(ranges(10, 4), [0, 2, 5, 7, 10]);
    }
}
