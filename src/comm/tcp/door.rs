//! The side of a handshake that is connected to; any rank may be.

use super::GroupOptions;
use super::wire::{Answer, Call, RootCodec, Welcome};
use crate::wire::{Framed, HANDSHAKE_FRAME, Hello, Stream, causes};
use futures::{SinkExt, StreamExt};
use std::task::Poll;
use std::time::Duration;
use tarpc::server::{BaseChannel, Config};
use tarpc::{Request, Response};
use tokio::net::TcpStream;

/// Time from the start of a connection to the end of its handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections that have not shaken hands, at once.
pub(super) const STRANGERS: usize = 256;
/// Calls of one connection under way at once.
pub(super) const CALLS: usize = 256;

pub(super) type Channel = BaseChannel<Call, Answer, Framed<Stream, RootCodec>>;

/// Who knocks: the connection, the number of the call to answer, and what it says.
pub(super) type Knock = (Channel, u64, Result<Hello, String>);

/// Hears who is on the other side.
pub(super) async fn knock(stream: TcpStream, options: &GroupOptions) -> Result<Knock, String> {
    let deadline = tokio::time::Instant::now() + HANDSHAKE;
    let stream = match tokio::time::timeout_at(deadline, Stream::accept(stream.into(), options.tls.as_ref())).await {
        Ok(stream) => stream.map_err(|e| e.to_string())?,
        Err(_) => return Err("no handshake in time".into()),
    };
    let mut channel: Channel = BaseChannel::new(Config::default(), Framed::new(stream, RootCodec::new(), HANDSHAKE_FRAME).doubting());
    let first = match tokio::time::timeout_at(deadline, channel.next()).await {
        Ok(Some(first)) => first.map_err(|e| causes(&e))?.request,
        Ok(None) => return Err("closed before the handshake".into()),
        Err(_) => return Err("no handshake in time".into()),
    };
    let hello = match first.message {
        Call::Hello(hello) => Ok(hello),
        _ => Err("the first call of a connection is the handshake".into()),
    };
    Ok((channel, first.id, hello))
}

/// Lets the other side in, or says why not; false if it was gone by then.
pub(super) async fn open(channel: &mut Channel, id: u64, group: Result<u64, &str>, options: &GroupOptions) -> bool {
    let max = options.max_frame;
    let answer = match group {
        Ok(group) => Answer::Welcome(Welcome { max_frame: max as u64, direct_from: options.direct_from as u64, group }),
        Err(why) => Answer::Refused(why.into()),
    };
    let sent = channel.send(Response { request_id: id, message: Ok(answer) });
    let sent = matches!(tokio::time::timeout(HANDSHAKE, sent).await, Ok(Ok(())));
    std::pin::Pin::new(channel).get_pin_ref().set_limits(max, max);
    sent
}

/// The next call; nothing when the other side has gone, even if calls of its are under way, for which tarpc waits.
pub(super) async fn next(channel: &mut Channel) -> Option<Result<Request<Call>, String>> {
    let next = futures::future::poll_fn(|cx| match channel.poll_next_unpin(cx) {
        Poll::Pending if std::pin::Pin::new(&mut *channel).get_pin_ref().ended() => Poll::Ready(None),
        other => other,
    });
    Some(next.await?.map(|tracked| tracked.request).map_err(|e| causes(&e)))
}

/// Sends an answer, within a time in which anybody takes it who can.
pub(super) async fn send(channel: &mut Channel, id: u64, answer: Answer, silence: Duration) -> Result<(), String> {
    let sent = channel.send(Response { request_id: id, message: Ok(answer) });
    match tokio::time::timeout(silence.max(Duration::from_secs(30)), sent).await {
        Ok(sent) => sent.map_err(|e| causes(&e)),
        Err(_) => Err("it did not take its answer in time".into()),
    }
}
