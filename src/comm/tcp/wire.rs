//! The messages between the ranks and rank 0, and between any two ranks. Tensors travel as bodies; what is over the frame
//! limit travels in parts, up before the collective itself and down after its answer.

use crate::comm::call::{Ask, Op, Party, Plan, Turn};
use crate::comm::{CommError, ReduceOp};
use crate::tensor::{DType, Shape};
use crate::wire::{Body, Codec, Fields, Hello, Pooled, invalid, put_str};
use bytes::{BufMut, Bytes};
use std::io;
use std::time::{Duration, Instant};
use tarpc::context::{self, Context};
use tarpc::{ClientMessage, RequestName, Response, ServerError};

/// Some of the bytes that a rank holds for a collective.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetch {
    pub(super) group: u64,
    pub(super) turn: Turn,
    pub(super) stage: u8,
    pub(super) from: u64,
    pub(super) len: u64,
}

/// What a rank asks of rank 0, or of another.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Hello(Hello),
    /// Where this rank listens for the others.
    Listen(String),
    /// Answered when all ranks are there.
    Form,
    /// Bytes that belong before those of the collective.
    Part(Turn, Bytes),
    Collective(Turn, Ask, Bytes),
    /// The bytes of the answer from an offset on.
    More(Turn, u64),
    /// Answered when all are done with a collective whose bytes go from rank to rank.
    Follow(Turn),
    /// That this rank is done with it, or why it cannot be.
    Finish(Turn, Option<CommError>),
    /// To any rank: bytes that it holds.
    Fetch(Fetch),
    Ping,
}

impl RequestName for Call {
    fn name(&self) -> &str {
        match self {
            Call::Hello(_) => "hello",
            Call::Form => "form",
            Call::Part(..) => "part",
            Call::Collective(..) => "collective",
            Call::More(..) => "more",
            Call::Follow(_) => "follow",
            Call::Finish(..) => "finish",
            Call::Fetch(_) => "fetch",
            Call::Listen(_) => "listen",
            Call::Ping => "ping",
        }
    }
}

/// What a rank says of itself, once it knows who asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Welcome {
    pub(super) max_frame: u64,
    /// From how many bytes on tensors go from rank to rank.
    pub(super) direct_from: u64,
    pub(super) group: u64,
}

/// What rank 0 answers, or any other.
#[derive(Debug)]
pub(super) enum Answer {
    Welcome(Welcome),
    Done,
    /// The ranks have agreed and bring the bytes to each other.
    Direct(Plan),
    /// The bytes are not there yet.
    Later,
    /// A tensor of so many bytes, and the first of them.
    Tensor(DType, Shape, u64, Bytes),
    More(Bytes),
    Refused(String),
    Failed(CommError),
}

/// What prefix and head of a message take at most, besides a name and dims.
pub(super) const OVERHEAD: usize = 256;

fn put_turn(head: &mut Vec<u8>, turn: Turn) {
    head.put_u64_le(turn.epoch);
    head.put_u64_le(turn.seq);
}

fn turn(f: &mut Fields<'_>) -> io::Result<Turn> {
    Ok(Turn { epoch: f.u64()?, seq: f.u64()? })
}

const REDUCTIONS: [ReduceOp; 4] = [ReduceOp::Sum, ReduceOp::Mean, ReduceOp::Max, ReduceOp::Min];

fn put_op(head: &mut Vec<u8>, op: Op) {
    let index = |op: ReduceOp| REDUCTIONS.iter().position(|&o| o == op).unwrap_or(0) as u32;
    let (kind, value) = match op {
        Op::AllReduce(op) => (0, index(op)),
        Op::AllGather(axis) => (1, axis as u32),
        Op::ReduceScatter(op) => (2, index(op)),
        Op::Broadcast(root) => (3, root as u32),
        Op::Barrier => (4, 0),
        Op::Join => (5, 0),
        Op::GatherBytes => (6, 0),
    };
    head.put_u8(kind);
    head.put_u32_le(value);
}

fn op(f: &mut Fields<'_>) -> io::Result<Op> {
    let (kind, value) = (f.u8()?, f.u32()? as usize);
    let reduction = || REDUCTIONS.get(value).copied().ok_or_else(|| invalid(format!("unknown reduction {value}")));
    Ok(match kind {
        0 => Op::AllReduce(reduction()?),
        1 => Op::AllGather(value),
        2 => Op::ReduceScatter(reduction()?),
        3 => Op::Broadcast(value),
        4 => Op::Barrier,
        5 => Op::Join,
        6 => Op::GatherBytes,
        other => return Err(invalid(format!("unknown collective {other}"))),
    })
}

fn put_type(head: &mut Vec<u8>, dtype: DType, shape: &Shape) {
    head.put_u8(dtype as u8);
    head.put_u32_le(shape.len() as u32);
    shape.iter().for_each(|&d| head.put_u64_le(d as u64));
}

fn dtype_and_shape(f: &mut Fields<'_>) -> io::Result<(DType, Shape)> {
    let code = f.u8()?;
    let dtype = DType::from_onnx(i32::from(code)).ok_or_else(|| invalid(format!("unknown dtype {code}")))?;
    let mut shape = Shape::default();
    for _ in 0..f.count(8)? {
        shape.push(usize::try_from(f.u64()?).map_err(|_| invalid("a dim that does not fit"))?);
    }
    Ok((dtype, shape))
}

fn put_plan(head: &mut Vec<u8>, plan: &Plan) {
    head.put_u64_le(plan.group);
    head.put_u32_le(plan.members.len() as u32);
    for member in &plan.members {
        head.put_u32_le(member.rank as u32);
        head.put_u64_le(member.along as u64);
        put_str(head, &member.address);
    }
}

fn plan(f: &mut Fields<'_>) -> io::Result<Plan> {
    let (group, count) = (f.u64()?, f.count(16)?);
    let member = |f: &mut Fields<'_>| Ok(Party { rank: f.u32()? as usize, along: f.u64()? as usize, address: f.str()? });
    Ok(Plan { group, members: (0..count).map(|_| member(f)).collect::<io::Result<_>>()? })
}

/// The side of the ranks.
pub(super) struct RankCodec;

impl Codec for RankCodec {
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
            Call::Form => 1,
            Call::Part(..) => 2,
            Call::Collective(..) => 3,
            Call::More(..) => 4,
            Call::Ping => 5,
            Call::Listen(_) => 6,
            Call::Follow(_) => 7,
            Call::Finish(..) => 8,
            Call::Fetch(_) => 9,
        };
        head.put_u8(kind);
        head.put_u64_le(request.id);
        let left = request.context.deadline.saturating_duration_since(Instant::now());
        head.put_u64_le(left.as_micros().min(u128::from(u64::MAX)) as u64);
        match request.message {
            Call::Hello(hello) => hello.encode(head),
            Call::Part(turn, bytes) => {
                put_turn(head, turn);
                return Ok(Body::Whole(bytes));
            }
            Call::Collective(turn, ask, bytes) => {
                put_turn(head, turn);
                put_op(head, ask.op);
                put_str(head, &ask.name);
                put_type(head, ask.dtype, &ask.shape);
                return Ok(Body::Whole(bytes));
            }
            Call::More(turn, from) => {
                put_turn(head, turn);
                head.put_u64_le(from);
            }
            Call::Listen(address) => put_str(head, &address),
            Call::Follow(turn) => put_turn(head, turn),
            Call::Finish(turn, error) => {
                put_turn(head, turn);
                head.put_u8(u8::from(error.is_some()));
                error.iter().for_each(|e| put_error(head, e));
            }
            Call::Fetch(fetch) => {
                head.put_u64_le(fetch.group);
                put_turn(head, fetch.turn);
                head.put_u8(fetch.stage);
                head.put_u64_le(fetch.from);
                head.put_u64_le(fetch.len);
            }
            Call::Form | Call::Ping => {}
        }
        Ok(Body::Whole(Bytes::new()))
    }

    fn decode(&mut self, head: &[u8], body: Pooled) -> io::Result<Self::In> {
        let mut f = Fields(head);
        let (kind, request_id) = (f.u8()?, f.u64()?);
        let answer = match kind {
            0 => Answer::Welcome(Welcome { max_frame: f.u64()?, direct_from: f.u64()?, group: f.u64()? }),
            1 => Answer::Done,
            2 => {
                let (dtype, shape) = dtype_and_shape(&mut f)?;
                Answer::Tensor(dtype, shape, f.u64()?, body.freeze())
            }
            3 => Answer::More(body.freeze()),
            4 => Answer::Refused(f.str()?),
            5 => Answer::Failed(error(&mut f)?),
            6 => Answer::Direct(plan(&mut f)?),
            7 => Answer::Later,
            other => return Err(invalid(format!("unknown answer {other}"))),
        };
        f.end()?;
        Ok(Response { request_id, message: Ok(answer) })
    }
}

/// Rank 0's side.
pub(super) struct RootCodec {
    context: Context,
}

impl RootCodec {
    pub(super) fn new() -> Self {
        Self { context: context::current() }
    }
}

impl Codec for RootCodec {
    type Out = Response<Answer>;
    type In = ClientMessage<Call>;

    fn encode(&mut self, item: Self::Out, head: &mut Vec<u8>) -> io::Result<Body> {
        let answer = item.message.unwrap_or_else(|ServerError { detail, .. }| Answer::Failed(CommError::Invalid(detail)));
        let kind = match &answer {
            Answer::Welcome(..) => 0,
            Answer::Done => 1,
            Answer::Tensor(..) => 2,
            Answer::More(_) => 3,
            Answer::Refused(_) => 4,
            Answer::Failed(_) => 5,
            Answer::Direct(_) => 6,
            Answer::Later => 7,
        };
        head.put_u8(kind);
        head.put_u64_le(item.request_id);
        match answer {
            Answer::Welcome(w) => [w.max_frame, w.direct_from, w.group].into_iter().for_each(|n| head.put_u64_le(n)),
            Answer::Done | Answer::Later => {}
            Answer::Direct(plan) => put_plan(head, &plan),
            Answer::Tensor(dtype, shape, len, bytes) => {
                put_type(head, dtype, &shape);
                head.put_u64_le(len);
                return Ok(Body::Whole(bytes));
            }
            Answer::More(bytes) => return Ok(Body::Whole(bytes)),
            Answer::Refused(text) => put_str(head, &text),
            Answer::Failed(error) => put_error(head, &error),
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
        context.deadline = Instant::now() + Duration::from_micros(f.u64()?).min(Duration::from_secs(30 * 24 * 3600));
        let message = match kind {
            0 => Call::Hello(Hello::decode(&mut f)?),
            1 => Call::Form,
            2 => Call::Part(turn(&mut f)?, body.freeze()),
            3 => {
                let (turn, op, name) = (turn(&mut f)?, op(&mut f)?, f.str()?);
                let (dtype, shape) = dtype_and_shape(&mut f)?;
                Call::Collective(turn, Ask { op, name, dtype, shape }, body.freeze())
            }
            4 => Call::More(turn(&mut f)?, f.u64()?),
            5 => Call::Ping,
            6 => Call::Listen(f.str()?),
            7 => Call::Follow(turn(&mut f)?),
            8 => {
                let turn = turn(&mut f)?;
                let failed = f.u8()? != 0;
                Call::Finish(turn, failed.then(|| error(&mut f)).transpose()?)
            }
            9 => {
                let (group, turn, stage) = (f.u64()?, turn(&mut f)?, f.u8()?);
                Call::Fetch(Fetch { group, turn, stage, from: f.u64()?, len: f.u64()? })
            }
            other => return Err(invalid(format!("unknown call {other}"))),
        };
        f.end()?;
        Ok(ClientMessage::Request(tarpc::Request { context, id, message }))
    }
}

fn put_error(head: &mut Vec<u8>, error: &CommError) {
    let (kind, rank, first, second, seconds) = match error {
        CommError::Mismatch(text) => (0, 0, text.as_str(), "", 0.0),
        CommError::Lost { rank, detail } => (1, *rank, detail.as_str(), "", 0.0),
        CommError::Timeout { rank, endpoint, name, seconds } => (2, *rank, name.as_str(), endpoint.as_str(), *seconds),
        CommError::Unavailable { endpoint, detail } => (3, 0, endpoint.as_str(), detail.as_str(), 0.0),
        CommError::Refused { endpoint, detail } => (4, 0, endpoint.as_str(), detail.as_str(), 0.0),
        CommError::Invalid(text) => (5, 0, text.as_str(), "", 0.0),
    };
    head.put_u8(kind);
    head.put_u64_le(rank as u64);
    put_str(head, first);
    put_str(head, second);
    head.put_f64_le(seconds);
}

fn error(f: &mut Fields<'_>) -> io::Result<CommError> {
    let (kind, rank, first, second, seconds) = (f.u8()?, f.u64()? as usize, f.str()?, f.str()?, f64::from_bits(f.u64()?));
    Ok(match kind {
        0 => CommError::Mismatch(first),
        1 => CommError::Lost { rank, detail: first },
        2 => CommError::Timeout { rank, endpoint: second, name: first, seconds },
        3 => CommError::Unavailable { endpoint: first, detail: second },
        4 => CommError::Refused { endpoint: first, detail: second },
        5 => CommError::Invalid(first),
        other => return Err(invalid(format!("unknown error {other}"))),
    })
}
