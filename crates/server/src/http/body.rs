//! Bodies of answers: known at once, made while they are read (lists), or endless (watches, logs).

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use hyper::body::Frame;
use meta::{Status, Value};

pub type Response = http::Response<Body>;
/// Bytes of a body that is too large which are still read, so that its sender comes to read the answer.
const DRAIN_MAX_BYTES: usize = 16 * 1024 * 1024;

const DRAIN_PATIENCE: Duration = Duration::from_secs(10);
/// How long a request's body may take to come: its request holds a seat meanwhile.
pub const BODY_TIME: Duration = Duration::from_secs(15);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub enum Body {
    Full(Option<Bytes>),
    /// Parts made one by one, so that a long list never stands in memory as a whole.
    Parts(Box<dyn Iterator<Item = Bytes> + Send>),
    Stream(Pin<Box<dyn Stream<Item = Bytes> + Send>>),
    /// What another server answers, passed on.
    Incoming(hyper::body::Incoming),
    /// One with something that goes when it was sent, or given up.
    Held(Box<Body>, Box<dyn Send>),
}

impl Body {
    /// Holds `what` until the body is gone.
    pub fn holding(self, what: impl Send + 'static) -> Body {
        Body::Held(Box::new(self), Box::new(what))
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Parts(parts) => Poll::Ready(parts.next().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream(stream) => stream.as_mut().poll_next(cx).map(|next| next.map(|bytes| Ok(Frame::data(bytes)))),
            Body::Incoming(incoming) => Pin::new(incoming).poll_frame(cx).map_err(Into::into),
            Body::Held(body, _) => Pin::new(&mut **body).poll_frame(cx),
        }
    }

    /// Whoever knows that nothing follows sends no empty frame to say so.
    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.is_none(),
            Body::Incoming(incoming) => incoming.is_end_stream(),
            Body::Held(body, _) => body.is_end_stream(),
            Body::Parts(_) | Body::Stream(_) => false,
        }
    }

    fn size_hint(&self) -> hyper::body::SizeHint {
        match self {
            Body::Full(bytes) => {
                hyper::body::SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Body::Incoming(incoming) => incoming.size_hint(),
            Body::Held(body, _) => body.size_hint(),
            _ => hyper::body::SizeHint::default(),
        }
    }
}

/// An answer with a body of a known type.
pub fn answer(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = http::Response::new(Body::Full(Some(body.into())));
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn text(code: u16, body: impl Into<Bytes>) -> Response {
    answer(code, "text/plain; charset=utf-8", body)
}

pub fn json(code: u16, value: &Value) -> Response {
    answer(code, "application/json", value.to_json())
}

/// A refusal as JSON, with `Retry-After` where the status has one.
pub fn refusal(status: &Status) -> Response {
    let mut response = json(status.code(), &status.to_value());
    if status.0.retry_after_seconds > 0 {
        response.headers_mut().insert(header::RETRY_AFTER, status.0.retry_after_seconds.into());
    }
    response
}

/// Reads a whole request body of at most `max_bytes`, within [`BODY_TIME`]. Of one that is larger, [`DRAIN_MAX_BYTES`] are read and dropped:
/// many clients read no answer before they have sent all.
pub async fn read<B>(body: B, max_bytes: usize) -> Result<Bytes, Status>
where
    B: hyper::body::Body,
    B::Error: Into<BoxError>,
{
    let mut body = std::pin::pin!(body);
    let mut parts: Vec<Bytes> = Vec::new();
    let (mut total, limit) = (0, max_bytes.max(DRAIN_MAX_BYTES));
    let until = tokio::time::Instant::now() + BODY_TIME;
    loop {
        let late = |_| {
            let why = format!("the body of the request did not come within {} s", BODY_TIME.as_secs());
            Status::new(meta::Reason::Timeout, why)
        };
        let Some(frame) = tokio::time::timeout_at(until, body.frame()).await.map_err(late)? else { break };
        let frame = frame.map_err(|error| Status::bad_request(format!("cannot read the body: {}", error.into())))?;
        let Ok(mut data) = frame.into_data() else { continue };
        total += data.remaining();
        if total > limit {
            break;
        }
        match total > max_bytes {
            true => parts.clear(),
            false => parts.push(data.copy_to_bytes(data.remaining())),
        }
    }
    if total > max_bytes {
        let message = format!("Request entity too large: limit is {max_bytes}");
        return Err(Status::new(meta::Reason::RequestEntityTooLarge, message));
    }
    Ok(match parts.len() {
        0 => Bytes::new(),
        1 => parts.swap_remove(0),
        _ => parts.concat().into(),
    })
}

/// Reads and drops what is left of a request's body, within [`DRAIN_MAX_BYTES`] and [`DRAIN_PATIENCE`].
pub fn drain(mut body: hyper::body::Incoming) {
    use hyper::body::Body;
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(async move {
        let all = async {
            let mut total = 0;
            while let Some(Ok(frame)) = body.frame().await {
                total += frame.data_ref().map_or(0, Bytes::len);
                if total > DRAIN_MAX_BYTES {
                    return;
                }
            }
        };
        // One that does not end by then is cut.
        let _ = tokio::time::timeout(DRAIN_PATIENCE, all).await;
    });
}
