//! How often each id is looked up: counts from a log, which make loads of rows and of shards known.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, Write};

/// The first line of a file of counts.
const HEAD: &str = "table,id,count";

/// Lookups of each id (row number or key), by table. Ids that are not there are never looked up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdStats {
    tables: BTreeMap<String, Vec<(u64, u64)>>,
}

impl IdStats {
    /// Reads the text form: a line `table,id,count`, then such lines in any order; counts of one id add up. The name of a
    /// table that holds a comma or a quote is in quotes, as in any CSV.
    ///
    /// # Errors
    /// The line that is none such, with what was expected.
    pub fn read(input: impl BufRead) -> Result<Self, String> {
        let mut counts: HashMap<String, HashMap<u64, u64>> = HashMap::new();
        for (n, line) in input.lines().enumerate() {
            let at = n + 1;
            let line = line.map_err(|e| format!("line {at}: {e}"))?;
            let line = line.trim_end_matches('\r');
            if n == 0 {
                if line.trim_start_matches('\u{feff}') != HEAD {
                    return Err(format!("line 1: expected \"{HEAD}\", found {line:?}"));
                }
                continue;
            }
            if line.is_empty() {
                continue;
            }
            let fields = split(line).ok_or_else(|| format!("line {at}: expected {HEAD}, found {line:?}"))?;
            let number = |what: &str, text: &str| {
                text.trim().parse::<u64>().map_err(|_| format!("line {at}: expected {what} of 64 bits, not negative, found {text:?}"))
            };
            let (id, count) = (number("an id", fields.1)?, number("a count", fields.2)?);
            let of_id = match counts.get_mut(fields.0.as_str()) {
                Some(t) => t.entry(id).or_default(),
                None => counts.entry(fields.0).or_default().entry(id).or_default(),
            };
            *of_id = of_id.saturating_add(count);
        }
        let mut stats = Self::default();
        counts.into_iter().for_each(|(table, ids)| stats.insert(table, ids));
        Ok(stats)
    }

    /// Sets the counts of a table.
    pub fn insert(&mut self, table: String, counts: impl IntoIterator<Item = (u64, u64)>) {
        let mut counts: Vec<(u64, u64)> = counts.into_iter().filter(|c| c.1 > 0).collect();
        counts.sort_unstable();
        self.tables.insert(table, counts);
    }

    /// Writes the text form, by table and id.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn write(&self, mut out: impl Write) -> io::Result<()> {
        writeln!(out, "{HEAD}")?;
        for (table, counts) in &self.tables {
            let name = if table.contains([',', '"']) { format!("\"{}\"", table.replace('"', "\"\"")) } else { table.clone() };
            for (id, count) in counts {
                writeln!(out, "{name},{id},{count}")?;
            }
        }
        Ok(())
    }

    /// The tables that have counts.
    pub fn tables(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    /// (id, count) of a table, ascending by id, all counts above 0.
    pub fn of(&self, table: &str) -> &[(u64, u64)] {
        self.tables.get(table).map_or(&[], Vec::as_slice)
    }

    /// Lookups of a table.
    pub fn total(&self, table: &str) -> u64 {
        self.of(table).iter().fold(0, |sum, c| sum.saturating_add(c.1))
    }

    /// The id that is looked up most, the smallest of several; with its count.
    pub fn hottest(&self, table: &str) -> Option<(u64, u64)> {
        self.of(table).iter().copied().max_by_key(|&(id, count)| (count, std::cmp::Reverse(id)))
    }
}

/// Table, id, count.
fn split(line: &str) -> Option<(String, &str, &str)> {
    let (name, rest) = match line.strip_prefix('"') {
        Some(quoted) => {
            let end = quoted.replace("\"\"", "\u{1}\u{1}").find('"')?;
            (quoted[..end].replace("\"\"", "\""), quoted[end + 1..].strip_prefix(',')?)
        }
        None => line.split_once(',').map(|(n, r)| (n.to_owned(), r))?,
    };
    let (id, count) = rest.split_once(',')?;
    Some((name, id, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_added_and_written() {
        let text = "table,id,count\nu,5,2\n\"a,\"\"b\",18446744073709551615,1\r\nu,3,4\n\nu,5,1\nu,9,0\n";
        let stats = IdStats::read(text.as_bytes()).unwrap();
        assert_eq!(stats.of("u"), [(3, 4), (5, 3)]);
        assert_eq!(stats.of("a,\"b"), [(u64::MAX, 1)]);
        assert_eq!((stats.total("u"), stats.hottest("u"), stats.hottest("v")), (7, Some((3, 4)), None));
        let mut out = Vec::new();
        stats.write(&mut out).unwrap();
        assert_eq!(IdStats::read(out.as_slice()).unwrap(), stats);
    }

    #[test]
    fn a_line_that_is_none_is_named() {
        let error = |text: &str| IdStats::read(text.as_bytes()).unwrap_err();
        assert_eq!(error("id,count\n"), "line 1: expected \"table,id,count\", found \"id,count\"");
        assert_eq!(error("table,id,count\nu,-1,2\n"), "line 2: expected an id of 64 bits, not negative, found \"-1\"");
        assert_eq!(error("table,id,count\nu,1\n"), "line 2: expected table,id,count, found \"u,1\"");
    }
}
