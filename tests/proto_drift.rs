//! The checked-in protobuf code is what pb-rs generates from `proto/groupcache.proto`.
//!
//! `LARDER_REGENERATE=1 cargo test --test proto_drift` writes it anew.

use std::fs;
use std::path::Path;

use pb_rs::{ConfigBuilder, types::FileDescriptor};

#[test]
fn generated_code_matches_the_proto_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("groupcachepb.rs");
    let config = ConfigBuilder::new(
        &[root.join("proto/groupcache.proto")],
        Some(&out),
        None,
        &[root.join("proto")],
    )
    .expect("the proto file is readable")
    .single_module(true)
    .headers(false)
    .build();
    FileDescriptor::run(&config).expect("pb-rs generates");
    let generated = fs::read_to_string(&out).expect("pb-rs wrote its output");

    let checked_in = root.join("src/pb/groupcachepb.rs");
    if std::env::var_os("LARDER_REGENERATE").is_some() {
        fs::write(&checked_in, &generated).expect("src/pb is writable");
    }
    assert_eq!(
        fs::read_to_string(&checked_in).expect("src/pb/groupcachepb.rs exists"),
        generated,
        "run: LARDER_REGENERATE=1 cargo test --test proto_drift"
    );
}
