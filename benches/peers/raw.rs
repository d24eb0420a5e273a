//! The lower bound for this design: blocking sockets, a thread for each connection, frames with a
//! length in front, and values in a map.

use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, RwLock};

use super::{Get, describe, wait_for_the_end};

type Values = RwLock<HashMap<String, Arc<[u8]>>>;

pub fn serve() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address"));
    let values = Arc::new(Values::default());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let values = values.clone();
            let stream = stream.expect("a connection");
            std::thread::spawn(move || connection(&stream, &values));
        }
    });
    wait_for_the_end();
}

fn connection(mut stream: &TcpStream, values: &Values) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut buffer = vec![0; 1024];
    loop {
        let key = std::str::from_utf8(read_frame(stream, &mut buffer)?).ok()?;
        let cached = values.read().expect("no panic").get(key).cloned();
        let value = cached.unwrap_or_else(|| {
            let value: Arc<[u8]> = vec![b'v'; describe(key).0].into();
            let mut values = values.write().expect("no panic");
            values.insert(key.to_owned(), value.clone());
            value
        });
        let len = (value.len() as u32).to_le_bytes();
        let mut slices = &mut [IoSlice::new(&len), IoSlice::new(&value)][..];
        while !slices.is_empty() {
            let written = stream.write_vectored(slices).ok()?;
            IoSlice::advance_slices(&mut slices, written);
        }
    }
}

pub fn connect(address: &str) -> Get<'static> {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("a TCP socket");
    let mut request = Vec::new();
    let mut buffer = vec![0; 32 << 10];
    Box::new(move |key| {
        request.clear();
        request.extend_from_slice(&(key.len() as u32).to_le_bytes());
        request.extend_from_slice(key.as_bytes());
        (&stream).write_all(&request).expect("the server is there");
        let value = read_frame(&stream, &mut buffer).expect("the server answers");
        value.len()
    })
}

/// Reads one frame and nothing behind it, in one system call if it fits into the buffer.
fn read_frame<'b>(mut stream: &TcpStream, buffer: &'b mut Vec<u8>) -> Option<&'b [u8]> {
    let mut filled = 0;
    loop {
        let read = stream.read(&mut buffer[filled..]).ok()?;
        if read == 0 {
            return None;
        }
        filled += read;
        if filled < 4 {
            continue;
        }
        let len = u32::from_le_bytes([buffer[0], buffer[1], buffer[2], buffer[3]]) as usize;
        if filled == 4 + len {
            return Some(&buffer[4..filled]);
        }
        if buffer.len() < 4 + len {
            buffer.resize(4 + len, 0);
        }
    }
}
