//! KV and locks of the Consul interface as one linearizable whole: clients read, write, compare and set, lock and unlock a few
//! keys at once while the server is killed and started again. Nothing acknowledged is lost, no lock is held twice, no read is
//! stale; what had no answer may have happened or not.

mod checker;

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use http::Method;
use serde_json::{Value, json};
use sidecar::http::client::Target;
use tokio::{sync::watch, time::sleep};

use crate::crash::{Server, ask};
use checker::{Event, Op, State, is_linearizable};

const CLIENTS: u8 = 6;
const KEYS: [&str; 3] = ["linear/a", "linear/b", "linear/c"];
const KILLS: usize = 5;

/// A client, which is its session as well.
struct Client {
    number: u8,
    sessions: Vec<String>,
    target: Target,
    token: String,
    began: Instant,
    stop: watch::Receiver<bool>,
    /// Values that it wrote.
    written: u32,
}

impl Client {
    /// What it did, by key.
    async fn run(mut self) -> [Vec<Event>; KEYS.len()] {
        let mut histories = [const { Vec::new() }; KEYS.len()];
        while !*self.stop.borrow() {
            let key = rand::random_range(0..KEYS.len());
            let called = self.now();
            let (op, known) = self.operate(KEYS[key]).await;
            let answered = known.then(|| self.now());
            if let Some(op) = op {
                histories[key].push(Event {
                    op,
                    called,
                    answered,
                });
            }
            if !known {
                self.until_back().await;
            }
        }
        histories
    }

    fn now(&self) -> Duration {
        Instant::now().duration_since(self.began)
    }

    /// Unlike any other's.
    fn value(&mut self) -> u32 {
        self.written += 1;
        self.written * 16 + u32::from(self.number)
    }

    /// One operation, and whether there was an answer; `None` for one that says nothing without.
    async fn operate(&mut self, key: &str) -> (Option<Op>, bool) {
        let session = self.number;
        let held = self.sessions[usize::from(session)].clone();
        match rand::random_range(0..100) {
            0..30 => match self.read(key).await {
                Some((seen, _)) => (Some(Op::Get(seen)), true),
                None => (None, false),
            },
            30..45 => {
                let value = self.value();
                let done = self.change(Method::PUT, key, "", value).await;
                (Some(Op::Put(value)), done.is_some())
            }
            45..48 => {
                let done = self.change(Method::DELETE, key, "", 0).await;
                (Some(Op::Delete), done.is_some())
            }
            48..70 => {
                let Some((seen, index)) = self.read(key).await else {
                    return (None, false);
                };
                let value = self.value();
                let condition = format!("cas={index}");
                let done = self.change(Method::PUT, key, &condition, value).await;
                (Some(Op::Cas(seen.value, value, done)), done.is_some())
            }
            70..85 => {
                let value = self.value();
                let condition = format!("acquire={held}");
                let done = self.change(Method::PUT, key, &condition, value).await;
                (Some(Op::Acquire(session, value, done)), done.is_some())
            }
            _ => {
                let value = self.value();
                let condition = format!("release={held}");
                let done = self.change(Method::PUT, key, &condition, value).await;
                (Some(Op::Release(session, value, done)), done.is_some())
            }
        }
    }

    /// The key, and its index; 0 when it is not there.
    async fn read(&self, key: &str) -> Option<(State, u64)> {
        let path = format!("/v1/kv/{key}");
        match ask(&self.target, Method::GET, &path, &self.token, "").await? {
            (404, _) => Some((State::default(), 0)),
            (200, body) => {
                let pair = &serde_json::from_str::<Value>(&body).unwrap()[0];
                let value = STANDARD.decode(pair["Value"].as_str().unwrap()).unwrap();
                let value = String::from_utf8(value).unwrap().parse().unwrap();
                let holder = pair["Session"].as_str();
                let holder = holder.map(|id| self.sessions.iter().position(|it| it == id).unwrap());
                let state = State {
                    value: Some(value),
                    holder: holder.map(|at| u8::try_from(at).unwrap()),
                };
                Some((state, pair["ModifyIndex"].as_u64().unwrap()))
            }
            // Up, and not unsealed yet.
            (500.., _) => None,
            other => panic!("{path}: {other:?}"),
        }
    }

    /// Whether it was done; `None` without an answer that says so.
    async fn change(&self, method: Method, key: &str, condition: &str, value: u32) -> Option<bool> {
        let path = format!("/v1/kv/{key}?{condition}");
        let body = value.to_string();
        match ask(&self.target, method, &path, &self.token, &body).await? {
            (200, body) => Some(body.trim() == "true"),
            (500.., why) => {
                assert!(!why.contains("invalid session"), "sessions outlive a kill");
                None
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    async fn until_back(&self) {
        while !*self.stop.borrow() && self.read(KEYS[0]).await.is_none() {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_locks_are_linearizable_over_kills_of_the_server() {
    let mut server = Server::configure();
    let (root, _) = server.initialised().await;
    let mut sessions = Vec::new();
    for client in 0..CLIENTS {
        let body = json!({"Name": format!("client {client}"), "NodeChecks": [], "LockDelay": "0s"});
        let path = "/v1/session/create";
        let made = ask(&server.http, Method::PUT, path, &root, &body.to_string()).await;
        let (status, made) = made.unwrap();
        assert_eq!(status, 200, "{made}");
        let made: Value = serde_json::from_str(&made).unwrap();
        sessions.push(made["ID"].as_str().unwrap().to_owned());
    }
    let (stop, stopped) = watch::channel(false);
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let client = Client {
                number,
                sessions: sessions.clone(),
                target: server.http.clone(),
                token: root.clone(),
                began,
                stop: stopped.clone(),
                written: 0,
            };
            tokio::spawn(client.run())
        })
        .collect();
    for _ in 0..KILLS {
        sleep(Duration::from_millis(rand::random_range(100..400))).await;
        server.kill();
        server.start();
        server.ready(&server.http, "/health/ready", 200).await;
    }
    sleep(Duration::from_millis(200)).await;
    stop.send_replace(true);
    let mut histories = [const { Vec::new() }; KEYS.len()];
    for client in clients {
        for (all, own) in histories.iter_mut().zip(client.await.unwrap()) {
            all.extend(own);
        }
    }
    for (key, history) in KEYS.iter().zip(&histories) {
        let unknown = history.iter().filter(|it| it.answered.is_none()).count();
        let count = history.len();
        assert!(count > 50, "{key}: only {count} operations");
        println!("{key}: {count} operations, {unknown} without an answer");
        assert!(is_linearizable(history), "{key}: {history:#?}");
    }
}
