//! The checked-in protobuf code of the example `proto_sink` is what pb-rs generates.
//!
//! `LARDER_REGENERATE=1 cargo test --test example_proto` writes it anew.

use std::fs;
use std::path::Path;

use pb_rs::{ConfigBuilder, types::FileDescriptor};

#[test]
fn the_examples_generated_code_matches_its_proto_file() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/proto_sink");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("product.rs");
    let config = ConfigBuilder::new(
        &[root.join("product.proto")],
        Some(&out),
        None,
        std::slice::from_ref(&root),
    )
    .expect("the proto file is readable")
    .single_module(true)
    .headers(false)
    .dont_use_cow(true)
    .build();
    FileDescriptor::run(&config).expect("pb-rs generates");
    let generated = fs::read_to_string(&out).expect("pb-rs wrote its output");

    let checked_in = root.join("product.rs");
    if std::env::var_os("LARDER_REGENERATE").is_some() {
        fs::write(&checked_in, &generated).expect("examples/proto_sink is writable");
    }
    assert_eq!(
        fs::read_to_string(&checked_in).expect("examples/proto_sink/product.rs exists"),
        generated,
        "run: LARDER_REGENERATE=1 cargo test --test example_proto"
    );
}
