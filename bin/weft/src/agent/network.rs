//! What a pod's attachment means on this node: link first, then the plan with the pod in it, then the answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weft_cni::{Attached, Attachment, CniError, MacAddr, PodNetwork, PodRef};
use weft_datapath::{Datapath, PodAttachment, PodLink};
use weft_kube::View;

use super::applier::Applier;

/// The kubelet sees a pod before it asks for its network, so the API's news may be a moment behind, not minutes.
const POD_KNOWN_WITHIN: Duration = Duration::from_secs(10);

pub struct Network {
    datapath: Arc<Datapath>,
    applier: Arc<Applier>,
    views: watch::Receiver<View>,
}

impl Network {
    pub fn new(datapath: Arc<Datapath>, applier: Arc<Applier>, views: watch::Receiver<View>) -> Self {
        Self { datapath, applier, views }
    }

    /// Isolation comes before connectivity, and it depends on the pod's labels.
    async fn pod_known(&self, pod: &PodRef) -> Result<u32, CniError> {
        let mut views = self.views.clone();
        let known = |view: &View| {
            view.synced && view.snapshot.pods.get(&pod.key).is_some_and(|known| known.uid == pod.uid)
        };
        match tokio::time::timeout(POD_KNOWN_WITHIN, views.wait_for(known)).await {
            Ok(Ok(view)) => Ok(weft_compile::pod_mtu(&view.snapshot.settings)),
            Ok(Err(_)) => Err(CniError::try_later("the agent is stopping")),
            Err(_) => Err(CniError::try_later(format!(
                "pod {} (uid {}) is not known from the Kubernetes API yet, so its policies are not either",
                pod.key, pod.uid
            ))),
        }
    }

    async fn link(&self, attachment: &Attachment, mtu: u32) -> Result<PodLink, CniError> {
        let datapath = self.datapath.clone();
        let wanted = wanted(attachment, mtu);
        blocking(move || datapath.attach_pod(&wanted)).await
    }
}

fn wanted(attachment: &Attachment, mtu: u32) -> PodAttachment {
    PodAttachment {
        netns: attachment.netns.clone(),
        container: attachment.owner.container_id.clone(),
        interface: attachment.owner.ifname.clone(),
        device: attachment.device.clone(),
        addresses: attachment.addresses.iter().copied().collect(),
        mtu,
    }
}

async fn blocking<T: Send + 'static, E: std::fmt::Display + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, CniError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| CniError::failed(error.to_string())),
        Err(error) => Err(CniError::failed(format!("the agent's worker failed: {error}"))),
    }
}

impl PodNetwork for Network {
    async fn attach(&self, attachment: &Attachment) -> Result<Attached, CniError> {
        let Some(pod) = &attachment.pod else {
            return Err(CniError::failed(
                "CNI_ARGS names no pod (K8S_POD_NAMESPACE, K8S_POD_NAME, K8S_POD_UID): without one no policy can be found for it",
            ));
        };
        let mtu = self.pod_known(pod).await?;
        let link = self.link(attachment, mtu).await?;
        let endpoint = weft_model::LocalEndpoint {
            pod: pod.key.clone(),
            uid: pod.uid.clone(),
            addresses: attachment.addresses.iter().copied().collect(),
            device: attachment.device.clone(),
        };
        if let Err(error) = self.applier.add(endpoint).await {
            self.detach(attachment).await?;
            return Err(CniError::try_later(format!("the pod's policy is not in the kernel: {error}")));
        }
        Ok(Attached {
            mac: MacAddr(link.pod_mac.0),
            host_mac: MacAddr(link.host_mac.0),
            mtu: link.mtu,
            gateways: weft_datapath::gateways(&link.addresses),
        })
    }

    async fn detach(&self, attachment: &Attachment) -> Result<(), CniError> {
        // The link goes even if the plan cannot: a pod without a link reaches nobody.
        let removed = self.applier.remove(&attachment.device).await;
        let (datapath, device) = (self.datapath.clone(), attachment.device.clone());
        blocking(move || datapath.detach_pod(&device)).await?;
        removed.map_err(|error| {
            CniError::try_later(format!("the pod's entries are still in the kernel: {error}"))
        })
    }

    async fn check(&self, attachment: &Attachment) -> Result<(), CniError> {
        let mtu = attachment.attached.as_ref().map_or(0, |attached| attached.mtu);
        let (datapath, wanted) = (self.datapath.clone(), wanted(attachment, mtu));
        blocking(move || datapath.check_pod(&wanted)).await
    }

    async fn status(&self) -> Result<(), CniError> {
        let applied = self.applier.subscribe().borrow().clone();
        match (&applied.state, &applied.error) {
            (_, Some(error)) => Err(CniError::limited(format!("the newest plan is not in force: {error}"))),
            // Pods attached before this process started are served by what its predecessor left in the kernel.
            (None, None) if self.applier.has_endpoints() => Ok(()),
            (None, None) => Err(CniError::not_ready("the agent has not seen the whole cluster yet")),
            (Some(_), None) => Ok(()),
        }
    }
}
