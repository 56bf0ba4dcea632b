//! Container images made by hand: one layer with one static program, probe.c. Not here: what runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

/// Answers on port 8080.
pub const IMAGE: &str = "weft.test/probe:1";
/// The same layer for a pod's sandbox: does nothing, for as long as it may.
pub const PAUSE: &str = "weft.test/pause:1";

/// An OCI image archive (image-spec 1.0) that `ctr images import` takes, with both images.
pub fn archive(work: &Path) -> PathBuf {
    let blobs = work.join("layout/blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::create_dir_all(work.join("layer")).unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/containers/probe.c");
    run(Command::new("gcc")
        .args(["-static", "-O1", "-Wall", "-o"])
        .arg(work.join("layer/probe"))
        .arg(source));
    run(Command::new("tar")
        .arg("-C")
        .arg(work.join("layer"))
        .arg("-cf")
        .arg(work.join("layer.tar"))
        .arg("probe"));

    let layer =
        blob(&blobs, &fs::read(work.join("layer.tar")).unwrap(), "application/vnd.oci.image.layer.v1.tar");
    let images = [(IMAGE, json!(["/probe"])), (PAUSE, json!(["/probe", "wait"]))];
    let manifests = images.map(|(name, command)| manifest(&blobs, &layer, name, command));
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    fs::write(work.join("layout/index.json"), index.to_string()).unwrap();
    fs::write(work.join("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = work.join("image.tar");
    run(Command::new("tar").arg("-C").arg(work.join("layout")).arg("-cf").arg(&archive).arg("."));
    archive
}

fn manifest(blobs: &Path, layer: &Value, name: &str, command: Value) -> Value {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let config = json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": command},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(blobs, config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let mut manifest =
        blob(blobs, manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = json!({"io.containerd.image.name": name});
    manifest
}

/// Stores the bytes under their digest; returns their descriptor.
fn blob(blobs: &Path, bytes: &[u8], media_type: &str) -> Value {
    use sha2::Digest;
    let digest: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(blobs.join(&digest), bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
}

pub fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
