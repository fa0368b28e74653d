//! Lists as streams: the same items as the plain call, in messages of bounded size, so that a node with thousands of
//! them meets no limit on a message.

use std::pin::Pin;

use futures::Stream;
use tonic::{Response, Status};

/// Items in one message. The largest item, a container's line with its labels and annotations, has some kilobytes.
const ITEMS: usize = 128;

/// Messages on their way.
type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a streaming call answers.
pub(super) type Answer<T> = Result<Response<Messages<T>>, Status>;

/// Streams a list. An empty one is one empty message, so that the caller hears something.
pub(super) fn stream<T, R>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> R + Send + 'static,
) -> Response<Messages<R>>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let messages = chunks(items).into_iter().map(move |part| Ok(message(part)));
    Response::new(Box::pin(futures::stream::iter(messages)))
}

fn chunks<T>(items: Vec<T>) -> Vec<Vec<T>> {
    let mut parts: Vec<Vec<T>> = vec![Vec::new()];
    for item in items {
        match parts.last_mut().filter(|part| part.len() < ITEMS) {
            Some(part) => part.push(item),
            None => parts.push(vec![item]),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_in_one_message_in_order_and_none_is_too_long() {
        for count in [0, 1, ITEMS, ITEMS + 1, 3 * ITEMS] {
            let parts = chunks((0..count).collect());
            assert!(parts.iter().all(|part| part.len() <= ITEMS));
            assert_eq!(parts.concat(), (0..count).collect::<Vec<_>>());
            assert_eq!(parts.len(), count.div_ceil(ITEMS).max(1));
        }
    }
}
