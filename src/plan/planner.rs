//! The planner: which table goes where. Its answer reads like a plan that a person would have made: large tables are
//! spread over all shards, each small one lies whole on the shard that has the least.

use super::layout::{Layout, TableLayout, TableSize};
use super::load::Weights;
use super::manifest::Sharding;
use super::stats::IdStats;
use super::stored::StoreDtype;

/// How tables are to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By size, and by load where it is known: [`plan`] decides for each table.
    #[default]
    Auto,
    /// All tables alike.
    All(Sharding),
}

/// What a plan is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wish<'a> {
    /// Number of shards.
    pub shards: u32,
    /// How tables are cut.
    pub mode: Mode,
    /// The form in which float tables are stored, if not as they are.
    pub store: Option<StoreDtype>,
    /// How often each id is looked up.
    pub stats: Option<&'a IdStats>,
}

/// Bytes below which a table is not worth cutting.
const WHOLE_BELOW: u64 = 64 * 1024;
/// Rows by id modulo shards may weigh this much more than their mean on one shard before ranges are tried.
const UNEVEN: f64 = 1.25;
/// Ranges are taken if their heaviest piece weighs at most this part of the heaviest by modulo.
const BETTER: f64 = 0.8;

/// Plans tables over shards. Without counts the weight of a piece is its bytes; with counts it is its part of all bytes plus
/// its part of all lookups, so that no shard has far more than its share of either.
pub fn plan(tables: &[TableSize], wish: &Wish) -> Layout {
    let shards = wish.shards.max(1);
    let store: Vec<Option<StoreDtype>> =
        tables.iter().map(|t| t.stored.or(wish.store.filter(|s| t.stored.is_none() && s.narrows(t.dtype)))).collect();
    let bytes: Vec<u64> = tables.iter().zip(&store).map(|(t, s)| t.bytes_of(t.rows, t.columns(), *s)).collect();
    let share = bytes.iter().fold(0u64, |a, &b| a.saturating_add(b)) / u64::from(shards);
    let weights = Weights::new(tables, &bytes, wish.stats);
    let mut load = vec![0f64; shards as usize];
    let mut layouts: Vec<Option<TableLayout>> = vec![None; tables.len()];
    let mut order: Vec<usize> = (0..tables.len()).collect();
    order.sort_by(|&a, &b| weights.table(b).total_cmp(&weights.table(a)).then(a.cmp(&b)));
    for i in order {
        let t = &tables[i];
        let large = bytes[i] >= WHOLE_BELOW.max(share / 2) || weights.is_hot(i, shards);
        let wanted = match wish.mode {
            Mode::All(Sharding::Range | Sharding::Column) if t.keyed => Sharding::Row,
            Mode::All(s) => s,
            Mode::Auto if large && shards > 1 => Sharding::Row,
            Mode::Auto => Sharding::Table,
        };
        let pieces = u64::from(shards).min(t.most_pieces(wanted)).max(1);
        // A table in one piece is a whole table, whatever was asked for.
        let sharding = if pieces == 1 { Sharding::Table } else { wanted };
        let name = t.name.clone();
        let mut layout = TableLayout { name, sharding, shards: (0..pieces as u32).collect(), starts: None, store: store[i] };
        if let Some(stats) = wish.stats {
            cut_by_load(&mut layout, t, stats, wish.mode == Mode::Auto, &weights, i);
        }
        let parts = weights.pieces(&layout, i, t, wish.stats);
        layout.shards = assign(&parts, &load, wish.stats.is_some());
        layout.shards.iter().zip(&parts).for_each(|(&s, w)| load[s as usize] += w);
        layouts[i] = Some(layout);
    }
    Layout { shards, replicas: None, tables: layouts.into_iter().flatten().collect() }
}

/// The shard of each piece: the emptiest ones, in the order of their numbers; where pieces differ in load, the heaviest
/// piece on the emptiest.
fn assign(parts: &[f64], load: &[f64], uneven: bool) -> Vec<u32> {
    let mut emptiest: Vec<u32> = (0..load.len() as u32).collect();
    emptiest.sort_by(|&a, &b| load[a as usize].total_cmp(&load[b as usize]).then(a.cmp(&b)));
    emptiest.truncate(parts.len());
    if !uneven {
        emptiest.sort_unstable();
        return emptiest;
    }
    let mut heaviest: Vec<usize> = (0..parts.len()).collect();
    heaviest.sort_by(|&a, &b| parts[b].total_cmp(&parts[a]).then(a.cmp(&b)));
    let mut shards = vec![0; parts.len()];
    heaviest.into_iter().zip(emptiest).for_each(|(p, s)| shards[p] = s);
    shards
}

/// Ranges that weigh alike where ranges were asked for, or where rows by modulo are uneven and ranges are not.
fn cut_by_load(layout: &mut TableLayout, t: &TableSize, stats: &IdStats, auto: bool, weights: &Weights, i: usize) {
    let n = layout.shards.len();
    if t.keyed || n < 2 || stats.total(&t.name) == 0 {
        return;
    }
    let ranges = TableLayout { sharding: Sharding::Range, starts: Some(even_starts(t, stats, n as u64)), ..layout.clone() };
    match layout.sharding {
        Sharding::Range => *layout = ranges,
        Sharding::Row if auto => {
            let heaviest = |l: &TableLayout| weights.pieces(l, i, t, Some(stats)).into_iter().fold(0.0, f64::max);
            let (by_row, by_range) = (heaviest(layout), heaviest(&ranges));
            if by_row > weights.table(i) / n as f64 * UNEVEN && by_range < by_row * BETTER {
                *layout = ranges;
            }
        }
        _ => {}
    }
}

/// The first row of each of `n` ranges that have the same sum of their part of the rows and their part of the lookups.
fn even_starts(t: &TableSize, stats: &IdStats, n: u64) -> Vec<u64> {
    let counts = stats.of(&t.name);
    let mut before = Vec::with_capacity(counts.len() + 1);
    before.push(0u64);
    counts.iter().for_each(|c| before.push(before[before.len() - 1].saturating_add(c.1)));
    let total = before[before.len() - 1].max(1) as f64;
    // The weight of the rows below `row`, of 1 in all.
    let weight = |row: u64| {
        let seen = before[counts.partition_point(|c| c.0 < row)] as f64;
        0.5 * row as f64 / t.rows.max(1) as f64 + 0.5 * seen / total
    };
    let mut starts = vec![0u64];
    for k in 1..n {
        let goal = k as f64 / n as f64;
        let (mut low, mut high) = (0u64, t.rows);
        while low < high {
            let middle = low + (high - low) / 2;
            if weight(middle) < goal { low = middle + 1 } else { high = middle }
        }
        // A hot row goes to the side where it leaves less.
        let nearest = if low > 0 && goal - weight(low - 1) < weight(low) - goal { low - 1 } else { low };
        let last = starts[starts.len() - 1];
        starts.push(nearest.clamp(last + 1, t.rows - (n - k)));
    }
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn table(name: &str, rows: u64, columns: usize) -> TableSize {
        TableSize { name: name.into(), rows, row_shape: vec![columns], dtype: DType::F32, keyed: false, lookups: 1, stored: None }
    }

    fn wish(shards: u32, mode: Mode) -> Wish<'static> {
        Wish { shards, mode, ..Wish::default() }
    }

    fn text(layout: &Layout) -> Vec<String> {
        layout.tables.iter().map(|t| format!("{} {:?} {:?}", t.name, t.sharding, t.shards)).collect()
    }

    #[test]
    fn large_tables_are_spread_and_small_ones_lie_whole() {
        let tables = [table("big", 1_000_000, 16), table("mid", 1000, 16), table("tiny", 3, 16)];
        assert_eq!(text(&plan(&tables, &wish(3, Mode::Auto))), ["big Row [0, 1, 2]", "mid Table [0]", "tiny Table [1]"]);
    }

    #[test]
    fn a_table_has_no_more_pieces_than_rows_or_columns() {
        let tables = [table("t", 2, 3)];
        assert_eq!(plan(&tables, &wish(8, Mode::All(Sharding::Row))).tables[0].shards, [0, 1]);
        assert_eq!(plan(&tables, &wish(8, Mode::All(Sharding::Column))).tables[0].shards, [0, 1, 2]);
        let half = TableSize { dtype: DType::U4, row_shape: vec![6], ..table("h", 2, 6) };
        assert_eq!(plan(&[half.clone()], &wish(8, Mode::All(Sharding::Column))).tables[0].cuts(&half), [0, 2, 4, 6]);
    }

    #[test]
    fn ranges_have_the_same_load() {
        let t = table("t", 100, 4);
        let mut stats = IdStats::default();
        // Ids 0 to 9 are all that is looked up.
        stats.insert("t".into(), (0..10).map(|id| (id, 10)));
        // Rows below r weigh r/200 + min(r, 10)/20; a half is at r = 9 with 0.495.
        assert_eq!(even_starts(&t, &stats, 2), [0, 9]);
        let layout = plan(&[t.clone()], &Wish { stats: Some(&stats), ..wish(2, Mode::All(Sharding::Range)) });
        assert_eq!(layout.tables[0].starts.as_deref(), Some(&[0, 9][..]));
    }

    #[test]
    fn auto_leaves_modulo_where_one_residue_is_hot() {
        let t = table("t", 100_000, 4);
        let mut stats = IdStats::default();
        // All that is looked up is even: by modulo 2 one piece would have it all.
        stats.insert("t".into(), (0..50_000).map(|i| (i * 2, 1)));
        let by = |stats| plan(&[t.clone()], &Wish { stats, ..wish(2, Mode::Auto) }).tables.remove(0);
        assert_eq!(by(None).sharding, Sharding::Row);
        assert_eq!((by(Some(&stats)).sharding, by(Some(&stats)).starts), (Sharding::Range, Some(vec![0, 50_000])));
    }

    #[test]
    fn hot_tables_are_kept_apart() {
        let tables = [table("a", 10, 4), table("b", 10, 4), table("c", 10, 4), table("d", 10, 4)];
        let mut stats = IdStats::default();
        for (name, count) in [("a", 100), ("b", 1), ("c", 90), ("d", 1)] {
            stats.insert(name.into(), [(0, count)]);
        }
        let layout = plan(&tables, &Wish { stats: Some(&stats), ..wish(2, Mode::All(Sharding::Table)) });
        assert_eq!(text(&layout), ["a Table [0]", "b Table [1]", "c Table [1]", "d Table [0]"]);
    }
}
