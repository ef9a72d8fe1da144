//! `/v1/snapshot` where there is no store: a server has its own route.

use std::sync::Arc;

use super::{Inner, Refused, handler, server_error};
use crate::http::{Call, Reply, Routes};

pub fn routes(inner: &Arc<Inner>) -> Routes {
    if inner.about.server {
        return Routes::new();
    }
    let path = "/v1/snapshot";
    Routes::new()
        .get(path, handler(inner, elsewhere))
        .put(path, handler(inner, elsewhere))
}

async fn elsewhere(_: Arc<Inner>, _: Call) -> Result<Reply, Refused> {
    Err(server_error(
        "snapshots are larger than what agents pass on: ask the server's own port",
    ))
}
