//! The messages between the ranks and rank 0. Tensors travel as bodies; what is over the frame limit travels in parts, up
//! before the collective itself and down after its answer.

use crate::comm::rendezvous::{Ask, Op, Turn};
use crate::comm::{CommError, ReduceOp};
use crate::tensor::{DType, Shape};
use crate::wire::{Body, Codec, Fields, Hello, Pooled, invalid, put_str};
use bytes::{BufMut, Bytes};
use std::io;
use std::time::{Duration, Instant};
use tarpc::context::{self, Context};
use tarpc::{ClientMessage, RequestName, Response, ServerError};

/// What a rank asks of rank 0.
#[derive(Debug, Clone)]
pub(super) enum Call {
    Hello(Hello),
    /// Answered when all ranks are there.
    Form,
    /// Bytes that belong before those of the collective.
    Part(Turn, Bytes),
    Collective(Turn, Ask, Bytes),
    /// The bytes of the answer from an offset on.
    More(Turn, u64),
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
            Call::Ping => "ping",
        }
    }
}

/// What rank 0 answers.
#[derive(Debug)]
pub(super) enum Answer {
    /// The frame limit of rank 0.
    Welcome(u64),
    Done,
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
            Call::Form | Call::Ping => {}
        }
        Ok(Body::Whole(Bytes::new()))
    }

    fn decode(&mut self, head: &[u8], body: Pooled) -> io::Result<Self::In> {
        let mut f = Fields(head);
        let (kind, request_id) = (f.u8()?, f.u64()?);
        let answer = match kind {
            0 => Answer::Welcome(f.u64()?),
            1 => Answer::Done,
            2 => {
                let (dtype, shape) = dtype_and_shape(&mut f)?;
                Answer::Tensor(dtype, shape, f.u64()?, body.freeze())
            }
            3 => Answer::More(body.freeze()),
            4 => Answer::Refused(f.str()?),
            5 => Answer::Failed(error(&mut f)?),
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
            Answer::Welcome(_) => 0,
            Answer::Done => 1,
            Answer::Tensor(..) => 2,
            Answer::More(_) => 3,
            Answer::Refused(_) => 4,
            Answer::Failed(_) => 5,
        };
        head.put_u8(kind);
        head.put_u64_le(item.request_id);
        match answer {
            Answer::Welcome(max_frame) => head.put_u64_le(max_frame),
            Answer::Done => {}
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
        CommError::Timeout { rank, name, seconds } => (2, *rank, name.as_str(), "", *seconds),
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
        2 => CommError::Timeout { rank, name: first, seconds },
        3 => CommError::Unavailable { endpoint: first, detail: second },
        4 => CommError::Refused { endpoint: first, detail: second },
        5 => CommError::Invalid(first),
        other => return Err(invalid(format!("unknown error {other}"))),
    })
}
