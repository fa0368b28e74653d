//! Content digests as OCI writes them (`sha256:<64 hex>`), and a hasher that checks a stream against one.
//! Only SHA-256 and SHA-512 exist here; any other algorithm is refused, because it could not be verified.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

/// A content digest: algorithm and lower-case hexadecimal value, checked for form.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    text: String,
    algorithm: Algorithm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

/// A text that is not a digest this program can verify.
#[derive(Debug, Clone, thiserror::Error)]
#[error(
    "`{text}` is not a digest: write `sha256:` and 64 hexadecimal digits (or `sha512:` and 128), lower case"
)]
pub struct DigestError {
    text: String,
}

impl Digest {
    /// The digest of `bytes`, by SHA-256.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::sha256();
        hasher.update(bytes);
        hasher.finish()
    }

    /// The digest of `bytes` by the algorithm of `self`: what `self` must equal if they are its content.
    #[must_use]
    pub fn same_kind_of(&self, bytes: &[u8]) -> Self {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish()
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self.algorithm {
            Algorithm::Sha256 => Hasher(State::Sha256(Sha256::new())),
            Algorithm::Sha512 => Hasher(State::Sha512(Sha512::new())),
        }
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self.algorithm {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// The hexadecimal part.
    pub fn hex(&self) -> &str {
        self.text.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text, `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refused = || DigestError { text: text.chars().take(200).collect() };
        let (name, hex) = text.split_once(':').ok_or_else(refused)?;
        let (algorithm, length) = match name {
            "sha256" => (Algorithm::Sha256, 64),
            "sha512" => (Algorithm::Sha512, 128),
            _ => return Err(refused()),
        };
        let is_hex = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex.len() != length || !is_hex {
            return Err(refused());
        }
        Ok(Self { text: text.to_owned(), algorithm })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.text
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A running hash.
#[derive(Debug, Clone)]
pub struct Hasher(State);

#[derive(Debug, Clone)]
enum State {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// A SHA-256 hasher.
    pub fn sha256() -> Self {
        Self(State::Sha256(Sha256::new()))
    }

    /// Takes more bytes in.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of everything taken in.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self.0 {
            State::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            State::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        let name = match algorithm {
            Algorithm::Sha256 => "sha256:",
            Algorithm::Sha512 => "sha512:",
        };
        let mut text = String::with_capacity(name.len() + bytes.len() * 2);
        text.push_str(name);
        for byte in bytes {
            text.extend([byte >> 4, byte & 15].into_iter().filter_map(|n| char::from_digit(n.into(), 16)));
        }
        Digest { text, algorithm }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_content_has_the_known_digests() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").as_str(), empty);
        let long: Digest = format!("sha512:{}", "0".repeat(128)).parse().unwrap();
        assert!(long.same_kind_of(b"").as_str().starts_with("sha512:cf83e1357eefb8bd"));
    }

    #[test]
    fn what_is_not_a_digest_is_refused() {
        for text in
            ["", "sha256", "sha256:", "sha256:ABC", "md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:../../x"]
        {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        format!("sha256:{}", "A".repeat(64)).parse::<Digest>().unwrap_err();
    }
}
