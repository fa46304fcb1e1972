//! Events that only a call shows: something was read, copied or measured, and no resource changed.

use super::Message;
use crate::App;
use crate::filters::Params;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use std::sync::Arc;

/// Method, what of `/containers/{id}/WHAT`, and action; sent when the call went well.
const CALLS: [(Method, &str, &str); 6] = [
    (Method::GET, "archive", "archive-path"),
    (Method::PUT, "archive", "extract-to-dir"),
    (Method::GET, "export", "export"),
    (Method::GET, "top", "top"),
    (Method::POST, "resize", "resize"),
    (Method::POST, "update", "update"),
];

/// Sends the event of the call, if it has one.
pub async fn tell(State(app): State<Arc<App>>, params: Params, request: Request, next: Next) -> Response {
    let path: Vec<&str> = request.uri().path().split('/').skip(1).collect();
    let (key, action) = match path.as_slice() {
        ["containers", key, what] => {
            let called = CALLS.iter().find(|(method, of, _)| of == what && method == request.method());
            ((*key).to_owned(), called.map(|c| c.2))
        }
        _ => (String::new(), None),
    };
    let response = next.run(request).await;
    if let Some(action) = action.filter(|_| response.status().is_success())
        && let Ok(container) = app.store.world().container(&key)
    {
        let size = [("height", params.get("h")), ("width", params.get("w"))];
        let size = size.into_iter().filter(|_| action == "resize");
        let more: Vec<_> = size.filter_map(|(name, value)| value.map(|v| (name, v.to_owned()))).collect();
        app.events.send(Message::container(container.spec(), action, &more));
    }
    response
}
