//! The objects around the pods: Secrets, Services, the StatefulSet, its disruption budget, the Job.

use super::names::{Component, METRICS_PORT};
use super::{Cluster, Secret, pods};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// The exit code after which another start would say the same: the call is wrong. Behind others may be a peer that was lost.
const FINAL: u8 = 2;

/// All objects, in the order in which they are created.
pub(super) fn all(cluster: &Cluster) -> Vec<Value> {
    let mut out = Vec::new();
    for (name, kind, secret) in [("token", "Opaque", &cluster.token), ("tls", "kubernetes.io/tls", &cluster.tls)] {
        if let Some(Secret::Content(content)) = secret {
            out.push(written(cluster, name, kind, content));
        }
    }
    out.extend([service(cluster, Component::Pserver), service(cluster, Component::Worker), pservers(cluster)]);
    if cluster.replicas > 1 {
        out.push(budget(cluster));
    }
    out.push(workers(cluster));
    out
}

/// Labels of what belongs to the job.
fn labels(cluster: &Cluster, component: Option<Component>) -> Value {
    let mut labels = selector(cluster, component);
    labels.insert("app.kubernetes.io/managed-by".into(), "graphtool".into());
    Value::Object(labels)
}

/// Labels by which the pods of a component are found.
pub(super) fn selector(cluster: &Cluster, component: Option<Component>) -> Map<String, Value> {
    let mut labels = Map::new();
    labels.insert("app.kubernetes.io/name".into(), "graphtool".into());
    labels.insert("app.kubernetes.io/instance".into(), cluster.name.clone().into());
    if let Some(component) = component {
        labels.insert("app.kubernetes.io/component".into(), component.word().into());
    }
    labels
}

fn object(cluster: &Cluster, (version, kind): (&str, &str), name: &str, component: Option<Component>, rest: Value) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(namespace) = &cluster.namespace {
        metadata["namespace"] = json!(namespace);
    }
    metadata["labels"] = labels(cluster, component);
    let mut object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata });
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    object
}

fn written(cluster: &Cluster, name: &str, kind: &str, content: &[(&'static str, Vec<u8>)]) -> Value {
    let data: Map<String, Value> = content.iter().map(|(key, bytes)| ((*key).to_owned(), STANDARD.encode(bytes).into())).collect();
    let name = format!("{}-{name}", cluster.name);
    object(cluster, ("v1", "Secret"), &name, None, json!({ "type": kind, "data": data }))
}

/// Names for the pods, from before they are ready: a pserver that loads is looked for already, and workers wait for each other.
fn service(cluster: &Cluster, component: Component) -> Value {
    let ports = [(component.word(), component.port()), ("metrics", METRICS_PORT)];
    let ports: Vec<Value> = ports.into_iter().map(|(name, port)| json!({ "name": name, "port": port, "targetPort": name })).collect();
    let spec = json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": selector(cluster, Some(component)),
        "ports": ports,
    });
    object(cluster, ("v1", "Service"), &cluster.name_of(component), Some(component), json!({ "spec": spec }))
}

fn template(cluster: &Cluster, component: Component, spec: Value) -> Value {
    let annotations = json!({
        "prometheus.io/scrape": "true",
        "prometheus.io/port": METRICS_PORT.to_string(),
        "prometheus.io/path": "/metrics",
        // Another deployment at the same path is another template, so that its pservers start again.
        "graphtool/plan-id": cluster.plan_id,
    });
    json!({ "metadata": { "labels": labels(cluster, Some(component)), "annotations": annotations }, "spec": spec })
}

fn pservers(cluster: &Cluster) -> Value {
    let name = cluster.name_of(Component::Pserver);
    let spec = json!({
        "serviceName": name,
        "replicas": cluster.pservers.count,
        "podManagementPolicy": "Parallel",
        "selector": { "matchLabels": selector(cluster, Some(Component::Pserver)) },
        "template": template(cluster, Component::Pserver, pods::pserver(cluster)),
    });
    object(cluster, ("apps/v1", "StatefulSet"), &name, Some(Component::Pserver), json!({ "spec": spec }))
}

/// As many pservers may be taken away at once as leave one of each shard's.
fn budget(cluster: &Cluster) -> Value {
    let spec = json!({
        "maxUnavailable": cluster.replicas - 1,
        "selector": { "matchLabels": selector(cluster, Some(Component::Pserver)) },
    });
    let name = cluster.name_of(Component::Pserver);
    object(cluster, ("policy/v1", "PodDisruptionBudget"), &name, Some(Component::Pserver), json!({ "spec": spec }))
}

fn workers(cluster: &Cluster) -> Value {
    let spec = json!({
        "completionMode": "Indexed",
        "completions": cluster.workers.count,
        "parallelism": cluster.workers.count,
        "backoffLimitPerIndex": cluster.restarts,
        // Without one of its workers a job has no output.
        "maxFailedIndexes": 0,
        "podFailurePolicy": { "rules": [
            { "action": "FailJob", "onExitCodes": { "operator": "In", "values": [FINAL] } },
            // A node that is drained is no fault of the pod.
            { "action": "Ignore", "onPodConditions": [{ "type": "DisruptionTarget", "status": "True" }] },
        ] },
        // When worker 0 is done the output stands, and nobody else is missed.
        "successPolicy": { "rules": [{ "succeededIndexes": "0" }] },
        "template": template(cluster, Component::Worker, pods::worker(cluster)),
    });
    let name = cluster.name_of(Component::Worker);
    object(cluster, ("batch/v1", "Job"), &name, Some(Component::Worker), json!({ "spec": spec }))
}
