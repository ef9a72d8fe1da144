//! Who asks too often.

use super::*;

async fn read(server: &Server, address: &str, path: &str) -> u16 {
    let token = [("x-vault-token", &*server.root)];
    let asked = server.send_from(address, "GET", path, &token, Value::Null);
    asked.await.0
}

#[tokio::test]
async fn an_address_has_so_many_requests_and_the_longest_path_counts() {
    let server = Server::start().await;
    let set = async |name: &str, quota: Value| {
        let path = format!("sys/quotas/rate-limit/{name}");
        server.root("POST", &path, quota).await;
    };
    set("all", json!({"rate": 1000})).await;
    set(
        "secrets",
        json!({"path": "secret/", "rate": 3, "interval": "1m"}),
    )
    .await;
    let (one, other) = ("192.0.2.1", "192.0.2.2");
    for _ in 0..3 {
        assert_eq!(read(&server, one, "secret/data/a").await, 404);
    }
    assert_eq!(read(&server, one, "secret/data/a").await, 429);
    assert_eq!(
        read(&server, other, "secret/data/a").await,
        404,
        "another address"
    );
    assert_eq!(read(&server, one, "sys/mounts").await, 200, "another path");
    server.clock.advance(20);
    assert_eq!(read(&server, one, "secret/data/a").await, 404, "one more");
    assert_eq!(read(&server, one, "secret/data/a").await, 429);
    let six = async |address: &str| read(&server, address, "secret/data/a").await;
    for address in ["2001:db8::1", "2001:db8::2", "2001:db8::3"] {
        assert_eq!(six(address).await, 404);
    }
    assert_eq!(six("2001:db8::4").await, 429, "one network");
    assert_eq!(six("2001:db8:0:1::1").await, 404, "another one");
    // Not even who nobody knows costs more than that.
    let (status, answer) = server
        .send_from(
            one,
            "GET",
            "secret/data/a",
            &[("x-vault-token", "x")],
            Value::Null,
        )
        .await;
    assert_eq!(status, 429);
    assert!(
        answer["errors"][0]
            .as_str()
            .unwrap()
            .contains("quota exceeded")
    );
    // Shut out for a while.
    let quota = json!({"path": "secret/", "rate": 1, "block_interval": "10m"});
    set("secrets", quota).await;
    server.clock.advance(60);
    assert_eq!(read(&server, one, "secret/data/a").await, 404);
    assert_eq!(read(&server, one, "secret/data/a").await, 429);
    server.clock.advance(300);
    assert_eq!(read(&server, one, "secret/data/a").await, 429);
    server.clock.advance(301);
    assert_eq!(read(&server, one, "secret/data/a").await, 404);
}

#[tokio::test]
async fn quotas_are_kept_shown_and_taken_away() {
    let mut server = Server::start().await;
    let quota = json!({"path": "secret/data/hot", "rate": "0.5"});
    server
        .root("POST", "sys/quotas/rate-limit/hot", quota)
        .await;
    server.reload();
    let path = "sys/quotas/rate-limit/hot";
    let shown = server.root("GET", path, Value::Null).await;
    assert_eq!(
        (&shown["data"]["rate"], &shown["data"]["interval"]),
        (&json!(0.5), &json!(1))
    );
    let listed = server
        .root("LIST", "sys/quotas/rate-limit", Value::Null)
        .await;
    assert_eq!(listed["data"]["keys"], json!(["hot"]));
    for wrong in [
        json!({}),
        json!({"rate": 0}),
        json!({"rate": -1}),
        json!({"rate": "many"}),
        json!({"rate": 1, "interval": "0s"}),
        json!({"rate": 1, "role": "x"}),
    ] {
        let text = wrong.to_string();
        let (status, _) = server.send("POST", path, &server.root, None, wrong).await;
        assert_eq!(status, 400, "{text}");
    }
    let exempt = json!({"rate_limit_exempt_paths": ["secret/data/hot"]});
    server.root("POST", "sys/quotas/config", exempt).await;
    for _ in 0..3 {
        assert_eq!(read(&server, "192.0.2.1", "secret/data/hot").await, 404);
    }
    server.root("DELETE", path, Value::Null).await;
    let (status, _) = server
        .send("GET", path, &server.root, None, Value::Null)
        .await;
    assert_eq!(status, 404);
}
