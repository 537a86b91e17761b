//! Redis servers for tests, each a process of its own with a directory of its own, and what is said to them without a client.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running server; it is killed by its id when this is dropped.
pub struct Node {
    pub port: u16,
    process: Child,
    _dir: tempfile::TempDir,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `done` is, for a minute at most.
pub fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < until, "{what} takes more than a minute");
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Node {
    /// Starts a server. `PORT` in an argument stands for its port.
    pub fn start(args: &[&str]) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let mut command = Command::new("redis-server");
        let own = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"];
        command.args(own).arg("--dir").arg(dir.path()).stdout(Stdio::null()).stderr(Stdio::null());
        if !args.contains(&"--tls-port") {
            command.args(["--port", &port.to_string()]);
        }
        command.args(args.iter().map(|a| a.replace("PORT", &port.to_string())));
        let process = command.spawn().unwrap_or_else(|e| panic!("redis-server cannot be started (apt-get install redis-server): {e}"));
        let node = Self { port, process, _dir: dir };
        wait_for("the start of redis-server", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        node
    }

    /// The reply to a command, as text: an error begins with `-`, elements of a list are lines.
    pub fn say(&self, words: &[&str]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let mut text = format!("*{}\r\n", words.len());
        words.iter().for_each(|w| text.push_str(&format!("${}\r\n{w}\r\n", w.len())));
        stream.write_all(text.as_bytes()).unwrap();
        reply(&mut BufReader::new(stream))
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([format!("-{name}"), self.process.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn reply(from: &mut impl BufRead) -> String {
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    let (kind, rest) = line.trim_end().split_at(1);
    match kind {
        "$" if rest == "-1" => String::new(),
        "$" => {
            let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
            from.read_exact(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes[..bytes.len() - 2]).into_owned()
        }
        "*" => (0..rest.parse::<i64>().unwrap()).map(|_| reply(from)).collect::<Vec<_>>().join("\n"),
        "-" => format!("-{rest}"),
        _ => rest.to_owned(),
    }
}

/// A cluster: masters first, then as many replicas, the i-th of the i-th.
pub struct Cluster {
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// Starts `masters` masters, each with `replicas` replicas.
    pub fn start(masters: usize, replicas: usize, args: &[&str]) -> Self {
        let buses: Vec<String> = (0..masters * (replicas + 1)).map(|_| free_port().to_string()).collect();
        let start = |bus: &String| {
            let own =
                ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", bus, "--repl-diskless-sync-delay", "0"];
            Node::start(&[&own[..], args].concat())
        };
        let nodes: Vec<Node> = buses.iter().map(start).collect();
        let ok = |node: &Node, words: &[&str]| assert_eq!(node.say(words), "OK", "{words:?}");
        for (i, node) in nodes.iter().enumerate() {
            ok(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(i + 1).to_string()]);
            ok(node, &["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string(), &buses[0]]);
        }
        for (i, node) in nodes[..masters].iter().enumerate() {
            let slot = |i: usize| 16384 * i / masters;
            ok(node, &["CLUSTER", "ADDSLOTSRANGE", &slot(i).to_string(), &(slot(i + 1) - 1).to_string()]);
        }
        let known = format!("cluster_known_nodes:{}", nodes.len());
        wait_for("the meeting of the cluster", || nodes.iter().all(|n| n.say(&["CLUSTER", "INFO"]).lines().any(|l| l == known)));
        for (i, node) in nodes[masters..].iter().enumerate() {
            let of = nodes[i % masters].say(&["CLUSTER", "MYID"]);
            wait_for("a replica", || node.say(&["CLUSTER", "REPLICATE", &of]) == "OK");
        }
        wait_for("the start of the cluster", || nodes.iter().all(|n| n.say(&["CLUSTER", "INFO"]).contains("cluster_state:ok")));
        for node in &nodes[masters..] {
            wait_for("a replica", || node.say(&["INFO", "replication"]).contains("master_link_status:up"));
        }
        Self { nodes }
    }

    /// The address of the store of that name.
    pub fn url(&self, name: &str) -> String {
        let list: Vec<String> = self.nodes.iter().map(|n| format!("127.0.0.1:{}", n.port)).collect();
        format!("redis+cluster://{}/{name}", list.join(","))
    }

    /// What the master that has a key says.
    pub fn say(&self, key: &str, words: &[&str]) -> String {
        let slot = self.nodes[0].say(&["CLUSTER", "KEYSLOT", key]).parse::<usize>().unwrap();
        let masters = self.nodes.len().min(3);
        self.nodes[(0..masters).find(|i| slot < 16384 * (i + 1) / masters).unwrap()].say(words)
    }
}
