//! What benches of servers share: a process of its own for each, and figures of several rounds.

use std::io::BufRead;
use std::process::{Child, Command, Stdio};

/// A server in a process of its own, killed when it is dropped.
pub struct Server(pub Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// This program again, as a server; gives its address, which is what it prints.
pub fn spawn(args: &[&str]) -> (Server, String) {
    let mut child = Command::new(std::env::current_exe().unwrap()).args(args).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Server(child), line.trim().to_string())
}

/// Seconds on a CPU of all threads of a process.
pub fn cpu(pid: u32) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let nanos = |t: std::io::Result<std::fs::DirEntry>| -> Option<u64> {
        std::fs::read_to_string(t.ok()?.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.filter_map(nanos).sum::<u64>() as f64 / 1e9
}

/// Least, median and greatest.
pub fn spread(mut v: Vec<f64>) -> (f64, f64, f64) {
    v.sort_by(f64::total_cmp);
    (v[0], v[v.len() / 2], v[v.len() - 1])
}
