//! libmesh from outside: real sockets on loopback, a certificate authority made by the test.

mod ca;
mod identity;
mod rpc;
