//! The layering, as absences: which module may name which package or module, and how long a file may be.

use std::path::{Path, PathBuf};

fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, out: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, out);
            } else if path.extension().is_some_and(|e| e == "rs") {
                out.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    paths.sort();
    let name = |p: &PathBuf| p.strip_prefix(&root).expect("below src").to_string_lossy().replace('\\', "/");
    paths.iter().map(|p| (name(p), std::fs::read_to_string(p).expect("text"))).collect()
}

/// The code of a file: without comments and without its tests.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    text[..end].lines().filter(|l| !l.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

fn offenders(word: &str, allowed: &[&str]) -> Vec<String> {
    let names = |c: &str| c.contains(&format!("{word}::")) || c.contains(&format!("use {word};"));
    files_with(allowed, names)
}

fn files_with(allowed: &[&str], names: impl Fn(&str) -> bool) -> Vec<String> {
    sources().into_iter().filter(|(n, t)| names(&code(t)) && !allowed.iter().any(|a| n.starts_with(a))).map(|(n, _)| n).collect()
}

#[test]
fn packages_stay_in_their_homes() {
    assert_eq!(offenders("petgraph", &["ir/graph.rs"]), [""; 0]);
    assert_eq!(offenders("axum", &["http/", "job/monitor.rs", "serve/"]), [""; 0]);
    assert_eq!(offenders("hyper", &["http/"]), [""; 0]);
    assert_eq!(offenders("hyper_util", &["http/"]), [""; 0]);
    assert_eq!(offenders("prost", &["formats/"]), [""; 0]);
    assert_eq!(offenders("tarpc", &["store/pserver/", "comm/tcp/", "wire/"]), [""; 0]);
    assert_eq!(offenders("redis", &["store/redis/", "store/mod.rs"]), [""; 0]);
    assert_eq!(offenders("rustls", &["wire/tls.rs"]), [""; 0]);
    assert_eq!(offenders("tokio_rustls", &["wire/tls.rs"]), [""; 0]);
    assert_eq!(offenders("clap", &["cli/"]), [""; 0]);
    assert_eq!(offenders("anyhow", &["cli/"]), [""; 0]);
    assert_eq!(offenders("base64", &["deploy/k8s/"]), [""; 0]);
    assert_eq!(offenders("serde_saphyr", &["deploy/k8s/"]), [""; 0]);
    assert_eq!(offenders("rayon", &["ops/", "exec/", "store/"]), [""; 0]);
}

#[test]
fn only_the_command_line_prints_and_reads_the_environment() {
    for word in ["println", "eprintln", "print", "eprint"] {
        let call = |c: &str| c.contains(&format!(" {word}!("));
        assert_eq!(files_with(&["cli/"], call), [""; 0], "{word}");
    }
    assert_eq!(offenders("std::env", &["cli/"]), [""; 0]);
}

#[test]
fn imports_point_down() {
    let layers: &[(&str, &[&str])] = &[
        ("tensor/", &[]),
        ("files", &[]),
        ("ir/", &["tensor"]),
        ("view/", &["tensor", "ir"]),
        ("plan/", &["tensor"]),
        ("wire/", &["tensor"]),
        ("ops/", &["tensor", "ir"]),
        ("formats/", &["tensor", "ir", "files"]),
        ("passes/", &["tensor", "ir", "ops"]),
        ("store/", &["tensor", "plan", "wire", "files"]),
        ("comm/", &["tensor", "wire"]),
        ("exec/", &["tensor", "ir", "ops", "store", "comm"]),
        ("data/", &["tensor", "formats", "files"]),
        ("deploy/", &["tensor", "ir", "formats", "passes", "plan", "store", "files"]),
        ("job/", &["tensor", "formats", "comm", "data", "exec", "http"]),
        ("http/", &[]),
        ("serve/", &["tensor", "ir", "plan", "wire", "store", "exec", "data", "job", "http"]),
    ];
    let modules = [
        "tensor", "files", "ir", "plan", "wire", "ops", "formats", "passes", "store", "comm", "exec", "data", "deploy", "job", "view",
        "http", "serve", "cli",
    ];
    let mut wrong = Vec::new();
    for (name, text) in sources() {
        let Some((own, allowed)) = layers.iter().find(|(l, _)| name.starts_with(l)) else { continue };
        let code = code(&text);
        for m in modules.iter().filter(|m| !own.starts_with(*m) && !allowed.contains(m)) {
            if code.contains(&format!("crate::{m}::")) || code.contains(&format!("crate::{m};")) {
                wrong.push(format!("{name} imports {m}"));
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn unsafe_stays_in_named_files() {
    let allowed = [
        "ops/gemm/kernel.rs",
        "ops/gemm/mod.rs",
        "ops/gemm/sparse.rs",
        "ops/gemm/vectors.rs",
        "ops/rows.rs",
        "tensor/large_pages.rs",
        "tensor/mapped.rs",
        "tensor/prefetch.rs",
        "wire/shared.rs",
        "wire/unix.rs",
    ];
    let found: Vec<String> =
        sources().into_iter().filter(|(n, t)| code(t).contains("unsafe ") && !allowed.contains(&n.as_str())).map(|(n, _)| n).collect();
    assert_eq!(found, [""; 0]);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    for (name, text) in sources() {
        let own = text.find("#[cfg(test)]\nmod tests {").map_or(text.as_str(), |end| &text[..end]);
        assert!(own.lines().count() <= 650, "{name} has {} lines", own.lines().count());
        assert!(text.starts_with("//!") || text.starts_with("#![doc"), "{name} does not say what it is");
    }
}
