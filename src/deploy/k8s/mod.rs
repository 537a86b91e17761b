//! A job as Kubernetes objects: pservers as a StatefulSet, workers as an Indexed Job, each behind a headless Service that gives
//! its pods names, with Secrets where they are written here.
//!
//! What the pods run is `graphtool run`, told as everywhere: endpoints by `--servers` and `--workers`, the own address by
//! `POD_IP`, the own number by the label or the annotation that Kubernetes gives the pod. A pod that is replaced has the same
//! name and number, so the others find it where it was.

mod names;
mod objects;
mod pods;
mod size;
mod yaml;

pub use names::{Component, METRICS_PORT, PSERVER_PORT, WORKER_PORT, check_name, label, subdomain};
pub use size::{server_bytes, servers_fit, worker_bytes};
pub use yaml::print;

use serde_json::Value;

/// A volume that is there: a PersistentVolumeClaim, and where the pods see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// Its name.
    pub name: String,
    /// The path in the pods.
    pub mount: String,
    /// Whether workers write there; for all others it is to read only.
    pub written: bool,
}

/// A Secret: one that is there, or what is to be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    /// The name of one that is there.
    Existing(String),
    /// Keys and contents of one to write.
    Content(Vec<(&'static str, Vec<u8>)>),
}

/// What one kind of process gets.
#[derive(Debug, Clone)]
pub struct Process {
    /// How many there are.
    pub count: usize,
    /// The arguments of `graphtool` that say what to do, without place, addresses and secrets.
    pub args: Vec<String>,
    /// Bytes of memory, requested and not to be exceeded.
    pub memory: u64,
    /// Thousandths of a core, likewise.
    pub millicores: u64,
}

/// A job on Kubernetes.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// What the names of all objects begin with.
    pub name: String,
    /// The namespace, if it is said.
    pub namespace: Option<String>,
    /// The image, which has `graphtool` in its PATH.
    pub image: String,
    /// User and group of the processes.
    pub user: u32,
    /// [`crate::plan::Manifest::plan_id`] of the deployment: pservers start again when it changes.
    pub plan_id: String,
    /// Servers that hold each shard.
    pub replicas: usize,
    /// Volumes, seen by all pods.
    pub claims: Vec<Claim>,
    /// The secret that all processes share, under the key [`TOKEN`].
    pub token: Option<Secret>,
    /// Certificates, under the keys [`TLS`].
    pub tls: Option<Secret>,
    /// Processes serve anybody.
    pub insecure: bool,
    /// How often each worker is started again.
    pub restarts: u32,
    /// The pservers.
    pub pservers: Process,
    /// The workers.
    pub workers: Process,
}

/// The key of a token in its Secret.
pub const TOKEN: &str = "token";
/// The keys of certificate, private key and CA in their Secret, as cert-manager writes them.
pub const TLS: [&str; 3] = ["tls.crt", "tls.key", "ca.crt"];

/// All objects, in the order in which they are created.
pub fn objects(cluster: &Cluster) -> Vec<Value> {
    objects::all(cluster)
}
