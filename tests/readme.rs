//! The README's example is the one of the crate's documentation, which is compiled as a test.

#[test]
fn the_readme_and_the_crate_docs_show_the_same_example() {
    let readme = between(include_str!("../README.md"), "```rust\n", "```\n");
    let docs = include_str!("../src/lib.rs");
    let docs: String = between(docs, "doc = \"```ignore\")]\n", "//! ```\n")
        .lines()
        .map(|line| line.strip_prefix("//!").expect("a line of documentation"))
        .map(|line| format!("{}\n", line.strip_prefix(' ').unwrap_or(line)))
        .collect();
    assert!(readme.contains("fn main"), "not the example: {readme}");
    assert_eq!(docs, readme);
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let (_, rest) = text.split_once(start).expect("the example begins");
    rest.split_once(end).expect("the example ends").0
}
