//! What is in a pod: one container that may do little, its volumes, its probes, the place of pservers beside each other.

use super::names::{Component, METRICS_PORT};
use super::objects::selector;
use super::{Claim, Cluster, Process, Secret, TLS, TOKEN};
use serde_json::{Value, json};

/// Where the pods see the token.
const TOKEN_DIR: &str = "/etc/graphtool/token";
/// Where the pods see their certificates.
const TLS_DIR: &str = "/etc/graphtool/tls";
/// Mode of the files of a Secret.
const SECRET_MODE: u32 = 0o400;
/// Seconds that a pserver has to answer what it was asked before.
const PSERVER_GRACE: u32 = 30;
/// Seconds that a worker has: what it has finished is put aside, and another goes on behind it.
const WORKER_GRACE: u32 = 5;
/// A node each.
const NODE: &str = "kubernetes.io/hostname";

/// The pod of a pserver.
pub(super) fn pserver(cluster: &Cluster) -> Value {
    let number = json!({ "name": "PADDLE_PSERVER_ID", "valueFrom": field("metadata.labels['apps.kubernetes.io/pod-index']") });
    let container = container(cluster, Component::Pserver, &cluster.pservers, &[], &[number]);
    let mut spec = pod(cluster, Component::Pserver, PSERVER_GRACE, container);
    let labels = json!({ "matchLabels": selector(cluster, Some(Component::Pserver)) });
    spec["topologySpreadConstraints"] =
        json!([{ "maxSkew": 1, "topologyKey": NODE, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": labels }]);
    if cluster.replicas > 1 {
        // One node that is lost should not take all replicas of a shard along.
        let term = json!({ "topologyKey": NODE, "labelSelector": labels });
        let preferred = json!([{ "weight": 100, "podAffinityTerm": term }]);
        spec["affinity"] = json!({ "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": preferred } });
    }
    spec
}

/// The pod of a worker. Its number is the completion index, which the Job puts into its environment.
pub(super) fn worker(cluster: &Cluster) -> Value {
    let workers = [format!("--workers={}", cluster.endpoints(Component::Worker).join(","))];
    let container = container(cluster, Component::Worker, &cluster.workers, &workers, &[]);
    let mut spec = pod(cluster, Component::Worker, WORKER_GRACE, container);
    spec["restartPolicy"] = json!("Never");
    spec["subdomain"] = json!(cluster.name_of(Component::Worker));
    spec
}

fn field(path: &str) -> Value {
    json!({ "fieldRef": { "fieldPath": path } })
}

fn pod(cluster: &Cluster, component: Component, grace: u32, container: Value) -> Value {
    let user = cluster.user;
    json!({
        "automountServiceAccountToken": false,
        // Variables for each Service would look like some that are read.
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": grace,
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": user,
            "runAsGroup": user,
            // Files of Secrets belong to root: the group may read them.
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": { "type": "RuntimeDefault" },
        },
        "containers": [container],
        "volumes": volumes(cluster, component),
    })
}

fn container(cluster: &Cluster, component: Component, process: &Process, place: &[String], env: &[Value]) -> Value {
    let mut env = env.to_vec();
    env.insert(0, json!({ "name": "POD_IP", "valueFrom": field("status.podIP") }));
    let resources = json!({ "cpu": cpu(process.millicores), "memory": mebibytes(process.memory) });
    let port = |name: &str, port: u16| json!({ "name": name, "containerPort": port });
    json!({
        "name": component.word(),
        "image": cluster.image,
        "command": ["graphtool"],
        "args": args(cluster, component, process, place),
        "env": env,
        "ports": [port(component.word(), component.port()), port("metrics", METRICS_PORT)],
        "resources": { "requests": resources, "limits": resources },
        "readinessProbe": probe("/readyz", 5, 3),
        "livenessProbe": probe("/healthz", 10, 6),
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        },
        "volumeMounts": mounts(cluster, component),
    })
}

fn probe(path: &str, period: u32, failures: u32) -> Value {
    json!({ "httpGet": { "path": path, "port": "metrics" }, "periodSeconds": period, "timeoutSeconds": 5, "failureThreshold": failures })
}

/// What `graphtool` is told. Kubernetes puts variables for `$(NAME)` and `$` for `$$`.
fn args(cluster: &Cluster, component: Component, process: &Process, place: &[String]) -> Vec<Value> {
    let mut all = process.args.clone();
    all.push(format!("--role={}", component.word()));
    all.push(format!("--servers={}", cluster.endpoints(Component::Pserver).join(",")));
    all.extend_from_slice(place);
    if cluster.token.is_some() {
        all.push(format!("--token-file={TOKEN_DIR}/{TOKEN}"));
    }
    if cluster.tls.is_some() {
        let flags = ["--tls-cert", "--tls-key", "--tls-ca"];
        all.extend(flags.into_iter().zip(TLS).map(|(flag, file)| format!("{flag}={TLS_DIR}/{file}")));
    }
    if cluster.insecure {
        all.push("--insecure".into());
    }
    let own = format!("--metrics-addr=$(POD_IP):{METRICS_PORT}");
    all.into_iter().map(|a| a.replace('$', "$$")).chain([own]).map(Value::String).collect()
}

fn writes(component: Component, claim: &Claim) -> bool {
    component == Component::Worker && claim.written
}

fn volumes(cluster: &Cluster, component: Component) -> Vec<Value> {
    let claims = cluster.claims.iter().enumerate().map(|(i, c)| {
        json!({ "name": format!("claim-{i}"), "persistentVolumeClaim": { "claimName": c.name, "readOnly": !writes(component, c) } })
    });
    let secret = |name: &str, secret: &Option<Secret>, keys: &[&str]| {
        let existing = match secret.as_ref()? {
            Secret::Existing(existing) => existing.clone(),
            Secret::Content(_) => format!("{}-{name}", cluster.name),
        };
        let items: Vec<Value> = keys.iter().map(|k| json!({ "key": k, "path": k })).collect();
        Some(json!({ "name": name, "secret": { "secretName": existing, "defaultMode": SECRET_MODE, "items": items } }))
    };
    let secrets = [secret("token", &cluster.token, &[TOKEN]), secret("tls", &cluster.tls, &TLS)];
    claims.chain(secrets.into_iter().flatten()).chain([json!({ "name": "tmp", "emptyDir": {} })]).collect()
}

fn mounts(cluster: &Cluster, component: Component) -> Vec<Value> {
    let mount = |name: &str, path: &str, read_only: bool| json!({ "name": name, "mountPath": path, "readOnly": read_only });
    let claims = cluster.claims.iter().enumerate().map(|(i, c)| mount(&format!("claim-{i}"), &c.mount, !writes(component, c)));
    let token = cluster.token.as_ref().map(|_| mount("token", TOKEN_DIR, true));
    let tls = cluster.tls.as_ref().map(|_| mount("tls", TLS_DIR, true));
    claims.chain(token).chain(tls).chain([mount("tmp", "/tmp", false)]).collect()
}

/// Thousandths of a core, as Kubernetes writes them.
fn cpu(millicores: u64) -> String {
    if millicores.is_multiple_of(1000) { (millicores / 1000).to_string() } else { format!("{millicores}m") }
}

fn mebibytes(bytes: u64) -> String {
    format!("{}Mi", bytes.div_ceil(1 << 20))
}
