//! One kernel map with typed keys and values. Which entries belong in it lives in `tables`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use bytemuck::{Pod, Zeroable};
use libbpf_rs::libbpf_sys;
use libbpf_rs::{MapCore, MapFlags, MapHandle};

use crate::error::{ApplyError, ReadError, io_error};

/// How many entries one system call carries.
const BATCH: usize = 4096;

pub(crate) struct Table<K, V> {
    map: MapHandle,
    name: &'static str,
    entries: std::marker::PhantomData<fn(K, V)>,
}

impl<K: Pod + Ord, V: Pod> Table<K, V> {
    pub fn new(map: MapHandle, name: &'static str) -> Self {
        Self { map, name, entries: std::marker::PhantomData }
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
            let result = self.map.update_batch(
                bytemuck::cast_slice(&keys),
                bytemuck::cast_slice(&values),
                chunk.len() as u32,
                MapFlags::ANY,
                MapFlags::ANY,
            );
            if result.is_err() {
                self.put_singly(chunk, describe)?;
            }
        }
        Ok(())
    }

    /// What a batch could not do, entry by entry, to name the one at fault.
    fn put_singly(&self, entries: &[(K, V)], describe: &dyn Fn(&K) -> String) -> Result<(), ApplyError> {
        for (done, (key, value)) in entries.iter().enumerate() {
            // SAFETY: the map's key and value sizes are those of K and V, checked when it was opened.
            let result = unsafe {
                libbpf_sys::bpf_map_update_elem(
                    self.map.as_fd().as_raw_fd(),
                    bytemuck::bytes_of(key).as_ptr().cast(),
                    bytemuck::bytes_of(value).as_ptr().cast(),
                    0,
                )
            };
            if result == 0 {
                continue;
            }
            let source = io::Error::from_raw_os_error(-result);
            let object = describe(key);
            if matches!(source.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) {
                let more = entries.len() - done - 1;
                return Err(ApplyError::Full {
                    table: self.name,
                    limit: self.map.max_entries(),
                    object,
                    more,
                });
            }
            return Err(ApplyError::Table { table: self.name, action: "put", object, source });
        }
        Ok(())
    }

    pub fn remove(&self, keys: &[K], describe: &dyn Fn(&K) -> String) -> Result<(), ApplyError> {
        for key in keys {
            match self.map.delete(bytemuck::bytes_of(key)) {
                Ok(()) => {}
                Err(error) if error.kind() == libbpf_rs::ErrorKind::NotFound => {}
                Err(error) => {
                    let (object, source) = (describe(key), io_error(error));
                    return Err(ApplyError::Table { table: self.name, action: "remove", object, source });
                }
            }
        }
        Ok(())
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
