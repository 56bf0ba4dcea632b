//! The kernel's hash tables of lists: a map whose values are arrays, each made once, filled, and put in the place of the
//! one before. What is in them lives in `service_entries`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle, MapType};

use crate::error::{ApplyError, ReadError, io_error};
use crate::maps::Writes;

const NAME: &str = "maglev";
/// How many tables one call puts in; as many descriptors are open at a time.
const BATCH: usize = 256;
/// How often it is looked whether a change can be seen.
const LOOK: Duration = Duration::from_micros(50);

pub(crate) struct MaglevTables {
    map: MapHandle,
    writes: Arc<dyn Writes>,
}

impl MaglevTables {
    pub fn new(map: MapHandle, writes: &Arc<dyn Writes>) -> Self {
        Self { map, writes: Arc::clone(writes) }
    }

    /// How many lists may have one.
    pub fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    pub fn put(&self, tables: &[(u32, Arc<[u64]>)]) -> Result<(), ApplyError> {
        for chunk in tables.chunks(BATCH) {
            let lists: Vec<u32> = chunk.iter().map(|(list, _)| *list).collect();
            let made: Vec<MapHandle> = chunk
                .iter()
                .map(|(list, words)| make(words).map_err(|source| failed("make", *list, source)))
                .collect::<Result<_, _>>()?;
            self.put_made(&lists, &made).map_err(|source| failed("put", lists[0], source))?;
        }
        Ok(())
    }

    pub fn remove(&self, lists: &[u32]) -> Result<(), ApplyError> {
        for chunk in lists.chunks(BATCH) {
            let last = chunk[chunk.len() - 1];
            let keys = chunk.to_vec();
            let together = self.change(last, None, move |writes, map| {
                writes.remove(NAME, map, bytemuck::cast_slice(&keys), keys.len() as u32)
            });
            if together.is_err() {
                chunk.iter().try_for_each(|list| self.remove_one(*list))?;
            }
        }
        Ok(())
    }

    fn remove_one(&self, list: u32) -> Result<(), ApplyError> {
        match self.change(list, None, move |writes, map| writes.remove(NAME, map, &list.to_ne_bytes(), 1)) {
            Err(source) if source.raw_os_error() != Some(libc::ENOENT) => Err(failed("remove", list, source)),
            _ => Ok(()),
        }
    }

    fn put_made(&self, lists: &[u32], made: &[MapHandle]) -> io::Result<()> {
        let fds: Vec<i32> = made.iter().map(|map| map.as_fd().as_raw_fd()).collect();
        let (Some(last), Some(last_made)) = (lists.last().copied(), made.last()) else { return Ok(()) };
        let id = last_made.info().map_err(io_error)?.info.id;
        let lists = lists.to_vec();
        self.change(last, Some(id), move |writes, map| {
            let (keys, values) = (bytemuck::cast_slice(&lists), bytemuck::cast_slice(&fds));
            writes.put(NAME, map, keys, values, lists.len() as u32)
        })
    }

    /// The kernel makes a change at once, and its call returns only when no program can run any more with what was there
    /// before: some ten milliseconds that nobody here has to wait for. Done when `last` has `id`, or when it fails.
    fn change(
        &self,
        last: u32,
        id: Option<u32>,
        work: impl FnOnce(&dyn Writes, &MapHandle) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let (sender, outcome) = channel();
        let (writes, map) = (Arc::clone(&self.writes), MapHandle::try_from(&self.map).map_err(io_error)?);
        std::thread::Builder::new().spawn(move || sender.send(work(&*writes, &map)).ok())?;
        loop {
            match outcome.recv_timeout(LOOK) {
                Ok(result) => return result,
                // The descriptors are lent to the call until it has made the change, whatever else goes wrong.
                Err(RecvTimeoutError::Timeout) if self.id_of(last).ok() != Some(id) => {}
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("its thread panicked")),
            }
        }
    }

    fn id_of(&self, list: u32) -> io::Result<Option<u32>> {
        let found = self.map.lookup(&list.to_ne_bytes(), MapFlags::ANY).map_err(io_error)?;
        Ok(found.map(|bytes| bytemuck::pod_read_unaligned(&bytes)))
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
