use super::*;
use proptest::prelude::*;

const WHOLE: Pieces = Pieces {
    step: usize::MAX,
    room: 1 << 20,
};

/// Responses with their bodies; `None` if the response is refused.
fn responses() -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
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
    fn response_does_not_depend_on_the_pieces_it_arrives_in(
        step in prop_oneof![1..40_usize, 1..70_000_usize],
        room in prop_oneof![1..40_usize, 1..70_000_usize],
    ) {
        let pieces = Pieces { step, room };
        for (bytes, body) in responses() {
            let more = [&bytes[..], b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"].concat();
            let read = read_response(&more, pieces);
            prop_assert_eq!(&read, &read_response(&bytes, WHOLE), "{} bytes", bytes.len());
            prop_assert_eq!(read.as_ref().map(|answer| &answer.body), body.as_ref());
            prop_assert!(read.is_none_or(|answer| answer.keep_alive && answer.len == bytes.len()));
        }
    }

    #[test]
    fn truncated_response_is_refused(cut in 1..40_usize, step in 1..70_000_usize) {
        for (bytes, _) in responses() {
            let cut = &bytes[..bytes.len() - cut.min(bytes.len())];
            prop_assert_eq!(read_response(cut, Pieces { step, ..WHOLE }), None);
        }
    }
}

#[test]
fn body_without_a_length_ends_with_the_connection() {
    let bytes = b"HTTP/1.1 500 No\r\n\r\ndisk on fire";
    for room in [1, 100, 1 << 15] {
        let answer = read_response(bytes, Pieces { room, ..WHOLE }).expect("a response");
        assert_eq!(
            (&*answer.body, answer.keep_alive),
            (&b"disk on fire"[..], false)
        );
    }
}

fn parse(head: &str) -> io::Result<Option<ResponseHead>> {
    ResponseHead::parse(head.as_bytes())
}

#[test]
fn head_determines_the_end_of_the_body() {
    for (lines, framing, keep_alive) in [
        (
            "1.1 200 OK\r\nContent-Length: 5\r\n",
            BodyFraming::Length(5),
            true,
        ),
        (
            "1.1 200 \r\ncontent-length:5\r\n",
            BodyFraming::Length(5),
            true,
        ),
        (
            "1.0 200 OK\r\nContent-Length: 5\r\n",
            BodyFraming::Length(5),
            false,
        ),
        (
            "1.1 200 OK\r\nContent-Length: 5\r\nConnection: x, Close\r\n",
            BodyFraming::Length(5),
            false,
        ),
        (
            "1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n",
            BodyFraming::Chunked(ChunkPart::Size),
            true,
        ),
        ("1.1 404 No\r\n", BodyFraming::UntilClosed, false),
        ("1.1 204 No\r\n", BodyFraming::Length(0), true),
        (
            "1.1 204 No\r\nContent-Length: 5\r\n",
            BodyFraming::Length(0),
            false,
        ),
        (
            "1.1 304 No\r\nContent-Length: 0\r\n",
            BodyFraming::Length(0),
            true,
        ),
    ] {
        let head = parse(&format!("HTTP/{lines}\r\n")).unwrap().expect(lines);
        assert_eq!(
            (head.framing, head.keep_alive),
            (framing, keep_alive),
            "{lines}"
        );
    }
}

#[test]
fn head_that_can_be_read_in_two_ways_is_refused() {
    for lines in [
        "1.1 200 OK\r\n",
        "1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
        "1.1 200 OK\r\nContent-Length: 5, 5\r\n",
        "1.1 200 OK\r\nContent-Length: -5\r\n",
        "1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "1.1 404 No\r\nTransfer-Encoding: gzip\r\n",
        "1.1 404 No\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "1.0 404 No\r\nTransfer-Encoding: chunked\r\n",
        "1.1 101 Switching\r\n",
        "1.1 099 Odd\r\n",
        "2.0 200 OK\r\nContent-Length: 5\r\n",
    ] {
        assert!(parse(&format!("HTTP/{lines}\r\n")).is_err(), "{lines}");
    }
}

#[test]
fn head_of_an_interim_response_is_skipped() {
    for status in [100, 102, 103] {
        let head = format!("HTTP/1.1 {status} Soon\r\n\r\n");
        assert_eq!(parse(&head).unwrap(), None);
    }
}

#[test]
fn chunk_size_is_hexadecimal_and_nothing_else() {
    for (line, size) in [
        ("0", Some(0)),
        ("1f", Some(31)),
        ("00A", Some(10)),
        ("5;name=value", Some(5)),
        ("5 ; name", Some(5)),
        ("fffffffffffffff", Some((1 << 60) - 1)),
        ("1000000000000000", None),
        ("", None),
        (";x", None),
        ("-1", None),
        ("+1", None),
        ("0x1", None),
        ("1 1", None),
        (" 1", None),
    ] {
        assert_eq!(parse_chunk_size(line.as_bytes()), size, "{line:?}");
    }
}

#[test]
fn repeated_head_is_read_as_by_the_parser() {
    let first = "HTTP/1.1 200 OK\r\nServer: larder\r\nContent-Length: 3\r\n\r\n";
    for (next, want) in [
        (first.to_owned(), Ok(3)),
        (first.replace(": 3", ": 12345"), Ok(12345)),
        (first.replace(": 3", ": "), Err(BAD_LENGTH.0)),
        (first.replace(": 3", ": 3x"), Err(BAD_LENGTH.0)),
        (first.replace(": 3", ": 9999999999999"), Err(BAD_LENGTH.0)),
        (first.replace("larder", "other"), Ok(3)),
        (
            first.replace(": 3\r\n", ": 3\r\nContent-Length: 3\r\n"),
            Err(TWO_LENGTHS.0),
        ),
    ] {
        let both = format!("{first}{next}");
        let mut reader = ResponseReader::new(both.as_bytes());
        let (head, bytes) = reader.read_head().expect("the first head");
        assert_eq!(head.framing.length(), Some(3));
        assert_eq!(bytes.to_vec(), first.as_bytes());
        match (reader.read_head(), want) {
            (Ok((head, bytes)), Ok(length)) => {
                assert_eq!(head.framing.length(), Some(length), "{next}");
                assert_eq!(head.is_from_larder, next.contains("larder"), "{next}");
                assert_eq!(bytes.to_vec(), next.as_bytes());
                let named = |(name, value): (&[u8], &[u8])| {
                    let is_length = name.eq_ignore_ascii_case(b"content-length");
                    is_length.then(|| value.to_vec())
                };
                let length = length.to_string().into_bytes();
                assert!(bytes.fields().filter_map(named).eq([length]), "{next}");
            }
            (found, want) => assert_eq!(
                found.map(|_| 0).map_err(|error| error.to_string()),
                want.map_err(str::to_owned),
                "{next}"
            ),
        }
    }
}

#[test]
fn only_a_head_that_ends_with_its_length_can_repeat() {
    for head in [
        "HTTP/1.1 204 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nServer: larder\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX-Content-Length: 3\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let mut reader = ResponseReader::new(head.as_bytes());
        reader.read_head().expect(head);
        assert!(reader.last.is_none(), "{head}");
    }
}
