//! What Kubernetes does with a StatefulSet and an Indexed Job, as far as processes see it: a pod is a process with the
//! container's command, arguments and environment alone, an address of its own, and the files of its Secrets. Host names in
//! endpoints stand for those addresses; nothing else is changed.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn value(yaml: &Yaml) -> Value {
    match yaml {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(b)) => (*b).into(),
        Yaml::Value(Scalar::Integer(i)) => (*i).into(),
        Yaml::Value(Scalar::String(s)) => s.to_string().into(),
        Yaml::Sequence(all) => all.iter().map(value).collect(),
        Yaml::Mapping(all) => all.iter().map(|(k, v)| (k.as_str().expect("a key").to_owned(), value(v))).collect::<Map<_, _>>().into(),
        other => panic!("{other:?}"),
    }
}

/// The documents of a text.
pub fn documents(text: &str) -> Vec<Value> {
    Yaml::load_from_str(text).expect("YAML").iter().map(value).collect()
}

/// The document of a kind that is there once.
pub fn find<'a>(all: &'a [Value], kind: &str) -> &'a Value {
    all.iter().find(|d| d["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// A pod, ready to be started.
pub struct Pod {
    pub worker: bool,
    address: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
    ready: String,
    metrics: u16,
}

/// A pod that runs; it is killed when this is dropped.
pub struct Running {
    pub worker: bool,
    child: Option<Child>,
    address: String,
    ready: String,
    metrics: u16,
}

/// The pods of all sets and jobs, in order. `first` is the last part of the first one's address, for each test its own; the
/// parts before are for this process alone.
pub fn pods(all: &[Value], dir: &Path, first: usize) -> Vec<Pod> {
    let process = std::process::id();
    let address = |i: usize| format!("127.{}.{}.{}", 1 + (process >> 8) % 250, process % 256, first + i);
    let (set, job) = (find(all, "StatefulSet"), find(all, "Job"));
    let named = |owner: &Value, service: &Value, count: &Value| {
        let (owner, service) = (text(&owner["metadata"]["name"]).to_owned(), text(service).to_owned());
        // A name is resolved where its headless Service finds the pods.
        assert!(
            all.iter().any(|d| d["kind"] == "Service" && d["metadata"]["name"] == service.as_str() && d["spec"]["clusterIP"] == "None")
        );
        (0..count.as_u64().expect("a count")).map(move |i| format!("{owner}-{i}.{service}")).collect::<Vec<_>>()
    };
    let servers = named(set, &set["spec"]["serviceName"], &set["spec"]["replicas"]);
    let workers = named(job, &job["spec"]["template"]["spec"]["subdomain"], &job["spec"]["completions"]);
    let hosts: Vec<(String, String)> = servers.iter().chain(&workers).enumerate().map(|(i, name)| (name.clone(), address(i))).collect();
    let one = |i: usize| {
        let worker = i >= servers.len();
        let template = if worker { &job["spec"]["template"] } else { &set["spec"]["template"] };
        let index = if worker { i - servers.len() } else { i };
        pod(all, template, dir, (worker, index), &hosts[i].1, &hosts)
    };
    (0..hosts.len()).map(one).collect()
}

fn pod(all: &[Value], template: &Value, dir: &Path, (worker, index): (bool, usize), address: &str, hosts: &[(String, String)]) -> Pod {
    let container = &template["spec"]["containers"][0];
    assert_eq!(container["command"], serde_json::json!(["graphtool"]));
    let mut env: Vec<(String, String)> = Vec::new();
    for variable in container["env"].as_array().expect("an environment") {
        let value = match text(&variable["valueFrom"]["fieldRef"]["fieldPath"]) {
            "status.podIP" => address.to_owned(),
            "metadata.labels['apps.kubernetes.io/pod-index']" if !worker => index.to_string(),
            other => panic!("{other}"),
        };
        env.push((text(&variable["name"]).to_owned(), value));
    }
    if worker {
        env.push(("JOB_COMPLETION_INDEX".into(), index.to_string()));
    }
    let secrets = secrets(all, &template["spec"], container, dir);
    let args = container["args"].as_array().expect("arguments").iter().map(|a| {
        let mut arg = expand(text(a), &env);
        for (name, address) in hosts {
            arg = arg.replace(&format!("{name}:"), &format!("{address}:"));
        }
        secrets.iter().fold(arg, |arg, (there, here)| arg.replace(there, here))
    });
    let args = args.collect();
    let probe = &container["readinessProbe"]["httpGet"];
    let ports = container["ports"].as_array().expect("ports");
    let metrics = ports.iter().find(|p| p["name"] == probe["port"]).expect("the port of the probe");
    let metrics = metrics["containerPort"].as_u64().expect("a port") as u16;
    Pod { worker, address: address.into(), args, env, ready: text(&probe["path"]).into(), metrics }
}

/// Where Secrets are mounted, and the folder that has their files here.
fn secrets(all: &[Value], spec: &Value, container: &Value, dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for volume in spec["volumes"].as_array().expect("volumes").iter().filter(|v| v["secret"].is_object()) {
        let here = dir.join(text(&volume["secret"]["secretName"]));
        std::fs::create_dir_all(&here).expect("a directory");
        let secret = all.iter().find(|d| d["kind"] == "Secret" && d["metadata"]["name"] == volume["secret"]["secretName"]);
        for item in volume["secret"]["items"].as_array().expect("items") {
            let data = STANDARD.decode(text(&secret.expect("a Secret")["data"][text(&item["key"])])).expect("base64");
            std::fs::write(here.join(text(&item["path"])), data).expect("written");
        }
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        let mount = mounts.iter().find(|m| m["name"] == volume["name"]).expect("a mount");
        found.push((text(&mount["mountPath"]).to_owned(), here.to_str().expect("text").to_owned()));
    }
    found
}

/// As Kubernetes does: `$(NAME)` is the variable's value if there is one, `$$` is `$`.
fn expand(arg: &str, env: &[(String, String)]) -> String {
    let (mut out, mut rest) = (String::new(), arg);
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let variable = after.strip_prefix('(').and_then(|a| a.split_once(')'));
        let known = variable.and_then(|(name, behind)| Some((&env.iter().find(|e| e.0 == name)?.1, behind)));
        rest = match (after.strip_prefix('$'), known) {
            (Some(behind), _) => {
                out.push('$');
                behind
            }
            (None, Some((value, behind))) => {
                out.push_str(value);
                behind
            }
            (None, None) => {
                out.push('$');
                after
            }
        };
    }
    out + rest
}

impl Pod {
    pub fn start(&self) -> Running {
        let mut command = Command::new(env!("CARGO_BIN_EXE_graphtool"));
        command.args(&self.args).env_clear().envs(self.env.iter().cloned()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = Some(command.spawn().expect("it starts"));
        Running { worker: self.worker, child, address: self.address.clone(), ready: self.ready.clone(), metrics: self.metrics }
    }
}

impl Running {
    fn get(&self, page: &str) -> Option<String> {
        let mut stream = std::net::TcpStream::connect((self.address.as_str(), self.metrics)).ok()?;
        write!(stream, "GET {page} HTTP/1.1\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// Asks until it says so; a process that ends instead says why.
    fn wait(&mut self, page: &str, good: impl Fn(&str) -> bool) {
        let begun = Instant::now();
        while !self.get(page).is_some_and(|answer| good(&answer)) {
            if self.child.as_mut().expect("a process").try_wait().expect("a status").is_some() {
                let out = self.child.take().expect("a process").wait_with_output().expect("an end");
                panic!("it ended: {}", String::from_utf8_lossy(&out.stderr));
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "{page} does not say so");
            std::thread::yield_now();
        }
    }

    /// As the kubelet does.
    pub fn wait_until_ready(&mut self) {
        let page = self.ready.clone();
        self.wait(&page, |answer| answer.starts_with("HTTP/1.1 200 "));
    }

    /// Until a worker has done some.
    pub fn wait_for_samples(&mut self) {
        let some = |line: &str| line.strip_prefix("graphtool_worker_samples_total ").is_some_and(|n| n != "0");
        self.wait("/metrics", |answer| answer.lines().any(some));
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().expect("a process");
        assert!(child.try_wait().expect("a status").is_none(), "it has ended already");
        child.kill().expect("killed");
        child.wait().expect("an end");
    }

    /// Waits for its end; what it said.
    pub fn finish(mut self) -> String {
        let out = self.child.take().expect("a process").wait_with_output().expect("an end");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("text")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
