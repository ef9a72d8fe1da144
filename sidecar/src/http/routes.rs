//! A route table: method and path pattern to handler.
//!
//! Patterns are literal segments, `:name` for one segment and `*name` for the (possibly empty) rest.
//! A literal segment wins over `:name`, which wins over `*name`. Segments are matched before they are
//! percent-decoded, so an escaped slash never splits a name.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Method, StatusCode, header};

use super::{ConnInfo, Reply, empty, query, query::Query, text};

/// A boxed future that may move between threads.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

type Handler = Arc<dyn Fn(Call) -> BoxFuture<Reply> + Send + Sync>;

/// One request on its way to a handler.
pub struct Call {
    /// The request with its whole body.
    pub request: http::Request<Bytes>,
    /// What the pattern's `:name` and `*name` matched, percent-decoded.
    pub params: Params,
    /// The parsed query string.
    pub query: Query,
    /// Who is asking.
    pub conn: Arc<ConnInfo>,
}

impl Call {
    /// The request's body.
    pub fn body(&self) -> &Bytes {
        self.request.body()
    }

    /// A header's value, if it is there and is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name)?.to_str().ok()
    }
}

/// The values of a pattern's parameters.
#[derive(Debug, Default, Clone)]
pub struct Params(Vec<(Arc<str>, String)>);

impl Params {
    /// The value of `name`; empty when the pattern has no such parameter.
    pub fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| &**key == name)
            .map_or("", |(_, value)| value)
    }
}

#[derive(Default, Clone)]
struct Node {
    literal: HashMap<Box<str>, Node>,
    param: Option<(Arc<str>, Box<Node>)>,
    rest: Option<(Arc<str>, Methods)>,
    methods: Methods,
}

type Methods = Vec<(Method, Handler)>;

/// The table. Cloning is cheap enough to do at start, not per request.
#[derive(Default, Clone)]
pub struct Routes {
    root: Node,
    fallback: Option<Handler>,
}

impl Routes {
    /// An empty table: everything is 404.
    pub fn new() -> Routes {
        Routes::default()
    }

    /// Adds a route. The first registration of a method and pattern wins.
    #[must_use]
    pub fn on<F, R>(mut self, method: Method, pattern: &str, handler: F) -> Routes
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |call| Box::pin(handler(call)));
        self.root.methods_of(pattern).push((method, handler));
        self
    }

    /// [`Routes::on`] for `GET`.
    #[must_use]
    pub fn get<F, R>(self, pattern: &str, handler: F) -> Routes
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        self.on(Method::GET, pattern, handler)
    }

    /// [`Routes::on`] for `PUT`.
    #[must_use]
    pub fn put<F, R>(self, pattern: &str, handler: F) -> Routes
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        self.on(Method::PUT, pattern, handler)
    }

    /// What answers when no pattern matches; a plain 404 unless set.
    #[must_use]
    pub fn fallback<F, R>(mut self, handler: F) -> Routes
    where
        F: Fn(Call) -> R + Send + Sync + 'static,
        R: Future<Output = Reply> + Send + 'static,
    {
        self.fallback = Some(Arc::new(move |call| Box::pin(handler(call))));
        self
    }

    /// Adds every route of `other`. This table's fallback stays, unless it has none.
    #[must_use]
    pub fn merge(mut self, other: Routes) -> Routes {
        self.fallback = self.fallback.or(other.fallback);
        self.root.merge(other.root);
        self
    }

    /// Every pattern with its methods, in order.
    pub fn table(&self) -> Vec<(String, Vec<Method>)> {
        let mut table = Vec::new();
        self.root.list("", &mut table);
        table.sort_by(|(a, _), (b, _)| a.cmp(b));
        table
    }

    /// Answers a request: the handler's reply, 404, 405 with `Allow`, or 200 with `Allow` for `OPTIONS`.
    pub async fn dispatch(&self, request: http::Request<Bytes>, conn: Arc<ConnInfo>) -> Reply {
        let query = Query::parse(request.uri().query());
        self.dispatch_with(request, query, conn).await
    }

    /// The same for a request whose query was parsed already.
    pub async fn dispatch_with(
        &self,
        request: http::Request<Bytes>,
        query: Query,
        conn: Arc<ConnInfo>,
    ) -> Reply {
        let mut found = Vec::new();
        let segments: Vec<&str> = request
            .uri()
            .path()
            .strip_prefix('/')
            .unwrap_or(request.uri().path())
            .split('/')
            .collect();
        let handler = match self.root.find(&segments, &mut found) {
            None => self.fallback.clone(),
            Some(methods) => {
                let fits = methods
                    .iter()
                    .find(|(method, _)| method == request.method());
                match fits {
                    Some((_, handler)) => Some(Arc::clone(handler)),
                    None => return refuse(methods, request.method()),
                }
            }
        };
        let Some(handler) = handler else {
            return text(StatusCode::NOT_FOUND, "no such path\n");
        };
        handler(Call {
            params: Params(found),
            query,
            conn,
            request,
        })
        .await
    }
}

fn refuse(methods: &Methods, method: &Method) -> Reply {
    let mut reply = if method == Method::OPTIONS {
        empty(StatusCode::OK)
    } else {
        text(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("method {method} not allowed"),
        )
    };
    let allow = methods
        .iter()
        .fold("OPTIONS".to_owned(), |list, (m, _)| format!("{list},{m}"));
    if let Ok(allow) = allow.parse() {
        reply.headers_mut().insert(header::ALLOW, allow);
    }
    reply
}

impl Node {
    fn methods_of(&mut self, pattern: &str) -> &mut Methods {
        let mut node = self;
        for segment in pattern.trim_start_matches('/').split('/') {
            if let Some(name) = segment.strip_prefix('*') {
                return &mut node.rest.get_or_insert_with(|| (name.into(), Vec::new())).1;
            }
            node = match segment.strip_prefix(':') {
                Some(name) => {
                    &mut node
                        .param
                        .get_or_insert_with(|| (name.into(), Box::default()))
                        .1
                }
                None => node.literal.entry(segment.into()).or_default(),
            };
        }
        &mut node.methods
    }

    fn list(&self, path: &str, table: &mut Vec<(String, Vec<Method>)>) {
        let mut add = |path: String, methods: &Methods| {
            let mut methods: Vec<_> = methods.iter().map(|(method, _)| method.clone()).collect();
            methods.sort_by(|a, b| a.as_str().cmp(b.as_str()));
            methods.dedup();
            if !methods.is_empty() {
                table.push((path, methods));
            }
        };
        add(path.to_owned(), &self.methods);
        if let Some((name, methods)) = &self.rest {
            add(format!("{path}/*{name}"), methods);
        }
        for (segment, node) in &self.literal {
            node.list(&format!("{path}/{segment}"), table);
        }
        if let Some((name, node)) = &self.param {
            node.list(&format!("{path}/:{name}"), table);
        }
    }

    fn find(&self, path: &[&str], found: &mut Vec<(Arc<str>, String)>) -> Option<&Methods> {
        let Some((first, tail)) = path.split_first() else {
            return (!self.methods.is_empty()).then_some(&self.methods);
        };
        if let Some(node) = self.literal.get(*first)
            && let Some(methods) = node.find(tail, found)
        {
            return Some(methods);
        }
        if let Some((name, node)) = &self.param {
            let before = found.len();
            found.push((Arc::clone(name), query::decode(first)));
            if let Some(methods) = node.find(tail, found) {
                return Some(methods);
            }
            found.truncate(before);
        }
        let (name, methods) = self.rest.as_ref()?;
        found.push((Arc::clone(name), query::decode(&path.join("/"))));
        Some(methods)
    }

    fn merge(&mut self, other: Node) {
        for (segment, node) in other.literal {
            self.literal.entry(segment).or_default().merge(node);
        }
        if let Some((name, node)) = other.param {
            let own = self.param.get_or_insert_with(|| (name, Box::default()));
            own.1.merge(*node);
        }
        if let Some((name, methods)) = other.rest {
            let own = self.rest.get_or_insert_with(|| (name, Vec::new()));
            own.1.extend(methods);
        }
        self.methods.extend(other.methods);
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::http::Remote;

    async fn ask(routes: &Routes, method: Method, path: &str) -> (StatusCode, String, String) {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .body(Bytes::new())
            .unwrap();
        let conn = ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 1).into()));
        let reply = routes.dispatch(request, Arc::new(conn)).await;
        let allow = reply
            .headers()
            .get("allow")
            .map(|v| v.to_str().unwrap().to_owned());
        let status = reply.status();
        let body = reply.into_body().collect().await.unwrap().to_bytes();
        (
            status,
            String::from_utf8(body.to_vec()).unwrap(),
            allow.unwrap_or_default(),
        )
    }

    fn table() -> Routes {
        let echo = |name: &'static str, param: &'static str| {
            move |call: Call| async move {
                text(StatusCode::OK, format!("{name}={}", call.params.get(param)))
            }
        };
        Routes::new()
            .get("/v1/kv/*key", echo("kv", "key"))
            .put("/v1/kv/*key", echo("put", "key"))
            .merge(Routes::new().get("/v1/service/:id", echo("one", "id")))
            .merge(Routes::new().get("/v1/service/all", echo("all", "")))
    }

    #[tokio::test]
    async fn literal_beats_parameter_and_escaped_slashes_stay_in_a_name() {
        let routes = table();
        let ask = async |path| ask(&routes, Method::GET, path).await.1;
        assert_eq!(ask("/v1/service/all").await, "all=");
        assert_eq!(ask("/v1/service/a%2Fb").await, "one=a/b");
        assert_eq!(ask("/v1/kv/a/b%20c").await, "kv=a/b c");
        assert_eq!(ask("/v1/kv/").await, "kv=");
    }

    #[tokio::test]
    async fn unknown_path_wrong_method_and_options() {
        let routes = table();
        assert_eq!(ask(&routes, Method::GET, "/v1/none").await.0, 404);
        assert_eq!(ask(&routes, Method::GET, "/v1/service/a/b").await.0, 404);
        let (status, body, allow) = ask(&routes, Method::POST, "/v1/kv/a").await;
        assert_eq!(
            (status.as_u16(), &*body, &*allow),
            (405, "method POST not allowed", "OPTIONS,GET,PUT")
        );
        let (status, _, allow) = ask(&routes, Method::OPTIONS, "/v1/service/x").await;
        assert_eq!((status.as_u16(), &*allow), (200, "OPTIONS,GET"));
    }
}
