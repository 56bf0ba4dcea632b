//! Running a program of this machine inside a pod, through the Kubernetes API as `kubectl exec` does.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::AttachParams;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_model::PodKey;

/// Runs `command` in the pod's first container with `input` on its stdin; returns its stdout.
pub async fn exec(
    client: &kube::Client,
    pod: &PodKey,
    command: &[String],
    input: Vec<u8>,
) -> Result<Vec<u8>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), pod.namespace.as_str());
    let container = first_container(&pods, pod).await?;
    let params = AttachParams::default().container(container).stdin(true).stdout(true).stderr(true);
    let mut process =
        pods.exec(&pod.name, command, &params).await.with_context(|| format!("cannot exec in pod {pod}"))?;
    let status = process.take_status().context("the API server tells no exit status")?;
    let mut stdin = process.stdin().context("no stdin")?;
    let mut stdout = process.stdout().context("no stdout")?;
    let mut stderr = process.stderr().context("no stderr")?;
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let feed = async {
        stdin.write_all(&input).await?;
        stdin.shutdown().await?;
        drop(stdin);
        Ok::<_, std::io::Error>(())
    };
    let (fed, read, told) = tokio::join!(feed, stdout.read_to_end(&mut out), stderr.read_to_end(&mut err));
    read.and(told).with_context(|| format!("pod {pod}: the output broke off"))?;
    match status.await {
        Some(status) if status.status.as_deref() == Some("Success") => {
            fed.with_context(|| format!("pod {pod}: the program did not read its input"))?;
            Ok(out)
        }
        Some(status) => {
            bail!(
                "pod {pod}: {}: {}",
                status.message.unwrap_or_default(),
                String::from_utf8_lossy(&err).trim()
            )
        }
        None => bail!("pod {pod}: the connection broke off before the program ended"),
    }
}

async fn first_container(pods: &Api<Pod>, pod: &PodKey) -> Result<String> {
    let found = pods.get(&pod.name).await.with_context(|| format!("pod {pod}"))?;
    let container = found.spec.and_then(|spec| spec.containers.into_iter().next());
    Ok(container.with_context(|| format!("pod {pod} has no containers"))?.name)
}
