//! The handshake: the first message of a connection says what the peer is and which deployment it has.

use super::{Fields, PROTOCOL, put_str};
use bytes::BufMut;
use std::io;

/// What the peer wants of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Lookups of a deployment; plan and fingerprint must agree.
    Worker,
    /// Questions about the server itself; any plan will do.
    Control,
    /// A rank of a group of workers; plan, fingerprint and size must agree.
    Rank,
    /// A rank that fetches from another what it holds for a collective; likewise.
    Peer,
}

/// Who a process is, for its peers to compare with who they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// [`crate::plan::Manifest::plan_id`].
    pub(crate) plan_id: String,
    /// [`crate::plan::Manifest::fingerprint`].
    pub(crate) fingerprint: String,
    /// The shared secret, if there is one.
    pub(crate) token: Option<String>,
    /// Peers of its kind: servers that share the shards, or ranks of the group.
    pub(crate) size: u32,
}

/// The first message of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hello {
    pub(crate) protocol: u32,
    pub(crate) role: Role,
    pub(crate) identity: Identity,
    /// The server or rank that the peer takes this one for, or is itself.
    pub(crate) index: u32,
    /// The largest frame that the sender reads.
    pub(crate) max_frame: u64,
}

impl Hello {
    pub(crate) fn new(role: Role, identity: Identity, index: u32, max_frame: usize) -> Self {
        Self { protocol: PROTOCOL, role, identity, index, max_frame: max_frame as u64 }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.protocol);
        out.put_u8(match self.role {
            Role::Worker => 0,
            Role::Control => 1,
            Role::Rank => 2,
            Role::Peer => 3,
        });
        out.put_u32_le(self.index);
        out.put_u32_le(self.identity.size);
        out.put_u64_le(self.max_frame);
        put_str(out, &self.identity.plan_id);
        put_str(out, &self.identity.fingerprint);
        put_str(out, self.identity.token.as_deref().unwrap_or_default());
    }

    pub(crate) fn decode(fields: &mut Fields<'_>) -> io::Result<Self> {
        let protocol = fields.u32()?;
        let role = match fields.u8()? {
            0 => Role::Worker,
            1 => Role::Control,
            2 => Role::Rank,
            3 => Role::Peer,
            other => return Err(super::invalid(format!("unknown role {other}"))),
        };
        let (index, size, max_frame) = (fields.u32()?, fields.u32()?, fields.u64()?);
        let (plan_id, fingerprint, token) = (fields.str()?, fields.str()?, fields.str()?);
        let token = (!token.is_empty()).then_some(token);
        Ok(Self { protocol, role, identity: Identity { plan_id, fingerprint, token, size }, index, max_frame })
    }

    /// Compares the peer's hello with who we are.
    ///
    /// # Errors
    /// What differs, with both values (but never a token).
    pub(crate) fn check(&self, ours: &Identity) -> Result<(), String> {
        if self.protocol != PROTOCOL {
            return Err(format!("protocol version {} here, {} at the peer", PROTOCOL, self.protocol));
        }
        if !token_fits(ours.token.as_deref(), self.identity.token.as_deref()) {
            let sent = if self.identity.token.is_some() { "another one was sent" } else { "none was sent" };
            return Err(format!("a token is required, {sent}"));
        }
        if self.role == Role::Control {
            return Ok(());
        }
        let differs = |what: &str, ours: &str, theirs: &str| Err(format!("{what} {ours} here, {theirs} at the peer"));
        if self.identity.plan_id != ours.plan_id {
            return differs("plan id", &ours.plan_id, &self.identity.plan_id);
        }
        if self.identity.fingerprint != ours.fingerprint {
            return differs("graph fingerprint", &ours.fingerprint, &self.identity.fingerprint);
        }
        if self.identity.size != ours.size {
            let what = if self.role == Role::Worker { "number of pservers" } else { "number of workers" };
            return differs(what, &ours.size.to_string(), &self.identity.size.to_string());
        }
        Ok(())
    }
}

/// Whether the sent token opens a door that requires `required`; takes as long for a near miss as for any other.
pub(crate) fn token_fits(required: Option<&str>, sent: Option<&str>) -> bool {
    let Some(required) = required else { return true };
    let sent = sent.unwrap_or_default();
    let same_len = required.len() == sent.len();
    // Compared with itself where the lengths differ, so that the time tells nothing but the length sent.
    let other = if same_len { sent } else { required };
    let difference = required.bytes().zip(other.bytes()).fold(0u8, |d, (a, b)| std::hint::black_box(d | (a ^ b)));
    same_len & (difference == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(token: Option<&str>) -> Identity {
        Identity { plan_id: "p1".into(), fingerprint: "f1".into(), token: token.map(Into::into), size: 2 }
    }

    #[test]
    fn a_hello_survives_the_wire() {
        let hello = Hello::new(Role::Worker, identity(Some("s")), 1, 1 << 20);
        let mut head = Vec::new();
        hello.encode(&mut head);
        assert_eq!(Hello::decode(&mut Fields(&head)).unwrap(), hello);
        assert!(Hello::decode(&mut Fields(&head[..head.len() - 1])).is_err());
    }

    #[test]
    fn a_mismatch_shows_both_values() {
        let mut hello = Hello::new(Role::Worker, identity(None), 0, 1);
        assert_eq!(hello.check(&identity(None)), Ok(()));
        hello.identity.fingerprint = "f2".into();
        assert_eq!(hello.check(&identity(None)), Err("graph fingerprint f1 here, f2 at the peer".into()));
        hello.identity.plan_id = "p2".into();
        assert_eq!(hello.check(&identity(None)), Err("plan id p1 here, p2 at the peer".into()));
        hello.role = Role::Control;
        assert_eq!(hello.check(&identity(None)), Ok(()));
        assert_eq!(hello.check(&identity(Some("s"))), Err("a token is required, none was sent".into()));
        hello.protocol = 9;
        assert_eq!(hello.check(&identity(None)), Err(format!("protocol version {PROTOCOL} here, 9 at the peer")));
    }

    #[test]
    fn only_the_token_itself_fits() {
        assert!(token_fits(None, Some("x")));
        assert!(token_fits(Some("abc"), Some("abc")));
        for sent in [None, Some(""), Some("ab"), Some("abd"), Some("abcd")] {
            assert!(!token_fits(Some("abc"), sent));
        }
    }
}
