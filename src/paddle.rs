#![doc = include_str!("PADDLE.md")]

use crate::deploy::{self, DeployError, RewriteOptions, rewrite};
use crate::exec::{ExecError, Options, Session};
use crate::formats;
use crate::ir::Model;
use crate::store::{self, ConnectOptions, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the tables are.
#[derive(Debug, Clone, Default)]
pub enum RoleMaker {
    /// In this process.
    #[default]
    Local,
    /// On pservers at these endpoints.
    Worker {
        /// `host:port`, in the order of their indices.
        servers: Vec<String>,
    },
}

/// A program and what it is run with.
pub struct DistributedInfer {
    program: PathBuf,
    options: RewriteOptions,
    ready: Option<Ready>,
}

struct Ready {
    model: Model,
    store: Arc<dyn Store>,
    runtime: tokio::runtime::Runtime,
}

impl DistributedInfer {
    /// For the program at `program`: a `.pdmodel`, a `__model__`, its directory, or an ONNX model.
    pub fn new(program: impl Into<PathBuf>, options: RewriteOptions) -> Self {
        Self { program: program.into(), options, ready: None }
    }

    /// Opens the tables: those of the deployment directory `dir`, which is made from the program where it is not there.
    ///
    /// # Errors
    /// A program or a deployment at fault, servers that do not answer.
    pub fn init_distributed_infer_env(&mut self, role: &RoleMaker, dir: &Path) -> Result<(), DeployError> {
        if !deploy::is_deployment(dir) {
            rewrite(formats::load(&self.program)?, dir, std::mem::take(&mut self.options))?;
        }
        let (manifest, model) = deploy::open(dir)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|e| DeployError::Dir { path: dir.to_owned(), detail: e.to_string() })?;
        let store = match role {
            RoleMaker::Local => store::open_local(dir)?,
            RoleMaker::Worker { servers } => runtime.block_on(store::connect(Arc::new(manifest), servers, ConnectOptions::default()))?,
        };
        self.ready = Some(Ready { model, store, runtime });
        Ok(())
    }

    /// The program with remote lookups; nothing before the environment is there.
    pub fn dist_infer_program(&self) -> Option<&Model> {
        self.ready.as_ref().map(|r| &r.model)
    }

    /// The program ready to run; nothing before the environment is there. It runs as long as this value lives.
    ///
    /// # Errors
    /// A program that cannot be run.
    pub fn session(&self) -> Option<Result<Session, ExecError>> {
        let ready = self.ready.as_ref()?;
        let options = Options { store: Some(ready.store.clone()), runtime: Some(ready.runtime.handle().clone()), ..Options::default() };
        Some(Session::new(&ready.model, options))
    }
}
