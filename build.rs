//! Compiles the schemas: message types by prost, and for each schema a table of the fields it knows, by which readers
//! find the ones it does not.

use protox::prost_reflect::{DescriptorPool, Kind};
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Each package with its files.
const SCHEMAS: [(&str, &[&str]); 2] = [("onnx", &["onnx.proto", "onnx_data.proto"]), ("paddle", &["framework.proto"])];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=schema");
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for (package, files) in SCHEMAS {
        let mut compiler = protox::Compiler::new(["schema"])?;
        // Comments of a schema are no Rust doc comments.
        compiler.include_source_info(false).include_imports(true).open_files(files)?;
        prost_build::Config::new().bytes(["."]).enable_type_names().out_dir(&out).compile_fds(compiler.file_descriptor_set())?;
        write_fields(&compiler.descriptor_pool(), package, &out.join(format!("{package}_fields.rs")))?;
    }
    Ok(())
}

/// Writes the messages of a package in order of their names: each name with its fields in order of their numbers, and for
/// a field that is a message the place of that message in the list.
fn write_fields(pool: &DescriptorPool, package: &str, path: &Path) -> Result<(), Box<dyn Error>> {
    let mut messages: Vec<_> = pool.all_messages().filter(|m| m.package_name() == package).collect();
    messages.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    let mut text = String::from("&[\n");
    for message in &messages {
        let name = message.full_name().trim_start_matches(package).trim_start_matches('.');
        writeln!(text, "    Message {{ name: {name:?}, fields: &[")?;
        let mut fields: Vec<_> = message.fields().collect();
        fields.sort_by_key(|f| f.number());
        for field in fields {
            let kind = match field.kind() {
                Kind::Message(m) => {
                    format!("Message({})", messages.iter().position(|x| *x == m).ok_or("a message of another package")?)
                }
                Kind::String => "Text".into(),
                _ => "Plain".into(),
            };
            let (number, name, list) = (field.number(), field.name(), field.is_list());
            writeln!(text, "        Field {{ number: {number}, name: {name:?}, list: {list}, kind: Kind::{kind} }},")?;
        }
        text.push_str("    ] },\n");
    }
    text.push_str("]\n");
    Ok(std::fs::write(path, text)?)
}
