//! A pod's volumes as directories on the node, and where each container sees them. Mounting is in mounts.rs.
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Volume,
};

use super::bundle::{Access, Mount, at};
use super::environment::{PodFacts, expand, pod_field, resource_field};
use super::sources::{Gathered, TokenKey};
use super::status::all_containers;

const DEFAULT_MODE: i32 = 0o644;

#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("volume {volume:?}: {message}")]
    Content { volume: String, message: String },
    #[error("volume {volume:?}: {error}")]
    Write { volume: String, error: io::Error },
}

/// What a volume consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    Empty,
    Files(BTreeMap<PathBuf, VolumeFile>),
    Host(PathBuf),
    /// A kind that only a storage driver could provide.
    Unprovided(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct VolumeFile {
    bytes: Vec<u8>,
    mode: u32,
}

/// A pod's volumes on the node.
#[derive(Clone, Debug, Default)]
pub struct Volumes {
    sources: BTreeMap<String, PathBuf>,
    /// Volumes that are empty directories only because nothing here can provide them.
    pub unprovided: Vec<String>,
}

/// Writes, or refreshes, the pod's volumes below `dir`.
pub fn prepare(dir: &Path, pod: &Pod, facts: &PodFacts, gathered: &Gathered) -> Result<Volumes, VolumeError> {
    let mut volumes = Volumes::default();
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let content = content(volume, pod, facts, gathered)
            .map_err(|message| VolumeError::Content { volume: volume.name.clone(), message })?;
        let path = dir.join(&volume.name);
        let written = match content {
            Content::Host(path) => {
                volumes.sources.insert(volume.name.clone(), path);
                continue;
            }
            Content::Files(files) => write_files(&path, &files),
            Content::Empty => make_shared_dir(&path),
            Content::Unprovided(kind) => {
                volumes.unprovided.push(format!("{} ({kind})", volume.name));
                make_shared_dir(&path)
            }
        };
        written.map_err(|error| VolumeError::Write { volume: volume.name.clone(), error })?;
        volumes.sources.insert(volume.name.clone(), path);
    }
    Ok(volumes)
}

fn make_shared_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))
}

impl Volumes {
    /// Those that an earlier kubelet prepared below `dir`.
    pub fn existing(dir: &Path, pod: &Pod) -> Self {
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let source = |volume: &Volume| match &volume.host_path {
            Some(host) => PathBuf::from(&host.path),
            None => dir.join(&volume.name),
        };
        let sources = volumes.map(|volume| (volume.name.clone(), source(volume))).collect();
        Self { sources, unprovided: Vec::new() }
    }

    /// The container's mounts. `env` expands `subPathExpr`.
    pub fn mounts(&self, container: &Container, env: &[(String, String)]) -> Result<Vec<Mount>, VolumeError> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let fail = |message: &str| VolumeError::Content {
                volume: mount.name.clone(),
                message: message.to_owned(),
            };
            let source = self.sources.get(&mount.name).ok_or_else(|| fail("no such volume in the pod"))?;
            let lookup = |name: &str| env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            let sub_path = match (&mount.sub_path_expr, &mount.sub_path) {
                (Some(expression), _) => expand(expression, lookup),
                (None, sub_path) => sub_path.clone().unwrap_or_default(),
            };
            let source = sub_source(source, &sub_path).map_err(|error| fail(&error.to_string()))?;
            let access = if mount.read_only == Some(true) { Access::ReadOnly } else { Access::ReadWrite };
            mounts.push(Mount { source, target: PathBuf::from(&mount.mount_path), access });
        }
        Ok(mounts)
    }
}

fn sub_source(source: &Path, sub_path: &str) -> io::Result<PathBuf> {
    let sub_path = Path::new(sub_path);
    if sub_path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(io::Error::other(format!("subPath {} leaves the volume", sub_path.display())));
    }
    let path = source.join(sub_path);
    if !path.exists() {
        make_shared_dir(&path).map_err(|error| at(&path, error))?;
    }
    // The files of a volume are links: a mount of one file is of what the link leads to now.
    fs::canonicalize(&path).map_err(|error| at(&path, error))
}

fn content(volume: &Volume, pod: &Pod, facts: &PodFacts, gathered: &Gathered) -> Result<Content, String> {
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    }
    if let Some(host) = &volume.host_path {
        return host_path(&host.path, host.type_.as_deref().unwrap_or_default()).map(Content::Host);
    }
    let mut files = Files { pod, facts, gathered, files: BTreeMap::new() };
    if let Some(map) = &volume.config_map {
        files.default_mode(map.default_mode).config_map(&map.name, map.items.as_deref(), map.optional)?;
    } else if let Some(secret) = &volume.secret {
        let name = secret.secret_name.as_deref().unwrap_or_default();
        files.default_mode(secret.default_mode).secret(name, secret.items.as_deref(), secret.optional)?;
    } else if let Some(downward) = &volume.downward_api {
        files.default_mode(downward.default_mode).downward(downward.items.as_deref().unwrap_or_default())?;
    } else if let Some(projected) = &volume.projected {
        files.projected(projected)?;
    } else {
        return Ok(Content::Unprovided(kind_of(volume)));
    }
    Ok(Content::Files(files.files))
}

fn kind_of(volume: &Volume) -> &'static str {
    match volume {
        Volume { persistent_volume_claim: Some(_), .. } => "persistentVolumeClaim",
        Volume { ephemeral: Some(_), .. } => "ephemeral",
        Volume { csi: Some(_), .. } => "csi",
        Volume { nfs: Some(_), .. } => "nfs",
        _ => "a kind that needs a storage driver",
    }
}

fn host_path(path: &str, kind: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(path);
    let made = match kind {
        "DirectoryOrCreate" => fs::create_dir_all(&path),
        "FileOrCreate" => fs::File::options().create(true).append(true).open(&path).map(drop),
        _ => Ok(()),
    };
    made.map_err(|error| format!("hostPath {}: {error}", path.display()))?;
    let fits = match kind {
        "Directory" | "DirectoryOrCreate" => path.is_dir(),
        "File" | "FileOrCreate" => path.is_file(),
        _ => path.exists(),
    };
    if fits {
        Ok(path)
    } else {
        Err(format!("hostPath {} is not of type {kind:?} or not there", path.display()))
    }
}

/// Collects the files of one volume from the sources it names.
struct Files<'a> {
    pod: &'a Pod,
    facts: &'a PodFacts,
    gathered: &'a Gathered,
    files: BTreeMap<PathBuf, VolumeFile>,
}

/// A collector that knows the mode of files that name none.
struct WithMode<'f, 'a> {
    files: &'f mut Files<'a>,
    mode: i32,
}

impl<'a> Files<'a> {
    fn default_mode(&mut self, mode: Option<i32>) -> WithMode<'_, 'a> {
        WithMode { files: self, mode: mode.unwrap_or(DEFAULT_MODE) }
    }

    fn projected(&mut self, projected: &ProjectedVolumeSource) -> Result<(), String> {
        let mut files = self.default_mode(projected.default_mode);
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                files.config_map(&map.name, map.items.as_deref(), map.optional)?;
            }
            if let Some(secret) = &source.secret {
                files.secret(&secret.name, secret.items.as_deref(), secret.optional)?;
            }
            if let Some(downward) = &source.downward_api {
                files.downward(downward.items.as_deref().unwrap_or_default())?;
            }
            if let Some(token) = &source.service_account_token {
                let found = files.files.gathered.tokens.get(&TokenKey::of(token));
                let text = found.ok_or_else(|| "no service-account token".to_owned())?.text.clone();
                files.put(&token.path, text.into_bytes(), None)?;
            }
        }
        Ok(())
    }
}

impl WithMode<'_, '_> {
    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: Option<i32>) -> Result<(), String> {
        let path = PathBuf::from(path);
        if path.components().any(|part| !matches!(part, Component::Normal(_))) {
            return Err(format!("path {:?} must be relative and without `..`", path.display()));
        }
        let mode =
            u32::try_from(mode.unwrap_or(self.mode)).map_err(|_| "a file mode is negative".to_owned())?;
        self.files.files.insert(path, VolumeFile { bytes, mode });
        Ok(())
    }

    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), String> {
        let Some(map) = self.files.gathered.sources.config_maps.get(name) else {
            return missing("configmap", name, optional);
        };
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        let data = text.chain(binary).collect();
        self.keys("configmap", name, data, items, optional)
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), String> {
        let Some(secret) = self.files.gathered.sources.secrets.get(name) else {
            return missing("secret", name, optional);
        };
        let data = secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect();
        self.keys("secret", name, data, items, optional)
    }

    fn keys(
        &mut self,
        kind: &str,
        name: &str,
        mut data: BTreeMap<String, Vec<u8>>,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<(), String> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            return data.into_iter().try_for_each(|(key, bytes)| self.put(&key, bytes, None));
        };
        for item in items {
            match data.remove(&item.key) {
                Some(bytes) => self.put(&item.path, bytes, item.mode)?,
                None if optional == Some(true) => {}
                None => return Err(format!("{kind} {name:?} has no key {}", item.key)),
            }
        }
        Ok(())
    }

    fn downward(&mut self, items: &[DownwardAPIVolumeFile]) -> Result<(), String> {
        for item in items {
            let value = if let Some(field) = &item.field_ref {
                pod_field(self.files.pod, self.files.facts, field)
                    .ok_or_else(|| format!("field {:?} cannot be referred to", field.field_path))?
            } else if let Some(resource) = &item.resource_field_ref {
                let name = resource.container_name.as_deref().unwrap_or_default();
                let container = self
                    .files
                    .pod
                    .spec
                    .as_ref()
                    .and_then(|spec| all_containers(spec).find(|c| c.name == name));
                let container = container.ok_or_else(|| format!("no container {name:?}"))?;
                resource_field(container, self.files.facts, resource)?
            } else {
                continue;
            };
            self.put(&item.path, value.into_bytes(), item.mode)?;
        }
        Ok(())
    }
}

fn missing(kind: &str, name: &str, optional: Option<bool>) -> Result<(), String> {
    if optional == Some(true) { Ok(()) } else { Err(format!("{kind} {name:?} not found")) }
}

/// Writes the files the way Kubernetes does: a dated directory behind the link `..data`, swapped at once, so that
/// a reader sees all of the old files or all of the new ones.
fn write_files(dir: &Path, files: &BTreeMap<PathBuf, VolumeFile>) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let data = dir.join("..data");
    if holds(&data, files) {
        return Ok(());
    }
    let before = fs::read_link(&data).ok();
    let dated = dir.join(format!("..{}", jiff::Timestamp::now().as_nanosecond()));
    for (path, file) in files {
        let path = dated.join(path);
        fs::create_dir_all(path.parent().unwrap_or(&dated))?;
        fs::write(&path, &file.bytes)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
    }
    fs::create_dir_all(&dated)?;
    let swap = dir.join("..data_tmp");
    remove_if_there(&swap)?;
    std::os::unix::fs::symlink(dated.file_name().unwrap_or_default(), &swap)?;
    fs::rename(&swap, &data)?;
    link_entries(dir, files)?;
    if let Some(before) = before {
        fs::remove_dir_all(dir.join(before))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn holds(data: &Path, files: &BTreeMap<PathBuf, VolumeFile>) -> bool {
    let count = |dir: &Path| fs::read_dir(dir).map(Iterator::count).unwrap_or_default();
    let top: std::collections::BTreeSet<_> =
        files.keys().filter_map(|path| path.components().next()).collect();
    data.exists()
        && count(data) == top.len()
        && files.iter().all(|(path, file)| fs::read(data.join(path)).is_ok_and(|bytes| bytes == file.bytes))
}

fn link_entries(dir: &Path, files: &BTreeMap<PathBuf, VolumeFile>) -> io::Result<()> {
    let wanted: std::collections::BTreeSet<_> =
        files.keys().filter_map(|path| path.iter().next()).map(ToOwned::to_owned).collect();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().starts_with(b"..") && !wanted.contains(&name) {
            fs::remove_file(dir.join(name))?;
        }
    }
    for name in wanted {
        let link = dir.join(&name);
        if fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink(Path::new("..data").join(&name), link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "volumes_tests.rs"]
mod tests;
