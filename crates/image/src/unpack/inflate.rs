//! Decompression by what the first bytes are, not by what a manifest says: gzip, zstd or nothing.
//! Both decoders are Rust: these bytes come from strangers and the reader is root.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

const BUFFER: usize = 64 << 10;
const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

type Input<R> = BufReader<Chain<Cursor<Vec<u8>>, R>>;

/// A reader of the uncompressed bytes.
pub(super) enum Inflate<R: Read> {
    Plain(Input<R>),
    Gzip(Box<MultiGzDecoder<Input<R>>>),
    Zstd(Box<Frames<Input<R>>>),
}

impl<R: Read> Inflate<R> {
    /// Looks at the first bytes and chooses the decoder.
    pub(super) fn new(mut input: R) -> io::Result<Self> {
        let start = read_magic(&mut input)?;
        let (is_gzip, is_zstd) = (start.starts_with(&GZIP), start == ZSTD || is_skippable(&start));
        let input = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(input));
        Ok(match (is_gzip, is_zstd) {
            (true, _) => Self::Gzip(Box::new(MultiGzDecoder::new(input))),
            (_, true) => Self::Zstd(Box::new(Frames(State::Between(input, FrameDecoder::new())))),
            _ => Self::Plain(input),
        })
    }
}

impl<R: Read> Read for Inflate<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(frames) => frames.read(buffer),
        }
    }
}

/// Zstandard frames one after the other, as `zstd:chunked` and parallel compressors write them; skippable ones
/// (RFC 8878 §3.1.2) are skipped.
pub(super) struct Frames<R: Read>(State<R>);

type Frame<R> = StreamingDecoder<Chain<Cursor<Vec<u8>>, R>, FrameDecoder>;

enum State<R: Read> {
    Between(R, FrameDecoder),
    Within(Frame<R>),
    Ended,
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.0, State::Ended) {
                State::Ended => return Ok(0),
                State::Between(input, decoder) => self.0 = begin(input, decoder)?,
                State::Within(mut frame) => {
                    let count = frame.read(buffer)?;
                    if count > 0 {
                        self.0 = State::Within(frame);
                        return Ok(count);
                    }
                    let (input, decoder) = frame.into_parts();
                    self.0 = State::Between(input.into_inner().1, decoder);
                }
            }
        }
    }
}

fn begin<R: Read>(mut input: R, decoder: FrameDecoder) -> io::Result<State<R>> {
    let magic = read_magic(&mut input)?;
    if magic.is_empty() {
        return Ok(State::Ended);
    }
    if is_skippable(&magic) {
        let mut length = [0; 4];
        input.read_exact(&mut length)?;
        let length = u64::from(u32::from_le_bytes(length));
        if io::copy(&mut input.by_ref().take(length), &mut io::sink())? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        return Ok(State::Between(input, decoder));
    }
    let frame = StreamingDecoder::new_with_decoder(Cursor::new(magic).chain(input), decoder);
    frame.map(State::Within).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))
}

fn read_magic(input: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(4);
    input.take(4).read_to_end(&mut magic)?;
    Ok(magic)
}

fn is_skippable(magic: &[u8]) -> bool {
    matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18])
}
