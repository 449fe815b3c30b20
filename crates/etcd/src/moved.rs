//! The first key below the prefix, which says how revisions are told, and taking a whole state over from elsewhere.
//!
//! `meta` is `gantry-etcd/1 offset=N moved-until=E`, or `gantry-etcd/1 moving` while a move is under way: whoever finds
//! that refuses to work, because half a cluster is none.

use std::collections::BTreeMap;

use base::Revision;
use bytes::Bytes;
use prost::Message;
use store::{Dumped, LeaseId};

use crate::client::{Client, Repeat};
use crate::message as m;
use crate::value::{Scale, encode_moved};
use crate::{DATA, Etcd, FORMAT, META, OpenError, Options, end_of, reach_error};

const MOVING: &str = "moving";
/// Left free in a request for what surrounds keys and values.
const REQUEST_SPARE_BYTES: usize = 16 * 1024;
const OPERATION_SPARE_BYTES: usize = 64;

fn text_of(scale: &Scale) -> String {
    format!("{FORMAT} offset={} moved-until={}", scale.offset, scale.moved_until)
}

pub(crate) fn read(text: &str) -> Option<Scale> {
    let mut words = text.strip_prefix(FORMAT)?.split_whitespace();
    let offset = words.next()?.strip_prefix("offset=")?.parse().ok()?;
    let moved_until = words.next()?.strip_prefix("moved-until=")?.parse().ok()?;
    Some(Scale { offset, moved_until })
}

fn place(prefix: &[u8]) -> Bytes {
    [prefix, META].concat().into()
}

fn shown(prefix: &[u8]) -> String {
    String::from_utf8_lossy(prefix).into_owned()
}

/// Reads `meta`, or writes it where there is nothing yet. Also tells etcd's newest revision.
pub async fn meta(client: &Client, prefix: &Bytes) -> Result<(Scale, i64), OpenError> {
    let key = place(prefix);
    let value: Bytes = text_of(&Scale::default()).into();
    let mut foreign = false;
    loop {
        let request = m::RangeRequest { key: key.clone(), ..m::RangeRequest::default() };
        let answer = client.call("/etcdserverpb.KV/Range", &request, Repeat::Harmless).await;
        let answer: m::RangeResponse = answer.map_err(reach_error("read the cluster's first key"))?;
        if let Some(pair) = answer.kvs.first() {
            let text = String::from_utf8_lossy(&pair.value).into_owned();
            if text == format!("{FORMAT} {MOVING}") {
                return Err(OpenError::Unfinished { prefix: shown(prefix) });
            }
            let scale = read(&text).ok_or(OpenError::Foreign { prefix: shown(prefix), found: text })?;
            return Ok((scale, m::revision(answer.header.as_ref())));
        }
        if count(client, prefix).await? > 0 {
            // Another server may have written the first key, and more, since we looked; then it is found now.
            if !std::mem::replace(&mut foreign, true) {
                continue;
            }
            return Err(OpenError::Foreign { prefix: shown(prefix), found: "keys without a first one".to_owned() });
        }
        // Whoever was faster is found in the next round.
        put_first(client, key.clone(), value.clone()).await?;
    }
}

async fn count(client: &Client, prefix: &Bytes) -> Result<i64, OpenError> {
    let request = m::RangeRequest {
        key: prefix.clone(),
        range_end: end_of(prefix),
        count_only: true,
        ..m::RangeRequest::default()
    };
    let answer = client.call("/etcdserverpb.KV/Range", &request, Repeat::Harmless).await;
    let answer: m::RangeResponse = answer.map_err(reach_error("count the keys"))?;
    Ok(answer.count)
}

/// Puts the key if it is not there; says whether it was not.
async fn put_first(client: &Client, key: Bytes, value: Bytes) -> Result<bool, OpenError> {
    let put = m::PutRequest { key: key.clone(), value, lease: 0 };
    let request = m::TxnRequest {
        compare: vec![m::Compare { target: m::TARGET_MOD, key, mod_revision: Some(0) }],
        success: vec![m::RequestOp { request: Some(m::Operation::Put(put)) }],
        failure: Vec::new(),
    };
    let answer = client.call("/etcdserverpb.KV/Txn", &request, Repeat::Harmless).await;
    let answer: m::TxnResponse = answer.map_err(reach_error("write the cluster's first key"))?;
    Ok(answer.succeeded)
}

impl Etcd {
    /// Takes a whole state over into an empty prefix. Keys keep their values and revisions; the revisions that follow
    /// are above `revision`. Leases begin anew with their whole time. Says how many keys there were.
    ///
    /// # Errors
    /// [`OpenError::NotEmpty`] and others; an unfinished move is told by every later [`Etcd::open`].
    pub async fn import(
        options: &Options,
        revision: Revision,
        leases: &[(LeaseId, u64)],
        keys: impl IntoIterator<Item = Dumped>,
    ) -> Result<u64, OpenError> {
        let (client, prefix) = (options.client(), options.prefix());
        let found = count(&client, &prefix).await?;
        let moving: Bytes = format!("{FORMAT} {MOVING}").into();
        if found > 0 || !put_first(&client, place(&prefix), moving).await? {
            return Err(OpenError::NotEmpty { prefix: shown(&prefix), keys: found.max(1) });
        }
        let mut renamed = BTreeMap::new();
        for (id, ttl_ms) in leases {
            let request = m::LeaseGrantRequest { ttl: i64::try_from(ttl_ms.div_ceil(1000).max(1)).unwrap_or(i64::MAX) };
            let answer = client.call("/etcdserverpb.Lease/LeaseGrant", &request, Repeat::Harmless).await;
            let answer: m::LeaseGrantResponse = answer.map_err(reach_error("grant a lease"))?;
            renamed.insert(*id, answer.id);
        }
        let mut batch = Batch { client: &client, options, request: m::TxnRequest::default(), bytes: 0, revision: 0 };
        let (mut count, mut highest) = (0, revision);
        for Dumped { key, value, create_revision, mod_revision, lease } in keys {
            highest = highest.max(mod_revision);
            let place: Bytes = [&prefix[..], DATA, &key].concat().into();
            let lease = lease.and_then(|id| renamed.get(&id).copied()).unwrap_or(0);
            let value = encode_moved(&value, create_revision, mod_revision);
            batch.put(m::PutRequest { key: place, value, lease }).await?;
            count += 1;
        }
        batch.flush().await?;
        let moved_until = batch.revision.max(1);
        let scale = Scale { offset: highest.0, moved_until };
        let put = m::PutRequest { key: place(&prefix), value: text_of(&scale).into(), lease: 0 };
        let answer = client.call("/etcdserverpb.KV/Put", &put, Repeat::Harmless).await;
        let _: m::PutResponse = answer.map_err(reach_error("end the move"))?;
        Ok(count)
    }
}

struct Batch<'a> {
    client: &'a Client,
    options: &'a Options,
    request: m::TxnRequest,
    bytes: usize,
    /// etcd's, after the last flush.
    revision: i64,
}

impl Batch<'_> {
    async fn put(&mut self, put: m::PutRequest) -> Result<(), OpenError> {
        let limits = &self.options.limits;
        let (bytes, room) = (put.encoded_len() + OPERATION_SPARE_BYTES, limits.request_bytes - REQUEST_SPARE_BYTES);
        if bytes > room {
            let key = String::from_utf8_lossy(&put.key).into_owned();
            return Err(OpenError::TooLong { key, bytes: put.value.len(), limit: limits.request_bytes });
        }
        if self.bytes + bytes > room || self.request.success.len() >= limits.operations {
            self.flush().await?;
        }
        self.bytes += bytes;
        self.request.success.push(m::RequestOp { request: Some(m::Operation::Put(put)) });
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), OpenError> {
        if self.request.success.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let request = std::mem::take(&mut self.request);
        // The same puts twice leave the same.
        let answer = self.client.call("/etcdserverpb.KV/Txn", &request, Repeat::Harmless).await;
        let answer: m::TxnResponse = answer.map_err(reach_error("write keys"))?;
        self.revision = m::revision(answer.header.as_ref());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_is_read_as_it_is_written() {
        let scale = Scale { offset: 77, moved_until: 9 };
        assert_eq!(read(&text_of(&scale)), Some(scale));
        for bad in ["", "gantry-etcd/2 offset=1 moved-until=2", "gantry-etcd/1", "gantry-etcd/1 offset=x moved-until=1"]
        {
            assert_eq!(read(bad), None);
        }
    }
}
