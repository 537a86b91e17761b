//! Programs of PaddlePaddle: `.pdmodel` with `.pdiparams`, a model directory, `__model__` with one file per variable. They
//! are translated into ONNX ops, one construct at a time; what has no translation is carried as `paddle::NAME`.

mod build;
mod ops;
mod params;
mod program;
pub mod proto;

pub use params::Place;

use super::{LoadError, fault};
use crate::ir::Model;
use crate::tensor::map_file;
use bytes::Bytes;
use prost::Message;
use proto::ProgramDesc;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The program in some bytes, if they are one.
pub fn program(bytes: &Bytes) -> Option<ProgramDesc> {
    // ONNX has a number in field 1, a program its first block.
    let program = bytes.starts_with(b"\x0a").then(|| ProgramDesc::decode(bytes.clone()).ok())??;
    program.blocks.first().is_some_and(|b| b.idx.is_some() && b.parent_idx.is_some()).then_some(program)
}

/// What a program says of itself, before it is translated.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The PaddlePaddle that wrote it; "unknown" where the file does not say.
    pub version: String,
    /// Blocks.
    pub blocks: usize,
    /// Its ops by type.
    pub ops: BTreeMap<String, usize>,
    /// The versions that the file states of the ops it has.
    pub op_versions: BTreeMap<String, i32>,
}

impl Facts {
    /// The name of the format, with the version.
    pub fn format(&self) -> String {
        format!(
            "PaddlePaddle program ({})",
            if self.version == "unknown" { "version unknown".to_owned() } else { format!("version {}", self.version) }
        )
    }
}

/// What the program at a file or in a directory says of itself; none where it is another format.
pub fn facts(path: &Path) -> Option<Facts> {
    let path = if path.is_dir() { in_directory(path).ok()? } else { path.to_owned() };
    let bytes = map_file(&File::open(path).ok()?).ok()?;
    Some(facts_of(&program(&bytes)?))
}

fn facts_of(program: &ProgramDesc) -> Facts {
    let mut ops = BTreeMap::new();
    for op in program.blocks.iter().flat_map(|b| &b.ops) {
        *ops.entry(op.r#type().to_owned()).or_default() += 1;
    }
    let version = match program.version.as_ref().and_then(|v| v.version).filter(|&v| v > 0) {
        Some(v) => format!("{}.{}.{}", v / 1_000_000, v / 1000 % 1000, v % 1000),
        None => "unknown".into(),
    };
    let stated = program.op_version_map.iter().flat_map(|m| &m.pairs);
    let stated = stated
        .filter(|p| ops.contains_key(p.op_name()))
        .map(|p| (p.op_name().to_owned(), p.op_version.as_ref().map_or(0, |v| v.version())));
    let op_versions = stated.collect();
    Facts { version, blocks: program.blocks.len(), ops, op_versions }
}

/// The ops that have a translation, in the order of their names.
pub fn translated_ops() -> Vec<&'static str> {
    let mut names: Vec<_> = ops::names().collect();
    names.sort_unstable();
    names
}

/// Loads a program that is in the file `path` with the parameters beside it.
///
/// # Errors
/// Parameters that are missing or at fault, ops whose operands make no sense.
pub fn load(path: &Path, program: &ProgramDesc, absent: &dyn Fn(&str) -> bool) -> Result<Model, LoadError> {
    let stored: Vec<_> = program.blocks.iter().flat_map(|b| &b.vars).filter(|v| v.is_stored()).collect();
    let params = params::read(&place(path), &stored, absent).map_err(|mut e| {
        let distributed = distributed_tables(program);
        for detail in std::iter::once(&mut e.detail).chain(&mut e.more) {
            if let Some(table) = distributed.iter().find(|t| detail.starts_with(&format!("parameter \"{t}\""))) {
                detail.push_str(&format!(
                    " (\"{table}\" was trained as a distributed table: `graphtool import-tables` brings it in from its checkpoint)"
                ));
            }
        }
        e
    })?;
    let mut model = program::translate(program, params).map_err(|faults| {
        let mut faults = faults.into_iter();
        LoadError { path: path.to_owned(), detail: faults.next().unwrap_or_default(), more: faults.collect() }
    })?;
    model.metadata.push(("source".into(), facts_of(program).format()));
    Ok(model)
}

/// The tables that lookups of a program name as distributed.
pub fn distributed_tables(program: &ProgramDesc) -> Vec<String> {
    let ops = program.blocks.iter().flat_map(|b| &b.ops);
    let distributed = ops.filter(|op| match op.r#type() {
        "distributed_lookup_table" => true,
        "lookup_table" | "lookup_table_v2" => op.flag("is_distributed", false) || op.flag("remote_prefetch", false),
        _ => false,
    });
    let mut names: Vec<String> = distributed.flat_map(|op| op.ins("W").iter().cloned()).collect();
    names.sort();
    names.dedup();
    names
}

/// The tables that any lookup of a program reads.
pub fn lookup_tables(program: &ProgramDesc) -> Vec<String> {
    let ops = program.blocks.iter().flat_map(|b| &b.ops);
    let mut names: Vec<String> = ops
        .filter(|op| matches!(op.r#type(), "lookup_table" | "lookup_table_v2" | "distributed_lookup_table" | "fused_embedding_seq_pool"))
        .flat_map(|op| op.ins("W").iter().cloned())
        .collect();
    names.sort();
    names.dedup();
    names
}

/// The parameters of the program at a file or in a directory but the tables that lookups read, in the order of their names.
///
/// # Errors
/// A file that is no program.
pub fn dense_names(path: &Path) -> Result<Vec<String>, LoadError> {
    let (_, program) = read(path)?;
    let tables = lookup_tables(&program);
    let vars = program.blocks.iter().flat_map(|b| &b.vars).filter(|v| v.is_stored());
    let mut names: Vec<String> = vars.map(|v| v.name().to_owned()).filter(|n| !tables.contains(n)).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

fn read(path: &Path) -> Result<(PathBuf, ProgramDesc), LoadError> {
    let path = if path.is_dir() { in_directory(path)? } else { path.to_owned() };
    let file = File::open(&path).map_err(|e| fault(&path, e))?;
    let bytes = map_file(&file).map_err(|e| fault(&path, e))?;
    if let Some(other) = super::foreign(&bytes) {
        return Err(fault(&path, other));
    }
    let program = program(&bytes).ok_or_else(|| fault(&path, "not a PaddlePaddle program"))?;
    Ok((path, program))
}

fn place(path: &Path) -> Place {
    let dir = path.parent().unwrap_or(Path::new("."));
    let beside = [path.with_extension("pdiparams"), dir.join("__params__"), dir.join("params")];
    match beside.into_iter().find(|p| p.is_file()) {
        Some(file) => Place::Combined(file),
        // A .pdmodel has its parameters in one file; the directory form calls the program __model__.
        None if path.extension().is_some_and(|e| e == "pdmodel") => Place::Combined(path.with_extension("pdiparams")),
        None => Place::Separate(dir.to_owned()),
    }
}

/// The program file in a model directory.
///
/// # Errors
/// A directory that holds none, or several.
pub fn in_directory(dir: &Path) -> Result<PathBuf, LoadError> {
    if dir.join("__model__").is_file() {
        return Ok(dir.join("__model__"));
    }
    let entries = fs::read_dir(dir).map_err(|e| fault(dir, e))?;
    let mut programs: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "pdmodel")).collect();
    programs.sort();
    match programs.as_slice() {
        [one] => Ok(one.clone()),
        [] if dir.join("inference.json").is_file() => Ok(dir.join("inference.json")),
        [] => Err(fault(dir, "a directory without a model: expected X.pdmodel with X.pdiparams, or __model__")),
        several => Err(fault(dir, format!("{} programs are here; name one of them", several.len()))),
    }
}

/// Loads the program at a file or in a directory, where the tables that `absent` names need no parameter file.
///
/// # Errors
/// A file that is no program, and as [`load`].
pub fn open(path: &Path, absent: &dyn Fn(&ProgramDesc, &str) -> bool) -> Result<Model, LoadError> {
    let (path, program) = read(path)?;
    load(&path, &program, &|name| absent(&program, name))
}
