//! Bytes on a connection to the real server, where TLS has been taken off: HTTP/1.1, HTTP/2 and upgrades, answered by the
//! real pipeline.

use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base::Time;
use server::Server;
use server::authn::{Certified, Peer};
use server::http::sending::Cut;
use server::identity::{MASTERS, User};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;

use crate::pipeline;

/// Bytes on their way in each direction.
const WIRE_BYTES: usize = 64 << 10;
/// Answers may be slow, and some have no end; nothing is waited for that comes later.
const QUIET: Duration = Duration::from_millis(5);

/// Conversations to begin with.
pub fn conversations() -> Vec<Vec<u8>> {
    let one = |text: &str| text.replace('\n', "\r\n").into_bytes();
    let frame = |of_type: u8, flags: u8, stream: u32, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
        [&length[1..], &[of_type, flags], &stream.to_be_bytes(), payload].concat()
    };
    // GET, https, a path and an authority as literals of the static table.
    let head = [&[0x82, 0x87, 0x04, 11][..], b"/api/v1/pod", &[0x01, 1, b'a']].concat();
    let post = [&[0x83, 0x87, 0x04, 8][..], b"/version", &[0x01, 1, b'a']].concat();
    let two = |frames: &[Vec<u8>]| [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frames.concat()].concat();
    vec![
        one(
            "GET /api/v1/namespaces?limit=2 HTTP/1.1\nhost: a\naccept: application/json\n\nGET /version HTTP/1.1\nhost: a\n\n",
        ),
        one("POST /api/v1/namespaces/default/configmaps HTTP/1.1\nhost: a\ntransfer-encoding: chunked\n\n2\n{}\n0\n\n"),
        one("POST /api/v1/nodes HTTP/1.1\nhost: a\ncontent-length: 2\nexpect: 100-continue\n\n{}"),
        one(
            "GET /api/v1/namespaces/a/pods/b/exec?command=x HTTP/1.1\nhost: a\nconnection: upgrade\nupgrade: websocket\nsec-websocket-version: 13\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\nsec-websocket-protocol: v5.channel.k8s.io\n\n",
        ),
        one("GET /api/v1/pods?watch=true&timeoutSeconds=1 HTTP/1.1\nhost: a\nconnection: close\n\n"),
        two(&[
            frame(4, 0, 0, &[]),
            frame(1, 5, 1, &head),
            frame(1, 4, 3, &post),
            frame(0, 1, 3, b"{}"),
            frame(6, 0, 0, &[0; 8]),
        ]),
        two(&[
            frame(4, 0, 0, &[0, 4, 0, 0, 0, 1]),
            frame(1, 5, 1, &head),
            frame(3, 0, 1, &[0, 0, 0, 8]),
            frame(8, 0, 0, &[0, 0, 1, 0]),
        ]),
        two(&[
            frame(4, 1, 0, &[]),
            frame(1, 0, 1, &head),
            frame(9, 4, 1, &[0x40, 1, b'x', 1, b'y']),
            frame(7, 0, 0, &[0; 8]),
        ]),
    ]
}

struct Arena {
    server: Arc<Server>,
    tokio: Runtime,
}

/// Throws one side of a conversation.
pub fn throw(input: &[u8]) {
    static ARENA: LazyLock<Arena> = LazyLock::new(|| {
        let (server, tokio) = pipeline::server();
        Arena { server, tokio }
    });
    let who = Certified { user: User::new("fuzzer", &[MASTERS]), until: Time::from_seconds(i64::from(u32::MAX)) };
    let peer = Arc::new(Peer { address: Ipv4Addr::LOCALHOST.into(), certified: Some(who), cut: Cut::default() });
    let server = ARENA.server.clone();
    ARENA.tokio.block_on(async {
        let (mut ours, theirs) = tokio::io::duplex(WIRE_BYTES);
        let handler = move |request, peer| server::dispatch::answer(server.clone(), request, peer);
        let served = tokio::spawn(server::http::serve::connection(
            theirs,
            peer,
            handler,
            std::future::pending(),
            std::future::pending(),
        ));
        let mut answer = vec![0; WIRE_BYTES];
        // A server that has had enough closes, and takes no more.
        let _ = tokio::time::timeout(QUIET, ours.write_all(input)).await;
        while let Ok(Ok(1..)) = tokio::time::timeout(QUIET, ours.read(&mut answer)).await {}
        drop(ours);
        // A watch may go on until its client is missed, which only sockets know.
        let ended = served.abort_handle();
        if !served.is_finished() {
            ended.abort();
        }
        assert!(!served.await.is_err_and(|error| error.is_panic()), "a connection ended in a panic");
    });
}
