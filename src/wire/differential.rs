//! Compares the functions for paths with Go's `net/url`, on random paths and keys.
//!
//! Ignored by default: `tests/interop/run.sh` builds the Go helper and runs it. If the two sides read a
//! case differently, it must be one of the [differences](Difference) listed here, with its reason.

use std::collections::BTreeMap;
use std::io::{BufReader, BufWriter, Read, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;

use super::{DEFAULT_BASE_PATH as BASE, PathError, key_path, parse_path};
use crate::random::{GOLDEN_RATIO, mix};

/// A reason for which this crate reads a path differently from groupcache's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// This crate splits the path, then decodes it; Go decodes it, then splits it. In `a%2Fb/c` a Go
    /// server reads the group `a`. No group of a Go program that has peers can have a slash in its
    /// name; a key can, and is read in the same way on both sides.
    SlashInGroup,
    /// Go compares the base path after decoding it. No client escapes it.
    EscapedBase,
    /// Keys are `str` here, and any bytes in Go. This crate answers 400, and the Go node loads the key.
    NotUtf8,
    /// Go looks for a group with an empty name, and answers 404; this crate answers 400.
    EmptyGroup,
    /// Go's parser refuses control characters; here the head parser refuses them earlier.
    ControlCharacter,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    SameKey,
    /// Neither side reads a key.
    NoKey,
    Differs(Difference),
}

/// The result of reading a target.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Reading {
    /// Group and key.
    Key(Vec<u8>, Vec<u8>),
    /// Answered with 400; the reason.
    Refused(&'static str),
    /// Not below the base path.
    Outside,
}

impl Reading {
    fn is_key(&self) -> bool {
        matches!(self, Reading::Key(..))
    }
}

#[test]
#[ignore = "needs Go: tests/interop/run.sh"]
fn paths_and_keys_are_read_as_in_go() {
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().expect(name),
        Err(_) => default,
    };
    let cases: u64 = number("LARDER_INTEROP_CASES", 1_000_000);
    let seed = number("LARDER_INTEROP_SEED", 1);
    let (mut child, stdin, stdout) = start_helper();

    // Another thread writes the questions. Otherwise both pipes could fill and block both
    // processes. The two threads draw the same cases.
    let asking = thread::spawn(move || {
        let mut questions = BufWriter::with_capacity(1 << 16, stdin);
        for case in draw(seed, cases) {
            case.ask(&mut questions);
        }
        questions.flush().expect("the helper reads");
    });
    let mut answers = BufReader::with_capacity(1 << 16, stdout);
    let mut counts = BTreeMap::new();
    for case in draw(seed, cases) {
        match case.compare(&mut answers) {
            Ok(verdict) => *counts.entry((case.name(), verdict)).or_insert(0_u64) += 1,
            Err(error) => panic!("seed {seed}: {case:?}: {error}"),
        }
    }
    asking.join().expect("all was asked");
    assert!(child.wait().expect("it was started").success());

    println!("{cases} cases, seed {seed}");
    for ((name, verdict), count) in &counts {
        println!("{count:8} {name}: {verdict:?}");
    }
    let same_key = counts
        .iter()
        .filter(|((_, verdict), _)| *verdict == Verdict::SameKey);
    let same_key: u64 = same_key.map(|(_, count)| count).sum();
    assert!(same_key > cases / 2, "too few cases name a key");
}

/// One question, and the result that is expected of it.
#[derive(Clone, Debug)]
enum Case {
    /// A target that any client could send.
    Target(String),
    /// A target in which a raw `+` is a space. Go never reads it so. For this reason, the question has
    /// `%20` instead.
    PlusTarget(String),
    /// The target that this crate sends for a group and a key.
    Ours(String, String),
    /// The target that groupcache's client sends for a group and a key, which can be any bytes.
    Golangs(Vec<u8>, Vec<u8>),
}

impl Case {
    fn name(&self) -> &'static str {
        match self {
            Case::Target(_) => "any target",
            Case::PlusTarget(_) => "any target, plus is space",
            Case::Ours(..) => "sent by larder, read by Go",
            Case::Golangs(..) => "sent by Go, read by larder",
        }
    }

    fn ask(&self, out: &mut impl Write) {
        match self {
            Case::Target(target) => ask(out, b'r', &[target.as_bytes()]),
            Case::PlusTarget(target) => {
                ask(out, b'r', &[target.replace('+', "%20").as_bytes()]);
            }
            Case::Ours(group, key) => ask(out, b'r', &[key_path(BASE, group, key).as_bytes()]),
            Case::Golangs(group, key) => ask(out, b's', &[group, key]),
        }
    }

    /// Reads the helper's response, and compares the two results.
    fn compare(&self, answers: &mut impl Read) -> Result<Verdict, String> {
        match self {
            Case::Target(target) => explain(target, &read(target, false), &take_reading(answers)),
            Case::PlusTarget(target) => {
                explain(target, &read(target, true), &take_reading(answers))
            }
            Case::Ours(group, key) => {
                let key = Reading::Key(group.clone().into(), key.clone().into());
                explain(&key_path(BASE, group, ""), &key, &take_reading(answers))
            }
            Case::Golangs(group, key) => {
                let sent = String::from_utf8(take_text(answers)).expect("Go escapes the rest");
                let key = Reading::Key(group.clone(), key.clone());
                // Here this crate reads the target, and the key comes from Go.
                explain(&sent, &read(&sent, true), &key)
            }
        }
    }
}

fn read(target: &str, plus_is_space: bool) -> Reading {
    // The server splits the query off before.
    let path = target.split('?').next().unwrap_or_default();
    match parse_path(BASE, path, plus_is_space) {
        Ok(path) => Reading::Key(path.group.into_owned().into(), path.key.into_owned().into()),
        Err(PathError::Outside) => Reading::Outside,
        Err(PathError::Malformed(why)) => Reading::Refused(why),
    }
}

/// How two readings of `target` compare; an error if no difference explains them.
fn explain(target: &str, ours: &Reading, gos: &Reading) -> Result<Verdict, String> {
    let not_utf8 = |text: &[u8]| std::str::from_utf8(text).is_err();
    let path = target.split('?').next().unwrap_or_default();
    let below = path.strip_prefix(BASE);
    let raw_group = below.and_then(|below| below.split('/').next());
    let escaped_slash = raw_group.is_some_and(|group| group.to_ascii_lowercase().contains("%2f"));
    let difference = match (ours, gos) {
        (ours, gos) if !ours.is_key() && !gos.is_key() => return Ok(Verdict::NoKey),
        (ours, gos) if ours == gos => return Ok(Verdict::SameKey),
        (_, Reading::Refused(_)) if target.bytes().any(|b| b < b' ' || b == 0x7f) => {
            Difference::ControlCharacter
        }
        (Reading::Outside, Reading::Key(..)) if below.is_none() => Difference::EscapedBase,
        (Reading::Refused(_), Reading::Key(group, _)) if group.is_empty() => Difference::EmptyGroup,
        (Reading::Refused(_), Reading::Key(group, key)) if not_utf8(group) || not_utf8(key) => {
            Difference::NotUtf8
        }
        (Reading::Refused(_), Reading::Key(..)) if escaped_slash => Difference::SlashInGroup,
        (Reading::Key(our_group, our_key), Reading::Key(group, key))
            if escaped_slash
                && [our_group, &b"/"[..], our_key].concat() == [group, &b"/"[..], key].concat() =>
        {
            Difference::SlashInGroup
        }
        _ => return Err(format!("{target:?} is {ours:?} here and {gos:?} in Go")),
    };
    Ok(Verdict::Differs(difference))
}

fn draw(seed: u64, cases: u64) -> impl Iterator<Item = Case> {
    let mut dice = Dice(seed);
    (0..cases).map(move |i| match i % 4 {
        0 => Case::Target(dice.target()),
        1 => Case::PlusTarget(dice.target()),
        2 => Case::Ours(dice.group(), dice.text(&PIECES)),
        _ => {
            let mut key = dice.text(&PIECES).into_bytes();
            if dice.below(8) == 0 {
                key.push(dice.below(256) as u8);
            }
            Case::Golangs(dice.group().into(), key)
        }
    })
}

/// SplitMix64: the same numbers for both threads, and for every run with the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_RATIO);
        mix(self.0)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end
    }

    fn text(&mut self, pieces: &[&str]) -> String {
        let mut text = String::new();
        for _ in 0..self.below(12) {
            if self.below(16) == 0 {
                let any = char::from_u32(self.below(0x11_0000) as u32);
                text.push(any.unwrap_or('\u{fffd}'));
            } else {
                text.push_str(pieces[self.below(pieces.len() as u64) as usize]);
            }
        }
        text
    }

    /// Mostly a usual name, since a path without a valid group tests little.
    fn group(&mut self) -> String {
        match self.below(8) {
            0 => format!("g{}", self.text(&PIECES)),
            1 => "my group+1".into(),
            _ => "values".into(),
        }
    }

    fn target(&mut self) -> String {
        let base = match self.below(32) {
            0 => "/%5Fgroupcache/",
            1 => "/_groupcache",
            2 => "/",
            _ => BASE,
        };
        match self.below(8) {
            0 => format!("{base}{}", self.text(&ESCAPED)),
            1 => format!("{base}{}/{}", self.text(&ESCAPED), self.text(&ESCAPED)),
            _ => format!("{base}values/{}", self.text(&ESCAPED)),
        }
    }
}

fn start_helper() -> (Child, ChildStdin, ChildStdout) {
    let program = std::env::var_os("LARDER_INTEROP_GO")
        .expect("LARDER_INTEROP_GO is the program made of tests/interop/go");
    let mut child = Command::new(program)
        .arg("urls")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the helper starts");
    let stdin = child.stdin.take().expect("a pipe");
    let stdout = child.stdout.take().expect("a pipe");
    (child, stdin, stdout)
}

fn ask(out: &mut impl Write, question: u8, texts: &[&[u8]]) {
    out.write_all(&[question]).expect("the helper reads");
    for text in texts {
        let len = u32::try_from(text.len()).expect("it is short");
        out.write_all(&len.to_le_bytes()).expect("the helper reads");
        out.write_all(text).expect("the helper reads");
    }
}

fn take_reading(answers: &mut impl Read) -> Reading {
    match &take_text(answers)[..] {
        b"key" => Reading::Key(take_text(answers), take_text(answers)),
        b"outside" => Reading::Outside,
        b"bad" => Reading::Refused("there is no slash after the group"),
        b"refused" => Reading::Refused("net/url"),
        other => panic!("the helper answered {other:?}"),
    }
}

fn take_text(answers: &mut impl Read) -> Vec<u8> {
    let mut len = [0; 4];
    answers.read_exact(&mut len).expect("the helper answers");
    let mut text = vec![0; u32::from_le_bytes(len) as usize];
    answers.read_exact(&mut text).expect("the helper answers");
    text
}

/// The pieces of random keys.
const PIECES: [&str; 24] = [
    "a", "Z", "0", "key", "-", "_", "~", ".", "..", "/", "//", "+", " ", "%", "%2F", "?", "#", "&",
    "=", ";", ":", "@", "é", "世",
];

/// The pieces of random targets, with valid and invalid escapes.
const ESCAPED: [&str; 41] = [
    "a",
    "Z",
    "0",
    "key",
    "-",
    "_",
    "~",
    ".",
    "..",
    "/",
    "//",
    "+",
    "%20",
    "%2B",
    "%2F",
    "%2f",
    "%25",
    "%2e%2e",
    "%2E",
    "%3F",
    "%23",
    "%C3%A9",
    "%c3%a9",
    "%E4%B8%96",
    "%00",
    "%41",
    "?",
    "#",
    "&",
    "=",
    ";",
    ":",
    "@",
    "!$'()*,",
    "\\\"<>^`{|}",
    "%",
    "%2",
    "%zz",
    "%ff",
    "é",
    "\x01",
];
