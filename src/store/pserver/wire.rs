//! The messages between client and server, and their heads on the wire.
//!
//! A call has a kind, an id and the microseconds that are left until its deadline; an answer a kind and the id. Ids of a
//! fetch, with bags and weights where it is to be pooled, and rows of its answer are the bodies. Tracing contexts do not travel.

use crate::store::StoreError;
use crate::store::request::{Part, Pooling, Reply, Request};
use crate::store::stream::RowStream;
use crate::tensor::PoolMode;
use crate::wire::{Body, Codec, Fields, Hello, Pooled, invalid, put_str};
use bytes::{BufMut, Bytes};
use std::io;
use std::time::{Duration, Instant};
use tarpc::context::{self, Context};
use tarpc::{ClientMessage, RequestName, Response, ServerError};

/// What a client asks.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Hello(Hello),
    /// Rows, and a place in shared memory for them.
    Fetch(Request, Option<u64>),
    Info,
    Shutdown,
    /// Open the directory anew, which is to hold this plan id, and hold it for so long.
    Prepare {
        plan_id: String,
        hold: Duration,
    },
    /// Serve what this connection had prepared.
    Commit(String),
}

impl RequestName for Call {
    fn name(&self) -> &str {
        match self {
            Call::Hello(_) => "hello",
            Call::Fetch(..) => "fetch",
            Call::Info => "info",
            Call::Shutdown => "shutdown",
            Call::Prepare { .. } => "prepare",
            Call::Commit(_) => "commit",
        }
    }
}

/// What the server answers.
#[derive(Debug)]
pub(super) enum Answer {
    Welcome(Limits),
    Reply(Reply),
    /// As [`Answer::Reply`], for the client: so many bytes of rows are where the request wanted them.
    Placed {
        len: u64,
        absent: Vec<(u32, u32)>,
    },
    /// As [`Answer::Reply`], for the server: rows that are gathered while they are written.
    Rows(RowStream),
    /// A [`super::ServerInfo`] as JSON.
    Info(String),
    Done,
    Failed(Failure),
}

/// The limits of a server, which its clients keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) max_frame: u64,
    pub(super) max_ids: u64,
}

/// Why a call failed.
#[derive(Debug, Clone)]
pub(super) enum Failure {
    /// No, and asking again will not help.
    Refused(String),
    /// Not now.
    Busy(String),
    /// As [`StoreError::Invalid`].
    Invalid { table: String, id: u64, position: u64, rows: u64 },
    /// As [`StoreError::Corrupt`].
    Corrupt(String),
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        match e {
            StoreError::Invalid { table, id, position, rows } => Self::Invalid { table, id, position: position as u64, rows },
            StoreError::Corrupt(text) => Self::Corrupt(text),
            other => Self::Refused(other.to_string()),
        }
    }
}

/// Absent keys that go in the head; more of them follow the rows.
const ABSENT_IN_HEAD: usize = 1 << 16;

/// The longest time, to a deadline or to hold something, that a server believes.
const MAX_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// The client's side of the wire.
pub(super) struct ClientCodec;

impl Codec for ClientCodec {
    type Out = ClientMessage<Call>;
    type In = Response<Answer>;

    fn encode(&mut self, item: Self::Out, head: &mut Vec<u8>) -> io::Result<Body> {
        let request = match item {
            ClientMessage::Request(request) => request,
            ClientMessage::Cancel { request_id, .. } => {
                head.put_u8(255);
                head.put_u64_le(request_id);
                return Ok(Body::Whole(Bytes::new()));
            }
            _ => return Err(invalid("a message that has no place on the wire")),
        };
        let kind = match &request.message {
            Call::Hello(_) => 0,
            Call::Fetch(Request { pooling: None, .. }, None) => 1,
            Call::Info => 2,
            Call::Shutdown => 3,
            Call::Prepare { .. } => 4,
            Call::Commit(_) => 5,
            Call::Fetch(Request { pooling: Some(_), .. }, _) => 6,
            Call::Fetch(Request { pooling: None, .. }, Some(_)) => 7,
        };
        head.put_u8(kind);
        head.put_u64_le(request.id);
        let left = request.context.deadline.saturating_duration_since(Instant::now());
        head.put_u64_le(left.as_micros().min(u128::from(u64::MAX)) as u64);
        match request.message {
            Call::Hello(hello) => hello.encode(head),
            Call::Fetch(request, place) => {
                if let Some(place) = place.filter(|_| request.pooling.is_none()) {
                    head.put_u64_le(place);
                }
                head.put_u32_le(request.parts.len() as u32);
                for p in request.parts.iter() {
                    head.put_u32_le(p.table);
                    head.put_u32_le(p.count);
                    head.put_u32_le(p.width);
                    head.put_u8(u8::from(p.wide));
                    head.put_u32_le(p.group);
                }
                if let Some(p) = request.pooling {
                    head.put_u8(match p.mode {
                        PoolMode::Sum => 0,
                        PoolMode::Mean => 1,
                        PoolMode::Max => 2,
                    });
                    head.put_u32_le(p.bags);
                    head.put_u8(p.factor);
                    head.put_u32_le(p.width);
                }
                return Ok(Body::Whole(request.ids));
            }
            Call::Prepare { plan_id, hold } => {
                put_str(head, &plan_id);
                head.put_u64_le(hold.as_micros().min(u128::from(u64::MAX)) as u64);
            }
            Call::Commit(plan_id) => put_str(head, &plan_id),
            Call::Info | Call::Shutdown => {}
        }
        Ok(Body::Whole(Bytes::new()))
    }

    fn decode(&mut self, head: &[u8], mut body: Pooled) -> io::Result<Self::In> {
        let mut f = Fields(head);
        let (kind, request_id) = (f.u8()?, f.u64()?);
        let answer = match kind {
            0 => Answer::Welcome(Limits { max_frame: f.u64()?, max_ids: f.u64()? }),
            1 | 5 => {
                let len = if kind == 5 { Some(f.u64()?) } else { None };
                let after = f.u32()? as usize;
                let mut absent: Vec<(u32, u32)> = Vec::new();
                for _ in 0..f.count(8)? {
                    absent.push((f.u32()?, f.u32()?));
                }
                let rows =
                    after.checked_mul(8).and_then(|n| body.len().checked_sub(n)).ok_or_else(|| invalid("absent keys without a place"))?;
                let mut tail = Fields(&body[rows..]);
                for _ in 0..after {
                    absent.push((tail.u32()?, tail.u32()?));
                }
                body.truncate(rows);
                match len {
                    Some(len) if rows == 0 => Answer::Placed { len, absent },
                    Some(_) => return Err(invalid("rows in two places")),
                    None => Answer::Reply(Reply { absent, rows: body, ..Reply::default() }),
                }
            }
            2 => Answer::Info(f.str()?),
            3 => Answer::Done,
            4 => Answer::Failed(match f.u8()? {
                0 => Failure::Refused(f.str()?),
                1 => Failure::Busy(f.str()?),
                2 => Failure::Invalid { table: f.str()?, id: f.u64()?, position: f.u64()?, rows: f.u64()? },
                3 => Failure::Corrupt(f.str()?),
                other => return Err(invalid(format!("unknown failure {other}"))),
            }),
            other => return Err(invalid(format!("unknown answer {other}"))),
        };
        f.end()?;
        Ok(Response { request_id, message: Ok(answer) })
    }
}

/// The server's side of the wire.
pub(super) struct ServerCodec {
    context: Context,
}

impl ServerCodec {
    pub(super) fn new() -> Self {
        Self { context: context::current() }
    }
}

impl Codec for ServerCodec {
    type Out = Response<Answer>;
    type In = ClientMessage<Call>;

    fn encode(&mut self, item: Self::Out, head: &mut Vec<u8>) -> io::Result<Body> {
        let answer = item.message.unwrap_or_else(|ServerError { detail, .. }| Answer::Failed(Failure::Busy(detail)));
        let kind = match &answer {
            Answer::Welcome(_) => 0,
            Answer::Reply(reply) if reply.rows.is_shared() => 5,
            Answer::Reply(_) | Answer::Rows(_) => 1,
            Answer::Info(_) => 2,
            Answer::Done => 3,
            Answer::Failed(_) => 4,
            Answer::Placed { .. } => return Err(invalid("an answer of the client's side")),
        };
        head.put_u8(kind);
        head.put_u64_le(item.request_id);
        match answer {
            Answer::Welcome(limits) => {
                head.put_u64_le(limits.max_frame);
                head.put_u64_le(limits.max_ids);
            }
            Answer::Reply(reply) => return Ok(Body::Whole(put_reply(reply, head))),
            Answer::Rows(rows) => {
                head.put_u64_le(0);
                return Ok(Body::Chunks(Box::new(rows)));
            }
            Answer::Info(text) => put_str(head, &text),
            Answer::Done | Answer::Placed { .. } => {}
            Answer::Failed(failure) => put_failure(&failure, head),
        }
        Ok(Body::Whole(Bytes::new()))
    }

    fn decode(&mut self, head: &[u8], body: Pooled) -> io::Result<Self::In> {
        let mut f = Fields(head);
        let (kind, id) = (f.u8()?, f.u64()?);
        if kind == 255 {
            return Ok(ClientMessage::Cancel { trace_context: self.context.trace_context, request_id: id });
        }
        let mut context = self.context;
        context.deadline = Instant::now() + Duration::from_micros(f.u64()?).min(MAX_DEADLINE);
        let message = match kind {
            0 => Call::Hello(Hello::decode(&mut f)?),
            1 | 6 | 7 => {
                let place = if kind == 7 { Some(f.u64()?) } else { None };
                let mut parts = Vec::new();
                for _ in 0..f.count(PART)? {
                    parts.push(Part { table: f.u32()?, count: f.u32()?, width: f.u32()?, wide: f.u8()? != 0, group: f.u32()? });
                }
                let pooling = if kind == 6 { Some(get_pooling(&mut f)?) } else { None };
                Call::Fetch(Request { parts: parts.into(), pooling, ids: body.freeze() }, place)
            }
            2 => Call::Info,
            3 => Call::Shutdown,
            4 => Call::Prepare { plan_id: f.str()?, hold: Duration::from_micros(f.u64()?).min(MAX_DEADLINE) },
            5 => Call::Commit(f.str()?),
            other => return Err(invalid(format!("unknown call {other}"))),
        };
        f.end()?;
        Ok(ClientMessage::Request(tarpc::Request { context, id, message }))
    }
}

fn get_pooling(f: &mut Fields) -> io::Result<Pooling> {
    let mode = match f.u8()? {
        0 => PoolMode::Sum,
        1 => PoolMode::Mean,
        2 => PoolMode::Max,
        other => return Err(invalid(format!("unknown way to pool {other}"))),
    };
    Ok(Pooling { mode, bags: f.u32()?, factor: f.u8()?, width: f.u32()? })
}

/// Rows that the client has already stay where they are.
fn put_reply(reply: Reply, head: &mut Vec<u8>) -> Bytes {
    let mut rows = reply.rows;
    if rows.is_shared() {
        head.put_u64_le(rows.len() as u64);
        rows = Pooled::default();
    }
    let (first, after) = reply.absent.split_at(reply.absent.len().min(ABSENT_IN_HEAD));
    head.put_u32_le(after.len() as u32);
    head.put_u32_le(first.len() as u32);
    for &(part, slot) in first {
        head.put_u32_le(part);
        head.put_u32_le(slot);
    }
    if after.is_empty() {
        return rows.freeze();
    }
    let mut body = Pooled::take(rows.len() + after.len() * 8);
    let (before, mut tail) = body.split_at_mut(rows.len());
    before.copy_from_slice(&rows);
    for &(part, slot) in after {
        tail.put_u32_le(part);
        tail.put_u32_le(slot);
    }
    body.freeze()
}

fn put_failure(failure: &Failure, head: &mut Vec<u8>) {
    match failure {
        Failure::Refused(text) => {
            head.put_u8(0);
            put_str(head, text);
        }
        Failure::Busy(text) => {
            head.put_u8(1);
            put_str(head, text);
        }
        Failure::Invalid { table, id, position, rows } => {
            head.put_u8(2);
            put_str(head, table);
            head.put_u64_le(*id);
            head.put_u64_le(*position);
            head.put_u64_le(*rows);
        }
        Failure::Corrupt(text) => {
            head.put_u8(3);
            put_str(head, text);
        }
    }
}

/// Bytes of a part in the head of a fetch.
const PART: usize = 17;

/// What head and prefix of a fetch or its answer take at most, besides the bodies.
pub(super) fn overhead(parts: usize) -> usize {
    crate::wire::PREFIX + 64 + parts * PART
}

/// What an absent key takes in an answer.
pub(super) const ABSENT_BYTES: usize = 8;
