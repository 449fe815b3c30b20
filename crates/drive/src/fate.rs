//! What an answer means for a write, and what is to be asked before anyone decides on.
//!
//! An answer that got lost says nothing: the write may have happened, or may happen yet. The same request is then sent
//! again until something is known, so that a decider never makes up for a write that is still on its way. That is safe,
//! because every request is harmless the second time: creates name their object, updates their revision, deletions,
//! patches and bindings their uid.

use base::{Backoff, Revision};
use client::{Action, Answer, Api, Request};
use meta::{Reason, Status};

use crate::Shell;

/// Pauses before an unanswered request is sent again.
pub const AGAIN: Backoff = Backoff::new(100, 5_000);

/// Whether a refusal leaves open what became of the write.
pub fn is_unknown(status: &Status) -> bool {
    matches!(status.reason(), Reason::Timeout | Reason::ServiceUnavailable)
}

/// Sends `request` until its fate is known.
///
/// # Errors
/// The refusal, which is a known fate.
pub async fn settle(request: Request, api: &dyn Api, shell: &dyn Shell) -> Result<Answer, Status> {
    let mut failures = 0;
    loop {
        match api.call(request.clone()).await {
            Err(status) if is_unknown(&status) => {
                failures += 1;
                tracing::debug!("asking again: {status}");
                shell.sleep(AGAIN.delay_ms(failures)).await;
            }
            answer => return answer,
        }
    }
}

/// How a write went that counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// A view at this revision shows it.
    pub revision: Revision,
    /// It was done before by somebody else, for all that anybody knows.
    pub by_others: bool,
}

/// Writes; `tolerated` is a refusal that counts as done.
///
/// # Errors
/// Any other refusal.
pub async fn write(
    request: Request,
    tolerated: Option<Reason>,
    api: &dyn Api,
    shell: &dyn Shell,
) -> Result<Written, Status> {
    let by_others = |revision| Ok(Written { revision, by_others: true });
    match settle(request.clone(), api, shell).await {
        Ok(answer) => Ok(Written { revision: answer.revision, by_others: false }),
        Err(status) if Some(status.reason()) == tolerated => match existing(&request) {
            // Whoever made it: a view that lacks it must not be decided on.
            Some(look) => match settle(look, api, shell).await {
                Ok(answer) => by_others(answer.revision),
                Err(status) if status.reason() == Reason::NotFound => by_others(Revision::ZERO),
                Err(status) => Err(status),
            },
            None => by_others(Revision::ZERO),
        },
        Err(status) => Err(status),
    }
}

/// For a create, the read of what is there already. Few roles of controllers may get what they create; all may list it.
fn existing(request: &Request) -> Option<Request> {
    let Action::Create(object) = &request.action else { return None };
    let name = object.at(&["metadata", "name"]).text();
    (request.subresource.is_empty() && !name.is_empty())
        .then(|| Request::find(request.resource, &request.namespace, name))
}
