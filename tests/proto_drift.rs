//! Checks that the protobuf code in the repository is the output of pb-rs for the proto files.
//!
//! `LARDER_REGENERATE=1 cargo test --test proto_drift` writes that output to the repository.

use std::fs;
use std::path::Path;

use pb_rs::{ConfigBuilder, types::FileDescriptor};

#[test]
fn messages_of_peers_match_their_proto_file() {
    // These messages borrow, so that requests and responses are decoded without a copy.
    check("proto/groupcache.proto", "src/pb/groupcachepb.rs", false);
}

#[test]
fn message_of_tests_matches_its_proto_file() {
    check(
        "tests/testpb/message.proto",
        "tests/testpb/message.rs",
        true,
    );
}

#[test]
fn message_of_example_matches_its_proto_file() {
    let folder = "examples/proto_sink";
    check(
        &format!("{folder}/product.proto"),
        &format!("{folder}/product.rs"),
        true,
    );
}

/// Compares a checked-in file with the output of pb-rs. The fields of `owned` messages do not borrow.
fn check(proto: &str, generated: &str, owned: bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checked_in = root.join(generated);
    let file = checked_in.file_name().expect("a file's path");
    // Each test has a folder of its own, because pb-rs also reads and writes a `mod.rs` beside its output,
    // without a lock.
    let name = format!("{}-{}", file.to_string_lossy(), std::process::id());
    let own_folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::create_dir_all(&own_folder).expect("a folder");
    let out = own_folder.join(file);
    let proto = root.join(proto);
    let folder = proto.with_file_name("");
    let config = ConfigBuilder::new(&[proto], Some(&out), None, &[folder])
        .expect("the proto file is readable")
        .single_module(true)
        .headers(false)
        .dont_use_cow(owned)
        .build();
    FileDescriptor::run(&config).expect("pb-rs generates");
    let fresh = fs::read_to_string(&out).expect("pb-rs wrote its output");
    fs::remove_dir_all(&own_folder).expect("the folder is removed");

    if std::env::var_os("LARDER_REGENERATE").is_some() {
        fs::write(&checked_in, &fresh).expect("the checked-in file is writable");
    }
    assert_eq!(
        fs::read_to_string(&checked_in).unwrap_or_default(),
        fresh,
        "run: LARDER_REGENERATE=1 cargo test --test proto_drift"
    );
}
