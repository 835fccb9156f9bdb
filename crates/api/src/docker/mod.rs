//! The Docker Engine API: which request is it, may it, and who answers it.
//!
//! ```text
//! system  containers  create  start (start, attach, wait)  logs  archive  exec     one file for each group of
//! images  registry (pull, push)  networks  volumes  events  swarm                 paths of Docker's reference
//! ```

mod admission;
mod archive;
mod attach;
mod containers;
mod create;
mod events;
mod exec;
mod images;
mod logs;
mod networks;
pub(crate) mod registry;
mod shapes;
mod start;
mod system;
mod volumes;
mod wait;

pub(crate) use crate::ask::{self, Answer, Ask};
use admission::entered;

use crate::body::Body;
use crate::fault::Fault;
use crate::policy;
use crate::shared::Server;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use std::sync::Arc;

/// Answers one request, whatever it is.
pub(crate) async fn answer(server: Arc<Server>, request: Request<Incoming>) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let version = server.settings.build.version;
    let done = match Ask::new(server, request) {
        Ok(ask) => route(ask).await,
        Err(fault) => Err(fault),
    };
    let mut response = done.unwrap_or_else(|fault| explain(&fault));
    let headers = response.headers_mut();
    headers.insert("Api-Version", HeaderValue::from_static(engine::API_VERSION));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    if let Ok(value) = HeaderValue::from_str(&format!("Dhow/{version} (linux)")) {
        headers.insert("Server", value);
    }
    if head {
        *response.body_mut() = Body::empty();
    }
    response
}

fn explain(fault: &Fault) -> Response<Body> {
    let body = serde_json::json!({"message": fault.message}).to_string() + "\n";
    let mut response = Response::new(Body::of(body));
    *response.status_mut() = StatusCode::from_u16(fault.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Finds who answers. Names of images have slashes, which are not encoded.
async fn route(ask: Ask) -> Answer {
    let path = ask.path.clone();
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    if ask.server.settings.policy.read_only && !changes_nothing(&ask.method, &parts) {
        return Err(policy::refused(
            "readonly",
            &format!("{} /{} changes something", ask.method, parts.join("/")),
        ));
    }
    let method = ask.method.as_str();
    match (method, &parts[..]) {
        ("GET" | "HEAD", ["_ping"]) => system::ping(),
        ("GET", ["version"]) => system::version(&ask),
        ("GET", ["info"]) => system::info(ask).await,
        ("GET", ["system", "df"]) => system::df(ask).await,
        ("POST", ["auth"]) => registry::auth(ask).await,
        ("GET", ["events"]) => events::events(ask).await,
        (_, ["containers", rest @ ..]) => container(ask, rest).await,
        (_, ["exec", id, rest @ ..]) => match (method, rest) {
            ("POST", ["start"]) => exec::start(ask, id).await,
            ("POST", ["resize"]) => exec::resize(ask, id).await,
            ("GET", ["json"]) => exec::inspect(ask, id).await,
            _ => Err(nothing_there()),
        },
        ("POST", ["commit"]) => images::commit(ask).await,
        (_, ["images", rest @ ..]) => image(ask, rest).await,
        ("GET", ["distribution", name @ .., "json"]) => registry::distribution(ask, &name.join("/")).await,
        (_, ["networks", rest @ ..]) => network(ask, rest).await,
        (_, ["volumes", rest @ ..]) => volume(ask, rest).await,
        ("GET", ["plugins"]) => ask::json(StatusCode::OK, &serde_json::json!([])),
        ("POST", ["build"]) => {
            Err(Fault::new(501, "build is not implemented yet: this server has no builder"))
        }
        ("POST", ["build", "prune"]) => {
            ask::json(StatusCode::OK, &serde_json::json!({"CachesDeleted": null, "SpaceReclaimed": 0}))
        }
        ("POST", ["session" | "grpc"]) => {
            Err(Fault::new(501, "BuildKit's sessions are not implemented: this server has no builder"))
        }
        ("GET", ["swarm" | "nodes" | "services" | "tasks" | "secrets" | "configs", ..])
        | ("POST", ["swarm" | "nodes" | "services" | "secrets" | "configs", ..])
        | ("DELETE", ["nodes" | "services" | "secrets" | "configs", ..]) => Err(Fault::new(
            501,
            "Swarm is not implemented: Dhow runs workloads on this host only; use Compose, or Kubernetes",
        )),
        ("GET", ["plugins", name @ .., "json"]) => {
            Err(Fault::not_found(format!("plugin {:?} not found", name.join("/"))))
        }
        (_, ["plugins", ..]) => Err(Fault::new(501, "plugins are not implemented: drivers are built in")),
        _ => Err(nothing_there()),
    }
}

async fn container(ask: Ask, rest: &[&str]) -> Answer {
    match (ask.method.as_str(), rest) {
        ("GET", ["json"]) => containers::list(ask).await,
        ("POST", ["create"]) => create::create(ask).await,
        ("POST", ["prune"]) => containers::prune(ask).await,
        ("DELETE", [id]) => containers::remove(ask, id).await,
        ("GET", [id, "json"]) => containers::inspect(ask, id).await,
        ("GET", [id, "top"]) => containers::top(ask, id).await,
        ("GET", [id, "logs"]) => logs::logs(ask, id).await,
        ("GET", [id, "changes"]) => containers::changes(ask, id).await,
        ("GET", [id, "export"]) => archive::export(ask, id).await,
        ("GET", [id, "stats"]) => containers::stats(ask, id).await,
        ("GET", [id, "attach", "ws"]) => attach::websocket(ask, id).await,
        ("GET", [id, "archive"]) => archive::get(ask, id).await,
        ("HEAD", [id, "archive"]) => archive::head(ask, id).await,
        ("PUT", [id, "archive"]) => archive::put(ask, id).await,
        ("POST", [id, "attach"]) => attach::attach(ask, id).await,
        ("POST", [id, "start"]) => start::start(ask, id).await,
        ("POST", [id, "wait"]) => wait::wait(ask, id).await,
        ("POST", [id, "exec"]) => exec::create(ask, id).await,
        ("POST", [id, verb]) => containers::act(ask, id, verb).await,
        _ => Err(nothing_there()),
    }
}

async fn image(ask: Ask, rest: &[&str]) -> Answer {
    match (ask.method.as_str(), rest) {
        ("GET", ["json"]) => images::list(ask).await,
        ("GET", ["search"]) => registry::search(ask).await,
        ("GET", ["get"]) => images::save(ask, None).await,
        ("POST", ["create"]) => registry::create(ask).await,
        ("POST", ["load"]) => images::load(ask).await,
        ("POST", ["prune"]) => images::prune(ask).await,
        ("GET", [name @ .., "json"]) => images::inspect(ask, &name.join("/")).await,
        ("GET", [name @ .., "history"]) => images::history(ask, &name.join("/")).await,
        ("GET", [name @ .., "get"]) => images::save(ask, Some(name.join("/"))).await,
        ("POST", [name @ .., "push"]) => registry::push(ask, &name.join("/")).await,
        ("POST", [name @ .., "tag"]) => images::tag(ask, &name.join("/")).await,
        ("DELETE", name) if !name.is_empty() => images::remove(ask, &name.join("/")).await,
        _ => Err(nothing_there()),
    }
}

async fn network(ask: Ask, rest: &[&str]) -> Answer {
    match (ask.method.as_str(), rest) {
        ("GET", []) => networks::list(ask).await,
        ("POST", ["create"]) => networks::create(ask).await,
        ("POST", ["prune"]) => networks::prune(ask).await,
        ("GET", [id]) => networks::inspect(ask, id).await,
        ("DELETE", [id]) => networks::remove(ask, id).await,
        ("POST", [id, "connect"]) => networks::connect(ask, id).await,
        ("POST", [id, "disconnect"]) => networks::disconnect(ask, id).await,
        _ => Err(nothing_there()),
    }
}

async fn volume(ask: Ask, rest: &[&str]) -> Answer {
    match (ask.method.as_str(), rest) {
        ("GET", []) => volumes::list(ask).await,
        ("POST", ["create"]) => volumes::create(ask).await,
        ("POST", ["prune"]) => volumes::prune(ask).await,
        ("GET", [name]) => volumes::inspect(ask, name).await,
        ("DELETE", [name]) => volumes::remove(ask, name).await,
        _ => Err(nothing_there()),
    }
}

fn nothing_there() -> Fault {
    Fault::not_found("page not found")
}

/// What `--readonly` lets through: attaching by websocket is a GET, and a way to write into a workload.
fn changes_nothing(method: &Method, parts: &[&str]) -> bool {
    matches!(*method, Method::GET | Method::HEAD) && !matches!(parts, ["containers", _, "attach", "ws"])
        || matches!(parts, ["containers", _, "wait"])
}
