//! Values as JSON documents, decoded directly into a type that derives serde's traits.
//!
//! ```text
//! cargo run --features json --example json_sink
//! ```
//!
//! Prints a record, loaded and then cached, and the error for a value of another type.

use std::error::Error;

use larder::{BoxError, Context, Group, JsonSink, Sink};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Serialize, Deserialize)]
struct User {
    name: String,
    born: u16,
    languages: Vec<String>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let users = Group::builder("users").build(load_user)?;
    let ctx = Context::background();

    for _ in 0..2 {
        let mut user = User::default();
        users.get_into(&ctx, "grace", JsonSink::new(&mut user))?;
        println!("{user:?}");
    }
    println!("the cached bytes: {}", users.get("grace")?.to_str()?);

    let mut number = 7_u32;
    match users.get_into(&ctx, "grace", JsonSink::new(&mut number)) {
        Ok(()) => return Err("a user was read as a number".into()),
        Err(error) => println!("as a number: {:?}: {error}", error.kind()),
    }
    println!("the number is still {number}");

    let stats = users.stats();
    println!(
        "{} gets, {} from the cache, {} loaded",
        stats.gets, stats.cache_hits, stats.local_loads
    );
    Ok(())
}

fn load_user(_ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
    if key != "grace" {
        return Err(larder::Error::not_found(format!("no user {key:?}")).into());
    }
    let user = User {
        name: "Grace Hopper".into(),
        born: 1906,
        languages: vec!["FLOW-MATIC".into(), "COBOL".into()],
    };
    Ok(dest.set_bytes(&serde_json::to_vec(&user)?)?)
}
