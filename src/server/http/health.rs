//! `/livez`, `/readyz` and `/metrics`.

use std::time::Duration;

use hyper::StatusCode;

use super::{Answer, HttpDoor, content, text};
use crate::metrics;

/// The time for finding out about our own health.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(3);

/// Who can answer now. Texts name the thing (`directory corp: no server answers`) and are shown to anyone who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything.
    Ready,
    /// Memory, the store or a directory; not all of them.
    Degraded(Vec<String>),
    /// Nobody.
    Down(Vec<String>),
}

pub(super) fn alive() -> Answer {
    text(StatusCode::OK, "ok\n".into())
}

impl HttpDoor {
    pub(super) async fn readiness(&self) -> Answer {
        let health = tokio::time::timeout(HEALTH_TIMEOUT, (self.parts.health)()).await;
        let health = health.unwrap_or_else(|_| {
            Health::Down(vec![format!("no answer within {} s", HEALTH_TIMEOUT.as_secs())])
        });
        match health {
            Health::Ready => text(StatusCode::OK, "ready\n".into()),
            Health::Degraded(troubles) => {
                text(StatusCode::OK, format!("degraded: {}\n", troubles.join("; ")))
            }
            Health::Down(troubles) => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("down: {}\n", troubles.join("; ")))
            }
        }
    }

    pub(super) fn metrics(&self) -> Answer {
        content(StatusCode::OK, metrics::CONTENT_TYPE, self.parts.metrics.encode())
    }
}
