//! A function that C programs call to serve the group `bytes` by larder. The keys are numbers, and the value
//! of a key is that many bytes long, up to 16 MiB.

use std::ffi::{CStr, c_char, c_int};

use larder::BoxError;
use larder::http::HttpPool;

/// Listens on `address`, such as `127.0.0.1:0`, and writes the address that it got to `bound`, as a string
/// that ends in NUL. Returns 0. Returns 1 if it cannot listen, or if the address needs more than `room` bytes.
///
/// # Safety
///
/// `address` points to a string that ends in NUL, and `bound` to `room` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn larder_serve(
    address: *const c_char,
    bound: *mut c_char,
    room: usize,
) -> c_int {
    // SAFETY: the caller passes a string that ends in NUL.
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
    // The pool has no peers, so nothing asks for this URL.
    let pool = HttpPool::new("http://127.0.0.1:1")?;
    let getter = larder::getter_fn(|_ctx, key, dest| Ok(dest.set_bytes(&value(key)?)?));
    larder::new_group("bytes", 64 << 20, getter)?;
    let server = pool.serve(address)?;
    let address = server.local_addr().to_string();
    // Dropping the server would stop it. It serves until the process ends.
    std::mem::forget(server);
    Ok(address)
}

/// Checks the length first. A client could end the whole process by a value that does not fit into memory.
fn value(key: &str) -> Result<Vec<u8>, BoxError> {
    match key.parse()? {
        len if len > MAX_LEN => Err(format!("a value has {MAX_LEN} bytes at most").into()),
        len => Ok(vec![b'v'; len]),
    }
}

const MAX_LEN: usize = 16 << 20;
