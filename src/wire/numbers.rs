//! Numbers of four bytes, one for each value of a response.

use super::body::{FieldType, push_tag, push_varint};

/// Writes a number of each value, in four bytes, unless no value has one.
pub(super) fn push_numbers(out: &mut Vec<u8>, field: FieldType, numbers: &[u32]) {
    if numbers.iter().all(|&number| number == NO_NUMBER) {
        return;
    }
    push_tag(out, field);
    push_varint(out, 4 * numbers.len() as u64);
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads what [`push_numbers`] wrote.
pub(super) fn numbers(bytes: Option<&[u8]>) -> impl Iterator<Item = Option<u32>> + '_ {
    whole_numbers(bytes).map(|number| (number != NO_NUMBER).then_some(number))
}

/// The numbers of four bytes each, the lowest first.
pub(super) fn whole_numbers(bytes: Option<&[u8]>) -> impl Iterator<Item = u32> + '_ {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
    bytes.unwrap_or_default().chunks_exact(4).map(number)
}

/// Stands for no number. As the bits of a float it is no rate.
pub(super) const NO_NUMBER: u32 = u32::MAX;
