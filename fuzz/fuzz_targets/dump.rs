//! An arbitrary file is a dump, or refused. A changed byte of a dump costs some entries at most, and
//! never adds one.
#![no_main]

use larder::fuzzing::{read_dump, write_dump};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (&[u8], Vec<&[u8]>, u16, u8)| {
    let (file, values, at, change) = input;
    read_dump(file);
    let mut dump = write_dump(&values);
    assert_eq!(read_dump(&dump), Some((values.len(), false)));
    let at = usize::from(at) % dump.len();
    dump[at] ^= change;
    if let Some((entries, _)) = read_dump(&dump) {
        assert!(entries <= values.len());
    }
    dump.extend_from_slice(file);
    read_dump(&dump);
});
