//! The whole device, driven through its queues by a FUSE client that need not behave.

mod client;
mod exports;
mod hostile;
mod requests;
