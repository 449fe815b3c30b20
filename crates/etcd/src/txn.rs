//! Transactions: what the store asks, said in etcd's words.
//!
//! Compares are on modification revisions, in both. When one does not hold, etcd tells what each compared key is, so the
//! refusal can say which and why.

use std::sync::atomic::Ordering;

use base::Revision;
use prost::Message;
use store::{Commit, Compare, Error, Invalid, Op, Refused, Txn};

use crate::client::Repeat;
use crate::message as m;
use crate::rpc::{Failure, code};
use crate::{Inner, number, value};

impl Inner {
    /// Commits, and answers when the sink was given it.
    pub async fn commit(&self, txn: Txn) -> Result<Commit, Error> {
        txn.check().map_err(Error::Invalid)?;
        let lease = txn.ops.iter().find_map(|op| if let Op::Put(put) = op { put.lease } else { None });
        let request = self.request(txn.compares.clone(), txn.ops).await?;
        let answer = self.client.call("/etcdserverpb.KV/Txn", &request, Repeat::Never).await;
        let answer: m::TxnResponse = answer.map_err(|failure| match (&failure, lease) {
            (Failure::Said { code: code::NOT_FOUND, message }, Some(id)) if message.contains("lease") => {
                Error::NoSuchLease(id)
            }
            (failure, _) => self.error(failure),
        })?;
        let at = self.note(answer.header.as_ref());
        if answer.succeeded {
            let changed = answer.responses.iter().map(changed).sum();
            if changed > 0 {
                self.reach(at).await?;
            }
            return Ok(Commit { revision: self.scale.told(at), changed });
        }
        let refused = self.refused(&txn.compares, &request.compare, &answer.responses)?;
        // Whoever decides anew must decide on something newer. That nothing has happened is known, whether or not the
        // feed comes along in time.
        if let Err(error) = self.reach(at).await {
            tracing::debug!("after a refusal: {error}");
        }
        Err(Error::Refused(Box::new(refused)))
    }

    async fn request(&self, compares: Vec<Compare>, ops: Vec<Op>) -> Result<m::TxnRequest, Error> {
        let count = compares.len().max(ops.len());
        if count > self.limits.operations {
            return Err(beyond("operations", count, self.limits.operations));
        }
        let mut request = m::TxnRequest::default();
        for compare in compares {
            let mod_revision = self.expected(&compare).await?;
            let key = self.place(&compare.key);
            let read = m::RangeRequest { key: key.clone(), ..m::RangeRequest::default() };
            request.failure.push(m::RequestOp { request: Some(m::Operation::Range(read)) });
            request.compare.push(m::Compare { target: m::TARGET_MOD, key, mod_revision: Some(mod_revision) });
        }
        for op in &ops {
            let key = self.place(op.key());
            let operation = match op {
                Op::Put(put) => {
                    let lease = put.lease.map_or(0, number);
                    m::Operation::Put(m::PutRequest { key, value: value::encode(put), lease })
                }
                Op::Delete { .. } => m::Operation::Delete(m::DeleteRangeRequest { key, ..Default::default() }),
            };
            request.success.push(m::RequestOp { request: Some(operation) });
        }
        let bytes = request.encoded_len();
        if bytes > self.limits.request_bytes {
            return Err(beyond("bytes", bytes, self.limits.request_bytes));
        }
        Ok(request)
    }

    /// The revision in etcd at which a compared key must be. One from before a move here is not known to etcd: the key
    /// then must still have the value that was moved.
    async fn expected(&self, compare: &Compare) -> Result<i64, Error> {
        if compare.mod_revision == Revision::ZERO {
            return Ok(0);
        }
        if let Some(etcd) = self.scale.of_etcd(compare.mod_revision) {
            return Ok(etcd);
        }
        let request = m::RangeRequest { key: self.place(&compare.key), ..m::RangeRequest::default() };
        let answer: m::RangeResponse = self.ask("/etcdserverpb.KV/Range", &request).await?;
        let at = self.note(answer.header.as_ref());
        let (found, value) = self.found(answer.kvs.first());
        if found == compare.mod_revision {
            return Ok(answer.kvs.first().map_or(0, |pair| pair.mod_revision));
        }
        self.reach(at).await?;
        let (key, expected) = (compare.key.clone(), compare.mod_revision);
        Err(Error::Refused(Box::new(Refused { key, expected, found, value })))
    }

    /// What stands at a key; what somebody else put there has a revision and no value.
    fn found(&self, pair: Option<&m::KeyValue>) -> (Revision, Option<bytes::Bytes>) {
        let Some(pair) = pair else { return (Revision::ZERO, None) };
        match self.decode(pair) {
            Some(version) => (version.mod_revision, Some(version.value.bytes())),
            None => (self.scale.told(pair.mod_revision), None),
        }
    }

    pub(crate) fn refused(
        &self,
        compares: &[Compare],
        sent: &[m::Compare],
        answers: &[m::ResponseOp],
    ) -> Result<Refused, Error> {
        for ((compare, sent), answer) in compares.iter().zip(sent).zip(answers) {
            let Some(m::Answer::Range(read)) = &answer.response else { continue };
            let pair = read.kvs.first();
            if pair.map_or(0, |pair| pair.mod_revision) != sent.mod_revision.unwrap_or(0) {
                let (found, value) = self.found(pair);
                return Ok(Refused { key: compare.key.clone(), expected: compare.mod_revision, found, value });
            }
        }
        let newest = self.newest.load(Ordering::Acquire);
        Err(Error::Unknown(format!("etcd refused a transaction at revision {newest} and did not say why")))
    }
}

fn changed(answer: &m::ResponseOp) -> usize {
    match &answer.response {
        Some(m::Answer::Put(_)) => 1,
        Some(m::Answer::Delete(gone)) => usize::try_from(gone.deleted).unwrap_or(0),
        _ => 0,
    }
}

fn beyond(what: &'static str, found: usize, limit: usize) -> Error {
    Error::Invalid(Invalid::BeyondBackend { what, found, limit })
}
