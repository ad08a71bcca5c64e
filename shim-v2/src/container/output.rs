//! Stop 11 of twelve: where a stream of a process goes, as its URI says: to a fifo, into a
//! file, or to a program that logs it.

use std::ffi::OsString;
use std::fs::FileType;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::fs::{DirBuilder, File, OpenOptions};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::output_fifo::OutputFifo;
use super::stdio::StdioError;

/// What a URI names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A plain path, or `fifo://`.
    Fifo(PathBuf),
    /// `file://`: what is written is appended.
    File(PathBuf),
    /// `binary://` of stdout: a program that gets both streams.
    Logger(Program),
}

/// A program and its arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Absolute path of the executable.
    pub path: PathBuf,
    /// Each key of the URI's query, followed by its first value, which may be empty.
    pub args: Vec<OsString>,
}

impl Target {
    /// Understands the URI of `which` stream: input is always a fifo.
    ///
    /// # Errors
    /// [`StdioError::Scheme`] and [`StdioError::Uri`].
    pub fn parse(which: &'static str, uri: &str) -> Result<Self, StdioError> {
        let Some((scheme, rest)) = uri.split_once("://") else {
            return Ok(Self::Fifo(uri.into()));
        };
        let target = match (scheme, which) {
            ("fifo", _) => return Ok(Self::Fifo(rest.into())),
            ("file", "stdout" | "stderr") => program(rest).map(|file| Self::File(file.path)),
            ("binary", "stdout") => program(rest).map(Self::Logger),
            _ => {
                let uri = uri.to_owned();
                return Err(StdioError::Scheme { which, uri });
            }
        };
        target.ok_or_else(|| StdioError::Uri {
            which,
            uri: uri.to_owned(),
        })
    }

    /// Whether it can be what it is named as, before anything is made.
    ///
    /// # Errors
    /// [`StdioError::Open`].
    pub fn check(self, which: &'static str) -> Result<(), StdioError> {
        type Kind = fn(&FileType) -> bool;
        let (path, is_one, problem): (_, Kind, _) = match self {
            Self::Fifo(path) => (path, FileType::is_fifo, "not a fifo"),
            Self::Logger(program) => (program.path, FileType::is_file, "not a program"),
            Self::File(_) => return Ok(()),
        };
        let found = std::fs::metadata(&path).and_then(|meta| match is_one(&meta.file_type()) {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::InvalidInput, problem)),
        });
        found.map_err(|source| StdioError::Open {
            which,
            path,
            source,
        })
    }
}

/// What follows the scheme: a host, which means nothing here, an absolute path and a query.
fn program(rest: &str) -> Option<Program> {
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(&path[path.find('/')?..])?.into();
    let mut pairs: Vec<(OsString, OsString)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (key, value) = (decode_query(key)?, decode_query(value)?);
        if pairs.iter().all(|(known, _)| *known != key) {
            pairs.push((key, value));
        }
    }
    let args = pairs.into_iter().flat_map(|(key, value)| [key, value]);
    Some(Program {
        path,
        args: args.collect(),
    })
}

/// In a query a plus sign is a space.
fn decode_query(text: &str) -> Option<OsString> {
    decode(&text.replace('+', " "))
}

/// Percent-decoding, RFC 3986 section 2.1; `None` if an escape is not one.
fn decode(text: &str) -> Option<OsString> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    loop {
        let (byte, tail) = match rest {
            [] => return Some(OsString::from_vec(bytes)),
            [b'%', high, low, tail @ ..] => (digit(*high)? << 4 | digit(*low)?, tail),
            [b'%', ..] => return None,
            [byte, tail @ ..] => (*byte, tail),
        };
        bytes.push(byte);
        rest = tail;
    }
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

/// One stream's open end.
pub enum Output {
    /// containerd's fifo.
    Fifo(OutputFifo),
    /// A file that is appended to.
    File(File),
    /// A pipe to a logger.
    Logger {
        /// Its writing end.
        pipe: pipe::Sender,
        /// Tells the logger's follower, by its drop, that the pipe is closed.
        _open: mpsc::Sender<()>,
    },
}

impl Output {
    /// Opens a file to append to, making it and its directory if need be.
    ///
    /// # Errors
    /// What the system calls gave.
    pub async fn open_file(path: &Path) -> io::Result<Self> {
        if let Some(directory) = path.parent() {
            let mut builder = DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o755)
                .create(directory)
                .await?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o644);
        // What is no file after all is not waited for.
        options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
        Ok(Self::File(options.open(path).await?))
    }

    /// Writes all of `bytes`, waiting for a reader as long as it takes.
    ///
    /// # Errors
    /// What `write` gave.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::Logger { pipe, .. } => pipe.write_all(bytes).await,
            Self::File(file) => {
                file.write_all(bytes).await?;
                // Until then the last piece is only on its way, and its error unknown.
                file.flush().await
            }
        }
    }

    /// Ends the output: a fifo once it was read, the others at once.
    ///
    /// # Errors
    /// See [`OutputFifo::close`].
    pub async fn close(self) -> io::Result<()> {
        match self {
            Self::Fifo(fifo) => fifo.close().await,
            Self::File(_) | Self::Logger { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
