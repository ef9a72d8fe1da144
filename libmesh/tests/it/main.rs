//! libmesh from outside: real sockets on loopback, a certificate authority made by the test.

mod ca;
mod connect;
mod identity;
mod rpc;
