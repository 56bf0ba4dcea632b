//! Running an election against a Lease object (coordination.k8s.io/v1). The rules live in `lease`.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::lease::{Action, Election, LeaseRecord, LeaseTimes};

/// Who leads, as this process knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Leadership {
    Leading,
    Following { leader: Option<String> },
}

/// Takes part in an election until every receiver is dropped; then the lease is released.
pub fn lead(
    client: Client,
    namespace: &str,
    name: &str,
    identity: &str,
    times: LeaseTimes,
) -> watch::Receiver<Leadership> {
    let (send, receive) = watch::channel(Leadership::Following { leader: None });
    let candidate = Candidate {
        api: Api::namespaced(client, namespace),
        name: name.to_owned(),
        election: Election::new(identity, times),
    };
    tokio::spawn(candidate.run(send));
    receive
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    election: Election,
}

impl Candidate {
    async fn run(mut self, send: watch::Sender<Leadership>) {
        loop {
            let times = self.election.times();
            // A call that hangs must not keep a leader from stepping down in time.
            let left = self.election.leads_until().map(|end| end.saturating_duration_since(Instant::now()));
            let limit = left.unwrap_or(times.renew_deadline).max(Duration::from_millis(100));
            match timeout(limit, self.round()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, error = crate::reason(&error), "election round failed");
                }
                Err(_) => tracing::warn!(lease = self.name, "the API server did not answer in time"),
            }
            self.publish(&send);
            tokio::select! {
                () = tokio::time::sleep(times.retry) => {}
                () = send.closed() => return self.release().await,
            }
            self.publish(&send);
        }
    }

    fn publish(&self, send: &watch::Sender<Leadership>) {
        let state = if self.election.leads(Instant::now()) {
            Leadership::Leading
        } else {
            let other = |holder: &&str| *holder != self.election.identity();
            Leadership::Following { leader: self.election.holder().filter(other).map(str::to_owned) }
        };
        send.send_if_modified(|current| {
            let changed = *current != state;
            if changed {
                tracing::info!(lease = self.name, state = ?state, "election");
                *current = state;
            }
            changed
        });
    }

    async fn round(&mut self) -> Result<(), kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        let record = lease.as_ref().map(to_record);
        let transitions = record.as_ref().map_or(0, |record| record.transitions);
        match self.election.observe(record, Instant::now()) {
            Action::Wait => Ok(()),
            Action::Create => self.write(None, 0).await,
            Action::Renew => self.write(lease, transitions).await,
            Action::Take => self.write(lease, transitions.saturating_add(1)).await,
        }
    }

    /// Writes our name under the version that was read; a conflict means somebody else was faster.
    async fn write(&mut self, lease: Option<Lease>, transitions: i32) -> Result<(), kube::Error> {
        let sent = Instant::now();
        let now = MicroTime(Timestamp::now());
        let exists = lease.is_some();
        let mut lease = lease.unwrap_or_else(|| Lease {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            spec: None,
        });
        let earlier = lease.spec.take().unwrap_or_default();
        let ours = earlier.holder_identity.as_deref() == Some(self.election.identity());
        let seconds = i32::try_from(self.election.times().duration.as_secs()).unwrap_or(i32::MAX);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.election.identity().to_owned()),
            lease_duration_seconds: Some(seconds),
            acquire_time: earlier.acquire_time.filter(|_| ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..earlier
        });
        let params = PostParams::default();
        let written = if exists {
            self.api.replace(&self.name, &params, &lease).await
        } else {
            self.api.create(&params, &lease).await
        };
        match written {
            Ok(lease) => {
                self.election.written(to_record(&lease), sent);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lets the next leader start without waiting for the lease to run out.
    async fn release(self) {
        if !self.election.leads(Instant::now()) {
            return;
        }
        let released = async {
            let mut lease = self.api.get(&self.name).await?;
            let held = lease.spec.get_or_insert_default();
            if held.holder_identity.as_deref() == Some(self.election.identity()) {
                held.holder_identity = Some(String::new());
                self.api.replace(&self.name, &PostParams::default(), &lease).await?;
            }
            Ok::<(), kube::Error>(())
        };
        if let Ok(Err(error)) = timeout(self.election.times().retry, released).await {
            tracing::warn!(
                lease = self.name,
                error = crate::reason(&error),
                "the lease could not be released"
            );
        }
    }
}

fn to_record(lease: &Lease) -> LeaseRecord {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
    LeaseRecord {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(seconds),
        renewed: spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}
