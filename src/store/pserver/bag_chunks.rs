//! Requests for pooled rows that are over a limit, cut between bags.

use super::wire::{Limits, overhead};
use crate::store::request::{Part, Pooling, Reply, Request, bag_blocks};
use crate::wire::{MAX_HEAD, Pooled};

/// Room that is lost between blocks at most.
const GAPS: usize = 64;

/// The requests that a request for pooled rows is made of, each within the limits: it is one itself where nothing is over. The rows
/// that are read for it count as if they were sent, so that it keeps a server no longer than another request. `None` if a bag is over
/// a limit by itself.
pub(super) fn cut(request: &Request, pooling: Pooling, limits: Limits) -> Option<Vec<Request>> {
    let [part] = *request.parts else { return None };
    let limit = usize::try_from(limits.max_frame).unwrap_or(usize::MAX).checked_sub(overhead(1) + GAPS)?;
    let most = usize::try_from(limits.max_ids).unwrap_or(usize::MAX);
    // Of a request a server reads no more than 8 bytes for each id beside a head.
    let largest = most.saturating_mul(8).saturating_add(MAX_HEAD - overhead(1) - GAPS).min(limit);
    let (id, factor, width) = (part.id_bytes(), usize::from(pooling.factor), pooling.width as usize);
    let fits = |ids: usize, bags: usize| {
        let asked = ids.checked_mul(id + factor).zip(bags.checked_mul(4)).and_then(|(a, b)| a.checked_add(b));
        let sizes = [(asked, largest), (ids.checked_mul(part.width as usize), limit), (bags.checked_mul(width), limit)];
        ids <= most && bags <= most && sizes.iter().all(|(size, limit)| size.is_some_and(|s| s <= *limit))
    };
    if fits(part.count as usize, pooling.bags as usize) {
        return Some(vec![request.clone()]);
    }
    let ([ids_at, ends_at, weights_at], len) = bag_blocks(&part, &pooling)?;
    let ends = request.ids.get(ends_at..ends_at + pooling.bags as usize * 4)?.as_chunks().0;
    let end = |bag: usize| ends.get(bag).map_or(0, |e| u32::from_le_bytes(*e) as usize);
    let (ids, weights) = (request.ids.get(ids_at..)?, request.ids.get(weights_at..len)?);
    let (mut requests, mut bag, mut first) = (Vec::new(), 0, 0);
    while bag < ends.len() {
        let mut next = bag;
        while next < ends.len() && fits(end(next).checked_sub(first)?, next + 1 - bag) {
            next += 1;
        }
        let last = end(next.checked_sub(1).filter(|_| next > bag)?);
        let part = Part { count: (last - first) as u32, ..part };
        let pooling = Pooling { bags: (next - bag) as u32, ..pooling };
        let ([_, ends_at, weights_at], len) = bag_blocks(&part, &pooling)?;
        let mut body = Pooled::take(len);
        body.fill(0);
        body[..(last - first) * id].copy_from_slice(ids.get(first * id..last * id)?);
        let shifted = body[ends_at..].as_chunks_mut().0.iter_mut().zip(bag..next);
        shifted.for_each(|(to, bag)| *to = ((end(bag) - first) as u32).to_le_bytes());
        body[weights_at..].copy_from_slice(weights.get(first * factor..last * factor)?);
        requests.push(Request { parts: [part].into(), pooling: Some(pooling), ids: body.freeze() });
        (bag, first) = (next, last);
    }
    Some(requests)
}

/// The rows of all, in their order.
pub(super) fn join(mut replies: Vec<Reply>) -> Reply {
    if replies.len() < 2 {
        return replies.pop().unwrap_or_default();
    }
    let mut rows = Pooled::take(replies.iter().map(|r| r.rows.len()).sum());
    let mut at = 0;
    for reply in &replies {
        rows[at..at + reply.rows.len()].copy_from_slice(&reply.rows);
        at += reply.rows.len();
    }
    Reply { rows, ..Reply::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::PoolMode;

    /// Ids 0, 1, … in bags, with weights of two bytes that are the ids.
    fn request(ends: &[u32]) -> (Request, Pooling) {
        let count = *ends.last().unwrap();
        let part = Part { table: 0, count, wide: false, width: 8, group: 0 };
        let pooling = Pooling { mode: PoolMode::Sum, bags: ends.len() as u32, factor: 2, width: 16 };
        let ([_, ends_at, weights_at], len) = bag_blocks(&part, &pooling).unwrap();
        let mut body = vec![0u8; len];
        (0..count).for_each(|i| body[i as usize * 4..][..4].copy_from_slice(&i.to_le_bytes()));
        ends.iter().enumerate().for_each(|(b, e)| body[ends_at + b * 4..][..4].copy_from_slice(&e.to_le_bytes()));
        (0..count).for_each(|i| body[weights_at + i as usize * 2..][..2].copy_from_slice(&(i as u16).to_le_bytes()));
        (Request { parts: [part].into(), pooling: Some(pooling), ids: body.into() }, pooling)
    }

    /// Of each request the ids of its bags.
    fn bags(requests: &[Request]) -> Vec<Vec<Vec<u32>>> {
        let of = |r: &Request| {
            let (part, pooling) = (r.parts[0], r.pooling.unwrap());
            let ([_, ends_at, weights_at], len) = bag_blocks(&part, &pooling).unwrap();
            assert_eq!(len, r.ids.len());
            let number = |at: usize| u32::from_le_bytes(r.ids[at..at + 4].try_into().unwrap());
            let ids: Vec<u32> = (0..part.count as usize).map(|i| number(i * 4)).collect();
            let weights: Vec<u32> = r.ids[weights_at..].chunks(2).map(|w| u16::from_le_bytes([w[0], w[1]]).into()).collect();
            assert_eq!(ids, weights);
            let mut from = 0;
            let bag = |b: usize| {
                let to = number(ends_at + b * 4) as usize;
                let bag = ids[from..to].to_vec();
                from = to;
                bag
            };
            (0..pooling.bags as usize).map(bag).collect()
        };
        requests.iter().map(of).collect()
    }

    #[test]
    fn bags_stay_whole_and_in_order() {
        let (request, pooling) = request(&[2, 2, 5, 6, 6]);
        let cut = |max_frame: usize, max_ids| {
            let limits = Limits { max_frame: (max_frame + overhead(1) + GAPS) as u64, max_ids };
            cut(&request, pooling, limits).map(|r| bags(&r))
        };
        let one = vec![vec![vec![0, 1], vec![], vec![2, 3, 4], vec![5], vec![]]];
        assert_eq!(cut(1000, 100), Some(one.clone()));
        // Six ids are 48 bytes of rows, five bags 80 pooled.
        assert_eq!(cut(80, 6), Some(one));
        assert_eq!(cut(79, 6), Some(vec![vec![vec![0, 1], vec![], vec![2, 3, 4], vec![5]], vec![vec![]]]));
        assert_eq!(cut(1000, 4), Some(vec![vec![vec![0, 1], vec![]], vec![vec![2, 3, 4], vec![5], vec![]]]));
        assert_eq!(cut(32, 100), Some(vec![vec![vec![0, 1], vec![]], vec![vec![2, 3, 4], vec![5]], vec![vec![]]]));
        assert_eq!((cut(23, 100), cut(1000, 2)), (None, None));
    }
}
