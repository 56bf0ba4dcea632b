//! Events are news, not history: they are removed after an hour, as upstream does.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::target_of;
use crate::api::Api;
use crate::api::delete::{self, Options};
use crate::store::{Key, Resource};

const LIFETIME: SignedDuration = SignedDuration::from_hours(1);
const ROUND: Duration = Duration::from_secs(60);

pub async fn run(api: Arc<Api>) {
    loop {
        tokio::time::sleep(ROUND).await;
        sweep(&api, Timestamp::now()).await;
    }
}

async fn sweep(api: &Api, now: Timestamp) {
    let events = Resource::new("", "events");
    for (path, entry) in api.store.list(&events, None).items {
        if !is_expired(&entry.value, now) {
            continue;
        }
        let Some(target) = target_of(api, &Key { resource: events.clone(), path }) else { continue };
        // Somebody else may have removed it; the next round sees what is left.
        let _ = delete::delete_object(api, &target, &Options::default()).await;
    }
}

fn is_expired(event: &Value, now: Timestamp) -> bool {
    let times = ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/metadata/creationTimestamp"];
    let latest =
        times.iter().filter_map(|pointer| event.pointer(pointer)?.as_str()?.parse::<Timestamp>().ok()).max();
    latest.is_some_and(|latest| now.duration_since(latest) > LIFETIME)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_latest_observation_counts() {
        let now: Timestamp = "2030-01-01T02:00:00Z".parse().unwrap();
        let old = json!({"metadata": {"creationTimestamp": "2030-01-01T00:00:00Z"}});
        let mut seen_again = old.clone();
        seen_again["lastTimestamp"] = "2030-01-01T01:30:00Z".into();
        assert!(is_expired(&old, now) && !is_expired(&seen_again, now));
    }
}
