//! A function that C programs call to serve the group `bytes` by larder. The keys are numbers, and the value
//! of a key is that many bytes long, up to 16 MiB.

use std::ffi::{CStr, c_char, c_int};
use std::net::TcpListener;

use larder::BoxError;
use larder::http::HttpPool;

/// Listens on `address`, such as `127.0.0.1:0`, and writes the address that it got to `bound`, as a string
/// that ends in NUL. Returns 0. Returns 1 if it cannot listen, or if the address needs more than `room` bytes;
/// then it does not listen.
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
        .and_then(|address| serve(address, room).ok())
    else {
        return 1;
    };
    // SAFETY: `bound` has room for the text and the NUL.
    unsafe {
        bound.copy_from_nonoverlapping(text.as_ptr().cast(), text.len());
        bound.add(text.len()).write(0);
    }
    0
}

/// Serves on an address. Returns the one that it got, which has fewer than `room` bytes.
fn serve(address: &str, room: usize) -> Result<String, BoxError> {
    let listener = TcpListener::bind(address)?;
    let bound = listener.local_addr()?.to_string();
    if bound.len() >= room {
        return Err("the address does not fit".into());
    }
    // The pool has no peers, so nothing asks for this URL.
    let pool = HttpPool::new("http://127.0.0.1:1")?;
    let getter = larder::getter_fn(|_ctx, key, dest| Ok(dest.set_bytes(&value(key)?)?));
    larder::new_group("bytes", 64 << 20, getter)?;
    let server = pool.server().serve_listener(listener)?;
    // Dropping the server would stop it. It serves until the process ends.
    std::mem::forget(server);
    Ok(bound)
}

/// Checks the length first. A client could end the whole process by a value that does not fit into memory.
fn value(key: &str) -> Result<Vec<u8>, BoxError> {
    match key.parse()? {
        len if len > MAX_LEN => Err(format!("a value has {MAX_LEN} bytes at most").into()),
        len => Ok(vec![b'v'; len]),
    }
}

const MAX_LEN: usize = 16 << 20;
