//! Parameter files: one record per variable, in a file of their own or in a row sorted by the variables' names.

use super::proto::{TensorDesc, VarDesc, dtype};
use crate::formats::{LoadError, fault};
use crate::ir::{Constant, Kind};
use crate::tensor::{Tensor, map_file};
use bytes::{Buf, Bytes};
use prost::Message;
use std::fs::File;
use std::path::{Component, Path, PathBuf};

/// Where the parameters of a program are.
#[derive(Debug, Clone)]
pub enum Place {
    /// In one file, in a row.
    Combined(PathBuf),
    /// In a directory, each in the file of its name.
    Separate(PathBuf),
}

/// Reads the parameters; those that `absent` names may have no file and become stand-ins for tables.
///
/// # Errors
/// Every parameter that is missing, cut off, or of another dtype or shape than its variable.
pub fn read(place: &Place, vars: &[&VarDesc], absent: &dyn Fn(&str) -> bool) -> Result<Vec<(String, Kind)>, LoadError> {
    let mut stored: Vec<&VarDesc> = vars.to_vec();
    stored.sort_by(|a, b| a.name().cmp(b.name()));
    stored.dedup_by(|a, b| a.name() == b.name());
    let mut faults = Vec::new();
    let mut out = Vec::new();
    let mut keep = |var: &VarDesc, tensor: Tensor| out.push((var.name().to_owned(), Kind::Param(Constant::from(tensor))));
    let root = match place {
        // Paddle writes no file for a program without parameters.
        Place::Combined(path) if stored.is_empty() && !path.exists() => path,
        Place::Combined(path) if !path.exists() && stored.iter().all(|v| absent(v.name())) => {
            for &var in &stored {
                keep(var, stand_in(var).map_err(|e| fault(path, e))?);
            }
            path
        }
        Place::Combined(path) => {
            let mut rest = map(path).map_err(|e| missing(path, e, stored.iter().find(|v| !absent(v.name()))))?;
            for &var in &stored {
                if rest.is_empty() && absent(var.name()) {
                    keep(var, stand_in(var).map_err(|e| fault(path, e))?);
                    continue;
                }
                // A fault in a row of records leaves no way to find the next.
                keep(var, record(&mut rest, var).map_err(|e| fault(path, e))?);
            }
            if !rest.is_empty() {
                return Err(fault(path, format!("{} bytes are left after the last parameter: it is of another program", rest.len())));
            }
            path
        }
        Place::Separate(dir) => {
            for &var in &stored {
                match separate(dir, var, absent) {
                    Ok(tensor) => keep(var, tensor),
                    Err(e) => faults.push(e),
                }
            }
            dir
        }
    };
    if faults.is_empty() {
        return Ok(out);
    }
    let detail = faults.remove(0);
    Err(LoadError { path: root.clone(), detail, more: faults })
}

fn missing(path: &Path, error: std::io::Error, first: Option<&&VarDesc>) -> LoadError {
    match first {
        Some(var) if error.kind() == std::io::ErrorKind::NotFound => {
            let pickle = path.with_extension("pdparams");
            let hint = match pickle.file_name().filter(|_| pickle.exists()) {
                Some(name) => format!("; {} is a pickle: save the program by paddle.static.save_inference_model", name.to_string_lossy()),
                None => String::new(),
            };
            fault(path, format!("the file with the program's parameters, such as \"{}\", is missing{hint}", var.name()))
        }
        _ => fault(path, error),
    }
}

fn map(path: &Path) -> std::io::Result<Bytes> {
    map_file(&File::open(path)?)
}

fn separate(dir: &Path, var: &VarDesc, absent: &dyn Fn(&str) -> bool) -> Result<Tensor, String> {
    let name = var.name();
    if !Path::new(name).components().all(|c| matches!(c, Component::Normal(_))) {
        return Err(format!("parameter \"{name}\": its name leaves the directory"));
    }
    let path = dir.join(name);
    if !path.is_file() && absent(name) {
        return stand_in(var);
    }
    let mut bytes = map(&path).map_err(|e| format!("parameter \"{name}\": its file is missing or unreadable: {e}"))?;
    let tensor = record(&mut bytes, var)?;
    match bytes.len() {
        0 => Ok(tensor),
        left => Err(format!("parameter \"{name}\": {left} bytes are left after its record")),
    }
}

fn declared(var: &VarDesc) -> Result<(crate::tensor::DType, Vec<i64>), String> {
    let name = var.name();
    let desc = var.tensor().ok_or_else(|| format!("parameter \"{name}\" is no tensor"))?;
    let t = dtype(desc.data_type()).ok_or_else(|| format!("parameter \"{name}\": dtype {} does not exist", desc.data_type()))?;
    Ok((t, desc.dims.clone()))
}

fn stand_in(var: &VarDesc) -> Result<Tensor, String> {
    let (dtype, dims) = declared(var)?;
    let shape: Vec<usize> = dims.iter().map(|&d| d.max(0) as usize).collect();
    Ok(Tensor::absent(dtype, shape.as_slice(), &format!("table {}", var.name())))
}

/// Takes one record off `bytes`.
fn record(bytes: &mut Bytes, var: &VarDesc) -> Result<Tensor, String> {
    let name = var.name().to_owned();
    let cut = |need: u64, have: usize| format!("parameter \"{name}\" is cut off: expected {need} bytes, found {have}");
    let take = |bytes: &mut Bytes, n: u64| match usize::try_from(n) {
        Ok(k) if k <= bytes.len() => Ok(bytes.split_to(k)),
        _ => Err(cut(n, bytes.len())),
    };
    let version = |bytes: &mut Bytes, what: &str| match take(bytes, 4)?.get_u32_le() {
        0 => Ok(()),
        v => Err(format!("parameter \"{name}\": expected {what} version 0, found {v}")),
    };
    version(bytes, "record")?;
    let levels = take(bytes, 8)?.get_u64_le();
    for _ in 0..levels {
        let n = take(bytes, 8)?.get_u64_le();
        take(bytes, n)?;
    }
    version(bytes, "tensor")?;
    let len = take(bytes, 4)?.get_i32_le();
    let len = u64::try_from(len).map_err(|_| format!("parameter \"{name}\": its header has length {len}"))?;
    let desc = TensorDesc::decode(take(bytes, len)?).map_err(|e| format!("parameter \"{name}\": its header: {e}"))?;
    let found = dtype(desc.data_type()).ok_or_else(|| format!("parameter \"{name}\": dtype {} does not exist", desc.data_type()))?;
    let (want, dims) = declared(var)?;
    if found != want {
        return Err(format!("parameter \"{name}\": expected {want}, found {found}"));
    }
    let fits = dims.len() == desc.dims.len() && dims.iter().zip(&desc.dims).all(|(&a, &b)| a == b || a < 0);
    if !fits || desc.dims.iter().any(|&d| d < 0) {
        return Err(format!("parameter \"{name}\": expected shape {dims:?}, found {:?}", desc.dims));
    }
    let shape: Vec<usize> = desc.dims.iter().map(|&d| d as usize).collect();
    let size = found.byte_len(&shape).ok_or_else(|| format!("parameter \"{name}\": {found}{shape:?} has no size"))?;
    let data = take(bytes, size as u64)?;
    Tensor::from_bytes(found, shape.as_slice(), data).map_err(|e| format!("parameter \"{name}\": {e}"))
}
