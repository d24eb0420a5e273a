//! The `Cache-Status` header of values, read by the grammar of RFC 9211 and RFC 8941.

use std::collections::HashMap;

use super::conformance::on_both;
use super::support::{ask, get, pool};

/// The value of a parameter: a token, or the number of an integer, or nothing.
#[derive(Clone, Debug, PartialEq)]
enum Bare {
    True,
    Token(String),
    Integer(i64),
}

/// Reads the list of caches and their parameters. `None` if it is no structured field of tokens.
fn parse(field: &str) -> Option<Vec<(String, HashMap<String, Bare>)>> {
    field
        .split(',')
        .map(|member| parse_member(member.trim_matches([' ', '\t'])))
        .collect()
}

fn parse_member(member: &str) -> Option<(String, HashMap<String, Bare>)> {
    let mut parts = member.split(';');
    let name = parts.next().filter(|name| is_token(name))?;
    let mut parameters = HashMap::new();
    for part in parts {
        let part = part.trim_start_matches(' ');
        let (key, value) = match part.split_once('=') {
            None => (part, Bare::True),
            Some((key, value)) => (key, bare_of(value)?),
        };
        let (first, rest) = key.split_at_checked(1)?;
        let is_key = first.chars().all(|c| c.is_ascii_lowercase() || c == '*')
            && rest
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.*".contains(c));
        if !is_key || parameters.insert(key.to_owned(), value).is_some() {
            return None;
        }
    }
    Some((name.to_owned(), parameters))
}

fn bare_of(value: &str) -> Option<Bare> {
    if value.starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
        let digits = value.strip_prefix('-').unwrap_or(value);
        let is_integer =
            (1..=15).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        return is_integer.then(|| Bare::Integer(value.parse().expect("15 digits")));
    }
    is_token(value).then(|| Bare::Token(value.to_owned()))
}

fn is_token(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*') && text.chars().all(is_inner)
}

#[test]
fn cache_status_follows_its_grammar() {
    const REASONS: [&str; 8] = [
        "bypass",
        "method",
        "uri-miss",
        "vary-miss",
        "miss",
        "request",
        "stale",
        "partial",
    ];
    on_both(pool, |addr| {
        for (key, has_ttl) in [("red", false), ("mortal", true)] {
            for is_hit in [false, true] {
                let reply = ask(addr, get(key));
                let field = reply.header("Cache-Status").expect("a status");
                let members =
                    parse(field).unwrap_or_else(|| panic!("no structured field: {field}"));
                let [(cache, parameters)] = &members[..] else {
                    panic!("one cache: {field}");
                };
                assert_eq!(cache, "larder");
                let of = |name: &str| parameters.get(name).cloned();
                assert_eq!(of("hit"), is_hit.then_some(Bare::True), "{field}");
                // A status has one of the two.
                match of("fwd") {
                    Some(Bare::Token(reason)) => assert!(!is_hit && REASONS.contains(&&*reason)),
                    fwd => assert_eq!((fwd, is_hit), (None, true), "{field}"),
                }
                match of("ttl") {
                    Some(Bare::Integer(left)) => assert!(has_ttl && (0..=60).contains(&left)),
                    ttl => assert_eq!((ttl, has_ttl), (None, false), "{field}"),
                }
                let known = ["hit", "fwd", "ttl"];
                assert!(
                    parameters.keys().all(|name| known.contains(&&**name)),
                    "{field}"
                );
            }
        }
        for key in ["missing", "broken"] {
            assert_eq!(ask(addr, get(key)).header("Cache-Status"), None);
        }
    });
}

#[test]
fn grammar_refuses_what_is_no_structured_field() {
    for field in [
        "",
        "larder hit",
        "larder; Hit",
        "larder; ttl=",
        "larder; ttl=1x",
        "larder; hit; hit",
        "9larder",
    ] {
        assert_eq!(parse(field), None, "{field:?}");
    }
    let two = parse("larder; hit, other;fwd=uri-miss ;ttl=-1");
    assert_eq!(two, None, "a space before a semicolon");
    assert_eq!(
        parse("larder; hit, o;fwd=uri-miss; ttl=-1")
            .expect("two")
            .len(),
        2
    );
}
