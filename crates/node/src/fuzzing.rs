//! A door for the fuzzer to what stands behind an upgrade: the frames of WebSockets and the messages in them.

use runtime::Input;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::kubelet::{remote, websocket};
use crate::spdy::Session;
use crate::spdy::frame::{Encoder, Frame};

/// Bytes on their way in each direction.
const WIRE_BYTES: usize = 64 << 10;
const PROTOCOLS: [&str; 3] = ["v5.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io"];

/// What clients send to begin with: first which protocol it is ([`PROTOCOLS`], then the tunnel), then frames.
pub fn conversations() -> Vec<Vec<u8>> {
    const MASK: [u8; 4] = [1, 2, 3, 4];
    let frame = |head: u8, payload: &[u8]| {
        let mut bytes = vec![head];
        match u8::try_from(payload.len()) {
            Ok(length @ 0..=125) => bytes.push(0x80 | length),
            _ => {
                bytes.push(0x80 | 126);
                bytes.extend_from_slice(&u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
            }
        }
        bytes.extend_from_slice(&MASK);
        bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    };
    let mut spdy = Vec::new();
    let headers = vec![("streamtype".to_owned(), "data".to_owned()), ("port".to_owned(), "80".to_owned())];
    let mut encoder = Encoder::default();
    encoder.encode(&Frame::SynStream { stream: 1, fin: false, headers }, &mut spdy);
    encoder.encode(&Frame::Data { stream: 1, fin: true, bytes: bytes::Bytes::from_static(b"abc") }, &mut spdy);
    let all = |protocol: u8, frames: &[Vec<u8>]| [&[protocol][..], &frames.concat()].concat();
    vec![
        all(
            0,
            &[
                frame(0x82, b"\0hello"),
                frame(0x82, b"\x04{\"Width\":80,\"Height\":24}"),
                frame(0x89, b"ping"),
                frame(0x02, b"\0in"),
                frame(0x80, b"two"),
                frame(0x82, b"\xff\0"),
                frame(0x88, b"\x03\xe8bye"),
            ],
        ),
        all(1, &[frame(0x81, b"0aGVsbG8="), frame(0x81, b"4e30="), frame(0x88, b"")]),
        all(2, &[frame(0x82, &[0; 300]), frame(0x81, "0\u{fc}".as_bytes())]),
        all(3, &[frame(0x82, &spdy[..9]), frame(0x82, &spdy[9..]), frame(0x88, b"\x03\xe8")]),
        vec![0, 0x82, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4],
    ]
}

/// A connection on which a client sends `bytes` and then no more, and takes whatever comes.
fn client_of(bytes: &[u8]) -> DuplexStream {
    let (near, far) = tokio::io::duplex(WIRE_BYTES);
    let (mut answers, mut wire) = tokio::io::split(far);
    let bytes = bytes.to_vec();
    tokio::spawn(async move {
        // The other side may hang up before it has heard everything.
        let _ = wire.write_all(&bytes).await;
        let _ = wire.shutdown().await;
    });
    tokio::spawn(async move {
        let mut sink = vec![0; 4096];
        while let Ok(1..) = answers.read(&mut sink).await {}
    });
    near
}

/// Reads what a client sends as a node does; to be called on a runtime of tokio.
pub async fn read_conversation(input: &[u8]) {
    let Some((protocol, bytes)) = input.split_first() else { return };
    let socket = websocket::over(client_of(bytes)).await;
    match PROTOCOLS.get(usize::from(*protocol % 4)) {
        Some(protocol) => {
            let (to_process, mut inputs) = mpsc::channel(4);
            let reading = remote::read_messages(socket, protocol, to_process);
            let taking = async {
                let mut taken = 0;
                while let Some(input) = inputs.recv().await {
                    if let Input::Stdin(bytes) = input {
                        taken += bytes.len();
                    }
                }
                taken
            };
            let ((), taken) = tokio::join!(reading, taking);
            assert!(taken <= bytes.len(), "{taken} bytes came out of {}", bytes.len());
        }
        None => {
            let mut session = Session::accepting(websocket::tunnel(socket));
            while let Some(mut stream) = session.accept().await {
                tokio::spawn(async move {
                    while stream.receiving.read().await.is_some() {}
                    stream.sending.finish().await;
                });
            }
        }
    }
}
