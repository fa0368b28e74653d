//! Reads a container's log as `kubectl logs` asks for it, and follows it while the container runs.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::line::{Stream, parse};
use super::watch::Watch;

/// What of a log is wanted. Source: API reference, `PodLogOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LogOptions {
    pub(crate) follow: bool,
    pub(crate) timestamps: bool,
    pub(crate) since: Option<Timestamp>,
    pub(crate) tail_lines: Option<u64>,
    pub(crate) limit_bytes: Option<u64>,
    pub(crate) stream: Option<Stream>,
}

/// Bytes that one round of reading may gather.
const CHUNK: usize = 64 * 1024;

/// A log being read; its state between two rounds.
struct LogFile {
    path: PathBuf,
    reader: BufReader<File>,
    inode: u64,
    /// The start of a line whose end has not been written yet.
    pending: Vec<u8>,
    options: LogOptions,
    /// The last line was one the reader does not want, and goes on.
    skips_rest: bool,
    /// The last line was partial: the next one has no time of its own.
    continues: bool,
    left: Option<u64>,
}

/// A round's result.
struct Round {
    file: LogFile,
    bytes: Vec<u8>,
    is_at_end: bool,
}

/// Sends the log at `path` to `out`. With `follow`, until `ended` says that the container has, and all is read.
pub(crate) async fn send_log(
    path: PathBuf,
    options: LogOptions,
    out: mpsc::Sender<Bytes>,
    ended: impl Future<Output = ()>,
) -> io::Result<()> {
    let watch = match (options.follow, path.parent()) {
        (true, Some(directory)) => {
            let watch = Watch::new()?;
            watch.add(directory)?;
            Some(watch)
        }
        _ => None,
    };
    let mut file = blocking(move || LogFile::open(path, options)).await?;
    let mut ended = std::pin::pin!(ended);
    let mut has_ended = false;
    loop {
        let round = blocking(move || file.read()).await?;
        file = round.file;
        if !round.bytes.is_empty() && out.send(round.bytes.into()).await.is_err() {
            return Ok(());
        }
        if file.left == Some(0) {
            return Ok(());
        }
        if !round.is_at_end {
            continue;
        }
        let Some(watch) = watch.as_ref().filter(|_| !has_ended) else { return Ok(()) };
        tokio::select! {
            changed = watch.changed() => drop(changed?),
            () = &mut ended => has_ended = true,
            () = out.closed() => return Ok(()),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl LogFile {
    fn open(path: PathBuf, options: LogOptions) -> io::Result<Self> {
        let mut file = File::open(&path)?;
        let inode = file.metadata()?.ino();
        if let Some(lines) = options.tail_lines {
            let start = tail_start(&mut file, lines)?;
            file.seek(SeekFrom::Start(start))?;
        }
        let left = options.limit_bytes;
        let reader = BufReader::with_capacity(CHUNK, file);
        Ok(Self {
            path,
            reader,
            inode,
            pending: Vec::new(),
            options,
            skips_rest: false,
            continues: false,
            left,
        })
    }

    /// Reads whole lines up to a chunk; goes over to the new file when the log was rotated.
    fn read(mut self) -> io::Result<Round> {
        let mut bytes = Vec::new();
        let mut is_at_end = false;
        while bytes.len() < CHUNK && self.left != Some(0) {
            if self.reader.read_until(b'\n', &mut self.pending)? == 0 {
                is_at_end = !self.reopen()?;
                if is_at_end {
                    break;
                }
                continue;
            }
            if self.pending.last() != Some(&b'\n') {
                continue;
            }
            let line = std::mem::take(&mut self.pending);
            self.take_line(&line, &mut bytes);
        }
        Ok(Round { file: self, bytes, is_at_end })
    }

    /// `true` when there is a new file under the log's name.
    fn reopen(&mut self) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        let inode = file.metadata()?.ino();
        if inode == self.inode {
            return Ok(false);
        }
        self.inode = inode;
        self.reader = BufReader::with_capacity(CHUNK, file);
        self.pending.clear();
        Ok(true)
    }

    fn take_line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(parsed) = parse(line) else {
            tracing::debug!(path = %self.path.display(), "a line that is no log line is left out");
            return;
        };
        let wanted = self.options.stream.is_none_or(|stream| stream == parsed.stream)
            && self.options.since.is_none_or(|since| parsed.timestamp().is_none_or(|time| time >= since));
        if !wanted {
            self.skips_rest = parsed.is_partial;
            return;
        }
        let mut text = Vec::with_capacity(line.len());
        if self.options.timestamps && !self.continues {
            text.extend_from_slice(parsed.time);
            text.push(b' ');
        }
        text.extend_from_slice(parsed.content);
        if !parsed.is_partial {
            text.push(b'\n');
        }
        self.continues = parsed.is_partial;
        if let Some(left) = &mut self.left {
            let fits = usize::try_from(*left).unwrap_or(usize::MAX).min(text.len());
            text.truncate(fits);
            *left = left.saturating_sub(u64::try_from(fits).unwrap_or(u64::MAX));
        }
        out.extend_from_slice(&text);
    }
}

/// Where the last `lines` lines of the file begin.
fn tail_start(file: &mut File, lines: u64) -> io::Result<u64> {
    const BLOCK: u64 = 16 * 1024;
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok(end);
    }
    let mut found = 0_u64;
    let mut is_last_byte = true;
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let mut block = vec![0; usize::try_from(end - start).unwrap_or_default()];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        for (offset, byte) in block.iter().enumerate().rev() {
            // The newline at the very end closes the last line.
            if *byte == b'\n' && !is_last_byte {
                found += 1;
                if found == lines {
                    return Ok(start + u64::try_from(offset).unwrap_or_default() + 1);
                }
            }
            is_last_byte = false;
        }
        end = start;
    }
    Ok(0)
}

/// The log file of one run of a container.
pub(crate) fn log_file(pod_logs: &Path, container: &str, restart_count: i32) -> PathBuf {
    pod_logs.join(crate::pod::container::log_path(container, restart_count))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use tokio_util::sync::CancellationToken;

    use super::*;

    const LOG: &str = "\
2026-01-01T00:00:01Z stdout F one
2026-01-01T00:00:02Z stderr F two
2026-01-01T00:00:03Z stdout P thr
2026-01-01T00:00:04Z stdout F ee
2026-01-01T00:00:05Z stdout F four
";

    async fn read(options: LogOptions) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        let (out, mut chunks) = mpsc::channel(100);
        send_log(path, options, out, std::future::pending()).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            text.extend_from_slice(&chunk);
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn options_choose_what_is_shown() {
        let all = LogOptions::default();
        assert_eq!(read(all.clone()).await, "one\ntwo\nthree\nfour\n");
        assert_eq!(read(LogOptions { tail_lines: Some(1), ..all.clone() }).await, "four\n");
        assert_eq!(read(LogOptions { tail_lines: Some(0), ..all.clone() }).await, "");
        assert_eq!(read(LogOptions { tail_lines: Some(99), ..all.clone() }).await, "one\ntwo\nthree\nfour\n");
        assert_eq!(read(LogOptions { limit_bytes: Some(5), ..all.clone() }).await, "one\nt");
        assert_eq!(read(LogOptions { stream: Some(Stream::Stderr), ..all.clone() }).await, "two\n");
        let since = Some("2026-01-01T00:00:05Z".parse().unwrap());
        assert_eq!(read(LogOptions { since, ..all.clone() }).await, "four\n");
        assert_eq!(
            read(LogOptions { timestamps: true, tail_lines: Some(3), ..all }).await,
            "2026-01-01T00:00:03Z three\n2026-01-01T00:00:05Z four\n"
        );
    }

    #[tokio::test]
    async fn a_followed_log_goes_on_through_rotation_until_the_container_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, "2026-01-01T00:00:01Z stdout F one\n").unwrap();
        let (out, mut chunks) = mpsc::channel(100);
        let ended = CancellationToken::new();
        let (task_path, task_ended) = (path.clone(), ended.clone());
        let task = tokio::spawn(async move {
            let options = LogOptions { follow: true, ..LogOptions::default() };
            send_log(task_path, options, out, task_ended.cancelled()).await
        });
        let mut next = async || {
            let chunk = tokio::time::timeout(Duration::from_secs(10), chunks.recv()).await.unwrap();
            chunk.map(|chunk| String::from_utf8(chunk.to_vec()).unwrap())
        };
        assert_eq!(next().await.as_deref(), Some("one\n"));
        let mut file = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(b"2026-01-01T00:00:02Z stdout F two\n").unwrap();
        assert_eq!(next().await.as_deref(), Some("two\n"));
        std::fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:03Z stdout F three\n").unwrap();
        assert_eq!(next().await.as_deref(), Some("three\n"));
        ended.cancel();
        assert_eq!(next().await, None);
        task.await.unwrap().unwrap();
    }
}
