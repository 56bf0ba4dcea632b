//! Kernel events become named flows as they happen. Naming, filtering and keeping live in io/observe.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use weft_abi::{Event, Hook};
use weft_datapath::{Datapath, EventReader};
use weft_model::{NodeName, Verdict};
use weft_observe::{FlowMetrics, FlowRing, Namer};

use super::applier::{Applier, InForce};

/// Flows kept for `weft observe` to look back on.
const KEPT: usize = 16_384;
/// How long an event may wait in the kernel's ring before it is seen.
const LATENCY: Duration = Duration::from_millis(50);

pub struct Flows {
    pub ring: FlowRing,
    pub metrics: Mutex<FlowMetrics>,
    namer: Mutex<Option<Arc<Namer>>>,
}

impl Flows {
    pub fn start(node: &NodeName, datapath: Arc<Datapath>, applier: Arc<Applier>) -> Result<Arc<Self>> {
        let reader = datapath.events().context("cannot read the kernel's flow events")?;
        let flows = Arc::new(Self {
            ring: FlowRing::new(KEPT),
            metrics: Mutex::new(FlowMetrics::default()),
            namer: Mutex::default(),
        });
        tokio::spawn(flows.clone().follow_names(datapath.clone(), applier));
        let thread = std::thread::Builder::new().name(format!("flows-{node}"));
        let reading = flows.clone();
        thread
            .spawn(move || reading.read(reader, &datapath))
            .context("cannot start the thread that reads flows")?;
        Ok(flows)
    }

    /// Names are those of the time of the flow: the newest plan in force names what follows.
    async fn follow_names(self: Arc<Self>, datapath: Arc<Datapath>, applier: Arc<Applier>) {
        let mut applied = applier.subscribe();
        loop {
            let state = applied.borrow_and_update().state.clone();
            if let Some(state) = state {
                let datapath = datapath.clone();
                match tokio::task::spawn_blocking(move || namer(&datapath, &state)).await {
                    Ok(namer) => {
                        *self.namer.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(namer))
                    }
                    Err(error) => tracing::error!(%error, "flows keep their old names"),
                }
            }
            if applied.changed().await.is_err() {
                return;
            }
        }
    }

    fn read(&self, reader: EventReader, datapath: &Datapath) {
        let mut lost_before = 0;
        loop {
            match reader.poll(LATENCY) {
                Ok(events) => self.take(&events),
                Err(error) => {
                    tracing::error!(%error, "flow events cannot be read; trying again");
                    std::thread::sleep(Duration::from_secs(1));
                }
            }
            if let Ok(counters) = datapath.counters() {
                let lost = counters.events_lost + counters.events_suppressed;
                if lost > lost_before {
                    self.ring.lost(lost - lost_before);
                    lost_before = lost;
                }
            }
        }
    }

    /// Tells the end of flows that were removed because they were silent. Those that closed were told by the kernel,
    /// and one that holds a denial never was a flow to anybody.
    pub fn expired(&self, flows: &[weft_abi::Flow], applier: &Applier) {
        let state = applier.subscribe().borrow().state.clone();
        let is_local = |addr| state.as_ref().is_some_and(|s| s.compiled.plan.endpoints.contains_key(addr));
        let told = flows
            .iter()
            .filter(|flow| !flow.tcp.has_ended() && flow.reason.verdict() == Verdict::Forwarded)
            .map(|flow| {
                let hook = if is_local(&flow.source) { Hook::FromPod } else { Hook::FromNet };
                Event::expired(flow, hook)
            });
        self.take(&told.collect::<Vec<_>>());
    }

    fn take(&self, events: &[Event]) {
        let namer = self.namer.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(namer) = namer else { return };
        let now = SystemTime::now();
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            let flow = namer.flow(event, now);
            metrics.record(&flow);
            self.ring.push(flow);
        }
    }
}

/// Socket events know only their network namespace; the links tell whose it is.
fn namer(datapath: &Datapath, state: &InForce) -> Namer {
    let plan = &state.compiled.plan;
    let links = datapath.list_pods().unwrap_or_else(|error| {
        tracing::warn!(%error, "sockets' pods cannot be named");
        Vec::new()
    });
    let pods = links.iter().filter_map(|link| {
        let endpoint = link.addresses.iter().find_map(|addr| plan.endpoints.get(addr))?;
        Some((link.netns_cookie, endpoint.pod.clone()))
    });
    Namer::new(&state.snapshot, plan).with_sockets(pods, &state.snapshot)
}
