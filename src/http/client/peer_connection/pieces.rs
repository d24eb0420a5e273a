//! An answer that is read from bytes which come in pieces, for tests and the fuzz target.

use std::io::Read;

use super::body::read_some;
use super::head::Head;
use super::input::Input;

/// What is read of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
    /// Whether the connection can carry another exchange.
    pub(crate) keep: bool,
    /// The bytes that it takes, head and all.
    pub(crate) len: usize,
}

/// How an answer comes in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    /// The most bytes that the connection gives at once.
    pub(crate) step: usize,
    /// The most bytes that the reader of the body asks for at once.
    pub(crate) room: usize,
    /// The length of the answer before it, by which the connection expects this one's.
    pub(crate) before: u64,
}

/// Reads the answer at the beginning of `bytes`, after which the connection ends; `None` if it is
/// none, or not whole.
pub(crate) fn read_answer(bytes: &[u8], pieces: Pieces) -> Option<Answer> {
    let mut wire = Steps {
        bytes,
        step: pieces.step.max(1),
    };
    let mut input = Input::new();
    input.expect(pieces.before);
    let (head, _) = input.head(&mut wire).ok()?;
    let Head {
        status,
        mut framing,
        keep,
        ..
    } = head;
    let mut body = Vec::new();
    let mut room = vec![0; pieces.room.max(1)];
    match input.whole(framing) {
        Some(whole) => body.extend_from_slice(&whole),
        None => loop {
            match read_some(&mut framing, &mut input, &mut wire, &mut room).ok()? {
                0 => break,
                taken => body.extend_from_slice(&room[..taken]),
            }
        },
    }
    Some(Answer {
        status,
        body,
        keep,
        len: bytes.len() - wire.bytes.len() - input.unused().len(),
    })
}

struct Steps<'b> {
    bytes: &'b [u8],
    step: usize,
}

impl Read for Steps<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let most = into.len().min(self.step);
        self.bytes.read(&mut into[..most])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: Pieces = Pieces {
        step: usize::MAX,
        room: 1 << 20,
        before: 0,
    };

    /// An answer and its body; `None` if it is refused. Behind each comes the next answer.
    fn answers() -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let long = vec![b'x'; 100_000];
        let answer = |head: &str, body: &[u8]| [b"HTTP/1.1 ", head.as_bytes(), body].concat();
        let chunked = |body: &str| {
            answer(
                "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                body.as_bytes(),
            )
        };
        let line = |len| "y".repeat(len);
        vec![
            (
                answer("200 OK\r\nContent-Length: 3\r\n\r\n", b"abc"),
                Some(b"abc".to_vec()),
            ),
            (
                answer("404 No\r\nContent-Length: 100000\r\n\r\n", &long),
                Some(long.clone()),
            ),
            (
                answer(
                    "103 Soon\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n",
                    b"a",
                ),
                Some(b"a".to_vec()),
            ),
            (answer("204 No\r\n\r\n", b""), Some(Vec::new())),
            (
                chunked("3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nTrailer: z\r\n\r\n"),
                Some(b"abcde".to_vec()),
            ),
            (chunked("0\r\n\r\n"), Some(Vec::new())),
            (
                chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", line(16_380))),
                Some(b"a".to_vec()),
            ),
            // One byte more than a line may have.
            (
                chunked(&format!("1;{}\r\na\r\n0\r\n\r\n", line(16_381))),
                None,
            ),
            (chunked(&format!("0\r\n{}\r\n\r\n", line(40_000))), None),
            (chunked("1\r\nab\r\n0\r\n\r\n"), None),
            (chunked("1\na\r\n0\r\n\r\n"), None),
            (answer(&format!("200 {}", line(40_000)), b"\r\n\r\n"), None),
            (answer("200 OK\r\n\r\n", b"abc"), None),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn an_answer_is_the_same_in_all_pieces(
            step in prop_oneof![1..40_usize, 1..70_000_usize],
            room in prop_oneof![1..40_usize, 1..70_000_usize],
            before in prop_oneof![Just(0), 0..70_000_u64],
        ) {
            let pieces = Pieces { step, room, before };
            for (bytes, body) in answers() {
                let more = [&bytes[..], b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"].concat();
                let read = read_answer(&more, pieces);
                prop_assert_eq!(&read, &read_answer(&bytes, WHOLE), "{} bytes", bytes.len());
                prop_assert_eq!(read.as_ref().map(|answer| &answer.body), body.as_ref());
                prop_assert!(read.is_none_or(|answer| answer.keep && answer.len == bytes.len()));
            }
        }

        #[test]
        fn an_answer_that_is_cut_off_is_none(cut in 1..40_usize, step in 1..70_000_usize) {
            for (bytes, _) in answers() {
                let cut = &bytes[..bytes.len() - cut.min(bytes.len())];
                prop_assert_eq!(read_answer(cut, Pieces { step, ..WHOLE }), None);
            }
        }
    }

    #[test]
    fn an_answer_that_repeats_the_last_head_is_read_as_if_it_were_the_first() {
        let head = |length: &str| {
            format!("HTTP/1.1 200 OK\r\nContent-Type: x\r\nContent-Length: {length}\r\n\r\n")
        };
        let heads = [
            head("3"),
            head("100000"),
            head("0"),
            head("007"),
            head(" 7 "),
            head("7").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"),
            head("7").replace("200", "404"),
            head("7").replace("1.1", "1.0"),
            head("7,7"),
            head("-7"),
            head("00000000000000000000000000000000000000007"),
            head("99999999999999999999"),
            head(""),
            "HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 103 Soon\r\n\r\n".to_owned() + &head("9"),
        ];
        for (first, second) in heads.iter().flat_map(|a| heads.iter().map(move |b| (a, b))) {
            let read = |input: &mut Input, head: &str| input.head(&mut head.as_bytes()).ok();
            let mut input = Input::new();
            if read(&mut input, first).is_some() {
                let behind = read(&mut input, second);
                assert_eq!(behind, read(&mut Input::new(), second), "{first} {second}");
            }
        }
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let bytes = b"HTTP/1.1 500 No\r\n\r\ndisk on fire";
        for room in [1, 100, 1 << 15] {
            let answer = read_answer(bytes, Pieces { room, ..WHOLE }).expect("an answer");
            assert_eq!((&*answer.body, answer.keep), (&b"disk on fire"[..], false));
        }
    }
}
