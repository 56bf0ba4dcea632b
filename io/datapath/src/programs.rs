//! The embedded BPF object: loading it over pinned or fresh maps. Attaching lives in `links`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType, ObjectBuilder, OpenMapMut};

use crate::error::{OpenError, io_error};

/// bpf/weft.bpf.c, compiled by build.rs.
pub const OBJECT: &[u8] = include_bytes!(env!("WEFT_BPF_OBJECT"));
/// Of all tables, then of those that outlive a change of the others': connections to services go on.
const LAYOUTS: [(&str, &str); 3] = [
    ("", env!("WEFT_LAYOUT")),
    ("nat", env!("WEFT_LAYOUT_NAT")),
    ("affinities", env!("WEFT_LAYOUT_AFFINITIES")),
];
const LAYOUT_PIN: &str = "layout";
const MOST_COMPLAINTS: usize = 12;

/// Loaded programs and their maps, by name.
pub struct Programs {
    programs: BTreeMap<String, OwnedFd>,
    maps: BTreeMap<String, MapHandle>,
    /// Pinned maps had another layout, so these are fresh and empty.
    recreated: bool,
}

impl Programs {
    /// Loads over the maps pinned in `maps_dir`, pinning there what is new. Until `keep_layout` the next load makes
    /// those anew: programs may still run over other maps, and nothing may have been written into these.
    pub fn load(maps_dir: &Path, config: &weft_abi::Config, flow_entries: u32) -> Result<Self, OpenError> {
        Self::load_sized(maps_dir, config, &BTreeMap::from([("flows", flow_entries)]))
    }

    /// `sizes` are those of tables that should have another than bpf/lib/maps.h says.
    pub(crate) fn load_sized(
        maps_dir: &Path,
        config: &weft_abi::Config,
        sizes: &BTreeMap<&'static str, u32>,
    ) -> Result<Self, OpenError> {
        libbpf_rs::set_print(Some((libbpf_rs::PrintLevel::Warn, |_, text| complain(&text))));
        complaints().clear();
        let mut recreated = discard_other_layout(maps_dir)?;
        let mut builder = ObjectBuilder::default();
        let mut object = builder.open_memory(OBJECT).map_err(load_error)?;
        for mut map in object.maps_mut() {
            let resized = prepare_map(&mut map, maps_dir, config, sizes)?;
            if resized == Resized::FilledByAgent {
                recreated = true;
                forget_layout(maps_dir)?;
            }
        }
        let object = object.load().map_err(load_error)?;
        let mut loaded = Self { programs: BTreeMap::new(), maps: BTreeMap::new(), recreated };
        for program in object.progs() {
            let name = program.name().to_string_lossy().into_owned();
            let fd =
                program.as_fd().try_clone_to_owned().map_err(|source| bpf_error(&name, "keep", source))?;
            loaded.programs.insert(name, fd);
        }
        for map in object.maps() {
            let name = map.name().to_string_lossy().into_owned();
            let handle =
                MapHandle::try_from(&map).map_err(|error| bpf_error(&name, "keep", io_error(error)))?;
            loaded.maps.insert(name, handle);
        }
        Ok(loaded)
    }

    /// The programs that run are the ones loaded here: their maps are to be kept.
    pub(crate) fn keep_layout(&self, maps_dir: &Path) -> Result<(), OpenError> {
        if pinned_layout(maps_dir, 0) == Some(current_layout(0)) { Ok(()) } else { pin_layout(maps_dir) }
    }

    pub fn program(&self, name: &str) -> Result<BorrowedFd<'_>, OpenError> {
        let missing = || bpf_error(name, "find", io::Error::from_raw_os_error(libc::ENOENT));
        self.programs.get(name).map(|fd| fd.as_fd()).ok_or_else(missing)
    }

    pub fn map(&self, name: &str) -> Result<MapHandle, OpenError> {
        let missing = || bpf_error(name, "find", io::Error::from_raw_os_error(libc::ENOENT));
        let map = self.maps.get(name).ok_or_else(missing)?;
        MapHandle::try_from(map).map_err(|error| bpf_error(name, "duplicate", io_error(error)))
    }

    pub(crate) fn were_maps_recreated(&self) -> bool {
        self.recreated
    }
}

/// What became of a pinned map of another size.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Resized {
    No,
    /// Its entries are learned anew.
    FilledByPrograms,
    /// It is empty until the next plan.
    FilledByAgent,
}

fn prepare_map(
    map: &mut OpenMapMut<'_>,
    maps_dir: &Path,
    config: &weft_abi::Config,
    sizes: &BTreeMap<&'static str, u32>,
) -> Result<Resized, OpenError> {
    let name = map.name().to_string_lossy().into_owned();
    if name.ends_with(".rodata") {
        let value =
            map.initial_value_mut().ok_or_else(|| OpenError::Load { message: "no constants".to_owned() })?;
        let bytes = bytemuck::bytes_of(config);
        value[..bytes.len()].copy_from_slice(bytes);
        return Ok(Resized::No);
    }
    let path = maps_dir.join(&name);
    let mut resized = Resized::No;
    if let Some(entries) = sizes.get(name.as_str()) {
        map.set_max_entries(*entries).map_err(|error| bpf_error(&name, "size", io_error(error)))?;
        resized = discard_other_size(&name, &path, *entries)?;
    }
    map.set_pin_path(path).map_err(|error| bpf_error(&name, "pin", io_error(error)))?;
    Ok(resized)
}

/// A table of another size cannot be reused: flows are judged once more, and what the agent fills waits for its next plan.
fn discard_other_size(name: &str, path: &Path, entries: u32) -> Result<Resized, OpenError> {
    let Ok(pinned) = MapHandle::from_pinned_path(path) else { return Ok(Resized::No) };
    if pinned.max_entries() == entries {
        return Ok(Resized::No);
    }
    tracing::warn!(
        table = name,
        from = pinned.max_entries(),
        to = entries,
        "table resized: it is filled anew"
    );
    std::fs::remove_file(path).map_err(|source| OpenError::File { path: path.to_owned(), source })?;
    Ok(if name == "flows" { Resized::FilledByPrograms } else { Resized::FilledByAgent })
}

/// Returns whether maps of another layout were there; they are unpinned.
fn discard_other_layout(maps_dir: &Path) -> Result<bool, OpenError> {
    let file = |source| OpenError::File { path: maps_dir.to_owned(), source };
    let mut entries = std::fs::read_dir(maps_dir).map_err(file)?.peekable();
    if pinned_layout(maps_dir, 0) == Some(current_layout(0)) || entries.peek().is_none() {
        return Ok(false);
    }
    let same =
        (1..LAYOUTS.len()).filter(|slot| pinned_layout(maps_dir, *slot) == Some(current_layout(*slot)));
    let mut kept: Vec<&str> = same.map(|slot| LAYOUTS[slot].0).collect();
    tracing::warn!(
        kept = kept.join(" "),
        "kernel tables have the layout of another version: they are made anew, and established flows are judged \
         again; the programs of that version go on until the first plan is in the new tables"
    );
    forget_layout(maps_dir)?;
    kept.push(LAYOUT_PIN);
    for entry in entries {
        let entry = entry.map_err(file)?;
        if !kept.iter().any(|name| entry.file_name() == *name) {
            let path = entry.path();
            std::fs::remove_file(&path).map_err(|source| OpenError::File { path, source })?;
        }
    }
    Ok(true)
}

/// Until programs run with these tables, none of them can be taken for good.
fn forget_layout(maps_dir: &Path) -> Result<(), OpenError> {
    match MapHandle::from_pinned_path(maps_dir.join(LAYOUT_PIN)) {
        Err(_) => Ok(()),
        Ok(map) => map
            .update(&0u32.to_ne_bytes(), &0u64.to_ne_bytes(), MapFlags::ANY)
            .map_err(|error| bpf_error(LAYOUT_PIN, "write", io_error(error))),
    }
}

fn current_layout(slot: usize) -> u64 {
    LAYOUTS[slot].1.parse().expect("build.rs writes a decimal number")
}

/// What the pinned tables have; `None` where the process before did not say.
fn pinned_layout(maps_dir: &Path, slot: usize) -> Option<u64> {
    let map = MapHandle::from_pinned_path(maps_dir.join(LAYOUT_PIN)).ok()?;
    let digest = map.lookup(&(slot as u32).to_ne_bytes(), MapFlags::ANY).ok()??;
    digest.try_into().ok().map(u64::from_ne_bytes)
}

fn pin_layout(maps_dir: &Path) -> Result<(), OpenError> {
    let options = libbpf_rs::libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_rs::libbpf_sys::bpf_map_create_opts>() as _,
        ..Default::default()
    };
    let error = |action: &'static str| move |error| bpf_error(LAYOUT_PIN, action, io_error(error));
    let mut map =
        MapHandle::create(MapType::Array, Some("weft_layout"), 4, 8, LAYOUTS.len() as u32, &options)
            .map_err(error("create"))?;
    for slot in 0..LAYOUTS.len() {
        map.update(&(slot as u32).to_ne_bytes(), &current_layout(slot).to_ne_bytes(), MapFlags::ANY)
            .map_err(error("write"))?;
    }
    let path = maps_dir.join(LAYOUT_PIN);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(OpenError::File { path, source });
        }
        _ => {}
    }
    map.pin(&path).map_err(error("pin"))
}

/// What libbpf and the verifier said about the last load: their return code alone helps nobody.
static COMPLAINTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn complaints() -> MutexGuard<'static, Vec<String>> {
    COMPLAINTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn complain(text: &str) {
    tracing::debug!(target: "libbpf", "{}", text.trim_end());
    complaints().extend(text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned));
}

fn load_error(error: libbpf_rs::Error) -> OpenError {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied if !nix::unistd::geteuid().is_root() => {
            OpenError::NotPermitted
        }
        _ => {
            let said = complaints();
            let last = said[said.len().saturating_sub(MOST_COMPLAINTS)..].join("\n");
            OpenError::Load { message: format!("{error:#}\n{last}") }
        }
    }
}

pub(crate) fn bpf_error(object: &str, action: &'static str, source: io::Error) -> OpenError {
    OpenError::Bpf { object: object.to_owned(), action, source }
}

/// The raw number for system calls that take one.
pub(crate) fn raw(fd: BorrowedFd<'_>) -> i32 {
    fd.as_raw_fd()
}
