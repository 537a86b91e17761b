//! What is answered at which path.

use super::body::{Coding, discard, pack, read, unpack};
use super::protocol::{Answer, Refusal, parse, print};
use super::{Service, page};
use crate::http::Router;
use crate::job::exposition::Exposition;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

type Shared = State<Arc<Service>>;

/// Bytes of JSON in front of binary data, in requests and answers.
const JSON_LENGTH: &str = "inference-header-content-length";

/// Bodies from this size on are parsed where they keep nobody waiting.
const LONG: usize = 32 << 10;

/// Everything that a server answers.
pub(super) fn routes(service: Arc<Service>) -> Router {
    let model = Router::new()
        .route("/", get(metadata))
        .route("/config", get(config))
        .route("/infer", post(infer))
        .route("/ready", get(model_ready))
        .route("/stats", get(stats));
    Router::new()
        .route("/", get(async || text("text/html; charset=utf-8", page::PAGE.into())))
        .route("/healthz", get(async || text(PLAIN, "ok\n".into())))
        .route("/metrics", get(metrics))
        .route("/page/about.json", get(about))
        .route("/page/graph.svg", get(graph))
        .route("/page/live.json", get(live))
        .route("/readyz", get(readyz))
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(async || reply(&json!({ "live": true }))))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/stats", get(all_stats))
        .route("/v2/models/{name}/", get(metadata))
        .route("/v2/repository/index", post(index))
        .nest("/v2/models/{name}", model.clone())
        .nest("/v2/models/{name}/versions/{version}", model)
        .fallback(async |_: Allowed| -> Response { Refusal::Absent("there is nothing at this path".into()).into_response() })
        .method_not_allowed_fallback(async || Refusal::Method("this path is not for this method".into()))
        .with_state(service)
}

const PLAIN: &str = "text/plain; charset=utf-8";

fn text(kind: &'static str, content: String) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], content).into_response()
}

fn reply(json: &Value) -> Response {
    text("application/json", json.to_string())
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, text("application/json", self.json())).into_response();
        match self {
            Refusal::Busy(_) => drop(response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"))),
            Refusal::Token(_) => drop(response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            _ => {}
        }
        response
    }
}

/// A peer that has the token, where one is asked for.
struct Allowed;

impl FromRequestParts<Arc<Service>> for Allowed {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Refusal> {
        service.allows(&parts.headers).map(|()| Self)
    }
}

/// A path that names the model, if it names one.
struct Known;

impl FromRequestParts<Arc<Service>> for Known {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service>) -> Result<Self, Refusal> {
        let path = Path::<Vec<(String, String)>>::from_request_parts(parts, service).await;
        let Path(path) = path.map_err(|e| Refusal::Bad(e.body_text()))?;
        service.knows(&path).map(|()| Self)
    }
}

impl Service {
    fn allows(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let given = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
        let token = given.and_then(|v| v.split_once(' ')).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|t| t.1.trim());
        if crate::wire::token_fits(self.token.as_deref(), token) {
            return Ok(());
        }
        let sent = if given.is_some() { "another one was sent" } else { "none was sent" };
        Err(Refusal::Token(format!("a token is required (Authorization: Bearer), {sent}")))
    }

    /// That a path names the model.
    fn knows(&self, path: &[(String, String)]) -> Result<(), Refusal> {
        let part = |name: &str| path.iter().find(|p| p.0 == name).map(|p| p.1.as_str());
        let own = &self.interface;
        match (part("name"), part("version")) {
            (Some(name), _) if name != own.name => {
                Err(Refusal::Absent(format!("model \"{name}\": there is none of this name, there is \"{}\"", own.name)))
            }
            (_, Some(v)) if v != own.version => {
                Err(Refusal::Absent(format!("model \"{}\": there is no version \"{v}\", there is \"{}\"", own.name, own.version)))
            }
            _ => Ok(()),
        }
    }
}

async fn server(_: Allowed) -> Response {
    reply(&json!({
        "name": "graphtool",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data", "model_configuration", "model_repository", "statistics"],
    }))
}

async fn ready(State(service): Shared) -> Response {
    let ready = service.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, reply(&json!({ "ready": ready }))).into_response()
}

async fn readyz(State(service): Shared) -> Response {
    if service.ready() {
        text(PLAIN, "ready\n".into())
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, text(PLAIN, "not ready\n".into())).into_response()
    }
}

async fn model_ready(_: Known, State(service): Shared) -> Response {
    let ready = service.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, reply(&json!({ "name": service.interface.name, "ready": ready }))).into_response()
}

async fn metadata(_: Allowed, _: Known, State(service): Shared) -> Response {
    reply(&service.interface.metadata())
}

async fn config(_: Allowed, _: Known, State(service): Shared) -> Response {
    reply(&service.interface.config(service.batcher.batch()))
}

async fn stats(_: Allowed, _: Known, State(service): Shared) -> Response {
    reply(&service.statistics())
}

async fn all_stats(_: Allowed, State(service): Shared) -> Response {
    reply(&service.statistics())
}

async fn index(_: Allowed, State(service): Shared) -> Response {
    let state = if service.ready() { "READY" } else { "UNAVAILABLE" };
    reply(&json!([{ "name": service.interface.name, "version": service.interface.version, "state": state, "reason": "" }]))
}

async fn metrics(_: Allowed, State(service): Shared) -> Response {
    let mut all = Exposition::default();
    (service.more)(&mut all);
    service.counts.expose(&mut all, service.batcher.queue());
    text("text/plain; version=0.0.4; charset=utf-8", all.finish())
}

async fn about(_: Allowed, State(service): Shared) -> Response {
    text("application/json", service.about.clone())
}

async fn graph(_: Allowed, State(service): Shared) -> Response {
    text("image/svg+xml", service.picture.clone())
}

async fn live(_: Allowed, State(service): Shared) -> Response {
    let mut live = service.counts.live(service.batcher.queue());
    live["ready"] = service.ready().into();
    live["batch"] = service.batcher.batch().into();
    reply(&live)
}

async fn infer(
    allowed: Result<Allowed, Refusal>,
    known: Result<Known, Refusal>,
    State(service): Shared,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let start = Instant::now();
    let may = allowed.and(known);
    let response = answer(&service, may, &headers, body).await.unwrap_or_else(IntoResponse::into_response);
    service.counts.answered(response.status().as_u16(), start.elapsed());
    response
}

fn header_text(headers: &HeaderMap, name: impl header::AsHeaderName) -> &str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

async fn answer(service: &Arc<Service>, may: Result<Known, Refusal>, headers: &HeaderMap, body: Body) -> Result<Response, Refusal> {
    let head = || -> Result<_, Refusal> {
        may?;
        if service.ended() {
            return Err(Refusal::Busy("the server is ending".into()));
        }
        Ok((Coding::of_request(header_text(headers, header::CONTENT_ENCODING))?, json_length(headers)?))
    };
    let (coding, json) = match head() {
        Ok(all) => all,
        Err(e) => {
            discard(body).await;
            return Err(e);
        }
    };
    let stated = header_text(headers, header::CONTENT_LENGTH).parse().ok();
    let mut share = service.memory.share();
    let packed = read(body, stated, service.limit, &mut share).await?;
    let (long, limit, own) = (packed.len() >= LONG || coding.is_some(), service.limit, service.clone());
    let (request, _share) = aside(long, move || {
        let body = match coding {
            Some(coding) => unpack(&packed, coding, limit, &mut share)?,
            None => packed,
        };
        let json = json.unwrap_or(body.len());
        if json > body.len() {
            return Err(Refusal::Bad(format!("the head says {json} bytes of JSON, the body has {}", body.len())));
        }
        Ok((parse(&own.interface, &body[..json], body.slice(json..))?, share))
    })
    .await?;
    let outputs = service.batcher.run(request.inputs.clone()).await?;
    let wanted = Coding::wanted(header_text(headers, header::ACCEPT_ENCODING));
    let elements: usize = outputs.iter().filter_map(|o| o.1.as_tensor()).map(crate::tensor::Tensor::len).sum();
    let own = service.clone();
    let (answer, packed) = aside(elements >= LONG / 4, move || {
        let answer = print(&own.interface, &request, &outputs)?;
        let packed = wanted.and_then(|coding| Some((coding, pack(&answer.body, coding)?)));
        Ok((answer, packed))
    })
    .await?;
    Ok(response(answer, packed))
}

/// Runs what takes its time on a thread that nobody waits for.
async fn aside<T: Send + 'static>(long: bool, work: impl FnOnce() -> Result<T, Refusal> + Send + 'static) -> Result<T, Refusal> {
    if !long {
        return work();
    }
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(Refusal::Ours("internal error: it ended in a panic".into())))
}

fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(JSON_LENGTH) else { return Ok(None) };
    let wrong = || Refusal::Bad(format!("Inference-Header-Content-Length is no number of bytes: {value:?}"));
    value.to_str().ok().and_then(|t| t.trim().parse().ok()).map(Some).ok_or_else(wrong)
}

fn response(answer: Answer, packed: Option<(Coding, Vec<u8>)>) -> Response {
    let kind = if answer.json.is_some() { "application/octet-stream" } else { "application/json" };
    let (coding, body) = match packed {
        Some((coding, packed)) => (Some(coding), Body::from(packed)),
        None => (None, Body::from(answer.body)),
    };
    let mut response = ([(header::CONTENT_TYPE, HeaderValue::from_static(kind))], body).into_response();
    let headers = response.headers_mut();
    if let Some(json) = answer.json {
        headers.insert(JSON_LENGTH, HeaderValue::from(json));
    }
    if let Some(coding) = coding {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(coding.name()));
    }
    response
}
