//! Bags whose rows are pooled by the peers that hold them, where each peer has all rows of a table, or of some of its columns: then
//! sums are made in the same order as here, and fewer bytes travel.

use super::{Route, Sharded, Spread};
use crate::store::bags::{BagQuery, InBags, Stored};
use crate::store::dedup::{Seen, sent};
use crate::store::gather::gather;
use crate::store::layout;
use crate::store::request::{Part, Pooling, Reply, Request, bag_blocks};
use crate::store::{Stats, StoreError, Table};
use crate::tensor::Tensor;
use crate::wire::Pooled;
use bytes::Bytes;

/// Columns of a table in bytes of its dtype: their peer, where they begin in its pooled rows and in those of the table, and how many.
struct Wide {
    peer: usize,
    from: usize,
    to: usize,
    width: usize,
}

impl Route {
    /// The columns of each peer; `None` where no peer has all rows of any.
    fn wide(&self, table: &Table, peers: usize) -> Option<Vec<Wide>> {
        let wide = |width| Stored { dtype: table.dtype, stored: self.decode.stored(), width }.wide();
        match &self.spread {
            Spread::One(peer) => Some(vec![Wide { peer: *peer, from: 0, to: 0, width: wide(self.width) }]),
            Spread::Column(columns) => {
                let (mut of_peer, mut to) = (vec![0; peers], 0);
                let place = |c: &super::Columns| {
                    let place = Wide { peer: c.peer, from: of_peer[c.peer], to, width: wide(c.width) };
                    of_peer[c.peer] += place.width;
                    to += place.width;
                    place
                };
                Some(columns.iter().map(place).collect())
            }
            Spread::Row(..) | Spread::Range(..) => None,
        }
    }
}

/// What is asked of peers: the same ids and bags of each, and of each its columns.
struct Asked {
    columns: Vec<Wide>,
    requests: Vec<(usize, Request)>,
    /// Bytes of a row of the table.
    width: usize,
}

impl Sharded {
    /// What to ask, if pooling by peers is possible and makes less travel, ids included: all ids and the ends of bags and weights to
    /// each peer and a row per bag back, rather than the ids that would be left after de-duplication and their rows as they are stored.
    fn ask(&self, query: &BagQuery, inside: &InBags, seen: &mut Seen) -> Option<Asked> {
        let (table, route) = (&self.tables[query.table], &self.routes[query.table]);
        let columns = route.wide(table, self.peers.len())?;
        let mut widths = vec![0; self.peers.len()];
        columns.iter().for_each(|c| widths[c.peer] += c.width);
        let peers: Vec<usize> = (0..widths.len()).filter(|&p| widths[p] > 0).collect();
        let width: usize = widths.iter().sum();
        if !peers.iter().all(|&p| self.peers[p].pools()) || width == 0 {
            return None;
        }
        let (count, bags) = (u32::try_from(inside.ids.len()).ok()?, u32::try_from(query.bags()).ok()?);
        let size = table.dtype.size()?;
        let part = Part { table: query.table as u32, count, wide: route.wide, width: 0, group: 0 };
        let pooling = Pooling { mode: query.mode, bags, factor: if inside.weights.is_some() { size as u8 } else { 0 }, width: 0 };
        let (starts, len) = bag_blocks(&part, &pooling)?;
        let pooled = len.checked_mul(peers.len())?.checked_add(query.bags().checked_mul(width)?)?;
        let rows = |ids: usize| ids.saturating_mul(route.width + part.id_bytes() * peers.len());
        if pooled >= rows(inside.ids.len()) || pooled >= rows(sent(self.dedup, inside.ids, self.way(query.table, self.near()), seen)) {
            return None;
        }
        let body = body(&part, inside, starts, len);
        let request = |peer: usize| {
            let part = Part { width: route.widths[peer] as u32, group: peer as u32, ..part };
            let pooling = Pooling { width: widths[peer] as u32, ..pooling };
            (peer, Request { parts: [part].into(), pooling: Some(pooling), ids: body.clone() })
        };
        Some(Asked { columns, requests: peers.into_iter().map(request).collect(), width })
    }

    /// The pooled rows of a query from its peers; `None` where the rows are to be looked up.
    pub(super) async fn bags(&self, query: &BagQuery) -> Result<Option<Tensor>, StoreError> {
        let Some(inside) = query.in_bags(&self.tables)? else { return Ok(None) };
        let asked = self.with_seen(|seen| self.ask(query, &inside, seen));
        let Some(Asked { columns, requests, width }) = asked else { return Ok(None) };
        let fetches = requests.iter().map(|(peer, request)| self.peers[*peer].fetch(request.clone()));
        let mut replies: Vec<Reply> = futures::future::try_join_all(fetches).await?;
        let mut stats = Stats::default();
        for ((peer, request), reply) in requests.iter().zip(&replies).filter(|(_, r)| !r.over_limit) {
            if request.pooling.and_then(|p| p.len()) != Some(reply.rows.len()) || !reply.absent.is_empty() {
                let what = format!("pserver {peer}: a reply of {} bytes, which is not what was asked for", reply.rows.len());
                return Err(StoreError::Corrupt(what));
            }
            stats.requests += 1;
            stats.bytes += reply.rows.len() as u64;
        }
        if replies.iter().any(|r| r.over_limit) {
            self.counters.add_asked(&stats);
            return Ok(None);
        }
        (stats.lookups, stats.ids, stats.unique_ids) = (1, query.ids.len() as u64, inside.ids.len() as u64);
        self.counters.add_asked(&stats);
        let (table, bags) = (&self.tables[query.table], query.bags());
        if let ([reply], [_]) = (replies.as_mut_slice(), columns.as_slice()) {
            return layout::rows_tensor(table, bags, std::mem::take(&mut reply.rows).freeze()).map(Some);
        }
        let mut out = Pooled::take(bags * width);
        for c in columns.iter().filter(|c| c.width > 0) {
            let reply = requests.iter().zip(&replies).find(|((peer, _), _)| *peer == c.peer);
            let (stride, rows) = reply.map_or((0, &[][..]), |((_, q), r)| (q.pooling.map_or(0, |p| p.width as usize), &r.rows[..]));
            gather(&mut out, (width, c.to, c.width), bags, |bag| rows.get(bag * stride + c.from..bag * stride + c.from + c.width))
                .map_err(|bag| StoreError::Corrupt(format!("table \"{}\": no row came for bag {bag}", table.name)))?;
        }
        layout::rows_tensor(table, bags, out.freeze()).map(Some)
    }
}

/// Ids, ends and weights, as [`bag_blocks`] has them.
fn body(part: &Part, inside: &InBags, [ids_at, ends_at, weights_at]: [usize; 3], len: usize) -> Bytes {
    let mut body = Pooled::take(len);
    // Gaps between blocks are cleared: the buffer has been used before.
    let ids_end = ids_at + part.count as usize * part.id_bytes();
    body[ids_end..ends_at].fill(0);
    match part.wide {
        true => body[ids_at..ids_end].as_chunks_mut().0.iter_mut().zip(inside.ids).for_each(|(to, id)| *to = id.to_le_bytes()),
        false => body[ids_at..ids_end].as_chunks_mut().0.iter_mut().zip(inside.ids).for_each(|(to, &id)| *to = (id as u32).to_le_bytes()),
    }
    let (ends, gap) = body[ends_at..weights_at].as_chunks_mut().0.split_at_mut(inside.bounds.len() - 1);
    ends.iter_mut().zip(&inside.bounds[1..]).for_each(|(to, &end)| *to = (end as u32).to_le_bytes());
    gap.fill([0; 4]);
    if let Some(weights) = inside.weights {
        body[weights_at..].copy_from_slice(weights);
    }
    body.freeze()
}
