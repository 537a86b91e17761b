//! A job over two network namespaces, by `netns.sh`; says so where the machine does not allow it.

use std::path::Path;
use std::process::Command;

#[test]
fn a_job_runs_over_two_machines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut script = Command::new("sh");
    script.arg(root.join("tests/netns.sh")).arg(env!("CARGO_BIN_EXE_graphtool")).arg(root.join("models"));
    let out = script.output().expect("a shell");
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    match out.status.code() {
        Some(0) => assert_eq!(said.matches("ok: ").count(), 5, "{said}"),
        Some(77) => eprintln!("{}", said.trim()),
        _ => panic!("{said}"),
    }
}
