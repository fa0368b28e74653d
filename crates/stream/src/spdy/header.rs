//! SPDY/3 header blocks: name-value pairs, compressed with zlib over the protocol's fixed dictionary. The
//! compression state lives as long as the connection, so each direction owns one encoder and one decoder.

use std::sync::LazyLock;

use bytes::{Buf, BufMut, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};

use super::FrameError;

/// The largest header block after inflation, in bytes.
const MAX_BLOCK: usize = 64 * 1024;

/// Words of the protocol's dictionary that stand in it with their length before them.
const DICTIONARY_WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base content-encoding \
    content-language content-length content-location content-md5 content-range content-type date etag expect \
    expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified location \
    max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te trailer \
    transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200_OK version \
    HTTP/1.1 url public set-cookie keep-alive origin";

/// The dictionary's tail, which has no lengths.
const DICTIONARY_TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417\
    502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
    403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr \
    May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,\
    image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=\
    gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in DICTIONARY_WORDS.split_whitespace().map(|word| word.replace('_', " ")) {
        put_text(&mut dictionary, &word);
    }
    dictionary.extend_from_slice(DICTIONARY_TAIL.as_bytes());
    dictionary
});

/// The headers of a stream, in order. Names are lower case on the wire, whatever they are here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// Headers of these pairs.
    pub fn new<const N: usize>(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect())
    }

    /// These headers and one more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.0.push((name.to_ascii_lowercase(), value.to_owned()));
        self
    }

    /// The first value of `name`, whose case does not matter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(each, _)| each.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    fn to_block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        block.put_u32(u32::try_from(self.0.len()).unwrap_or(u32::MAX));
        for (name, value) in &self.0 {
            put_text(&mut block, &name.to_ascii_lowercase());
            put_text(&mut block, value);
        }
        block
    }

    fn from_block(mut block: &[u8]) -> Result<Self, FrameError> {
        let count = block.try_get_u32().map_err(|_| FrameError::Headers)?;
        let mut headers = Vec::new();
        for _ in 0..count {
            let name = take_text(&mut block)?;
            // Several values of one name are one text, parted by NUL; Kubernetes sends none such.
            headers.push((name.to_ascii_lowercase(), take_text(&mut block)?));
        }
        if block.is_empty() { Ok(Self(headers)) } else { Err(FrameError::Headers) }
    }
}

fn put_text(block: &mut Vec<u8>, text: &str) {
    block.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
    block.extend_from_slice(text.as_bytes());
}

fn take_text(block: &mut &[u8]) -> Result<String, FrameError> {
    let length = block.try_get_u32().map_err(|_| FrameError::Headers)?;
    let length = usize::try_from(length).map_err(|_| FrameError::Headers)?;
    let (text, rest) = block.split_at_checked(length).ok_or(FrameError::Headers)?;
    *block = rest;
    String::from_utf8(text.to_vec()).map_err(|_| FrameError::Headers)
}

/// Compresses header blocks of one direction.
#[derive(Debug)]
pub(super) struct HeaderEncoder(Compress);

impl HeaderEncoder {
    pub(super) fn new() -> Self {
        let mut compress = Compress::new(Compression::best(), true);
        // A fresh deflate stream always takes a dictionary.
        let _ = compress.set_dictionary(&DICTIONARY);
        Self(compress)
    }

    pub(super) fn encode(&mut self, headers: &Headers, out: &mut BytesMut) -> Result<(), FrameError> {
        let block = headers.to_block();
        let mut rest = block.as_slice();
        let mut piece = Vec::with_capacity(block.len() + 64);
        loop {
            let before = self.0.total_in();
            self.0.compress_vec(rest, &mut piece, FlushCompress::Sync).map_err(|_| FrameError::Headers)?;
            let read = usize::try_from(self.0.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(read..).unwrap_or_default();
            // A full buffer may mean that flushed bytes are still inside.
            let is_full = piece.len() == piece.capacity();
            out.extend_from_slice(&piece);
            piece.clear();
            if rest.is_empty() && !is_full {
                return Ok(());
            }
        }
    }
}

/// Inflates header blocks of one direction.
#[derive(Debug)]
pub(super) struct HeaderDecoder(Decompress);

impl HeaderDecoder {
    pub(super) fn new() -> Self {
        Self(Decompress::new(true))
    }

    pub(super) fn decode(&mut self, compressed: &[u8]) -> Result<Headers, FrameError> {
        let mut rest = compressed;
        let mut block = Vec::new();
        let mut piece = Vec::with_capacity(4096);
        loop {
            let before = self.0.total_in();
            let outcome = self.0.decompress_vec(rest, &mut piece, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - before).unwrap_or(rest.len());
            rest = rest.get(read..).unwrap_or_default();
            if let Err(error) = outcome {
                error.needs_dictionary().ok_or(FrameError::Headers)?;
                self.0.set_dictionary(&DICTIONARY).map_err(|_| FrameError::Headers)?;
                continue;
            }
            let is_full = piece.len() == piece.capacity();
            let progressed = read > 0 || !piece.is_empty();
            block.append(&mut piece);
            if block.len() > MAX_BLOCK {
                return Err(FrameError::TooLarge { length: block.len() });
            }
            if (rest.is_empty() && !is_full) || !progressed {
                return if rest.is_empty() { Headers::from_block(&block) } else { Err(FrameError::Headers) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1950's checksum, by which a zlib stream names its dictionary.
    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65521;
            (a, (b + a) % 65521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_protocols() {
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(adler32(&DICTIONARY), 0xe3c6_a7c2);
    }

    #[test]
    fn blocks_share_one_compression_state_and_shrink() {
        let (mut encoder, mut decoder) = (HeaderEncoder::new(), HeaderDecoder::new());
        let headers = Headers::new([("streamType", "data"), ("port", "8080"), ("requestID", "0")]);
        let mut lengths = Vec::new();
        for _ in 0..3 {
            let mut out = BytesMut::new();
            encoder.encode(&headers, &mut out).unwrap();
            assert_eq!(decoder.decode(&out).unwrap(), headers);
            lengths.push(out.len());
        }
        assert!(lengths[2] < lengths[0], "{lengths:?}");
    }

    #[test]
    fn a_block_begins_with_the_dictionarys_name() {
        let mut out = BytesMut::new();
        HeaderEncoder::new().encode(&Headers::default(), &mut out).unwrap();
        assert_eq!(out.get(2..6), Some(&[0xe3, 0xc6, 0xa7, 0xc2][..]));
    }

    #[test]
    fn a_block_that_inflates_without_end_is_refused() {
        let mut encoder = HeaderEncoder::new();
        let mut out = BytesMut::new();
        encoder.encode(&Headers::new([("a", "x".repeat(1 << 20).as_str())]), &mut out).unwrap();
        assert!(matches!(HeaderDecoder::new().decode(&out), Err(FrameError::TooLarge { .. })));
    }

    #[test]
    fn incompressible_headers_longer_than_the_buffer_survive() {
        let mut seed = 1u32;
        let noise: String = std::iter::repeat_with(|| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'!' + u8::try_from(seed >> 24).unwrap() % 90)
        })
        .take(20_000)
        .collect();
        let headers = Headers::new([("noise", noise.as_str())]);
        let mut out = BytesMut::new();
        HeaderEncoder::new().encode(&headers, &mut out).unwrap();
        assert_eq!(HeaderDecoder::new().decode(&out).unwrap(), headers);
    }
}
