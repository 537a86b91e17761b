//! Samples in and predictions out: `.npz`, `.npy`, `.csv`, MultiSlot text, `.parquet`
//! (with the feature of that name), and folders in the layout of ONNX's test data.

pub mod bind;
mod bound;
mod collect;
pub mod csv;
mod error;
pub mod folder;
mod glob;
mod many;
pub mod multislot;
pub mod npy;
pub mod npz;
#[cfg(feature = "parquet")]
pub mod parquet;
mod ragged;

pub use bind::Bind;
pub use bound::rows;
pub use error::DataError;
pub use glob::expand;
pub use many::open_all;

use crate::files::{FileWriter, Staged};
use crate::formats::onnx::value::ValueKind;
use crate::tensor::{DType, Tensor, Value};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Writes a file through [`Staged`].
///
/// # Errors
/// Those of the system and of `fill`; nothing is left then.
pub fn write_file<T>(target: &Path, fill: impl FnOnce(&mut FileWriter) -> Result<T, DataError>) -> Result<T, DataError> {
    let (staged, file) = Staged::file(target).map_err(DataError::io(target))?;
    let mut out = FileWriter::new(file);
    let result = fill(&mut out)?;
    out.flush().map_err(DataError::io(target))?;
    staged.put_in_place().map_err(DataError::io(target))?;
    Ok(result)
}

/// An input that a model wants.
#[derive(Debug, Clone, PartialEq)]
pub struct InputSpec {
    /// The name.
    pub name: String,
    /// What it holds; data files other than folders hold tensors alone.
    pub kind: ValueKind,
    /// The dtype of a tensor.
    pub dtype: DType,
    /// The dims of a tensor, `None` for those that the model leaves open; nothing where even their number is open.
    pub dims: Option<Vec<Option<usize>>>,
    /// Whether the model has a value of its own where the data has none.
    pub optional: bool,
}

impl InputSpec {
    /// A tensor that must be there.
    pub fn tensor(name: impl Into<String>, dtype: DType, dims: Option<Vec<Option<usize>>>) -> Self {
        Self { name: name.into(), kind: ValueKind::Tensor, dtype, dims, optional: false }
    }
}

/// How data may be split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Samples {
    /// Into any batches of this many samples in all.
    Count(usize),
    /// Not at all, for the reason given: it is one run as it stands, and each read gives the whole.
    Whole(String),
}

/// The inputs of a model, read batch by batch, by any thread in any order.
pub trait Source: Send + Sync {
    /// How many samples there are.
    fn samples(&self) -> &Samples;

    /// The inputs for a range of samples, in the model's order.
    ///
    /// # Errors
    /// Data that is broken or does not fit the inputs, with its place.
    fn read(&self, range: Range<usize>) -> Result<Vec<(String, Value)>, DataError>;

    /// One number per sample of any column, such as a label.
    ///
    /// # Errors
    /// A column that is not there or holds something else.
    fn column(&self, name: &str, range: Range<usize>) -> Result<Vec<f64>, DataError>;

    /// Any column as it stands, such as an id to keep beside the prediction; text columns as strings.
    ///
    /// # Errors
    /// A column that is not there.
    fn tensor(&self, name: &str, range: Range<usize>) -> Result<Tensor, DataError>;
}

/// Where outputs go. Batches may come in any order; the file depends on their samples alone.
pub trait Sink: Send {
    /// Takes the outputs of `count` samples from sample `start` on; a whole run has `start` 0 and [`whole_count`]. Each call has the same outputs.
    ///
    /// # Errors
    /// Outputs that the file cannot hold, or those of the system.
    fn write(&mut self, start: usize, count: usize, outputs: &[(String, Value)]) -> Result<(), DataError>;

    /// Puts the file in its place. Without this call nothing is left.
    ///
    /// # Errors
    /// Samples that are missing or came twice, or those of the system.
    fn finish(self: Box<Self>) -> Result<(), DataError>;
}

/// The count to write a whole run with: the first axis of its first output that has one.
pub fn whole_count(outputs: &[(String, Value)]) -> usize {
    outputs.iter().find_map(|(_, v)| v.as_tensor()?.shape().first().copied()).unwrap_or(1)
}

/// How a data file is read.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which columns make up which inputs; an input without a binding is the column of its name.
    pub binds: Vec<Bind>,
    /// What an empty cell of a text file stands for; without it one is an error.
    pub empty: Option<String>,
    /// One of [`FORMATS`], where the name of the file does not say.
    pub format: Option<String>,
    /// The slots of a MultiSlot line by their order; the model's inputs where there are none.
    pub slots: Vec<String>,
}

/// The forms of data files, by name.
pub const FORMATS: [&str; 5] = ["csv", "folder", "multislot", "npz", "parquet"];

/// The forms of data files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Folder,
    Npz,
    Csv,
    MultiSlot,
    Parquet,
}

/// The form by the name: a path that ends in `/` or has no extension is a folder.
fn form(path: &Path) -> Result<Form, DataError> {
    let name = path.to_string_lossy().to_ascii_lowercase();
    if name.ends_with('/') || path.is_dir() {
        return Ok(Form::Folder);
    }
    match path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).as_deref() {
        None => Ok(Form::Folder),
        Some("npz" | "npy") => Ok(Form::Npz),
        Some("csv") => Ok(Form::Csv),
        Some("multislot") => Ok(Form::MultiSlot),
        Some("parquet" | "pq") => Ok(Form::Parquet),
        Some("gz") if name.ends_with(".csv.gz") => Ok(Form::Csv),
        Some("gz") if name.ends_with(".multislot.gz") => Ok(Form::MultiSlot),
        Some(other) => {
            let known = ".npz, .npy, .csv, .csv.gz, .multislot, .multislot.gz, .parquet and folders";
            Err(DataError::file(path, format!("data of kind {other:?} is not known; known are {known}")))
        }
    }
}

/// Opens the data for a model's inputs.
///
/// # Errors
/// A file that cannot be read, or that has not what the inputs need.
pub fn open(path: &Path, inputs: &[InputSpec], options: &Options) -> Result<Box<dyn Source>, DataError> {
    let form = input_form(path, options)?;
    if let (Form::Npz | Form::Csv | Form::MultiSlot | Form::Parquet, Some(spec)) =
        (form, inputs.iter().find(|s| s.kind != ValueKind::Tensor && !s.optional))
    {
        let what = format!("a {} can come from a folder alone, not from {}", spec.kind, path.display());
        return Err(DataError::Input { input: spec.name.clone(), what });
    }
    Ok(match form {
        Form::Folder => {
            if !options.binds.is_empty() {
                return Err(DataError::Bind(format!("{}: a folder has no columns to bind", path.display())));
            }
            Box::new(folder::Folder::open(path, inputs)?)
        }
        Form::Npz => Box::new(bound::Bound::new(npz::Npz::open(path)?, inputs, &options.binds)?),
        Form::Csv => Box::new(bound::Bound::new(csv::Csv::open(path, options.empty.clone())?, inputs, &options.binds)?),
        Form::MultiSlot => multi_slot(&[path.into()], inputs, options)?,
        Form::Parquet => parquet_files(&[path.into()], inputs, options)?,
    })
}

/// The form of an input file: as the options say, else by its name.
fn input_form(path: &Path, options: &Options) -> Result<Form, DataError> {
    match options.format.as_deref() {
        None => form(path),
        Some("csv") => Ok(Form::Csv),
        Some("folder") => Ok(Form::Folder),
        Some("multislot") => Ok(Form::MultiSlot),
        Some("npz") => Ok(Form::Npz),
        Some("parquet") => Ok(Form::Parquet),
        Some(other) => Err(DataError::Bind(format!("format {other:?} is not known; known are {}", FORMATS.join(", ")))),
    }
}

/// Files whose slots are those that the options name, else the inputs, each without what says how it is read.
fn multi_slot(paths: &[PathBuf], inputs: &[InputSpec], options: &Options) -> Result<Box<dyn Source>, DataError> {
    let mut slots = options.slots.clone();
    if slots.is_empty() {
        let columns = inputs.iter().flat_map(|i| match options.binds.iter().find(|b| b.input == i.name) {
            Some(bind) => bind.columns.clone(),
            None => vec![i.name.clone()],
        });
        for column in columns {
            let slot = ragged::Part::split(&column).map_or(column.as_str(), |s| s.0).to_owned();
            if !slots.contains(&slot) {
                slots.push(slot);
            }
        }
    }
    Ok(Box::new(bound::Bound::new(multislot::MultiSlot::open(paths, &slots)?, inputs, &options.binds)?))
}

/// What a build without the feature says of a `.parquet`.
#[cfg(not(feature = "parquet"))]
fn no_parquet(path: &Path) -> DataError {
    DataError::file(path, "this build reads and writes no .parquet; build with `--features parquet`")
}

#[cfg(not(feature = "parquet"))]
fn parquet_files(paths: &[PathBuf], _: &[InputSpec], _: &Options) -> Result<Box<dyn Source>, DataError> {
    Err(no_parquet(paths.first().map_or(Path::new(""), PathBuf::as_path)))
}

#[cfg(feature = "parquet")]
fn parquet_files(paths: &[PathBuf], inputs: &[InputSpec], options: &Options) -> Result<Box<dyn Source>, DataError> {
    Ok(Box::new(bound::Bound::new(parquet::Parquet::open(paths, options.empty.clone())?, inputs, &options.binds)?))
}

/// Starts a file for outputs; it appears under its name when it is finished.
///
/// # Errors
/// A name of no known kind, or a place that cannot be written.
pub fn create(path: &Path) -> Result<Box<dyn Sink>, DataError> {
    let form = form(path)?;
    if form != Form::Folder {
        // Fails now rather than after the run.
        Staged::file(path).map_err(DataError::io(path))?;
    }
    match form {
        Form::Npz if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) => {
            Err(DataError::file(path, "outputs are written as .npz, .csv or a folder"))
        }
        Form::Csv if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gz")) => {
            Err(DataError::file(path, "outputs are written as .npz, .csv or a folder"))
        }
        Form::Folder => Ok(Box::new(folder::FolderSink::create(path)?)),
        Form::MultiSlot => Err(DataError::file(path, "outputs are written as .npz, .csv, .parquet or a folder")),
        #[cfg(feature = "parquet")]
        Form::Parquet => Ok(Box::new(parquet::ParquetSink::new(path))),
        #[cfg(not(feature = "parquet"))]
        Form::Parquet => Err(no_parquet(path)),
        Form::Npz => Ok(Box::new(collect::NpzSink::new(path))),
        Form::Csv => Ok(Box::new(csv::CsvSink::create(path)?)),
    }
}

#[cfg(test)]
mod tests;
