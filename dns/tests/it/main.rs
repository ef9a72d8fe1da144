//! The DNS server from outside: real sockets over a real catalog, answers decoded by somebody else's code.

mod answers;
mod cached;
mod corpus;
mod forward;
mod golden;
mod private;
mod support;
mod transport;
mod ways;
