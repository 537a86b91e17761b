//! Shards of a deployment directory, mapped: what a pserver holds, and all of it for a run on one machine.

mod bags;

use super::bags::{BagFuture, BagQuery};
use super::counters::Counters;
use super::gather::gather;
use super::keys::{ABSENT, Divisor, Id, cast_ids, range_of};
use super::layout::{self, Decode, Filling};
use super::piece::{Mapped, maps_for, open_piece};
use super::request::{Blocks, Part, Peer, Reply, ReplyFuture, Request, id_blocks, row_blocks};
use super::{LookupFuture, Query, Stats, Store, StoreError, Table, Verify};
use crate::plan::{Manifest, Piece, Sharding};
use crate::tensor::{Frequented, read_at_random};
use crate::wire::Pooled;
pub(super) use bags::PoolJob;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The pieces of a table that are here; a piece that is elsewhere is `None`.
#[derive(Debug)]
enum Place {
    Whole(Option<Mapped>),
    Row(Divisor, Vec<Option<Mapped>>),
    Range(Vec<u64>, Vec<Option<Mapped>>),
    /// By group.
    Column(BTreeMap<u32, Columns>),
}

/// The columns of one group of shards.
#[derive(Debug, Default)]
struct Columns {
    /// Bytes of a row, of these columns.
    width: usize,
    /// Bytes of columns before each piece, its own, and the piece.
    pieces: Vec<(usize, usize, Mapped)>,
}

#[derive(Debug)]
struct Held {
    place: Place,
    /// Bytes of a row, of all columns.
    width: usize,
    decode: Decode,
    filling: Filling,
}

impl Held {
    /// Bytes of a row, of the columns of a group.
    fn width(&self, group: u32) -> usize {
        match &self.place {
            Place::Column(groups) => groups.get(&group).map_or(0, |c| c.width),
            _ => self.width,
        }
    }
}

/// Some shards of a deployment (see [`Shards::open`]), or all. A [`Store`] if it is all of them.
#[derive(Debug)]
pub struct Shards {
    pub(super) dir: PathBuf,
    pub(super) manifest: Arc<Manifest>,
    /// The group of each shard that is here.
    shards: Vec<Option<u32>>,
    tables: Vec<Table>,
    held: Vec<Held>,
    frequented: Frequented,
    counters: Arc<Counters>,
    pub(super) fault: OnceLock<StoreError>,
}

/// The manifest of a deployment directory.
///
/// # Errors
/// A directory without one, or one that is not valid or was changed after it was written.
pub fn read_manifest(dir: &Path) -> Result<Manifest, StoreError> {
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).map_err(|e| StoreError::Corrupt(format!("cannot read \"{}\": {e}", path.display())))?;
    Manifest::read(&text).map_err(|e| StoreError::Corrupt(format!("\"{}\": {e}", path.display())))
}

/// A store over all shards of a deployment directory.
///
/// # Errors
/// As [`read_manifest`], [`Shards::open`], and [`Shards::verify_when`] with [`Verify::Auto`].
pub fn open_local(dir: &Path) -> Result<Arc<dyn Store>, StoreError> {
    let manifest = Arc::new(read_manifest(dir)?);
    let shards = Arc::new(Shards::open(dir, manifest, |_| true)?);
    shards.clone().verify_when(Verify::Auto)?;
    Ok(shards)
}

impl Shards {
    /// Maps the pieces of `dir` whose shard `wanted` takes. Sizes and headers are checked, contents are not (see
    /// [`Shards::verify`]).
    ///
    /// # Errors
    /// Files that are missing, cut off, or hold another tensor than the manifest says; each is named.
    pub fn open(dir: &Path, manifest: Arc<Manifest>, wanted: impl Fn(u32) -> bool) -> Result<Self, StoreError> {
        let shards = (0..manifest.shards).map(|s| wanted(s).then_some(0)).collect();
        Self::open_groups(dir, manifest, shards)
    }

    /// Maps the pieces that server `index` of `servers` holds.
    ///
    /// # Errors
    /// As [`Shards::open`].
    pub fn of_server(dir: &Path, manifest: Arc<Manifest>, servers: usize, index: usize) -> Result<Self, StoreError> {
        let placement = manifest.placement(servers);
        let group = |s| Some(placement.group(s)).filter(|&g| placement.holds(index, g)).map(|g| g as u32);
        let shards = (0..manifest.shards).map(group).collect();
        Self::open_groups(dir, manifest, shards)
    }

    fn open_groups(dir: &Path, manifest: Arc<Manifest>, shards: Vec<Option<u32>>) -> Result<Self, StoreError> {
        let mut held = Vec::with_capacity(manifest.tables.len());
        let here = |piece: &Piece| shards.get(piece.shard as usize).is_some_and(Option::is_some);
        let maps = maps_for(dir, manifest.tables.iter().flat_map(|t| &t.pieces).filter(|p| here(p)))?;
        let mut random = Vec::new();
        for t in &manifest.tables {
            let widths = layout::piece_widths(t)?;
            let mut pieces = Vec::with_capacity(t.pieces.len());
            for (piece, &width) in t.pieces.iter().zip(&widths) {
                let mapped = if here(piece) { Some(open_piece(dir, t, piece, width, &maps)?) } else { None };
                random.extend(mapped.iter().flat_map(|m| [m.keys.clone(), m.values.clone()]).inspect(|part| read_at_random(part)));
                pieces.push(mapped);
            }
            let width = layout::row_width(t, &widths);
            let place = match t.sharding {
                Sharding::Column => {
                    let mut columns: BTreeMap<u32, Columns> = BTreeMap::new();
                    for ((w, mapped), piece) in widths.into_iter().zip(pieces).zip(&t.pieces) {
                        let Some((mapped, group)) = mapped.zip(shards[piece.shard as usize]) else { continue };
                        let of_group = columns.entry(group).or_default();
                        of_group.pieces.push((of_group.width, w, mapped));
                        of_group.width += w;
                    }
                    Place::Column(columns)
                }
                _ if pieces.len() == 1 => Place::Whole(pieces.pop().flatten()),
                Sharding::Range => Place::Range(t.pieces.iter().map(|p| p.first_row).collect(), pieces),
                _ => Place::Row(Divisor::new(pieces.len()), pieces),
            };
            held.push(Held { place, width, decode: Decode::of(t), filling: Filling::of(t)? });
        }
        let tables = layout::tables(&manifest);
        let frequented = Frequented::new(random);
        Ok(Self { dir: dir.into(), manifest, shards, tables, held, frequented, counters: Arc::default(), fault: OnceLock::new() })
    }

    /// The manifest of the deployment.
    pub fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Bytes of the files that are mapped here.
    pub fn bytes(&self) -> u64 {
        self.pieces().map(|p| p.bytes).sum()
    }

    /// The numbers of the shards that are here.
    pub fn numbers(&self) -> Vec<u32> {
        (0..self.manifest.shards).filter(|&s| self.shards[s as usize].is_some()).collect()
    }

    pub(super) fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.manifest.tables.iter().flat_map(|t| &t.pieces).filter(|p| self.shards[p.shard as usize].is_some())
    }

    /// Goes on with the counters of shards that these take the place of.
    pub(super) fn count_with(&mut self, before: &Self) {
        self.counters = before.counters.clone();
    }

    /// The counters so far.
    pub(super) fn stats(&self) -> Stats {
        self.counters.stats()
    }

    /// Writes the rows of `ids` to `out`; positions of absent keys, whose rows are zeros, to `absent`.
    fn rows<I: Id>(&self, table: usize, group: u32, ids: &[I], out: &mut [u8], absent: &mut Vec<u32>) -> Result<(), StoreError> {
        let (t, held) = (&self.tables[table], &self.held[table]);
        let width = held.width(group);
        let whole = (width, 0, width);
        let row = |piece: &'_ Mapped, row: u64| -> Option<std::ops::Range<usize>> {
            let from = usize::try_from(row).ok()?.checked_mul(width)?;
            (from + width <= piece.values.len()).then_some(from..from + width)
        };
        let done = match &held.place {
            _ if t.keyed => return self.keyed_rows(table, ids, out, absent),
            Place::Whole(piece) => {
                let Some(p) = piece else { return Err(self.elsewhere(t)) };
                gather(out, whole, ids.len(), |i| p.values.get(row(p, ids[i].wide())?))
            }
            Place::Row(n, pieces) => gather(out, whole, ids.len(), |i| {
                let (r, p) = n.div_rem(ids[i].wide());
                let p = pieces[p].as_ref()?;
                p.values.get(row(p, r)?)
            }),
            Place::Range(starts, pieces) => gather(out, whole, ids.len(), |i| {
                let id = ids[i].wide();
                let p = range_of(starts, id);
                let r = id.checked_sub(starts[p])?;
                let p = pieces[p].as_ref()?;
                p.values.get(row(p, r)?)
            }),
            Place::Column(groups) => groups.get(&group).map_or(&[][..], |c| &c.pieces).iter().try_for_each(|(offset, w, p)| {
                gather(out, (width, *offset, *w), ids.len(), |i| {
                    let from = usize::try_from(ids[i].wide()).ok()?.checked_mul(*w)?;
                    p.values.get(from..from.checked_add(*w)?)
                })
            }),
        };
        done.map_err(|position| match ids.get(position).map(|i| i.wide()) {
            Some(id) if id >= t.rows => StoreError::Invalid { table: t.name.clone(), id, position, rows: t.rows },
            _ => self.elsewhere(t),
        })
    }

    fn elsewhere(&self, t: &Table) -> StoreError {
        StoreError::Corrupt(format!("table \"{}\": a row that was asked for is in none of the shards {:?}", t.name, self.numbers()))
    }

    fn keyed_rows<I: Id>(&self, table: usize, ids: &[I], out: &mut [u8], absent: &mut Vec<u32>) -> Result<(), StoreError> {
        let (t, held) = (&self.tables[table], &self.held[table]);
        let wanted: Vec<u64> = ids.iter().map(|i| i.wide()).collect();
        let zeros = vec![0u8; held.width];
        let one;
        let (n, pieces) = match &held.place {
            Place::Row(n, pieces) => (*n, pieces.as_slice()),
            Place::Whole(piece) => {
                one = std::slice::from_ref(piece);
                (Divisor::new(1), one)
            }
            _ => return Err(self.elsewhere(t)),
        };
        // Keys are searched piece by piece, each piece's together.
        let mut at = vec![ABSENT; wanted.len()];
        let (mut mine, mut keys, mut found) = (Vec::new(), Vec::new(), Vec::new());
        for (p, piece) in pieces.iter().enumerate() {
            mine.clear();
            mine.extend((0..wanted.len()).filter(|&i| pieces.len() == 1 || n.div_rem(wanted[i]).1 == p));
            if mine.is_empty() {
                continue;
            }
            let Some(piece) = piece else { return Err(self.elsewhere(t)) };
            keys.clear();
            keys.extend(mine.iter().map(|&i| wanted[i]));
            found.clear();
            piece.find(&keys, &mut found);
            mine.iter().zip(&found).for_each(|(&i, &row)| at[i] = row);
        }
        absent.extend((0..wanted.len()).filter(|&i| at[i] == ABSENT).map(|i| i as u32));
        let w = held.width;
        gather(out, (w, 0, w), wanted.len(), |i| match at[i] {
            ABSENT => Some(&zeros),
            row => pieces[n.div_rem(wanted[i]).1].as_ref()?.values.get(row as usize * w..(row as usize + 1) * w),
        })
        .map_err(|_| self.elsewhere(t))
    }

    /// Checks a request that came from elsewhere, of which nothing is trusted; gives its blocks of ids and of rows.
    pub(super) fn check(&self, request: &Request) -> Result<(Blocks, Blocks), StoreError> {
        if let Some(fault) = self.fault.get() {
            return Err(fault.clone());
        }
        let parts: &[Part] = &request.parts;
        for p in parts {
            let width = self.held.get(p.table as usize).map(|h| h.width(p.group));
            if width != Some(p.width as usize) {
                let has = width.map_or("no such table".into(), |w| format!("rows of {w} bytes"));
                return Err(StoreError::Corrupt(format!("table {} with rows of {} bytes was asked for, here is {has}", p.table, p.width)));
            }
        }
        let Some((ids, rows)) = id_blocks(parts).zip(row_blocks(parts)) else {
            return Err(StoreError::Corrupt("a request without a size".into()));
        };
        if ids.1 != request.ids.len() {
            return Err(StoreError::Corrupt(format!("expected {} bytes of ids, found {}", ids.1, request.ids.len())));
        }
        for (p, &at) in parts.iter().zip(&ids.0) {
            let block = &request.ids[at..at + p.count as usize * p.id_bytes()];
            if p.wide { self.check_ids::<u64>(p, block) } else { self.check_ids::<u32>(p, block) }?;
        }
        let n = parts.iter().map(|p| u64::from(p.count)).sum();
        self.frequented.read(rows.1);
        self.counters.add(&Stats { lookups: 1, ids: n, unique_ids: n, bytes: rows.1 as u64, ..Stats::default() });
        Ok((ids, rows))
    }

    /// That the ids of a part are rows, and that these are here.
    fn check_ids<I: Id>(&self, part: &Part, ids: &[u8]) -> Result<(), StoreError> {
        let (t, held) = (&self.tables[part.table as usize], &self.held[part.table as usize]);
        let ids = cast_ids::<I>(ids);
        let Some(greatest) = ids.iter().map(Id::wide).max() else { return Ok(()) };
        if t.keyed {
            return Ok(());
        }
        if greatest >= t.rows {
            let position = ids.iter().position(|i| i.wide() >= t.rows).unwrap_or(0);
            return Err(StoreError::Invalid { table: t.name.clone(), id: ids[position].wide(), position, rows: t.rows });
        }
        let here = match &held.place {
            Place::Whole(piece) => piece.is_some(),
            Place::Column(_) => true,
            Place::Row(n, pieces) => pieces.iter().all(Option::is_some) || ids.iter().all(|i| pieces[n.div_rem(i.wide()).1].is_some()),
            Place::Range(starts, pieces) => {
                pieces.iter().all(Option::is_some) || ids.iter().all(|i| pieces[range_of(starts, i.wide())].is_some())
            }
        };
        if here { Ok(()) } else { Err(self.elsewhere(t)) }
    }

    /// Whether a part is of a keyed table.
    pub(super) fn keyed(&self, part: &Part) -> bool {
        self.tables.get(part.table as usize).is_some_and(|t| t.keyed)
    }

    /// Writes the rows of some ids of a part to `out`; absent keys' positions to `absent`.
    pub(super) fn part_rows(&self, part: &Part, ids: &[u8], out: &mut [u8], absent: &mut Vec<u32>) -> Result<(), StoreError> {
        let table = part.table as usize;
        if part.wide {
            self.rows::<u64>(table, part.group, &cast_ids(ids), out, absent)
        } else {
            self.rows::<u32>(table, part.group, &cast_ids(ids), out, absent)
        }
    }

    /// Answers a request that came from elsewhere.
    pub(crate) fn answer(&self, request: &Request) -> Result<Reply, StoreError> {
        self.answer_in(request, None)
    }

    /// Answers it in a place of the rows' size, if there is one.
    pub(super) fn answer_in(&self, request: &Request, place: Option<Pooled>) -> Result<Reply, StoreError> {
        if let Some(pooling) = request.pooling {
            let mut job = PoolJob::new(self, request, pooling)?;
            while job.step()? {}
            return Ok(job.reply());
        }
        let ((ids_at, _), (rows_at, rows_len)) = self.check(request)?;
        let mut rows = place.filter(|p| p.len() == rows_len).unwrap_or_else(|| Pooled::take(rows_len));
        let (mut all, mut absent, mut end) = (Vec::new(), Vec::new(), 0);
        for (i, p) in request.parts.iter().enumerate() {
            // Gaps between blocks are cleared: the buffer has been used before.
            rows[end..rows_at[i]].fill(0);
            end = rows_at[i] + p.count as usize * p.width as usize;
            let ids = &request.ids[ids_at[i]..ids_at[i] + p.count as usize * p.id_bytes()];
            self.part_rows(p, ids, &mut rows[rows_at[i]..end], &mut absent)?;
            all.extend(absent.drain(..).map(|slot| (i as u32, slot)));
        }
        self.counters.add(&Stats { absent: all.len() as u64, ..Stats::default() });
        Ok(Reply { absent: all, rows, ..Reply::default() })
    }

    fn query(&self, query: &Query, stats: &mut Stats) -> Result<crate::tensor::Tensor, StoreError> {
        let (t, held) = (&self.tables[query.table], &self.held[query.table]);
        layout::check_range(t, &query.ids)?;
        let mut out = Pooled::take(query.ids.len() * held.width);
        let mut absent = Vec::new();
        self.rows(query.table, 0, &query.ids, &mut out, &mut absent)?;
        for &slot in &absent {
            let row = held.filling.row(&t.name, query.ids[slot as usize])?;
            out[slot as usize * held.width..][..held.width].copy_from_slice(row);
        }
        stats.ids += query.ids.len() as u64;
        stats.unique_ids += query.ids.len() as u64;
        stats.absent += absent.len() as u64;
        stats.bytes += out.len() as u64;
        held.decode.tensor(t, query.ids.len(), out.freeze())
    }
}

impl Store for Shards {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            super::check_tables(&self.tables, &queries)?;
            if let Some(fault) = self.fault.get() {
                return Err(fault.clone());
            }
            let mut stats = Stats { lookups: 1, ..Stats::default() };
            let rows = queries.iter().map(|q| self.query(q, &mut stats)).collect();
            self.frequented.read(stats.bytes as usize);
            self.counters.add_asked(&stats);
            rows
        })
    }

    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        Box::pin(async move { self.bags(query) })
    }

    fn stats(&self) -> Stats {
        self.counters.stats()
    }
}

impl Peer for Shards {
    fn fetch(&self, request: Request) -> ReplyFuture<'_> {
        Box::pin(async move { self.answer(&request) })
    }

    fn pools(&self) -> bool {
        true
    }

    fn near(&self) -> bool {
        true
    }
}
