//! A deployment whose shards are spread over peers: routes ids to them in one request each, and puts the rows together
//! in the order of the ids.

mod bags;

use super::bags::{BagFuture, BagQuery};
use super::counters::Counters;
use super::dedup::{Dedup, Habit, Seen, Way};
use super::gather::gather;
use super::keys::{Divisor, range_of};
use super::layout::{self, Decode, Filling};
use super::request::{Part, Peer, Reply, Request, id_blocks, row_blocks};
use super::{LookupFuture, Query, Stats, Store, StoreError, Table};
use crate::plan::{Manifest, Sharding};
use crate::tensor::Tensor;
use crate::wire::Pooled;
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of columns: where they lie in a peer's row and where in the table's.
#[derive(Debug, Clone, Copy)]
struct Columns {
    peer: usize,
    from: usize,
    to: usize,
    width: usize,
}

/// Which peer has which rows of a table.
#[derive(Debug)]
enum Spread {
    /// One has all.
    One(usize),
    /// By id modulo pieces; the peer of each piece.
    Row(Divisor, Vec<u32>),
    /// By ranges; where each starts and its peer.
    Range(Vec<u64>, Vec<u32>),
    /// Each has all rows of some columns.
    Column(Vec<Columns>),
}

#[derive(Debug)]
struct Route {
    spread: Spread,
    /// Bytes of a row, and of what each peer has of it.
    width: usize,
    widths: Vec<usize>,
    /// Whether ids go as 8 bytes, else 4.
    wide: bool,
    decode: Decode,
    filling: Filling,
    habit: Habit,
}

/// A [`Store`] over the shards of a deployment that peers hold.
#[derive(Debug)]
pub(crate) struct Sharded {
    tables: Vec<Table>,
    routes: Vec<Route>,
    peers: Vec<Arc<dyn Peer>>,
    dedup: Dedup,
    seen: Mutex<Vec<Seen>>,
    counters: Counters,
}

/// One query on its way.
struct Routed {
    /// What is sent: the ids, or the distinct ones and the place of each among them.
    unique: Option<(Vec<u64>, Vec<u32>)>,
    /// Peer of each id that is sent, and its place among the ids for that peer; empty where all go to each.
    places: Vec<(u32, u32)>,
    /// The part of each peer's request.
    parts: Vec<Option<usize>>,
}

impl Sharded {
    /// A store over `peers`, one for each group of shards that [`Manifest::placement`] makes of them.
    ///
    /// # Errors
    /// A manifest with tables that cannot be looked up.
    pub(crate) fn new(manifest: &Manifest, peers: Vec<Arc<dyn Peer>>, dedup: Dedup) -> Result<Self, StoreError> {
        let placement = manifest.placement(peers.len());
        let mut routes = Vec::with_capacity(manifest.tables.len());
        for t in &manifest.tables {
            let piece_widths = layout::piece_widths(t)?;
            let width = layout::row_width(t, &piece_widths);
            let owners: Vec<usize> = t.pieces.iter().map(|p| placement.group(p.shard)).collect();
            let mut widths = vec![width; peers.len()];
            let as_u32 = |owners: &[usize]| owners.iter().map(|&p| p as u32).collect();
            let spread = match t.sharding {
                Sharding::Column => {
                    widths = vec![0; peers.len()];
                    let mut to = 0;
                    let place = |(&peer, w): (&usize, usize)| {
                        let columns = Columns { peer, from: widths[peer], to, width: w };
                        widths[peer] += w;
                        to += w;
                        columns
                    };
                    Spread::Column(owners.iter().zip(piece_widths).map(place).collect())
                }
                _ if owners.iter().all(|&p| p == owners[0]) => Spread::One(owners[0]),
                Sharding::Range => Spread::Range(t.pieces.iter().map(|p| p.first_row).collect(), as_u32(&owners)),
                _ => Spread::Row(Divisor::new(owners.len()), as_u32(&owners)),
            };
            let wide = t.keyed || t.rows > 1 << 32;
            routes.push(Route { spread, width, widths, wide, decode: Decode::of(t), filling: Filling::of(t)?, habit: Habit::default() });
        }
        let tables = layout::tables(manifest);
        Ok(Self { tables, routes, peers, dedup, seen: Mutex::default(), counters: Counters::default() })
    }

    /// Does something with a table of ids seen.
    fn with_seen<R>(&self, work: impl FnOnce(&mut Seen) -> R) -> R {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        let done = work(&mut seen);
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
        done
    }

    /// How the rows of a table come.
    fn way(&self, table: usize, near: bool) -> Way {
        Way { width: self.routes[table].width, near, keyed: self.tables[table].keyed }
    }

    /// Whether no row of any table has a way to go.
    fn near(&self) -> bool {
        self.peers.iter().all(|p| p.near())
    }

    /// Puts a query in the requests to peers, which are near or not.
    fn route(
        &self,
        query: &Query,
        near: bool,
        seen: &mut Seen,
        requests: &mut [Vec<Part>],
        stats: &mut Stats,
    ) -> Result<Routed, StoreError> {
        let (table, route) = (&self.tables[query.table], &self.routes[query.table]);
        layout::check_range(table, &query.ids)?;
        let n = query.ids.len();
        if u32::try_from(n).is_err() {
            return Err(StoreError::Corrupt(format!("table \"{}\": {n} ids in one lookup", table.name)));
        }
        let mut routed = Routed { unique: None, places: Vec::new(), parts: vec![None; self.peers.len()] };
        stats.ids += n as u64;
        if n == 0 || route.width == 0 {
            return Ok(routed);
        }
        if route.habit.wanted(self.dedup, &query.ids, self.way(query.table, near), seen) {
            let (unique, inverse) = seen.unique(&query.ids);
            if unique.len() < n {
                routed.unique = Some((unique, inverse));
            }
        }
        let sent = routed.sent(query);
        stats.unique_ids += sent.len() as u64;
        let mut counts = vec![0u32; self.peers.len()];
        let mut place = |peer: u32| {
            let at = counts[peer as usize];
            counts[peer as usize] += 1;
            (peer, at)
        };
        match &route.spread {
            Spread::One(peer) => counts[*peer] = sent.len() as u32,
            Spread::Row(d, owners) => {
                let places = sent.iter().map(|&id| place(owners[d.div_rem(id).1])).collect();
                routed.places = places;
            }
            Spread::Range(starts, owners) => {
                let places = sent.iter().map(|&id| place(owners[range_of(starts, id)])).collect();
                routed.places = places;
            }
            Spread::Column(columns) => columns.iter().filter(|c| c.width > 0).for_each(|c| counts[c.peer] = sent.len() as u32),
        }
        for (peer, &count) in counts.iter().enumerate().filter(|(_, c)| **c > 0) {
            routed.parts[peer] = Some(requests[peer].len());
            let width = route.widths[peer] as u32;
            requests[peer].push(Part { table: query.table as u32, count, wide: route.wide, width, group: peer as u32 });
        }
        Ok(routed)
    }

    /// The requests to peers that are asked for something, with the ids of all queries: each id is put in its place in one pass.
    fn requests(&self, parts: Vec<Vec<Part>>, queries: &[Query], routed: &[Routed]) -> Result<Vec<(usize, Request)>, StoreError> {
        let open = |parts: Vec<Part>| {
            let (starts, len) = id_blocks(&parts).ok_or_else(|| StoreError::Corrupt("a request without a size".into()))?;
            let (mut ids, mut end) = (Pooled::take(len), 0);
            for (p, &start) in parts.iter().zip(&starts) {
                ids[end..start].fill(0);
                end = start + p.count as usize * p.id_bytes();
            }
            Ok(Open { parts, starts, ids })
        };
        let mut opened = parts.into_iter().map(open).collect::<Result<Vec<Open>, StoreError>>()?;
        for (query, r) in queries.iter().zip(routed) {
            let sent = r.sent(query);
            match self.routes[query.table].wide {
                true => put(&mut opened, r, sent, u64::to_le_bytes),
                false => put(&mut opened, r, sent, |id| (id as u32).to_le_bytes()),
            }
        }
        let asked = opened.into_iter().enumerate().filter(|(_, o)| !o.parts.is_empty());
        Ok(asked.map(|(peer, o)| (peer, Request { parts: o.parts.into(), pooling: None, ids: o.ids.freeze() })).collect())
    }

    /// Writes what stands in for absent keys into the rows of a reply; gives the (part, position) of each.
    fn fill(&self, request: &Request, reply: &mut Reply, starts: &(Vec<usize>, Vec<usize>)) -> Result<HashSet<(u32, u32)>, StoreError> {
        for &(part, slot) in &reply.absent {
            let p = request.parts.get(part as usize).filter(|p| slot < p.count);
            let p = p.ok_or_else(|| StoreError::Corrupt(format!("a reply names key {slot} of part {part}, which was not asked for")))?;
            let (table, route) = (&self.tables[p.table as usize], &self.routes[p.table as usize]);
            let from = starts.0[part as usize] + slot as usize * p.id_bytes();
            let key = request.ids[from..from + p.id_bytes()].iter().rev().fold(0u64, |k, &b| k << 8 | u64::from(b));
            let to = starts.1[part as usize] + slot as usize * route.width;
            reply.rows[to..to + route.width].copy_from_slice(route.filling.row(&table.name, key)?);
        }
        Ok(reply.absent.iter().copied().collect())
    }

    async fn answer(&self, queries: &[Query], seen: &mut Seen, stats: &mut Stats) -> Result<Vec<Tensor>, StoreError> {
        let mut parts = vec![Vec::new(); self.peers.len()];
        let near = self.near();
        let routed = queries.iter().map(|q| self.route(q, near, seen, &mut parts, stats)).collect::<Result<Vec<_>, _>>()?;
        let requests = self.requests(parts, queries, &routed)?;
        stats.requests += requests.len() as u64;
        let replies = match requests.as_slice() {
            [(peer, request)] => vec![self.peers[*peer].fetch(request.clone()).await?],
            many => futures::future::try_join_all(many.iter().map(|(p, r)| self.peers[*p].fetch(r.clone()))).await?,
        };
        let mut rows: Vec<Option<Answered>> = self.peers.iter().map(|_| None).collect();
        for ((peer, request), mut reply) in requests.into_iter().zip(replies) {
            let sizes = id_blocks(&request.parts).zip(row_blocks(&request.parts)).filter(|s| s.1.1 == reply.rows.len());
            let Some(((ids_at, _), (starts, len))) = sizes else {
                return Err(StoreError::Corrupt(format!(
                    "pserver {peer}: a reply of {} bytes, which is not what was asked for",
                    reply.rows.len()
                )));
            };
            stats.bytes += len as u64;
            let starts = (ids_at, starts);
            let absent = self.fill(&request, &mut reply, &starts)?;
            rows[peer] = Some(Answered { rows: reply.rows.freeze(), starts: starts.1, absent });
        }
        queries.iter().zip(&routed).map(|(q, r)| self.assemble(q, r, &rows, stats)).collect()
    }

    fn assemble(&self, query: &Query, r: &Routed, replies: &[Option<Answered>], stats: &mut Stats) -> Result<Tensor, StoreError> {
        let (table, route) = (&self.tables[query.table], &self.routes[query.table]);
        let n = query.ids.len();
        // The block of each peer.
        let block = |peer: usize| -> Option<&[u8]> {
            let reply = replies[peer].as_ref()?;
            reply.rows.get(*reply.starts.get(r.parts[peer]?)?..)
        };
        // The peer and place of output row `i`.
        let place = |i: usize| -> (u32, u32) {
            let sent = r.unique.as_ref().map_or(i as u32, |u| u.1[i]);
            r.places.get(sent as usize).copied().unwrap_or((u32::MAX, sent))
        };
        for (peer, reply) in replies.iter().enumerate() {
            let (Some(part), Some(reply)) = (r.parts[peer], reply) else { continue };
            if !reply.absent.is_empty() {
                let here = |&(p, slot): &(u32, u32)| (p == u32::MAX || p as usize == peer) && reply.absent.contains(&(part as u32, slot));
                stats.absent += (0..n).map(place).filter(here).count() as u64;
            }
        }
        let one = match route.spread {
            Spread::One(peer) if n > 0 && route.width > 0 => Some(peer),
            _ => None,
        };
        if let (Some(peer), None) = (one, &r.unique) {
            // The rows lie in the reply as they are asked for.
            if let Some((reply, part)) = replies[peer].as_ref().zip(r.parts[peer]) {
                let from = reply.starts[part];
                return route.decode.tensor(table, n, reply.rows.slice(from..from + n * route.width));
            }
        }
        let mut out = Pooled::take(n * route.width);
        if !out.is_empty() {
            let w = route.width;
            let done = match (&route.spread, &r.unique) {
                (Spread::Column(columns), _) => columns.iter().filter(|c| c.width > 0).try_for_each(|c| {
                    let (stride, block) = (route.widths[c.peer], block(c.peer).unwrap_or_default());
                    gather(&mut out, (w, c.to, c.width), n, |i| {
                        let from = place(i).1 as usize * stride + c.from;
                        block.get(from..from + c.width)
                    })
                }),
                (Spread::One(peer), Some((_, inverse))) => {
                    let block = block(*peer).unwrap_or_default();
                    gather(&mut out, (w, 0, w), n, |i| block.get(inverse[i] as usize * w..(inverse[i] as usize + 1) * w))
                }
                (_, unique) => {
                    let blocks: Vec<&[u8]> = (0..self.peers.len()).map(|p| block(p).unwrap_or_default()).collect();
                    let row = |(peer, slot): (u32, u32)| blocks[peer as usize].get(slot as usize * w..(slot as usize + 1) * w);
                    match unique {
                        Some((_, inverse)) => gather(&mut out, (w, 0, w), n, |i| row(r.places[inverse[i] as usize])),
                        None => gather(&mut out, (w, 0, w), n, |i| row(r.places[i])),
                    }
                }
            };
            done.map_err(|i| StoreError::Corrupt(format!("table \"{}\": no row came for id {}", table.name, query.ids[i])))?;
        }
        route.decode.tensor(table, n, out.freeze())
    }
}

/// A request whose ids are still to come.
struct Open {
    parts: Vec<Part>,
    starts: Vec<usize>,
    ids: Pooled,
}

/// Puts the ids of a query, of `W` bytes each, where they belong.
fn put<const W: usize>(opened: &mut [Open], r: &Routed, sent: &[u64], bytes: impl Fn(u64) -> [u8; W]) {
    let block = |(o, part): (_, &Option<usize>)| -> &mut [[u8; W]] {
        let (o, Some(part)): (&mut Open, _) = (o, *part) else { return &mut [] };
        let (from, count) = (o.starts[part], o.parts[part].count as usize);
        o.ids[from..from + count * W].as_chunks_mut().0
    };
    let mut blocks: Vec<&mut [[u8; W]]> = opened.iter_mut().zip(&r.parts).map(block).collect();
    if r.places.is_empty() {
        // All go to each.
        blocks.iter_mut().for_each(|block| block.iter_mut().zip(sent).for_each(|(to, &id)| *to = bytes(id)));
        return;
    }
    for (&id, &(peer, at)) in sent.iter().zip(&r.places) {
        blocks[peer as usize][at as usize] = bytes(id);
    }
}

/// What came from a peer.
struct Answered {
    rows: Bytes,
    starts: Vec<usize>,
    absent: HashSet<(u32, u32)>,
}

impl Routed {
    /// The ids that are sent.
    fn sent<'a>(&'a self, query: &'a Query) -> &'a [u64] {
        self.unique.as_ref().map_or(&query.ids, |u| &u.0)
    }
}

impl Store for Sharded {
    fn tables(&self) -> &[Table] {
        &self.tables
    }

    fn lookup(&self, queries: Vec<Query>) -> LookupFuture<'_> {
        Box::pin(async move {
            super::check_tables(&self.tables, &queries)?;
            let mut stats = Stats { lookups: 1, ..Stats::default() };
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
            let rows = self.answer(&queries, &mut seen, &mut stats).await;
            self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(seen);
            self.counters.add_asked(&stats);
            rows
        })
    }

    fn lookup_bags<'a>(&'a self, query: &'a BagQuery) -> BagFuture<'a> {
        Box::pin(self.bags(query))
    }

    fn stats(&self) -> Stats {
        let retries = self.peers.iter().map(|p| p.retries()).sum();
        Stats { retries, ..self.counters.stats() }
    }
}
