//! larder behind a function for C: serves the group `bytes`, in which a key is the length of its value.

use std::ffi::{CStr, c_char, c_int};

use larder::http::HttpPool;

/// Listens on `address`, and writes the address with the port that the system chose to `bound`, which
/// has room for `room` bytes. Returns 0, or 1 if it failed.
///
/// # Safety
///
/// `address` is a string that ends in NUL, and `bound` has `room` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn larder_serve(
    address: *const c_char,
    bound: *mut c_char,
    room: usize,
) -> c_int {
    // SAFETY: the caller promises it.
    let address = unsafe { CStr::from_ptr(address) };
    let Some(text) = address
        .to_str()
        .ok()
        .and_then(|address| serve(address).ok())
    else {
        return 1;
    };
    if text.len() >= room {
        return 1;
    }
    // SAFETY: `bound` has room for the text and the NUL.
    unsafe {
        bound.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        bound.add(text.len()).write(0);
    }
    0
}

fn serve(address: &str) -> larder::Result<String> {
    let pool = HttpPool::new("http://127.0.0.1:1")?;
    larder::new_group(
        "bytes",
        64 << 20,
        larder::getter_fn(|_ctx, key, dest| Ok(dest.set_bytes(&vec![b'v'; key.parse()?])?)),
    )?;
    let server = pool.serve(address)?;
    let address = server.local_addr().to_string();
    // It serves as long as the process lives.
    std::mem::forget(server);
    Ok(address)
}
