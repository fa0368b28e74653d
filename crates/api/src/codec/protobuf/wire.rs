//! The wire format: a message is a row of numbered payloads.

/// One payload with its number.
pub(super) struct Entry<'a> {
    pub(super) number: u32,
    pub(super) payload: Payload<'a>,
}

/// A payload as it stands on the wire.
#[derive(Clone, Copy)]
pub(super) enum Payload<'a> {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32,
    Bytes(&'a [u8]),
}

fn cut_off() -> String {
    "unexpected EOF".to_owned()
}

/// Takes one varint off the front.
pub(super) fn varint(bytes: &mut &[u8]) -> Result<u64, String> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or_else(cut_off)?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err("proto: integer overflow".to_owned())
}

/// The payloads of a message; ends at the first error.
pub(super) fn entries(mut bytes: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, String>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let entry = next_entry(&mut bytes);
        if entry.is_err() {
            bytes = &[];
        }
        Some(entry)
    })
}

fn next_entry<'a>(bytes: &mut &'a [u8]) -> Result<Entry<'a>, String> {
    let tag = varint(bytes)?;
    let number = u32::try_from(tag >> 3).ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| format!("proto: illegal tag {}", tag >> 3))?;
    let payload = match tag & 7 {
        0 => Payload::Varint(varint(bytes)?),
        1 => {
            let (fixed, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut_off)?;
            *bytes = rest;
            Payload::Fixed64(*fixed)
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).map_err(|_| cut_off())?;
            let (head, rest) = bytes.split_at_checked(length).ok_or_else(cut_off)?;
            *bytes = rest;
            Payload::Bytes(head)
        }
        5 => {
            let (_, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut_off)?;
            *bytes = rest;
            Payload::Fixed32
        }
        other => return Err(format!("proto: illegal wireType {other}")),
    };
    Ok(Entry { number, payload })
}

impl<'a> Entry<'a> {
    fn wrong(&self) -> String {
        let wire = match self.payload {
            Payload::Varint(_) => 0,
            Payload::Fixed64(_) => 1,
            Payload::Bytes(_) => 2,
            Payload::Fixed32 => 5,
        };
        format!("proto: wrong wireType = {wire} for field {}", self.number)
    }

    pub(super) fn bytes(&self) -> Result<&'a [u8], String> {
        match self.payload {
            Payload::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong()),
        }
    }

    /// Text; what is not UTF-8 becomes U+FFFD, as when Go writes it as JSON.
    pub(super) fn text(&self) -> Result<String, String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    pub(super) fn varint(&self) -> Result<u64, String> {
        match self.payload {
            Payload::Varint(value) => Ok(value),
            _ => Err(self.wrong()),
        }
    }

    pub(super) fn int64(&self) -> Result<i64, String> {
        Ok(self.varint()?.cast_signed())
    }

    /// The low 32 bits, as protobuf reads a longer number.
    pub(super) fn int32(&self) -> Result<i32, String> {
        let low = u32::try_from(self.varint()? & u64::from(u32::MAX)).unwrap_or_default();
        Ok(low.cast_signed())
    }

    pub(super) fn double(&self) -> Result<f64, String> {
        match self.payload {
            Payload::Fixed64(bytes) => Ok(f64::from_le_bytes(bytes)),
            _ => Err(self.wrong()),
        }
    }
}
