//! A plan: where the pieces of each table go. What `plan --json` prints and `--plan` reads, edited by hand or not.

use super::manifest::{Manifest, Sharding, TableEntry};
use super::stored::StoreDtype;
use crate::tensor::{DType, checked_len};
use serde_json::{Value, json};

/// A table as the planner sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSize {
    /// Name.
    pub name: String,
    /// Rows.
    pub rows: u64,
    /// Dims of one row.
    pub row_shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// Whether ids are keys.
    pub keyed: bool,
    /// Lookups of it in the graph.
    pub lookups: u64,
    /// How its rows are stored already.
    pub stored: Option<StoreDtype>,
}

impl TableSize {
    /// A table of a deployment, with its number of lookups.
    pub fn of(t: &TableEntry, lookups: u64) -> Self {
        Self {
            name: t.name.clone(),
            rows: t.rows,
            row_shape: t.row_shape.clone(),
            dtype: t.dtype,
            keyed: t.keyed,
            lookups,
            stored: t.stored.map(|s| s.dtype),
        }
    }

    /// Elements of a row.
    pub fn columns(&self) -> u64 {
        checked_len(&self.row_shape).unwrap_or(usize::MAX) as u64
    }

    /// Bytes of `rows` rows of `columns` elements, stored as `store` says.
    pub fn bytes_of(&self, rows: u64, columns: u64, store: Option<StoreDtype>) -> u64 {
        let (bits, tail) = store.map_or((self.dtype.bits(), 0), |s| (s.element().bits(), s.tail()));
        let row = (columns.saturating_mul(bits as u64) / 8).saturating_add(tail);
        rows.saturating_mul(row.saturating_add(if self.keyed { 8 } else { 0 }))
    }

    /// Columns that cannot be parted, for they share a byte.
    pub fn unit(&self) -> u64 {
        (8 / self.dtype.bits().clamp(1, 8)) as u64
    }

    /// The pieces that a table can be cut into at most.
    pub fn most_pieces(&self, sharding: Sharding) -> u64 {
        match sharding {
            Sharding::Table => 1,
            // Keys are spread by their value, however few there are.
            Sharding::Row if self.keyed => u64::from(u32::MAX),
            Sharding::Row | Sharding::Range => self.rows.max(1),
            Sharding::Column => (self.columns() / self.unit()).max(1),
        }
    }
}

/// Where the pieces of one table go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableLayout {
    /// Name.
    pub name: String,
    /// How it is cut.
    pub sharding: Sharding,
    /// The shard of each piece, in order.
    pub shards: Vec<u32>,
    /// The first row (or column) of each range; nearly equal ranges without it.
    pub starts: Option<Vec<u64>>,
    /// The form in which rows are stored, if it is not their dtype.
    pub store: Option<StoreDtype>,
}

impl TableLayout {
    /// Where the ranges of a table begin, and the end: of rows, or of columns where it is cut by column.
    pub fn cuts(&self, table: &TableSize) -> Vec<u64> {
        let n = self.shards.len() as u64;
        let (len, unit) = if self.sharding == Sharding::Column { (table.columns(), table.unit()) } else { (table.rows, 1) };
        match &self.starts {
            Some(starts) => starts.iter().copied().chain([len]).collect(),
            None => ranges(len / unit, n).into_iter().map(|c| c * unit).collect(),
        }
    }
}

/// The first index of each of `pieces` nearly equal ranges of `0..len`, and the end.
pub fn ranges(len: u64, pieces: u64) -> Vec<u64> {
    (0..=pieces).map(|p| (u128::from(len) * u128::from(p) / u128::from(pieces.max(1))) as u64).collect()
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Number of shards.
    pub shards: u32,
    /// Number of servers that hold each shard, where the plan says.
    pub replicas: Option<u32>,
    /// One per table.
    pub tables: Vec<TableLayout>,
}

/// What a plan says of itself beside its decisions; read by people.
const FIGURES: [&str; 4] = ["per_shard", "imbalance", "load_from", "tables"];

impl Layout {
    /// The plan that a deployment follows.
    pub fn of(manifest: &Manifest) -> Self {
        let table = |t: &TableEntry| {
            let starts: Option<Vec<u64>> = match t.sharding {
                Sharding::Range => Some(t.pieces.iter().map(|p| p.first_row).collect()),
                Sharding::Column => Some(t.pieces.iter().map(|p| p.first_column).collect()),
                _ => None,
            };
            TableLayout {
                name: t.name.clone(),
                sharding: t.sharding,
                shards: t.pieces.iter().map(|p| p.shard).collect(),
                starts,
                store: t.stored.map(|s| s.dtype),
            }
        };
        Self { shards: manifest.shards, replicas: Some(manifest.replicas), tables: manifest.tables.iter().map(table).collect() }
    }

    /// The table of that name.
    pub fn table(&self, name: &str) -> Option<&TableLayout> {
        self.tables.iter().find(|t| t.name == name)
    }

    /// The plan as JSON, with the facts of its tables.
    pub fn json(&self, tables: &[TableSize]) -> Value {
        let one = |l: &TableLayout| {
            let mut v = json!({"name": l.name, "sharding": l.sharding, "shards": l.shards});
            if let Some(starts) = &l.starts {
                v["starts"] = json!(starts);
            }
            if let Some(store) = l.store {
                v["store_dtype"] = json!(store.name());
            }
            if let Some(t) = tables.iter().find(|t| t.name == l.name) {
                v["rows"] = json!(t.rows);
                v["row_shape"] = json!(t.row_shape);
                v["dtype"] = json!(t.dtype.name());
                v["bytes"] = json!(t.bytes_of(t.rows, t.columns(), l.store));
            }
            v
        };
        let mut v = json!({"shards": self.shards});
        if let Some(r) = self.replicas {
            v["replicas"] = json!(r);
        }
        v["tables"] = self.tables.iter().map(one).collect();
        v
    }

    /// A plan from its JSON text, checked against the tables: each named once, pieces that its rows or columns allow. What
    /// the plan says of rows, row_shape and dtype must be so.
    ///
    /// # Errors
    /// What is wrong, with the table's name, what was expected and what is there.
    pub fn parse(text: &str, tables: &[TableSize]) -> Result<Layout, String> {
        let json: Value = serde_json::from_str(text).map_err(|e| format!("not a plan: {e}"))?;
        let top = json.as_object().ok_or("not a plan: expected an object with \"shards\" and \"tables\"")?;
        if let Some(key) = top.keys().find(|k| !["shards", "replicas"].contains(&k.as_str()) && !FIGURES.contains(&k.as_str())) {
            return Err(format!("unknown key \"{key}\"; a plan has shards, replicas and tables"));
        }
        let number = |key: &str| -> Result<Option<u32>, String> {
            let Some(v) = top.get(key) else { return Ok(None) };
            let n = v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0);
            n.map(Some).ok_or_else(|| format!("\"{key}\": expected a number above 0, found {v}"))
        };
        let shards = number("shards")?.ok_or("a plan needs \"shards\", their number")?;
        let replicas = number("replicas")?;
        let entries = top.get("tables").and_then(Value::as_array).ok_or("a plan needs \"tables\", a list")?;
        let mut parsed: Vec<TableLayout> = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let name = entry["name"].as_str().ok_or_else(|| format!("entry {i} of \"tables\" has no \"name\""))?;
            let table = tables.iter().find(|t| t.name == name);
            let table = table.ok_or_else(|| {
                let known = tables.iter().map(|t| format!("\"{}\"", t.name)).collect::<Vec<_>>().join(", ");
                format!("table \"{name}\" of the plan is none of the model's; there are {known}")
            })?;
            if parsed.iter().any(|l| l.name == name) {
                return Err(format!("table \"{name}\" is in the plan twice, expected once"));
            }
            parsed.push(parse_table(entry, table, shards).map_err(|e| format!("table \"{name}\": {e}"))?);
        }
        if let Some(t) = tables.iter().find(|t| !parsed.iter().any(|l| l.name == t.name)) {
            return Err(format!("table \"{}\" is not in the plan, expected once", t.name));
        }
        Ok(Layout { shards, replicas, tables: parsed })
    }
}

fn parse_table(entry: &Value, table: &TableSize, shards: u32) -> Result<TableLayout, String> {
    let known = ["name", "sharding", "shards", "starts", "store_dtype", "rows", "row_shape", "dtype", "bytes", "load", "hottest"];
    let object = entry.as_object().ok_or("expected an object")?;
    if let Some(key) = object.keys().find(|k| !known.contains(&k.as_str())) {
        return Err(format!("unknown key \"{key}\"; a table has sharding, shards, starts and store_dtype"));
    }
    let facts = [("rows", json!(table.rows)), ("row_shape", json!(table.row_shape)), ("dtype", json!(table.dtype.name()))];
    for (key, is) in facts {
        if let Some(found) = object.get(key).filter(|f| **f != is) {
            return Err(format!("expected {key} {is}, which the model has, found {found}"));
        }
    }
    let missing = |key: &str| format!("\"{key}\" is missing");
    let how = object.get("sharding").ok_or_else(|| missing("sharding"))?;
    let sharding: Sharding =
        serde_json::from_value(how.clone()).map_err(|_| format!("expected sharding table, row, range or column, found {how}"))?;
    if table.keyed && !matches!(sharding, Sharding::Table | Sharding::Row) {
        return Err(format!("it is addressed by key: expected sharding row or table, found {how}"));
    }
    let numbers = |key: &str| -> Result<Option<Vec<u64>>, String> {
        let Some(v) = object.get(key) else { return Ok(None) };
        let list = v.as_array().and_then(|a| a.iter().map(Value::as_u64).collect());
        list.map(Some).ok_or_else(|| format!("\"{key}\": expected a list of numbers, found {v}"))
    };
    let places = numbers("shards")?.ok_or_else(|| missing("shards"))?;
    let (n, most) = (places.len() as u64, table.most_pieces(sharding));
    if n == 0 || n > most {
        return Err(format!("expected 1 to {most} pieces ({how}), found {n} in \"shards\""));
    }
    if let Some(s) = places.iter().find(|s| **s >= u64::from(shards)) {
        return Err(format!("expected shards below {shards}, found {s}"));
    }
    let starts = numbers("starts")?;
    if let Some(starts) = &starts {
        check_starts(starts, sharding, table, places.len())?;
    }
    let store = match object.get("store_dtype") {
        None | Some(Value::Null) => None,
        Some(v) => {
            let store = v.as_str().and_then(StoreDtype::from_name);
            let store = store.ok_or_else(|| format!("expected store_dtype f16, bf16 or int8, found {v}"))?;
            if table.stored.is_none() && !store.narrows(table.dtype) {
                return Err(format!("{} is not stored as {}: it would not be narrower", table.dtype, store.name()));
            }
            Some(store)
        }
    };
    Ok(TableLayout { name: table.name.clone(), sharding, shards: places.iter().map(|&s| s as u32).collect(), starts, store })
}

fn check_starts(starts: &[u64], sharding: Sharding, table: &TableSize, pieces: usize) -> Result<(), String> {
    let (what, len, unit) = match sharding {
        Sharding::Range => ("row", table.rows, 1),
        Sharding::Column => ("column", table.columns(), table.unit()),
        _ => return Err("\"starts\" are of range and column sharding".into()),
    };
    if starts.len() != pieces {
        return Err(format!("expected {pieces} \"starts\", one per piece, found {}", starts.len()));
    }
    if starts.first() != Some(&0) {
        return Err(format!("the first piece starts at {what} 0, found {}", starts[0]));
    }
    if let Some(w) = starts.windows(2).find(|w| w[0] >= w[1]) {
        return Err(format!("\"starts\" ascend, found {} after {}", w[1], w[0]));
    }
    if let Some(s) = starts.iter().find(|s| **s >= len.max(1)) {
        return Err(format!("expected \"starts\" below {len}, the number of {what}s, found {s}"));
    }
    if let Some(s) = starts.iter().find(|s| !s.is_multiple_of(unit)) {
        return Err(format!("{unit} columns share a byte: expected \"starts\" at multiples of {unit}, found {s}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, rows: u64, columns: usize) -> TableSize {
        TableSize { name: name.into(), rows, row_shape: vec![columns], dtype: DType::F32, keyed: false, lookups: 1, stored: None }
    }

    #[test]
    fn a_plan_that_is_printed_is_read_again() {
        let tables = [table("a", 10, 4), table("b", 5, 8)];
        let layout = Layout {
            shards: 3,
            replicas: Some(2),
            tables: vec![
                TableLayout { name: "a".into(), sharding: Sharding::Range, shards: vec![2, 0], starts: Some(vec![0, 7]), store: None },
                TableLayout {
                    name: "b".into(),
                    sharding: Sharding::Column,
                    shards: vec![1, 2],
                    starts: None,
                    store: Some(StoreDtype::F16),
                },
            ],
        };
        let text = layout.json(&tables).to_string();
        assert_eq!(Layout::parse(&text, &tables).unwrap(), layout);
        assert_eq!(layout.tables[0].cuts(&tables[0]), [0, 7, 10]);
        assert_eq!(layout.tables[1].cuts(&tables[1]), [0, 4, 8]);
    }

    #[test]
    fn a_wrong_edit_names_table_expected_and_found() {
        let tables = [table("a", 10, 4)];
        let error = |entry: &str| {
            let text = format!(r#"{{"shards":2,"tables":[{{"name":"a",{entry}}}]}}"#);
            Layout::parse(&text, &tables).unwrap_err()
        };
        for (entry, message) in [
            (r#""sharding":"rows","shards":[0]"#, r#"table "a": expected sharding table, row, range or column, found "rows""#),
            (r#""sharding":"table","shards":[0,1]"#, r#"table "a": expected 1 to 1 pieces ("table"), found 2 in "shards""#),
            (r#""sharding":"row","shards":[0,2]"#, r#"table "a": expected shards below 2, found 2"#),
            (r#""sharding":"row","shard":[0]"#, r#"table "a": unknown key "shard"; a table has sharding, shards, starts and store_dtype"#),
            (r#""sharding":"row","shards":[0],"rows":11"#, r#"table "a": expected rows 10, which the model has, found 11"#),
            (
                r#""sharding":"range","shards":[0,1],"starts":[0,10]"#,
                r#"table "a": expected "starts" below 10, the number of rows, found 10"#,
            ),
            (r#""sharding":"range","shards":[0,1],"starts":[0]"#, r#"table "a": expected 2 "starts", one per piece, found 1"#),
            (r#""sharding":"row","shards":[0],"store_dtype":"f8"#, r#"not a plan"#),
        ] {
            let found = error(entry);
            assert!(found.starts_with(message), "{found}");
        }
        let error = Layout::parse(r#"{"shards":2,"tables":[]}"#, &tables).unwrap_err();
        assert_eq!(error, "table \"a\" is not in the plan, expected once");
    }
}
