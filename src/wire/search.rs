//! Finding a byte in a head, eight at a time: heads are searched for line ends on both sides of every
//! exchange.

/// The place of the first `byte`.
pub(crate) fn find_byte(bytes: &[u8], byte: u8) -> Option<usize> {
    let wanted = ONES * u64::from(byte);
    find(bytes, |word| zeros(word ^ wanted), |other| other == byte)
}

/// The place of the first control character: below a space, or DEL.
pub(crate) fn find_control(bytes: &[u8]) -> Option<usize> {
    let marks = |word: u64| {
        let low = word.wrapping_sub(ONES * u64::from(b' ')) & !word & HIGHS;
        low | zeros(word ^ (ONES * u64::from(DEL)))
    };
    find(bytes, marks, |byte| byte < b' ' || byte == DEL)
}

/// The place of the first space or control character.
pub(crate) fn find_space(bytes: &[u8]) -> Option<usize> {
    let marks = |word: u64| {
        let low = word.wrapping_sub(ONES * u64::from(b' ' + 1)) & !word & HIGHS;
        low | zeros(word ^ (ONES * u64::from(DEL)))
    };
    find(bytes, marks, |byte| byte <= b' ' || byte == DEL)
}

/// `marks` sets the highest bit of the first byte of a word that `is` what is wanted, and of no
/// byte before it. Bits of bytes behind it can be wrong: a borrow runs on.
fn find(bytes: &[u8], marks: impl Fn(u64) -> u64, is: impl Fn(u8) -> bool) -> Option<usize> {
    let first = |word: &[u8; WORD], at| {
        let marks = marks(u64::from_le_bytes(*word));
        (marks != 0).then(|| at + (marks.trailing_zeros() / 8) as usize)
    };
    let mut at = 0;
    while let Some(word) = bytes[at..].first_chunk() {
        if let Some(found) = first(word, at) {
            return Some(found);
        }
        at += WORD;
    }
    // The last word takes in bytes that were looked at, and are not wanted.
    match bytes.last_chunk() {
        Some(_) if at == bytes.len() => None,
        Some(word) => first(word, bytes.len() - WORD),
        None => bytes.iter().position(|&byte| is(byte)),
    }
}

/// Marks zeros.
fn zeros(word: u64) -> u64 {
    word.wrapping_sub(ONES) & !word & HIGHS
}

const WORD: usize = size_of::<u64>();
const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;
const DEL: u8 = 0x7f;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn every_byte_is_found_or_not_at_every_place() {
        for byte in 0..=u8::MAX {
            for place in 0..20 {
                let mut bytes = [b'a'; 20];
                bytes[place] = byte;
                let is_control = byte < b' ' || byte == DEL;
                assert_eq!(find_control(&bytes), is_control.then_some(place), "{byte}");
                let is_space = is_control || byte == b' ';
                assert_eq!(find_space(&bytes), is_space.then_some(place), "{byte}");
                let first = if byte == b'a' { 0 } else { place };
                assert_eq!(find_byte(&bytes, byte), Some(first), "{byte}");
            }
        }
    }

    proptest! {
        #[test]
        fn the_first_is_found(bytes in vec(any::<u8>(), 0..40), byte in any::<u8>()) {
            let first = bytes.iter().position(|&other| other == byte);
            prop_assert_eq!(find_byte(&bytes, byte), first);
            let first = bytes.iter().position(|&byte| byte < b' ' || byte == DEL);
            prop_assert_eq!(find_control(&bytes), first);
            let first = bytes.iter().position(|&byte| byte <= b' ' || byte == DEL);
            prop_assert_eq!(find_space(&bytes), first);
        }
    }
}
