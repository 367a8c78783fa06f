//! Takes a protobuf message apart into its fields without copying, so that a model can be changed in one place and
//! every other byte of it stays as it was.
//!
//! [Encoding](https://protobuf.dev/programming-guides/encoding/): a field is a varint tag (number · 8 + wire type) and a
//! value, which for wire type 2 is a varint length and so many bytes.

use crate::error::{Result, bail};

/// A field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    /// The value's bytes where it has a length; the encoded number otherwise.
    pub(super) value: &'a [u8],
    /// Tag and value as they stand in the message.
    pub(super) raw: &'a [u8],
    /// Whether the value is a string, bytes or a message.
    pub(super) has_length: bool,
}

/// The fields of a message, in order.
pub(super) fn fields<'a>(what: &str, message: &'a [u8]) -> Result<Vec<Field<'a>>> {
    // What is kept of a field is larger than the smallest field.
    const MOST_FIELDS: usize = 1 << 22;
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let start = rest;
        let Some(tag) = varint(&mut rest) else { return truncated(what, message, rest) };
        let (value, has_length) = match tag % 8 {
            0 => {
                let before = rest;
                if varint(&mut rest).is_none() {
                    return truncated(what, message, rest);
                }
                (&before[..before.len() - rest.len()], false)
            }
            wire @ (1 | 5) => {
                let size = if wire == 1 { 8 } else { 4 };
                let Some((value, after)) = rest.split_at_checked(size) else { return truncated(what, message, rest) };
                rest = after;
                (value, false)
            }
            2 => {
                let length = varint(&mut rest).and_then(|n| usize::try_from(n).ok());
                let Some((value, after)) = length.and_then(|n| rest.split_at_checked(n)) else {
                    return truncated(what, message, rest);
                };
                rest = after;
                (value, true)
            }
            wire => bail!(
                InvalidFile,
                "{what}: expected a protobuf message, found wire type {wire} at byte {}",
                message.len() - start.len()
            ),
        };
        if fields.len() == MOST_FIELDS {
            bail!(InvalidFile, "{what}: expected at most {MOST_FIELDS} fields, found more");
        }
        fields.push(Field { number: tag / 8, value, raw: &start[..start.len() - rest.len()], has_length });
    }
    Ok(fields)
}

fn truncated<T>(what: &str, message: &[u8], rest: &[u8]) -> Result<T> {
    bail!(
        InvalidFile,
        "{what}: expected a complete protobuf message, found its end at byte {} of {}",
        message.len() - rest.len(),
        message.len()
    )
}

/// Appends a field with a length.
pub(super) fn push(message: &mut Vec<u8>, number: u64, value: &[u8]) {
    push_varint(message, number * 8 + 2);
    push_varint(message, value.len() as u64);
    message.extend_from_slice(value);
}

fn push_varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

pub(super) fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (n, &byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * n as u32).min(63);
        if byte < 0x80 {
            *bytes = &bytes[n + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_put_together_again_are_the_message() {
        let mut message = vec![0x08, 0x96, 0x01, 0x15, 1, 2, 3, 4, 0x19, 1, 2, 3, 4, 5, 6, 7, 8];
        push(&mut message, 300, b"name");
        let found = fields("m", &message).unwrap();
        assert_eq!(
            found.iter().map(|f| (f.number, f.has_length)).collect::<Vec<_>>(),
            [(1, false), (2, false), (3, false), (300, true)]
        );
        assert_eq!(found[3].value, b"name");
        assert_eq!(found.iter().flat_map(|f| f.raw).copied().collect::<Vec<_>>(), message);
        for end in 1..message.len() {
            // Every cut is either between two fields or an error.
            if let Ok(found) = fields("m", &message[..end]) {
                assert_eq!(found.iter().map(|f| f.raw.len()).sum::<usize>(), end);
            }
        }
        let error = fields("m", &[0x0b]).unwrap_err().to_string();
        assert_eq!(error, "m: expected a protobuf message, found wire type 3 at byte 0");
        assert!(fields("m", &[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).is_err());
    }
}
