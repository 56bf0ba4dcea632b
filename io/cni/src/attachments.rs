//! The agent's durable memory of local endpoints: one file per attachment, and the addresses they hold.
//! The kernel's side of an attachment, and the order of calls, live in `service`.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use weft_model::{Cidr, NodeName};

use crate::ipam::Cursors;
use crate::wire::AttachRequest;
use crate::{Allocator, Attached, Attachment, CniError, Disk, Files, Owner, PoolError, PoolUsage};

/// Every change is on disk before it is acted upon: an address is recorded before a link gets it, and forgotten only
/// after the link is gone. So whatever the instruction it dies at, the next agent finds each address that may be in use.
pub struct Attachments {
    disk: Box<dyn Disk>,
    memory: Mutex<Memory>,
}

struct Memory {
    addresses: Allocator,
    records: BTreeMap<Owner, Attachment>,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("attachment records in {0}")]
    Directory(PathBuf, #[source] io::Error),
    #[error("attachment record {0}")]
    File(String, #[source] io::Error),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("{owner}: the device name {device} is taken by {other}; restart the container")]
    Device { owner: Owner, device: String, other: Owner },
    #[error("{0} has a record already")]
    Exists(Owner),
}

const CURSORS: &str = "cursors";

impl Attachments {
    pub fn open(dir: PathBuf, node: NodeName, pod_cidrs: &[Cidr]) -> Result<Self, StoreError> {
        let files = Files::open(&dir).map_err(|error| StoreError::Directory(dir, error))?;
        Self::on(Box::new(files), node, pod_cidrs)
    }

    /// As `open`, on any disk.
    pub fn on(disk: Box<dyn Disk>, node: NodeName, pod_cidrs: &[Cidr]) -> Result<Self, StoreError> {
        let mut memory = Memory { addresses: Allocator::new(node, pod_cidrs)?, records: BTreeMap::new() };
        for name in disk.list().map_err(|error| StoreError::File("directory".to_owned(), error))? {
            let failed = |error| StoreError::File(name.clone(), error);
            let bytes = disk.read(&name).map_err(failed)?;
            if let Err(reason) = memory.restore(&name, &bytes) {
                tracing::error!(file = name, reason, "attachment record is unusable: put aside");
                disk.set_aside(&name).map_err(failed)?;
            }
        }
        Ok(Self { disk, memory: Mutex::new(memory) })
    }

    /// All, also those whose ADD or DEL is under way, in the order of owners.
    pub fn list(&self) -> Vec<Attachment> {
        self.memory().records.values().cloned().collect()
    }

    pub fn get(&self, owner: &Owner) -> Option<Attachment> {
        self.memory().records.get(owner).cloned()
    }

    pub fn usage(&self) -> Vec<PoolUsage> {
        self.memory().addresses.usage()
    }

    pub fn set_pod_cidrs(&self, pod_cidrs: &[Cidr]) -> Result<(), PoolError> {
        self.memory().addresses.set_pod_cidrs(pod_cidrs)
    }

    /// Gives addresses and a device name to an owner without a record, and records them as not yet complete.
    pub fn begin(&self, request: &AttachRequest) -> Result<Attachment, StoreError> {
        let (record, cursors) = self.memory().begin(request)?;
        if let Err(error) = self.save(&record) {
            self.abandon(&record.owner);
            return Err(error);
        }
        // Only fairness hangs on it, so a failure to write it is no reason to refuse the pod.
        if let Err(error) = self.disk.write(CURSORS, &json(&cursors)) {
            tracing::warn!(%error, "cannot record which address was given last");
        }
        Ok(record)
    }

    /// Records what the kernel holds now: the attachment is complete.
    pub fn complete(&self, owner: &Owner, attached: Attached) -> Result<Attachment, StoreError> {
        let Some(mut record) = self.get(owner) else {
            return Err(StoreError::File(owner.file_name(), io::ErrorKind::NotFound.into()));
        };
        record.attached = Some(attached);
        self.save(&record)?;
        self.memory().records.insert(owner.clone(), record.clone());
        Ok(record)
    }

    /// Forgets the attachment and frees its addresses; call it after the link is gone. Unknown owners are success.
    pub fn remove(&self, owner: &Owner) -> Result<(), StoreError> {
        let name = owner.file_name();
        match self.disk.remove(&name) {
            Ok(()) => {
                self.memory().forget(owner);
                Ok(())
            }
            Err(error) => {
                // Its file may be gone or not; its link is. What is left is to be removed again, never to be relied on.
                if let Some(record) = self.memory().records.get_mut(owner) {
                    record.attached = None;
                }
                Err(StoreError::File(name, error))
            }
        }
    }

    /// After a failed write the file may be there or not. If it cannot be removed either, the address stays taken, so
    /// that no later reader of the disk finds it with two owners.
    fn abandon(&self, owner: &Owner) {
        if self.disk.remove(&owner.file_name()).is_ok() {
            self.memory().forget(owner);
        }
    }

    fn save(&self, record: &Attachment) -> Result<(), StoreError> {
        let name = record.owner.file_name();
        self.disk.write(&name, &json(record)).map_err(|error| StoreError::File(name, error))
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no code panics while it holds this lock")
    }
}

impl Memory {
    fn restore(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        if name == CURSORS {
            let cursors: Cursors = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
            self.addresses.resume_from(cursors);
            return Ok(());
        }
        let record: Attachment = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if record.owner.file_name() != name {
            return Err(format!("it holds the record of {}", record.owner));
        }
        self.addresses.claim(&record.owner, &record.addresses).map_err(|error| error.to_string())?;
        self.records.insert(record.owner.clone(), record);
        Ok(())
    }

    fn begin(&mut self, request: &AttachRequest) -> Result<(Attachment, Cursors), StoreError> {
        let owner = request.owner.clone();
        if self.records.contains_key(&owner) {
            return Err(StoreError::Exists(owner));
        }
        let device = owner.device();
        if let Some(other) =
            self.records.values().find(|other| other.device == device && other.owner != owner)
        {
            return Err(StoreError::Device { owner, device, other: other.owner.clone() });
        }
        let record = Attachment {
            addresses: self.addresses.allocate(&owner)?,
            network: request.network.clone(),
            pod: request.pod.clone(),
            netns: request.netns.clone(),
            attached: None,
            device,
            owner,
        };
        self.records.insert(record.owner.clone(), record.clone());
        Ok((record, self.addresses.cursors()))
    }

    fn forget(&mut self, owner: &Owner) {
        self.records.remove(owner);
        self.addresses.release(owner);
    }
}

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Pool(error) => error.into(),
            StoreError::Device { .. } | StoreError::Exists(_) => CniError::failed(error.to_string()),
            StoreError::Directory(_, ref source) | StoreError::File(_, ref source) => {
                CniError::io(format!("cannot change {error}")).with_details(source)
            }
        }
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("keys are strings and no value refuses to be written")
}
