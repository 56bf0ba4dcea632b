//! The agent's side of each verb: order, idempotence, roll-back and recovery. HTTP lives in `http`, the kernel behind
//! `PodNetwork`.

use std::collections::HashMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::sync::{OwnedMutexGuard, oneshot, watch};
use weft_model::{Cidr, NodeName};

use crate::wire::{AttachRequest, CheckRequest, DetachRequest, GcRequest};
use crate::{
    Attached, Attachment, Attachments, CniError, Deletions, Owner, PoolError, PoolUsage, StoreError,
};

/// What makes attachments real. Calls for one owner never overlap; calls for different owners do.
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes link, addresses, routes and programs, and returns only when the pod's policy is in force. Idempotent, and
    /// may find part of it done.
    fn attach(&self, attachment: &Attachment) -> impl Future<Output = Result<Attached, CniError>> + Send;
    /// Removes all of it. Idempotent: what is not there, and a namespace that is gone, are success.
    fn detach(&self, attachment: &Attachment) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Whether all of it is still there.
    fn check(&self, attachment: &Attachment) -> impl Future<Output = Result<(), CniError>> + Send;
    /// Whether pods can be attached now.
    fn status(&self) -> impl Future<Output = Result<(), CniError>> + Send;
}

#[derive(Clone, Debug)]
pub struct ServiceConfig {
    /// The directory `agent` beside the agent's socket: the plugin leaves deletions there.
    pub state_dir: PathBuf,
    pub node: NodeName,
    pub pod_cidrs: Vec<Cidr>,
}

/// Owns the records and calls the network in an order that leaks nothing, whoever dies when.
pub struct CniService<N> {
    attachments: Arc<Attachments>,
    deletions: Deletions,
    network: Arc<N>,
    under_way: UnderWay,
    changes: watch::Sender<u64>,
}

/// What `recover` did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Deletions the plugin had queued.
    pub deletions: usize,
    /// ADDs or DELs that were cut short.
    pub unfinished: usize,
    /// Attachments whose namespace is gone.
    pub vanished: usize,
    /// What could not be undone yet; the next `recover` tries again.
    pub failures: Vec<String>,
}

impl<N: PodNetwork> CniService<N> {
    pub fn open(config: ServiceConfig, network: Arc<N>) -> Result<Arc<Self>, StoreError> {
        let deletions = Deletions::open(&config.state_dir)
            .map_err(|error| StoreError::Directory(config.state_dir.clone(), error))?;
        let directory = config.state_dir.join("attachments");
        Ok(Arc::new(Self {
            attachments: Arc::new(Attachments::open(directory, config.node, &config.pod_cidrs)?),
            deletions,
            network,
            under_way: UnderWay::default(),
            changes: watch::Sender::new(0),
        }))
    }

    /// Complete attachments in the order of owners.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut list = self.attachments.list();
        list.retain(|attachment| attachment.attached.is_some());
        list
    }

    /// Counts changes of `attachments`.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub fn usage(&self) -> Vec<PoolUsage> {
        self.attachments.usage()
    }

    pub fn set_pod_cidrs(&self, pod_cidrs: &[Cidr]) -> Result<(), PoolError> {
        self.attachments.set_pod_cidrs(pod_cidrs)
    }

    /// Goes on to the end even if the caller is dropped. If it is dropped before a new attachment could be handed
    /// over, the attachment is undone: the runtime that asked for it is gone.
    pub async fn add(self: &Arc<Self>, request: AttachRequest) -> Result<Attachment, CniError> {
        let (reply, answer) = oneshot::channel();
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let _turn = service.under_way.turn(&request.owner).await;
            match service.add_in_turn(&request).await {
                Ok((attachment, Origin::New)) => {
                    if reply.send(Ok(attachment.clone())).is_err() {
                        tracing::info!(owner = %attachment.owner, "ADD was abandoned: undone");
                        service.undo_or_log(&attachment).await;
                    }
                }
                Ok((attachment, Origin::Known)) => drop(reply.send(Ok(attachment))),
                Err(error) => drop(reply.send(Err(error))),
            }
        });
        answer.await.unwrap_or_else(|_| Err(CniError::failed("ADD ended without an answer")))
    }

    /// Goes on to the end even if the caller is dropped.
    pub async fn del(self: &Arc<Self>, request: DetachRequest) -> Result<(), CniError> {
        let service = Arc::clone(self);
        let work = tokio::spawn(async move {
            let _turn = service.under_way.turn(&request.owner).await;
            service.del_in_turn(&request.owner).await
        });
        work.await.unwrap_or_else(|_| Err(CniError::failed("DEL ended without an answer")))
    }

    pub async fn check(&self, request: CheckRequest) -> Result<Attachment, CniError> {
        let _turn = self.under_way.turn(&request.owner).await;
        let attachment = self.attachments.get(&request.owner).filter(|found| found.attached.is_some());
        let Some(attachment) = attachment else {
            return Err(CniError::unknown_container(format!("{} is not attached", request.owner)));
        };
        if attachment.netns != request.netns {
            return Err(CniError::check_failed(format!(
                "{} is attached in {}, not in {}",
                request.owner,
                attachment.netns.display(),
                request.netns.display()
            )));
        }
        self.network.check(&attachment).await?;
        Ok(attachment)
    }

    pub async fn status(&self) -> Result<(), CniError> {
        // A node with pods has had its prefixes; a new agent is told them again.
        if self.usage().is_empty() && self.attachments().is_empty() {
            return Err(CniError::not_ready("the node has no pod CIDR yet"));
        }
        self.network.status().await
    }

    /// Deletes what the runtime does not know of; other networks' attachments stay.
    pub async fn gc(self: &Arc<Self>, request: GcRequest) -> Result<(), CniError> {
        let mut failures = Vec::new();
        for attachment in self.attachments.list() {
            if attachment.network != request.network || request.keep.contains(&attachment.owner) {
                continue;
            }
            let owner = attachment.owner;
            if let Err(error) = self.del(DetachRequest { owner: owner.clone() }).await {
                failures.push(format!("{owner}: {error}"));
            }
        }
        match failures.len() {
            0 => Ok(()),
            count => Err(CniError::failed(format!("{count} attachments are not deleted"))
                .with_details(failures.join("; "))),
        }
    }

    /// Undoes what was cut short, carries out queued deletions, and drops attachments whose namespace is gone. For the
    /// agent's start, and from time to time; calls under way are left alone.
    pub async fn recover(self: &Arc<Self>) -> Recovered {
        let mut recovered = Recovered::default();
        match self.deletions.pending() {
            Ok(pending) => {
                for request in pending {
                    let owner = request.owner.clone();
                    match self.del(request).await {
                        Ok(()) => recovered.deletions += 1,
                        Err(error) => recovered.failures.push(format!("{owner}: {error}")),
                    }
                }
            }
            Err(error) => recovered.failures.push(format!("queued deletions: {error}")),
        }
        for owner in self.attachments.list().into_iter().map(|attachment| attachment.owner) {
            self.recover_one(&owner, &mut recovered).await;
        }
        recovered
    }

    async fn recover_one(&self, owner: &Owner, recovered: &mut Recovered) {
        let Some(_turn) = self.under_way.try_turn(owner) else { return };
        let Some(attachment) = self.attachments.get(owner) else { return };
        let count = if attachment.attached.is_none() {
            &mut recovered.unfinished
        } else if !attachment.sandbox_exists() {
            &mut recovered.vanished
        } else {
            return;
        };
        match self.undo(&attachment).await {
            Ok(()) => *count += 1,
            Err(error) => recovered.failures.push(format!("{owner}: {error}")),
        }
    }

    async fn add_in_turn(&self, request: &AttachRequest) -> Result<(Attachment, Origin), CniError> {
        self.carry_out_queued_deletion(&request.owner).await?;
        if let Some(known) = self.attachments.get(&request.owner) {
            if known.attached.is_some() && known.netns == request.netns && known.pod == request.pod {
                let attached = self.network.attach(&known).await?;
                return Ok((self.complete(&known, attached).await?, Origin::Known));
            }
            self.undo(&known).await?;
        }
        let begun = self.begin(request).await?;
        if !begun.sandbox_exists() {
            self.undo_or_log(&begun).await;
            return Err(CniError::invalid_environment(format!(
                "CNI_NETNS {} is not a network namespace",
                begun.netns.display()
            )));
        }
        let made = match self.network.attach(&begun).await {
            Ok(attached) => self.complete(&begun, attached).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(attachment) => Ok((attachment, Origin::New)),
            Err(error) => {
                self.undo_or_log(&begun).await;
                Err(error)
            }
        }
    }

    async fn del_in_turn(&self, owner: &Owner) -> Result<(), CniError> {
        if let Some(attachment) = self.attachments.get(owner) {
            self.undo(&attachment).await?;
        }
        self.deletions.done(owner).map_err(|error| CniError::io("queued deletion").with_details(error))
    }

    /// A deletion queued for this owner is older than the ADD at hand: the runtime orders its calls.
    async fn carry_out_queued_deletion(&self, owner: &Owner) -> Result<(), CniError> {
        let queued = self
            .deletions
            .contains(owner)
            .map_err(|error| CniError::io("queued deletions").with_details(error))?;
        if queued { self.del_in_turn(owner).await } else { Ok(()) }
    }

    async fn undo(&self, attachment: &Attachment) -> Result<(), CniError> {
        self.network.detach(attachment).await?;
        let owner = attachment.owner.clone();
        self.records(move |attachments| attachments.remove(&owner)).await?;
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn undo_or_log(&self, attachment: &Attachment) {
        if let Err(error) = self.undo(attachment).await {
            tracing::warn!(owner = %attachment.owner, %error, "cannot undo an ADD yet; it is tried again later");
        }
    }

    async fn begin(&self, request: &AttachRequest) -> Result<Attachment, CniError> {
        let request = request.clone();
        self.records(move |attachments| attachments.begin(&request)).await
    }

    async fn complete(&self, attachment: &Attachment, attached: Attached) -> Result<Attachment, CniError> {
        let owner = attachment.owner.clone();
        let complete = self.records(move |attachments| attachments.complete(&owner, attached)).await?;
        self.changes.send_modify(|count| *count += 1);
        Ok(complete)
    }

    /// Records are on disk, so changes to them wait for it away from the event loop.
    async fn records<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Attachments) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, CniError> {
        let attachments = Arc::clone(&self.attachments);
        match tokio::task::spawn_blocking(move || change(&attachments)).await {
            Ok(outcome) => outcome.map_err(CniError::from),
            Err(_) => Err(CniError::failed("the change of a record ended without an answer")),
        }
    }
}

/// Whether an ADD made the attachment or found it.
enum Origin {
    New,
    Known,
}

/// One call at a time per owner, in the order of arrival.
#[derive(Default)]
struct UnderWay {
    turns: Mutex<HashMap<Owner, Arc<tokio::sync::Mutex<()>>>>,
}

impl UnderWay {
    async fn turn(&self, owner: &Owner) -> OwnedMutexGuard<()> {
        self.mutex(owner).lock_owned().await
    }

    fn try_turn(&self, owner: &Owner) -> Option<OwnedMutexGuard<()>> {
        self.mutex(owner).try_lock_owned().ok()
    }

    fn mutex(&self, owner: &Owner) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().expect("no code panics while it holds this lock");
        // Only those somebody holds or waits for are worth keeping.
        turns.retain(|_, mutex| Arc::strong_count(mutex) > 1);
        Arc::clone(turns.entry(owner.clone()).or_default())
    }
}
