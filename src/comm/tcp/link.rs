//! A connection to a rank: dialled, greeted, asked.

use super::GroupOptions;
use super::wire::{Answer, Call, OVERHEAD, RankCodec, Welcome};
use crate::wire::{Framed, Role, Stream, Unreached, causes, refusal};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tarpc::client::{Channel, Config, NewClient, RpcError};
use tarpc::context::{self, Context};

/// The connection, and what its calls need.
#[derive(Clone)]
pub(super) struct Link {
    channel: Channel<Call, Answer>,
    context: Context,
    pub(super) options: Arc<GroupOptions>,
    /// Bytes of a body that fit a frame.
    pub(super) room: usize,
    pub(super) welcome: Welcome,
    /// The address of this side.
    pub(super) local: Option<SocketAddr>,
}

/// Why a rank did not let us in.
pub(super) enum Greeting {
    Refused(String),
    Again(String),
}

impl From<Unreached> for Greeting {
    fn from(e: Unreached) -> Self {
        match e {
            Unreached::Again(text) => Self::Again(text),
            Unreached::Refused(text) => Self::Refused(text),
        }
    }
}

impl Link {
    /// Connects to `endpoint` and says who we are: as [`Role::Rank`] to rank 0, as [`Role::Peer`] to rank `index`.
    pub(super) async fn greet(endpoint: &str, (role, index): (Role, usize), options: &Arc<GroupOptions>) -> Result<Self, Greeting> {
        let stream = Stream::dial(endpoint, options.tls.as_ref()).await?;
        let local = stream.local_addr().ok();
        let transport = Framed::new(stream, RankCodec, options.max_frame);
        let NewClient { client: channel, dispatch } = tarpc::client::new(Config::default(), transport);
        tokio::spawn(async move {
            if let Err(e) = dispatch.await {
                tracing::debug!("connection to another rank ended: {}", causes(&e));
            }
        });
        let welcome = Welcome { max_frame: 0, direct_from: u64::MAX, group: 0 };
        let mut link = Self { channel, context: context::current(), options: options.clone(), room: 0, welcome, local };
        match link.call(Call::Hello(options.hello(role, index)), options.connect_timeout).await {
            Ok(Answer::Welcome(welcome)) => {
                let limit = usize::try_from(welcome.max_frame).unwrap_or(usize::MAX).min(options.max_frame);
                (link.welcome, link.room) = (welcome, limit.saturating_sub(OVERHEAD).max(1));
                Ok(link)
            }
            Ok(Answer::Refused(detail)) => Err(Greeting::Refused(detail)),
            Ok(_) => Err(Greeting::Refused(UNEXPECTED.into())),
            Err(e) => {
                let text = gone(&e);
                Err(refusal(&text).map_or(Greeting::Again(text), Greeting::Refused))
            }
        }
    }

    pub(super) async fn call(&self, call: Call, timeout: Duration) -> Result<Answer, RpcError> {
        let mut context = self.context;
        context.deadline = Instant::now() + timeout;
        self.channel.call(context, call).await
    }
}

/// What is said of an answer that is none to the call.
pub(super) const UNEXPECTED: &str = "it sent an answer of another kind than was asked for";

/// What became of a connection.
pub(super) fn gone(error: &RpcError) -> String {
    match error {
        RpcError::Shutdown => "its connection was closed".into(),
        other => causes(other),
    }
}
