//! Queries that wait.

use super::*;

#[tokio::test]
async fn a_blocking_query_waits_for_its_own_service_only() {
    let api = api();
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let index = get(&api, "/v1/health/service/web").await.index();
    assert!(index > 1_000_000);

    let path = format!("/v1/health/service/web?index={index}&wait=60s");
    let waiting = tokio::spawn({
        let (api, path) = (api.clone(), path.clone());
        async move { get(&api, &path).await }
    });
    // Neither another service nor the same registration again ends the wait.
    register(&api, json!({"Name": "other", "Port": 1})).await;
    register(&api, json!({"Name": "web", "Port": 1})).await;
    let short = format!("/v1/health/service/web?index={index}&wait=300ms");
    let began = Instant::now();
    assert_eq!(get(&api, &short).await.index(), index);
    assert!(Instant::now() - began >= Duration::from_millis(300));
    assert!(!waiting.is_finished());

    register(&api, json!({"Name": "web", "Port": 2})).await;
    let woken = timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(woken.json()[0]["Service"]["Port"], 2);
    assert!(woken.index() > index);
    // An old index, and index 0, answer at once.
    for old in [0, index] {
        let path = format!("/v1/health/service/web?index={old}&wait=60s");
        timeout(Duration::from_secs(10), get(&api, &path))
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_service_nobody_has_answers_old_indexes_at_once_and_does_not_spin() {
    let api = api();
    let first = timeout(
        Duration::from_secs(10),
        get(&api, "/v1/health/service/absent?index=1&wait=60s"),
    );
    let first = first.await.unwrap();
    assert_eq!(first.text, "[]");
    let path = format!(
        "/v1/health/service/absent?index={}&wait=200ms",
        first.index()
    );
    let began = Instant::now();
    get(&api, &path).await;
    assert!(Instant::now() - began >= Duration::from_millis(200));
}

#[tokio::test]
async fn a_drain_ends_long_polls() {
    let api = api();
    let index = get(&api, "/v1/catalog/nodes").await.index();
    let conn = Arc::new(ConnInfo::new(Remote::Tcp(([127, 0, 0, 1], 9).into())));
    let path = format!("/v1/catalog/nodes?index={index}&wait=60s");
    let request = Request::get(path).body(Bytes::new()).unwrap();
    let waiting = tokio::spawn(api.handle(request, Arc::clone(&conn)));
    conn.shutdown.cancel();
    let reply = timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(reply.status(), 200);
}
