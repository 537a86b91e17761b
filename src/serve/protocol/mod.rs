//! The Open Inference Protocol, version 2, with Triton's extension for binary tensors: requests parsed, answers printed. Nothing
//! here knows a network.
//!
//! What the protocol leaves open: numbers are read and written exactly (integers never by way of a float, floats in the shortest
//! form that reads back as themselves); data is flat or nested as the shape says; `NaN`, `Infinity` and `-Infinity` stand in
//! answers as Triton and TensorFlow Serving write them, for strict JSON has no word for them, and are sent as binary data; BF16 is
//! binary in both directions; parameters that are not known are passed over, and those that would change the answer
//! (`classification`, `sequence_id`, shared memory) are refused.

mod elements;
mod interface;
mod request;
mod response;

pub use interface::{Interface, Port, datatype};
pub use request::{Request, Wanted, parse};
pub use response::{Answer, print};

/// Why a request is not answered. Each has its status in HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is wrong.
    #[error("{0}")]
    Bad(String),
    /// The secret is missing or another.
    #[error("{0}")]
    Token(String),
    /// There is no such thing.
    #[error("{0}")]
    Absent(String),
    /// It exists, but not for this method.
    #[error("{0}")]
    Method(String),
    /// It did not come in time.
    #[error("{0}")]
    Late(String),
    /// More than is taken.
    #[error("{0}")]
    Large(String),
    /// A coding that is not known.
    #[error("{0}")]
    Coding(String),
    /// Not now.
    #[error("{0}")]
    Busy(String),
    /// The fault is on this side.
    #[error("{0}")]
    Ours(String),
}

impl Refusal {
    /// The status in HTTP.
    pub fn status(&self) -> u16 {
        match self {
            Self::Bad(_) => 400,
            Self::Token(_) => 401,
            Self::Absent(_) => 404,
            Self::Method(_) => 405,
            Self::Late(_) => 408,
            Self::Large(_) => 413,
            Self::Coding(_) => 415,
            Self::Ours(_) => 500,
            Self::Busy(_) => 503,
        }
    }

    /// The body of the answer.
    pub fn json(&self) -> String {
        serde_json::json!({ "error": self.to_string() }).to_string()
    }
}

#[cfg(test)]
mod tests;
