//! All files of a store, as bytes.

use duralog::disk::{Allocation, Disk, OpenAccess, SimDisk};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Where the store lies.
pub const ROOT: &str = "/store";

/// The files below [`ROOT`], by path relative to it.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Image(pub BTreeMap<String, Vec<u8>>);

impl Image {
    pub fn of(disk: &SimDisk) -> Self {
        let mut image = Self::default();
        image.collect(disk, Path::new(ROOT), "");
        image
    }

    fn collect(&mut self, disk: &SimDisk, dir: &Path, prefix: &str) {
        for entry in disk.list(dir).expect("listable") {
            let (path, name) = (dir.join(&entry.name), format!("{prefix}{}", entry.name));
            if entry.is_dir {
                self.collect(disk, &path, &format!("{name}/"));
                continue;
            }
            let file = disk.open(&path, OpenAccess::Read).expect("there");
            let mut bytes = vec![0; entry.len as usize];
            assert_eq!(file.read_at(&mut bytes, 0).expect("readable"), bytes.len());
            self.0.insert(name, bytes);
        }
    }

    /// A disk that holds these files and nothing else.
    pub fn to_disk(&self) -> SimDisk {
        let disk = SimDisk::new(0);
        for (name, bytes) in &self.0 {
            let path = Path::new(ROOT).join(name);
            let parents: Vec<PathBuf> = path.ancestors().skip(1).map(Path::to_owned).collect();
            for parent in parents.iter().rev().filter(|parent| parent.parent().is_some()) {
                disk.create_dir(parent).expect("made");
            }
            let len = bytes.len() as u64;
            let file = disk.create(&path, len, Allocation::Sparse).expect("made");
            file.write_at(bytes, 0).expect("written");
        }
        disk
    }
}
