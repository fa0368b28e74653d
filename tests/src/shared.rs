//! One node for all tests of a file that leave it as they find it.

use std::ops::Deref;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use crate::Node;

/// The node of a file's tests: started by the first that needs it, taken down with the last that holds it. Put it
/// into a `static`.
#[derive(Debug)]
pub struct SharedNode {
    node: Mutex<Weak<Kept>>,
    start: fn() -> Node,
}

impl SharedNode {
    /// A node that `start` makes when it is needed.
    pub const fn new(start: fn() -> Node) -> Self {
        Self { node: Mutex::new(Weak::new()), start }
    }

    /// The node; it stays up while somebody holds it.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn get(&self) -> Arc<Kept> {
        // A test that failed to start the node has left nothing behind: the next one tries again.
        let mut node = self.node.lock().unwrap_or_else(PoisonError::into_inner);
        node.upgrade().unwrap_or_else(|| {
            let kept = Arc::new(Kept::start(self.start));
            *node = Arc::downgrade(&kept);
            kept
        })
    }
}

/// A node that is held by several tests. It belongs to a thread of its own: the node's namespaces end with the thread
/// that made them, and a test's thread ends with its test.
#[derive(Debug)]
pub struct Kept {
    node: Option<Node>,
    owner: Option<thread::JoinHandle<()>>,
    end: Sender<()>,
}

impl Kept {
    fn start(start: fn() -> Node) -> Self {
        let (sender, receiver) = channel();
        let (end, ended) = channel();
        let owner = thread::spawn(move || own(start, &sender, &ended));
        match receiver.recv() {
            Ok(node) => Self { node: Some(node), owner: Some(owner), end },
            Err(_) => match owner.join() {
                Err(panic) => std::panic::resume_unwind(panic),
                Ok(()) => unreachable!("the owner of a node ends after its tests"),
            },
        }
    }
}

fn own(start: fn() -> Node, made: &Sender<Node>, ended: &Receiver<()>) {
    if made.send(start()).is_ok() {
        let _ = ended.recv();
    }
}

impl Deref for Kept {
    type Target = Node;

    fn deref(&self) -> &Node {
        self.node.as_ref().expect("the node is there until it is dropped")
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        drop(self.node.take());
        let _ = self.end.send(());
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}
