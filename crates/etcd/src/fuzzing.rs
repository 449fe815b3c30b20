//! A door for the fuzzer: bytes that an etcd, or something that stands in its place, may answer, and all that is done with
//! them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64};

use base::Revision;
use bytes::{Bytes, BytesMut};
use prost::Message;
use store::Compare;
use tokio::sync::watch;

use crate::client::Client;
use crate::message as m;
use crate::value::Scale;
use crate::{Inner, Limits, moved, rpc};

const PREFIX: &[u8] = b"/gantry/";

/// Answers to begin with, each in its frame.
pub fn answers() -> Vec<Vec<u8>> {
    let header = Some(m::Header { revision: 77 });
    let pair = |value: &[u8]| m::KeyValue {
        key: [PREFIX, crate::DATA, b"/registry/pods/a/b"].concat().into(),
        create_revision: 5,
        mod_revision: 70,
        value: Bytes::copy_from_slice(value),
        lease: 9,
    };
    let (plain, stamped) = (pair(b"\x10{}"), pair(b"\x11\x01\0\0\0{}"));
    let moved = pair(&[&b"\x12"[..], &[1; 16], b"{}"].concat());
    let range = m::RangeResponse {
        header: header.clone(),
        kvs: vec![plain.clone(), stamped.clone(), moved],
        more: true,
        count: 9,
    };
    let event = m::Event { of_type: m::EVENT_DELETE, kv: Some(plain.clone()), prev_kv: Some(stamped) };
    let watched = m::WatchResponse { header: header.clone(), events: vec![event], ..m::WatchResponse::default() };
    let refused = m::ResponseOp { response: Some(m::Answer::Range(range.clone())) };
    let txn = m::TxnResponse { header, succeeded: false, responses: vec![refused] };
    let lease = m::LeaseResponse { ttl: 3, granted: 5, keys: vec![plain.key] };
    let first = text_of_meta();
    let frames = [rpc::framed(&range), rpc::framed(&watched), rpc::framed(&txn), rpc::framed(&lease), first.into()];
    frames.iter().map(|frame| frame.to_vec()).collect()
}

fn text_of_meta() -> &'static [u8] {
    b"gantry-etcd/1 offset=18446744073709551615 moved-until=3"
}

fn inner(scale: Scale) -> Inner {
    let (fed, _) = watch::channel(0);
    Inner {
        client: Client::new(Vec::new(), None, None),
        prefix: Bytes::from_static(PREFIX),
        limits: Limits::default(),
        scale,
        newest: AtomicI64::new(0),
        fed,
        following: AtomicBool::new(false),
        follower: Mutex::new(None),
        pulsing: tokio::sync::Mutex::new(()),
        asking: Mutex::default(),
        foreign: Mutex::default(),
    }
}

/// Reads `bytes` as the answers to every question that is asked.
pub fn read_answers(bytes: &[u8]) {
    let scale = moved::read(&String::from_utf8_lossy(bytes)).unwrap_or_default();
    for scale in [scale, Scale { offset: u64::MAX - 50, moved_until: 3 }] {
        let inner = inner(scale);
        each::<m::RangeResponse>(bytes, |range| {
            inner.note(range.header.as_ref());
            for pair in &range.kvs {
                inner.key(&pair.key);
                // What is taken is taken; what is none of ours is left out.
                let _ = inner.decode(pair);
            }
        });
        each::<m::WatchResponse>(bytes, |watched| {
            let _ = inner.events(watched.events);
        });
        each::<m::TxnResponse>(bytes, |txn| {
            let sent = [m::Compare { target: m::TARGET_MOD, key: Bytes::new(), mod_revision: Some(1) }];
            let compares = [Compare { key: Bytes::new(), mod_revision: Revision(1) }];
            let _ = inner.refused(&compares, &sent, &txn.responses);
        });
        each::<m::LeaseResponse>(bytes, |_| ());
        each::<m::AuthenticateResponse>(bytes, |_| ());
    }
}

/// Every message of the frames in `bytes`.
fn each<B: Message + Default>(bytes: &[u8], mut take: impl FnMut(B)) {
    let mut rest = BytesMut::from(bytes);
    while let Ok(Some(message)) = rpc::message(&mut rest, "the fuzzer") {
        take(message);
    }
}
