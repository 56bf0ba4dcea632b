//! The kernel's hash tables of lists: a map whose values are arrays, each made once, filled, and put in the place of the
//! one before. What is in them lives in `service_entries`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::error::{ApplyError, ReadError, io_error};

const NAME: &str = "maglev";
/// Each call that changes the outer map waits until no program runs with what was there before, so tables go in together.
/// As many descriptors are open at a time.
const BATCH: usize = 256;

pub(crate) struct MaglevTables {
    map: MapHandle,
}

impl MaglevTables {
    pub fn new(map: MapHandle) -> Self {
        Self { map }
    }

    pub fn put(&self, tables: &[(u32, Arc<[u64]>)]) -> Result<(), ApplyError> {
        for chunk in tables.chunks(BATCH) {
            let lists: Vec<u32> = chunk.iter().map(|(list, _)| *list).collect();
            let made: Vec<MapHandle> = chunk
                .iter()
                .map(|(list, words)| make(words).map_err(|source| failed("make", *list, source)))
                .collect::<Result<_, _>>()?;
            let fds: Vec<i32> = made.iter().map(|map| map.as_fd().as_raw_fd()).collect();
            let result = self.map.update_batch(
                bytemuck::cast_slice(&lists),
                bytemuck::cast_slice(&fds),
                lists.len() as u32,
                MapFlags::ANY,
                MapFlags::ANY,
            );
            result.map_err(|error| failed("put", lists[0], io_error(error)))?;
        }
        Ok(())
    }

    pub fn remove(&self, lists: &[u32]) -> Result<(), ApplyError> {
        for list in lists {
            match self.map.delete(&list.to_ne_bytes()) {
                Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => {
                    return Err(failed("remove", *list, io_error(error)));
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn read(&self) -> Result<BTreeMap<u32, Arc<[u64]>>, ReadError> {
        let unreadable = |source| ReadError::Table { table: NAME, source };
        let mut tables = BTreeMap::new();
        for key in self.map.keys() {
            let list: u32 = bytemuck::pod_read_unaligned(&key);
            let found = self.map.lookup(&key, MapFlags::ANY).map_err(|error| unreadable(io_error(error)))?;
            let Some(id) = found else { continue };
            let words = read_inner(bytemuck::pod_read_unaligned(&id)).map_err(unreadable)?;
            tables.insert(list, words);
        }
        Ok(tables)
    }
}

fn failed(action: &'static str, list: u32, source: io::Error) -> ApplyError {
    let object = format!("the table of backend list {list:08x}");
    ApplyError::Table { table: NAME, action, object, source }
}

fn make(words: &[u64]) -> io::Result<MapHandle> {
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as _,
        map_flags: libbpf_sys::BPF_F_INNER_MAP,
        ..Default::default()
    };
    let (key, value) = (size_of::<u32>() as u32, size_of::<u64>() as u32);
    let count = words.len() as u32;
    let map = MapHandle::create(MapType::Array, Some("weft_maglev"), key, value, count, &options);
    let map = map.map_err(io_error)?;
    let keys: Vec<u32> = (0..count).collect();
    map.update_batch(
        bytemuck::cast_slice(&keys),
        bytemuck::cast_slice(words),
        count,
        MapFlags::ANY,
        MapFlags::ANY,
    )
    .map_err(io_error)?;
    Ok(map)
}

fn read_inner(id: u32) -> io::Result<Arc<[u64]>> {
    let map = MapHandle::from_map_id(id).map_err(io_error)?;
    let entries = map.lookup_batch(map.max_entries(), MapFlags::ANY, MapFlags::ANY).map_err(io_error)?;
    let mut words = vec![0; map.max_entries() as usize];
    for (key, value) in entries {
        words[bytemuck::pod_read_unaligned::<u32>(&key) as usize] = bytemuck::pod_read_unaligned(&value);
    }
    Ok(words.into())
}
