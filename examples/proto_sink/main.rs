//! Values as protobuf messages, encoded by the getter and decoded for the caller.
//!
//! ```text
//! cargo run --example proto_sink
//! ```
//!
//! Prints a message, loaded and then cached, the number of its bytes, and the error for a value that is
//! not the message.
//!
//! `product.rs` is generated from `product.proto`, as a message that owns its strings:
//! `pb-rs --dont_use_cow --single-mod --no-headers product.proto`.

#[allow(unused_imports, clippy::all, reason = "generated code")]
#[rustfmt::skip]
mod product;

use std::error::Error;

use larder::{BoxError, Context, Group, ProtoSink, Sink};
use product::Product;

fn main() -> Result<(), Box<dyn Error>> {
    let products = Group::builder("products").build(load_product)?;
    let ctx = Context::background();

    for _ in 0..2 {
        let mut product = Product::default();
        products.get_into(&ctx, "plum-jam", ProtoSink::new(&mut product))?;
        println!("{product:?}");
    }
    println!("{} bytes are cached", products.get("plum-jam")?.len());

    let mut kept = Product::default();
    match products.get_into(&ctx, "price-list", ProtoSink::new(&mut kept)) {
        Ok(()) => return Err("a text was read as a product".into()),
        Err(error) => println!("price-list: {:?}: {error}", error.kind()),
    }

    let stats = products.stats();
    println!(
        "{} gets, {} from the cache, {} loaded",
        stats.gets, stats.cache_hits, stats.local_loads
    );
    Ok(())
}

fn load_product(_ctx: &Context, key: &str, dest: &mut dyn Sink) -> Result<(), BoxError> {
    match key {
        "plum-jam" => dest.set_proto(&Product {
            name: "Plum jam".into(),
            cents: 450,
            tags: vec!["sweet".into(), "autumn".into()],
        })?,
        "price-list" => dest.set_str("not a message")?,
        _ => return Err(larder::Error::not_found(format!("no product {key:?}")).into()),
    }
    Ok(())
}
