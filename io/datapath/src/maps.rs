//! One kernel map with typed keys and values. Which entries belong in it lives in `tables`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::error::{ApplyError, ReadError, io_error};

/// How many entries one system call carries.
const BATCH: usize = 4096;

/// How changes get into kernel maps.
pub trait Writes: Send + Sync {
    /// Some of the entries may be in the map when this fails.
    fn put(&self, table: &str, map: &MapHandle, keys: &[u8], values: &[u8], count: u32) -> io::Result<()>;

    /// Fails at a key that is not there; those before it are gone.
    fn remove(&self, table: &str, map: &MapHandle, keys: &[u8], count: u32) -> io::Result<()>;
}

/// System calls.
pub struct KernelWrites;

impl Writes for KernelWrites {
    fn put(&self, _: &str, map: &MapHandle, keys: &[u8], values: &[u8], count: u32) -> io::Result<()> {
        let (map, options) = (map.as_fd().as_raw_fd(), batch_options());
        let (keys, values, mut count) = (keys.as_ptr().cast(), values.as_ptr().cast(), count);
        // SAFETY: keys and values are `count` of the map's sizes, checked by the types of `Table`.
        result(unsafe {
            libbpf_sys::bpf_map_update_batch(map, keys, values, &raw mut count, &raw const options)
        })
    }

    fn remove(&self, _: &str, map: &MapHandle, keys: &[u8], count: u32) -> io::Result<()> {
        let (map, options, mut count) = (map.as_fd().as_raw_fd(), batch_options(), count);
        // SAFETY: there are `count` keys of the map's size.
        result(unsafe {
            libbpf_sys::bpf_map_delete_batch(map, keys.as_ptr().cast(), &raw mut count, &raw const options)
        })
    }
}

fn batch_options() -> libbpf_sys::bpf_map_batch_opts {
    libbpf_sys::bpf_map_batch_opts {
        sz: size_of::<libbpf_sys::bpf_map_batch_opts>() as _,
        ..Default::default()
    }
}

fn result(code: i32) -> io::Result<()> {
    if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) }
}

pub(crate) struct Table<K, V> {
    map: MapHandle,
    name: &'static str,
    writes: Arc<dyn Writes>,
    entries: std::marker::PhantomData<fn(K, V)>,
}

impl<K: Pod + Ord, V: Pod> Table<K, V> {
    pub fn new(map: MapHandle, name: &'static str, writes: &Arc<dyn Writes>) -> Self {
        Self { map, name, writes: Arc::clone(writes), entries: std::marker::PhantomData }
    }

    pub fn name(&self) -> &'static str {
        self.name
    }

    pub fn capacity(&self) -> u32 {
        self.map.max_entries()
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, ReadError> {
        let found = self
            .map
            .lookup(bytemuck::bytes_of(key), MapFlags::ANY)
            .map_err(|error| self.unreadable(error))?;
        Ok(found.map(|bytes| bytemuck::pod_read_unaligned(&bytes)))
    }

    /// Entries that come and go while reading may be missing.
    pub fn read(&self) -> Result<BTreeMap<K, V>, ReadError> {
        let mut entries = BTreeMap::new();
        for key in self.map.keys() {
            let key: K = bytemuck::pod_read_unaligned(&key);
            if let Some(value) = self.get(&key)? {
                entries.insert(key, value);
            }
        }
        Ok(entries)
    }

    /// As `read`, for tables that are large and change while they are read.
    pub fn read_many(&self) -> Result<Vec<(K, V)>, ReadError> {
        let batches = self
            .map
            .lookup_batch(BATCH as u32, MapFlags::ANY, MapFlags::ANY)
            .map_err(|error| self.unreadable(error))?;
        Ok(batches
            .map(|(key, value)| (bytemuck::pod_read_unaligned(&key), bytemuck::pod_read_unaligned(&value)))
            .collect())
    }

    pub fn put(&self, entries: &[(K, V)], describe: &dyn Fn(&K) -> String) -> Result<(), ApplyError> {
        for chunk in entries.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = chunk.iter().map(|(_, value)| *value).collect();
            if self.put_raw(&keys, &values).is_err() {
                self.put_singly(chunk, describe)?;
            }
        }
        Ok(())
    }

    /// What a batch could not do, entry by entry, to name the one at fault.
    fn put_singly(&self, entries: &[(K, V)], describe: &dyn Fn(&K) -> String) -> Result<(), ApplyError> {
        for (done, (key, value)) in entries.iter().enumerate() {
            let Err(source) = self.put_raw(&[*key], &[*value]) else { continue };
            let object = describe(key);
            if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
                let (table, limit, more) = (self.name, self.capacity(), entries.len() - done - 1);
                return Err(ApplyError::Full { table, limit, object, more });
            }
            return Err(ApplyError::Table { table: self.name, action: "put", object, source });
        }
        Ok(())
    }

    fn put_raw(&self, keys: &[K], values: &[V]) -> io::Result<()> {
        let (raw_keys, raw_values) = (bytemuck::cast_slice(keys), bytemuck::cast_slice(values));
        self.writes.put(self.name, &self.map, raw_keys, raw_values, keys.len() as u32)
    }

    pub fn remove(&self, keys: &[K], describe: &dyn Fn(&K) -> String) -> Result<(), ApplyError> {
        for chunk in keys.chunks(BATCH) {
            if self.remove_raw(chunk).is_ok() {
                continue;
            }
            for key in chunk {
                match self.remove_raw(&[*key]) {
                    Err(source) if source.raw_os_error() != Some(libc::ENOENT) => {
                        let object = describe(key);
                        return Err(ApplyError::Table { table: self.name, action: "remove", object, source });
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn remove_raw(&self, keys: &[K]) -> io::Result<()> {
        self.writes.remove(self.name, &self.map, bytemuck::cast_slice(keys), keys.len() as u32)
    }

    /// Per-CPU values summed by `add`.
    pub fn sum(&self, key: &K, add: impl Fn(V, V) -> V) -> Result<V, ReadError>
    where
        V: Zeroable,
    {
        let values = self
            .map
            .lookup_percpu(bytemuck::bytes_of(key), MapFlags::ANY)
            .map_err(|error| self.unreadable(error))?
            .unwrap_or_default();
        Ok(values
            .iter()
            .map(|bytes| bytemuck::pod_read_unaligned(&bytes[..size_of::<V>()]))
            .fold(V::zeroed(), add))
    }

    fn unreadable(&self, error: libbpf_rs::Error) -> ReadError {
        ReadError::Table { table: self.name, source: io_error(error) }
    }
}
