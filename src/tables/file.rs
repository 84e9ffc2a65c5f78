//! The files of the tables: `config/<name>` and its predecessor, `config/<name>.bak`.

use super::Table;
use super::json::{self, Malformed};
use crate::disk::{Disk, OpenAccess};
use crate::environment::Environment;
use crate::error::{Corruption, Error, IoContext, IoOp, Result};
use crate::log::directory::{create_dir_all, remove_if_there, sync_ancestors, write_new};
use parking_lot::Mutex;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Largest file that is read or written: parsed, it takes up to 16 times the memory.
const FILE_SIZE_MAX: u64 = if cfg!(test) { 1 << 20 } else { 64 << 20 };

/// Why a file is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unusable {
    /// There is none.
    Missing,
    /// It is empty, or blank.
    Empty,
    /// It is not the JSON that belongs there.
    Malformed {
        /// Where in the file, as far as that is known.
        offset: u64,
        /// What is wrong.
        what: String,
    },
}

/// Where a table was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Source {
    /// Its own file.
    Main,
    /// The backup: the table as it was one save earlier.
    Backup {
        /// What is wrong with the file.
        why: Unusable,
    },
    /// Nowhere: neither file says anything, and the table is empty.
    Nothing,
}

/// A table, and where it was read from.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded<T> {
    /// The table.
    pub table: T,
    /// Where it was read from. A backup is worth a line in a log.
    pub source: Source,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("missing"),
            Self::Empty => f.write_str("empty"),
            Self::Malformed { offset, what } => write!(f, "malformed at {offset}: {what}"),
        }
    }
}

impl From<Malformed> for Unusable {
    fn from(Malformed { offset, what }: Malformed) -> Self {
        Self::Malformed { offset, what }
    }
}

/// The tables in `config/` below the root of a store.
///
/// Loading writes nothing. Who saves must own the store: have it open, or know that nobody has.
#[derive(Debug)]
pub struct Tables {
    environment: Environment,
    root: PathBuf,
    /// Whether the directories are there and durable. One saves at a time: the files have fixed names.
    prepared: Mutex<bool>,
}

impl Tables {
    /// The tables of the store at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::new_in(root, Environment::default())
    }

    /// The same in another environment.
    pub fn new_in(root: impl Into<PathBuf>, environment: Environment) -> Self {
        Self { environment, root: root.into(), prepared: Mutex::new(false) }
    }

    /// Reads a table: from its file, or from the backup where the file is missing, empty or malformed.
    /// Where there is nothing in either, as in a new store, the table is empty.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if a file is malformed and the other one of no use: an empty table would
    /// make consumers begin again. [`Error::Io`] if a file cannot be read, whatever the other says.
    pub fn load<T: Table>(&self) -> Result<Loaded<T>> {
        self.load_with_bytes().map(|(loaded, _)| loaded)
    }

    /// The same, and the bytes that it is made of.
    pub(crate) fn load_with_bytes<T: Table>(&self) -> Result<(Loaded<T>, Vec<u8>)> {
        let path = self.path::<T>();
        let why = match self.read::<T>(&path)? {
            Ok((table, bytes)) => return Ok((Loaded { table, source: Source::Main }, bytes)),
            Err(why) => why,
        };
        let backup = backup(&path);
        let (path, offset, what) = match (self.read::<T>(&backup)?, why) {
            (Ok((table, bytes)), why) => {
                return Ok((Loaded { table, source: Source::Backup { why } }, bytes));
            }
            (_, Unusable::Malformed { offset, what }) => (path, offset, what),
            (Err(Unusable::Malformed { offset, what }), _) => (backup, offset, what),
            _ => {
                let loaded = Loaded { table: T::default(), source: Source::Nothing };
                return Ok((loaded, Vec::new()));
            }
        };
        Err(Error::Corrupt { path, offset, what: Corruption::Json { what } })
    }

    /// Stores a table with the next [`DataVersion`](super::DataVersion), durable when this returns.
    /// The file it replaces becomes the backup, unless it is malformed.
    ///
    /// A crash leaves the file as it was or as it is to be, and the backup likewise. So does an
    /// error, after which the same call may be made again.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a table that would not be read again; [`Error::DiskFull`] and
    /// [`Error::Io`].
    pub fn save<T: Table>(&self, table: &mut T) -> Result<()> {
        self.save_noting(table, |_| Ok(()))
    }

    /// The same, after `note` was told what the file will hold.
    pub(crate) fn save_noting<T: Table>(
        &self,
        table: &mut T,
        note: impl FnOnce(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut prepared = self.prepared.lock();
        // Counted before anything can fail: a version must not come twice with different contents.
        table.data_version_mut().advance(self.environment.clock.unix_millis());
        let path = self.path::<T>();
        let bytes = serde_json::to_vec_pretty(&table.encode())
            .map_err(|e| Error::io(IoOp::Write, &path, None, e.into()))?;
        if bytes.len() as u64 > FILE_SIZE_MAX {
            let max = FILE_SIZE_MAX as usize;
            return Err(Error::TooLarge { what: "table", len: bytes.len(), max });
        }
        if !*prepared {
            self.prepare()?;
            *prepared = true;
        }
        note(&bytes)?;
        let names = [self.temporary(T::FILE), self.temporary(&format!("{}.bak", T::FILE))];
        let [new, old] = &names;
        let replaced = self.replace::<T>(&path, &bytes, new, old);
        if replaced.is_err() {
            for name in &names {
                // What is left of them is in nobody's way; the first error is the one to tell.
                let _ = remove_if_there(self.disk(), name);
            }
        }
        replaced
    }

    /// The file is never without a name: a rename to the backup's, not yet durable, may lose the one
    /// and not make the other.
    fn replace<T: Table>(&self, path: &Path, bytes: &[u8], new: &Path, old: &Path) -> Result<()> {
        let disk = self.disk();
        let config = self.config();
        write_new(disk, new, bytes)?;
        if let Ok((_, current)) = self.read::<T>(path)? {
            write_new(disk, old, &current)?;
            let backup = backup(path);
            disk.rename(old, &backup).at(IoOp::Rename, &backup)?;
        }
        disk.rename(new, path).at(IoOp::Rename, path)?;
        disk.sync_dir(&config).at(IoOp::SyncDir, &config)
    }

    fn prepare(&self) -> Result<()> {
        let config = self.config();
        create_dir_all(self.disk(), &config)?;
        create_dir_all(self.disk(), &self.root.join("duralog"))?;
        // Whoever made them may have been killed before they were durable.
        sync_ancestors(self.disk(), &config)
    }

    /// The table in the file and the bytes it is made of.
    fn read<T: Table>(&self, path: &Path) -> Result<Result<(T, Vec<u8>), Unusable>> {
        let file = match self.disk().open(path, OpenAccess::Read) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Err(Unusable::Missing)),
            opened => opened.at(IoOp::Open, path)?,
        };
        if file.len() > FILE_SIZE_MAX {
            let what = format!("it has {} bytes, more than {FILE_SIZE_MAX}", file.len());
            return Ok(Err(Unusable::Malformed { offset: 0, what }));
        }
        let mut bytes = vec![0; file.len() as usize];
        let length = file.read_at(&mut bytes, 0).at(IoOp::Read, path)?;
        bytes.truncate(length);
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Ok(Err(Unusable::Empty));
        }
        Ok(decode(&bytes).map(|table| (table, bytes)))
    }

    fn disk(&self) -> &dyn Disk {
        &*self.environment.disk
    }

    fn config(&self) -> PathBuf {
        self.root.join("config")
    }

    fn path<T: Table>(&self) -> PathBuf {
        self.config().join(T::FILE)
    }

    /// Where a file is made before it gets its own name; a store that opens removes what is left.
    fn temporary(&self, name: &str) -> PathBuf {
        self.root.join("duralog").join(format!("{name}.tmp"))
    }
}

fn backup(path: &Path) -> PathBuf {
    path.with_extension("json.bak")
}

fn decode<T: Table>(bytes: &[u8]) -> Result<T, Unusable> {
    let object = json::parse(bytes)?;
    T::decode(object).map_err(|what| Unusable::Malformed { offset: 0, what })
}

#[cfg(test)]
mod tests;
